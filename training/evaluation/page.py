"""The page of evaluations: one HTML file over the results of a checkpoint's tasks, and the same as one JSON file.

    PATH/index.html, PATH/eval.json    or, if PATH ends in .html, that file and a .json of its name beside it

Results are added one by one, by `wenlan-train eval --report PATH`: a new one takes the place of that of the same task,
data, split, classes, sentences, towers and checkpoint. The page is made again from the JSON file, pictures included, so
it can be made again from that alone. It loads nothing (its content security policy forbids the network), and speaks
English and Chinese.

Limits: what a protocol says in words is translated by the tables here; what they lack is shown in English.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from data_specs.storage.whole_files import exclusive
from training.errors import InputError, first_line
from training.evaluation.results import parts as parts_of
from training.evaluation.retrieval import KS
from training.outputs.atomic_files import atomic_file

PAGE_VERSION = 1
"""Version of the layout of eval.json."""

Values = dict[str, Any]

_SAME = ("data", "split", "towers", "checkpoint", "templates_sha256", "classes_sha256", "truth")
"""Parts of a protocol that make it another measurement."""


def add_result(path: Path, result: Mapping[str, Any]) -> Path:
    """Add a result of a task to the page at `path`, and return the HTML file. Several at once wait for one another.

    Raises InputError where the JSON file beside it is not ours, RunError (disk).
    """
    html, figures = _files(path)
    html.parent.mkdir(parents=True, exist_ok=True)
    with exclusive(html.parent):
        results = [known for known in _read(figures) if _identity(known) != _identity(result)]
        results.append(dict(result))
        document = {"page_version": PAGE_VERSION, "results": results}
        for file, text in (
            (figures, json.dumps(document, ensure_ascii=False, indent=1) + "\n"),
            (html, render(results)),
        ):
            with atomic_file(file) as temporary:
                # A path that is not UTF-8 by its escapes, which JSON reads back as they were.
                temporary.write_text(text, encoding="utf-8", errors="backslashreplace")
    return html


def read_results(path: Path) -> list[Values]:
    """The results that the page at `path` shows already. Raises InputError where the JSON file is not ours."""
    return _read(_files(path)[1])


def _files(path: Path) -> tuple[Path, Path]:
    """The HTML file of a page and the JSON file beside it."""
    return (path, path.with_suffix(".json")) if path.suffix == ".html" else (path / "index.html", path / "eval.json")


def _identity(result: Mapping[str, Any]) -> tuple[Any, ...]:
    return (result["task"], result["detector"], *(result["protocol"].get(name) for name in _SAME))


def _read(file: Path) -> list[Values]:
    if not file.exists():
        return []
    try:
        document = json.loads(file.read_bytes())
        if document["page_version"] != PAGE_VERSION:
            raise ValueError(f"page version {document['page_version']}, this wenlan writes version {PAGE_VERSION}")
        results: list[Values] = document["results"]
        for known in results:
            _identity(known)
        render(results)
        return results
    except OSError:
        raise
    except Exception as e:  # figures of others may fail anywhere on the page
        raise InputError(
            str(file), f"not an eval.json of wenlan ({first_line(e)}); give --report another path"
        ) from None


def render(results: Sequence[Mapping[str, Any]]) -> str:
    """The HTML of results of tasks, in their order."""
    import jinja2

    templates = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).with_name("templates")),
        undefined=jinja2.StrictUndefined,
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters |= {"percent": lambda value: f"{100 * value:.1f}%", "n": lambda value: f"{value:,}"}
    sections = [_section(number, result) for number, result in enumerate(results, 1)]
    return str(templates.get_template("eval.html").render(sections=sections, checkpoints=_checkpoints(results)))


def _checkpoints(results: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """(name, digest) of each checkpoint."""
    found = {r["protocol"]["checkpoint"]: _short(r["checkpoint"]) for r in results}
    return [(name, digest) for digest, name in found.items()]


def _short(folder: str) -> str:
    """The last two parts of a path: a run and its checkpoint."""
    return "/".join(Path(folder).parts[-2:])


def _name(data: str) -> str:
    """Name of data in a title: the last part of their path that is a name; the protocol has all of it."""
    names = []
    for one in data.split(" "):
        parts = [part for part in one.split("/") if part] or [one]
        while len(parts) > 1 and parts[-1] in ("manifest.json", "latest.json", "shards"):
            parts.pop()
        names.append(parts[-1].rpartition(":")[2])
    return " ".join(names)


# --- from a result to what is drawn

Words = tuple[str, str]
"""In English and in Chinese."""

TITLES: dict[str, Words] = {
    "retrieval": ("Retrieval: images and texts", "图文检索"),
    "zero-shot": ("Zero-shot classification", "零样本分类"),
    "regions": ("Region classification", "区域分类"),
}

ABOUT: dict[str, Words] = {
    "retrieval": (
        "Every image is a query for its texts among all texts, and every text for its images.",
        "每张图片在全部文本中寻找自己的文本，每条文本在全部图片中寻找自己的图片。",
    ),
    "zero-shot": (
        "Each image gets the class whose name, in several sentences, is nearest. Nothing was trained on these classes.",
        "把类别名称放进若干句子，图片归入最接近的类别；没有用这些类别做过训练。",
    ),
    "regions": (
        "Each box gets the class whose name is nearest: by the tower's feature of that box alone, and for comparison "
        "by the box cut out and embedded as an image, as a CLIP would.",
        "每个框归入名称最接近的类别：一种用图像塔对该框单独给出的特征，另一种像 CLIP 那样把框裁出来当作一张图。",
    ),
}

PARTS: dict[str, Words] = {
    "unseen": ("unseen in train", "训练集中没有"),
    "seen": ("seen in train", "训练集中有"),
    "all": ("all", "全部"),
}

HEADLINES: dict[str, Words] = {
    "retrieval": ("R@1 image → text", "R@1 图 → 文"),
    "zero-shot": ("top-1", "top-1"),
    "regions": ("top-1, box alone", "top-1，单独的框"),
}

GROUPS: dict[str, Words] = {
    "i2t": ("image → text", "图 → 文"),
    "t2i": ("text → image", "文 → 图"),
    "zero-shot": ("image → class", "图 → 类别"),
    "regions": ("box → class", "框 → 类别"),
}

_FIELDS: dict[str, Words] = {
    "data": ("data", "数据"),
    "split": ("split", "划分"),
    "images": ("images", "图片"),
    "texts": ("texts", "文本"),
    "boxes": ("boxes", "框"),
    "classes": ("classes", "类别"),
    "templates": ("templates", "句式"),
    "templates_sha256": ("sha256 of the templates", "句式的 sha256"),
    "truth": ("truth", "真值"),
    "hit": ("hit", "命中"),
    "towers": ("towers", "双塔"),
    "checkpoint": ("sha256 of the checkpoint", "检查点的 sha256"),
}

_CHINESE: dict[str, str] = {
    "a hit has the same image leader or text leader": "图片或文本同属一簇即为命中",
    "a hit is a caption of the image; every caption is a query": "该图片的任一描述即为命中；每条描述各作一次查询",
    "a hit is the image's class": "图片所属的类别即为命中",
    "a hit is the box's class": "框所属的类别即为命中",
    "annotated boxes": "人工标注的框",
    "query": "查询塔",
    "key": "动量塔",
    "all": "全部",
}

_OF_DETECTOR = re.compile(r"boxes of detector (.+) with a score of (.+) or more")


def chinese(text: str) -> str:
    """Chinese of a protocol's words; the English where no table has it."""
    if match := _OF_DETECTOR.fullmatch(text):
        return match.expand(r"检测器 \1 给出的、得分不低于 \2 的框")
    return _CHINESE.get(text, text)


def _section(number: int, result: Mapping[str, Any]) -> Values:
    parts = [(name.partition(" ")[0], part) for name, part in parts_of(result)]
    main_name, main = parts[0]
    task = str(result["task"])
    charts = _recall_charts(parts) if task == "retrieval" else _class_charts(task, parts)
    widest = max((chart["end"] for chart in charts), default=1.0)
    charts = [chart | {"end": widest} for chart in charts]  # side by side, so on one scale
    return {
        "id": f"result-{number}",
        "title": TITLES[task],
        "about": ABOUT[task],
        "name": _name(result["protocol"]["data"]),
        "split": result["protocol"]["split"],
        "checkpoint": _short(result["checkpoint"]),
        "part": PARTS[main_name],
        "known": result["in_train"] is not None,
        "in_train": (result["in_train"] or {}).get("either", 0),
        "corrupt": result["corrupt"],
        "protocol": _protocol(result["protocol"]),
        "line": result["protocol"]["line"],
        "legend": [(name, PARTS[name]) for name, _ in parts] if len(parts) > 1 else [],
        "headline": charts[0]["rows"][0]["bars"][0] | {"name": HEADLINES[task]} if charts else None,
        "charts": charts,
        "per_class": sorted(main.get("per_class", []), key=lambda row: (-row["top1"], -row["n"])),
        "pairs": main.get("worst_pairs", []),
        "groups": _groups(result.get("examples", [])),
    }


def _protocol(protocol: Mapping[str, Any]) -> list[tuple[Words, Words]]:
    """(name, value) of its fields, each in both languages."""
    rows = []
    for name, words in _FIELDS.items():
        if name in protocol:
            value = protocol[name]
            text = f"{value:,}" if isinstance(value, int) else str(value)
            rows.append((words, (text, chinese(text))))
    return rows


Part = tuple[str, Mapping[str, Any]]


def _recall_charts(parts: Sequence[Part]) -> list[Values]:
    """One figure per direction, its rows are k."""
    charts = []
    for direction in ("i2t", "t2i"):
        of_parts = [(name, part[direction]) for name, part in parts]
        rows = [(f"R@{k}", f"R@{k}", [_bar(name, p, f"r{k}", f"chance_r{k}") for name, p in of_parts]) for k in KS]
        queries = of_parts[0][1]["queries"]
        median = f"{of_parts[0][1]['median_rank']:,.0f}"
        note = (f"median rank {median} · {queries:,} queries", f"排名中位数 {median} · {queries:,} 次查询")
        charts.append(_chart(GROUPS[direction], rows, note))
    return charts


def _class_charts(task: str, parts: Sequence[Part]) -> list[Values]:
    """One figure per way to classify: its rows are top-1, top-5 and the mean over classes."""
    ways: list[tuple[str, Words]] = [("", GROUPS[task])]
    if task == "regions" and "crop" in parts[0][1]:
        ways = [("", ("box alone: the tower's region", "单独的框：图像塔的区域特征"))]
        ways.append(("crop", ("crop of the box, as a CLIP does it", "裁出的框：CLIP 的做法")))
    charts = []
    for way, title in ways:
        of_parts = [(name, part[way] if way else part) for name, part in parts]
        rows = [
            (f"top-{k}", f"top-{k}", [_bar(name, p, f"top{k}", f"chance_top{k}") for name, p in of_parts])
            for k in (1, 5)
            if f"top{k}" in of_parts[0][1]
        ]
        rows.append(
            ("mean per class", "各类平均", [_bar(name, p, "mean_per_class", "chance_top1") for name, p in of_parts])
        )
        main = of_parts[0][1]
        largest = f"{main['majority']:.1%}"
        note = (f"{main['n']:,} items · largest class {largest}", f"{main['n']:,} 项 · 最大的类别占 {largest}")
        charts.append(_chart(title, rows, note))
    if task == "regions" and "alone_minus_crop" in parts[0][1]:
        low, high = parts[0][1]["alone_minus_crop_interval"]
        words = f"{100 * parts[0][1]['alone_minus_crop']:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"
        charts[0]["note"] = tuple(
            f"{note} · {name} {words}"
            for note, name in zip(
                charts[0]["note"], ("top-1 minus top-1 of crops, points:", "top-1 与裁框之差（百分点）："), strict=True
            )
        )
    return charts


def _bar(part: str, figures: Mapping[str, Any], name: str, chance: str) -> Values:
    low, high = figures[f"{name}_interval"]
    return {"part": part, "value": figures[name], "low": low, "high": high, "chance": figures[chance]}


def _chart(title: Words, rows: Sequence[tuple[str, str, list[Values]]], note: Words) -> Values:
    """A figure. `end`: the share at the right end of its axis, the least of a few round ones that holds all of it."""
    most = max(max(bar["high"], bar["chance"]) for _, _, bars in rows for bar in bars)
    end = next(e for e in (0.05, 0.1, 0.2, 0.5, 1.0) if most <= e or e == 1.0)
    return {
        "title": title,
        "note": note,
        "end": end,
        "rows": [{"name": (en, zh), "bars": bars} for en, zh, bars in rows],
    }


def _groups(examples: Sequence[Mapping[str, Any]]) -> list[Values]:
    """Examples by what is asked, hits and misses apart."""
    groups: dict[str, Values] = {}
    for example in examples:
        group = groups.setdefault(example["group"], {"title": GROUPS[example["group"]], "hits": [], "misses": []})
        group["hits" if example["right"] else "misses"].append(example)
    return list(groups.values())
