"""The study's page: one HTML file with all it needs in it, made of the records that are there at any time.

It states what the figures imply (results.py), shows a figure for every run, speaks English and Chinese,
and makes no request.

Limits: drawings are shown under the licences of their packages, which the page names.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from tests.benchmarks.study.arms import BASES, Arm
from tests.benchmarks.study.charts import Series, curves, forest
from tests.benchmarks.study.records import Records, records_of
from tests.benchmarks.study.results import (
    CLAIMS,
    HEADLINES,
    SHORT,
    Families,
    Figures,
    Words,
    controls,
    judge,
    r1,
    statement,
    too_short,
)
from tests.benchmarks.study.runs import Study
from tests.benchmarks.study.sections import sections
from tests.benchmarks.study.trial import SMALL_GALLERY, dev
from training.evaluation import page

_TEMPLATES = (Path(__file__).parent, Path(page.__file__).with_name("templates"))
"""The page's own, and those of the page of evaluations, whose switches of language and theme it has too."""

_CHARTS: tuple[tuple[Words, Words, tuple[str, ...]], ...] = (
    (
        ("Is it the queue?", "是队列的作用吗？"),
        ("batch 16 and 64", "批大小 16 和 64"),
        ("moco", "moco-k0", "clip", "clip-learned", "clip-b64"),
    ),
    (("Objective", "目标函数"), ("batch 16", "批大小 16"), ("moco", "clip", "siglip", "albef")),
    (
        ("Batch", "批大小"),
        ("queue against in-batch CLIP", "队列与批内 CLIP"),
        ("moco-b8", "moco", "moco-b64", "clip-b8", "clip"),
    ),
    (
        ("Queue", "队列长度"),
        ("momentum .99, batch 16", "动量 .99，批大小 16"),
        ("moco-k0", "moco", "moco-k4096"),
    ),
    (
        ("Momentum", "动量"),
        ("queue 1,024, batch 16", "队列 1,024，批大小 16"),
        ("moco-m0", "moco", "moco-m0.999"),
    ),
)

_COLOURS = {"moco": 0, "clip": 1}

_LABELS: dict[str, Words] = {
    "moco": ("queue (moco)", "队列（moco）"),
    "clip": ("in-batch CLIP", "批内 CLIP"),
    "moco-k0": ("key towers, no queue (K = 0)", "动量塔，没有队列（K = 0）"),
    "clip-learned": ("CLIP, learned temperature", "CLIP，可学习的温度"),
    "clip-b64": ("CLIP, batch 64", "CLIP，批大小 64"),
    "siglip": ("SigLIP", "SigLIP"),
    "albef": ("soft targets (albef)", "软目标（albef）"),
    "shuffled": ("control: shuffled pairs", "对照：打乱的图文对"),
    "single-tower": ("single tower, matching loss alone", "单塔，只有匹配损失"),
}

_HEADS: tuple[Words, ...] = (
    ("arm", "组"),
    ("unseen styles, equal samples", "没见过的画风，样本数相等"),
    ("unseen styles, equal compute", "没见过的画风，计算量相等"),
    ("unseen styles, equal steps", "没见过的画风，步数相等"),
    ("unseen names", "没见过的名称"),
    ("train style", "训练画风"),
    (f"of {SMALL_GALLERY} candidates", f"{SMALL_GALLERY} 个候选"),
    ("T, rate", "温度，学习率"),
    ("length, samples", "长度，样本数"),
    ("operations a sample", "每样本运算量"),
    ("ms a step", "每步毫秒"),
    ("seeds", "种子"),
)

_RUN_HEADS: tuple[Words, ...] = (
    ("arm", "组"),
    ("seed", "种子"),
    ("unseen styles", "没见过的画风"),
    ("unseen names", "没见过的名称"),
    ("train", "训练"),
    ("dev", "dev"),
    (f"of {SMALL_GALLERY}", f"{SMALL_GALLERY} 个候选"),
    ("drawing → name", "图找名"),
    ("name → drawing", "名找图"),
    ("loss", "损失"),
    ("seconds", "秒"),
)


def label(arm: Arm) -> Words:
    """An arm's name in words."""
    if arm.name in _LABELS:
        return _LABELS[arm.name]
    kind = ("queue", "队列") if arm.objective == "moco" else ("CLIP", "CLIP")
    differs = {"batch": f"B={arm.batch}", "queue": f"K={arm.queue:,}", "momentum": f"m={arm.momentum:g}"}
    return f"{kind[0]}, {differs[arm.factor]}", f"{kind[1]}，{differs[arm.factor]}"


@dataclass(frozen=True)
class _Row:
    """One arm in the table of arms; figures as text, empty where there are none."""

    name: Words
    cells: tuple[str, ...]
    base: bool


def write_page(study: Study) -> Path:
    """Make the page of a study from its records, or where it has none from those of the repository; returns its path.
    Raises InputError where there are neither."""
    import jinja2

    records = records_of(study)
    template = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    ).get_template("page.html")
    path = study.folder / "index.html"
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".index.html.{os.getpid()}")
    new.write_text(template.render(**_content(study, records)), encoding="utf-8")
    new.replace(path)
    return path


def _content(study: Study, records: Records) -> dict[str, Any]:
    import markupsafe

    figures, short = records.figures(), study.plan.samples < SHORT
    shown = sections(records.pairs, records.datasets)
    answers = [section["answer"] for section in shown if section["answer"][0]]
    verdicts = [] if short else [judge(claim, figures, records.families) for claim in CLAIMS]
    judged = [v for v in verdicts if v.gain is not None]
    # The axis is that of the large galleries: what reaches further is cut, with an arrow.
    wide = [abs(v.gain.mean) for v in judged if v.gain is not None and not v.claim.gallery.endswith("_small")]
    most = max(wide, default=0.01) * 1.6 + 0.005
    styles = {
        name: [names for other, _, names in records.galleries if other == name] for name, _, _ in records.galleries
    }
    chance = {name: fmean(1 / names for names in own) for name, own in styles.items()}
    planned = sum(len(study.plan.seeds_of(arm)) for arm in study.plan.arms)
    return {
        "statements": [too_short(study.plan.samples)] if short else [*_statements(figures, records.families), *answers],
        "settings": _settings(records),
        "lasts": _lasts(study, figures),
        "heads": _HEADS,
        "run_heads": _RUN_HEADS,
        "verdicts": [(v, markupsafe.Markup(forest(v.gain, most)) if v.gain and v.gain.n > 1 else "") for v in judged],
        "charts": _charts(study, figures, chance.get("style")),
        "rows": [_row(f, n, n < f.samples) for f in figures.values() for n in _lengths(f, figures)],
        "runs": [_run(f, trial) for f in figures.values() for trial in f.trials],
        "search": _search(figures, records.galleries),
        "styles": study.plan.styles,
        "chance": chance,
        "training": records.training,
        "done": sum(len(f.trials) for f in figures.values()),
        "planned": planned,
        "without": [label(arm) for arm in study.plan.arms if arm.name not in figures],
        "plan": study.plan,
        "lengths": sorted({study.plan.samples_of(arm) for arm in study.plan.arms}, reverse=True),
        "packages": records.packages,
        "small": SMALL_GALLERY,
        "sections": shown,
    }


def _statements(figures: Mapping[str, Figures], families: Families) -> list[Words]:
    """The paper's claim at batch 16, its controls, and the claim at the smaller batch, where they have been run."""
    judged = {batch: [judge(claim, figures, families) for claim in claims] for batch, claims in HEADLINES.items()}
    said = [statement(batch, found) for batch, found in judged.items() if batch == 16 or found[0].gain is not None]
    of_queue = controls(figures, families)
    return said if of_queue is None else [said[0], of_queue, *said[1:]]


def _settings(records: Records) -> list[tuple[Words, str, str, str, str]]:
    """(arm, captions, T, rate, figure on dev) of each run that chose a setting."""
    arms = {arm.name: arm for arm in records.plan.arms}
    return [
        (label(arms[name]), s.captions, f"{s.temperature:g}", f"{s.rate:g}", _percent(figure))
        for name, s, figure in records.tried
        if name in arms
    ]


def _lasts(study: Study, figures: Mapping[str, Figures]) -> list[Words]:
    """Whether dev alone would choose a shorter N than the plan's, with each base's figures."""
    longest = [f.chosen("samples") == f.samples for name, f in figures.items() if name in BASES]
    said: list[Words] = [
        ("Dev alone would not choose a shorter one", "只看 dev 也不会选更短的")
        if all(longest)
        else ("Dev alone would choose a shorter one", "只看 dev 会选更短的")
    ]
    for name in BASES:
        if name in figures and figures[name].samples == study.plan.samples:
            f, lengths = figures[name], [p.samples for p in figures[name].trials[0].points]
            ends = [n for n in lengths if n <= f.samples][-3:]
            means = [(n, sum(dev(p) for t in f.trials for p in t.points if p.samples == n)) for n in ends]
            row = ", ".join(f"{100 * total / len(f.trials):.1f}" for _, total in means)
            at, own = ", ".join(f"{n:,}" for n in ends), label(f.arm)
            said.append((f"{own[0]}: {row} after {at} samples", f"{own[1]}：{at} 个样本后 {row}"))
    return said


@dataclass(frozen=True)
class _Key:
    """One line of a chart's legend."""

    words: Words
    colour: int


def _charts(
    study: Study, figures: Mapping[str, Figures], chance: float | None
) -> list[tuple[Words, Words, Any, list[_Key]]]:
    """(title, note, SVG, legend) of each chart that has more than the two bases."""
    import markupsafe

    found = []
    for title, note, names in _CHARTS:
        shown = [n for n in names if n in figures]
        # The two bases keep their colours from chart to chart.
        free = iter(range(2, 8))
        keys = [_Key(label(figures[n].arm), _COLOURS[n] if n in _COLOURS else next(free)) for n in shown]
        if len(shown) > 1 and set(shown) - set(_COLOURS):
            lines = [Series(k.words[0], k.colour, figures[n].curve("style")) for n, k in zip(shown, keys, strict=True)]
            mark = min(figures[n].samples for n in shown)
            found.append((title, note, markupsafe.Markup(curves(lines, mark, chance)), keys))
    if "moco" in figures and "clip" in figures:
        where: dict[str, Words] = {"style": ("unseen styles", "没见过的画风"), "train": ("a train style", "训练画风")}
        pairs = [(figures[n], g) for n in ("moco", "clip") for g in where]
        keys = []
        for colour, (f, g) in enumerate(pairs):
            name = label(f.arm)
            keys.append(_Key((f"{name[0]}, {where[g][0]}", f"{name[1]}，{where[g][1]}"), colour))
        lines = [Series(k.words[0], k.colour, f.curve(g)) for k, (f, g) in zip(keys, pairs, strict=True)]
        title, note = ("Seen and unseen", "见过与没见过"), ("how much is memory", "有多少是记忆")
        found.append((title, note, markupsafe.Markup(curves(lines, study.plan.samples)), keys))
    return found


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}"


def _lengths(f: Figures, figures: Mapping[str, Figures]) -> list[int]:
    """N at which an arm has a row: its own, and of a base also that of the arms which are compared with it."""
    return sorted({f.samples} | ({g.samples for g in figures.values()} if f.arm.name in BASES else set()), reverse=True)


def _row(f: Figures, samples: int, again: bool) -> _Row:
    """An arm's row at N = `samples`; `again`: it has another one, and this one says of which N it is."""

    def cell(gallery: str, budget: Any = "samples") -> str:
        found = f.mean(gallery, budget, samples)
        if found is None:
            return "–"
        return f"{100 * found.mean:.1f}" + (f" ± {100 * (found.high - found.mean):.1f}" if found.n > 1 else "")

    first, name = f.trials[0], label(f.arm)
    if again:
        name = f"{name[0]}, N = {samples:,}", f"{name[1]}，N = {samples:,}"
    return _Row(
        name,
        (
            cell("style"),
            cell("style", "compute"),
            cell("style", "steps") if f.arm.by_steps else "",
            cell("names"),
            cell("train"),
            cell("style_small"),
            f"{_temperature(f.arm, first.setting.temperature)}, {1e4 * first.setting.rate:g}e-4",
            f"{f.chosen('samples', samples):,}",
            f"{1 / first.ratio:.2f}",
            f"{f.step_ms:.1f}",
            str(len(f.trials)),
        ),
        not f.arm.base,
    )


def _temperature(arm: Arm, chosen: float) -> str:
    if arm.tempered:
        return f"{chosen:g}"
    return "learned" if arm.learned else "–"


def _run(f: Figures, trial: Any) -> tuple[Words, tuple[str, ...]]:
    """One line per run: R@1 by gallery at the arm's chosen length, and at the end."""
    length = f.chosen("samples")
    point = next(p for p in trial.points if p.samples == length)
    shown = [
        _percent(r1(point, g)) if g in point.i2t else "–" for g in ("style", "names", "train", "dev", "style_small")
    ]
    directions = [_percent(d.get("style", d.get("style_small"))) for d in (point.i2t, point.t2i)]
    seconds = f"{trial.points[-1].seconds:.0f}"
    return label(f.arm), (str(trial.seed), *shown, *directions, f"{point.loss:.3f}", seconds)


def _search(figures: Mapping[str, Figures], galleries: Sequence[tuple[str, int, int]]) -> dict[str, str] | None:
    """Cost of a query with two towers and with the single one; None without both."""
    if "moco" not in figures or "single-tower" not in figures:
        return None
    two, one = figures["moco"], figures["single-tower"]
    pairs = one.trials[0].search["pairs"]
    candidates = max(pictures for name, pictures, _ in galleries if name == "style")
    return {
        "two": f"{1000 * two.search_seconds:.1f}",
        "one": f"{1000 * one.search_seconds:.1f}",
        "pairs": f"{pairs:.0f}",
        "factor": f"{one.search_seconds / max(two.search_seconds, 1e-9):,.0f}",
        "candidates": f"{candidates:,}",
        "gallery": f"{one.search_seconds * candidates / pairs:.1f}",
        "million": f"{one.search_seconds * 1e6 / pairs / 60:,.0f}",
    }
