"""Every figure that is counted over rows is what pandas counts over the same files, on builds of several kinds."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from data_specs.build import BuildSpec
from data_specs.shard import Text
from pipeline import opening
from pipeline.publish import release
from pipeline.records import candidate_rows, candidates_of
from pipeline.report import page
from pipeline.report.hidden_content import HIDDEN
from pipeline.stages.admit import admit
from pipeline.store.build import Build
from pipeline.store.frames import Frames
from pipeline.texts.words import stop_words, words_of
from tests.drawn import blobs, encoded
from tests.stages import run_noted, run_stage
from tests.weeks import Weeks

pytestmark = pytest.mark.slow

Values = dict[str, Any]
DECIDING = ("extract", "admit", "fetch", "measure", "filter", "dedup")
"""Stages that drop something in these builds."""
HAN = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")
TEXTS = ("公园里的花草树木，第{}张", "a park 春天的公园{}", "花", "春天 spring {}", "春天的公园" * 9)


def odd_texts(folder: Path) -> Build:
    """A build of pictures of many sides with texts of many lengths and scripts, some of them the same picture."""
    photos = folder / "photos"
    photos.mkdir()
    for number in range(40):
        side = (90 + 40 * (number % 7), 240 + 31 * (number % 5))
        kind = ("JPEG", "PNG", "WEBP")[number % 3]
        (photos / f"{number}.{kind.lower()}").write_bytes(encoded(_image(number - number % 4, side), kind))
        (photos / f"{number}.txt").write_text(TEXTS[number % len(TEXTS)].format(number), "utf-8")
    source = {"kind": "folder", "name": "mine", "source_kind": "library", "path": "photos"}
    filters = [{"name": "text_length", "min_chars": 2, "max_chars": 40}, {"name": "image_sides", "min_side": 120}]
    raw = {"name": "photos", "contact": "mailto:a@b.c", "base": str(folder), "sources": [source], "filters": filters}
    raw["shards"] = {"samples_per_shard": 7, "dev_share": 0.2, "val_share": 0.2}
    build = opening.open_build(BuildSpec.model_validate(raw), str(folder / "out"), str(folder / "store"), "2026-01-01")
    run_noted(build, *[name for name in build.stages if name != "report"])
    return build


def _image(seed: int, side: tuple[int, int]) -> Any:
    return Image.fromarray(blobs(seed, side))


def by_hand(folder: Path, synthetic: Any) -> Build:
    """The synthetic build, of which `admit` has taken texts off some candidates."""
    build, _ = synthetic.make(folder)
    stage = build.stage("admit")
    record = stage.record(stage.partitions()[0])
    rows = candidates_of(stage.table(record))
    longer = [replace(c, texts=(Text("title", "<"), *c.texts)) if n % 3 else c for n, c in enumerate(rows)]
    kept, _ = admit(longer, build.spec)
    stage.delete_record(record.partition)
    with stage.attempt(record.partition) as attempt:
        attempt.decide(stage.table(record, "decisions.parquet"))
        attempt.write_table("parquet", candidate_rows(kept, build.spec.seed))
        attempt.commit(record.counts, record.info)
    run_stage(build, "shard")
    return build


def weekly(folder: Path, synthetic: Any) -> Build:
    """The second week of a dataset: most of what it finds is known."""
    weeks = Weeks(folder, synthetic.encode)
    release.publish(weeks.build("2026-01-01", range(12)))
    return weeks.build("2026-01-08", range(8, 20))


@pytest.fixture(scope="module", params=["odd_texts", "by_hand", "weekly"])
def told(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, synthetic: Any
) -> tuple[Tables, Values]:
    """The tables of a build, and its report."""
    folder = tmp_path_factory.mktemp(request.param)
    makers: dict[str, Callable[[], Build]] = {
        "odd_texts": lambda: odd_texts(folder),
        "by_hand": lambda: by_hand(folder, synthetic),
        "weekly": lambda: weekly(folder, synthetic),
    }
    build = makers[request.param]()
    return Tables(build), page.make_report(build)


class Tables:
    """The tables of a build as pandas reads them."""

    def __init__(self, build: Build) -> None:
        self.build, frames = build, Frames.of(build)
        self.decisions, self.samples = frames.frame("decisions"), frames.frame("samples")
        self.candidates = self.decisions[self.decisions.subject == "candidate"]
        self.regions = {name: frames.frame(f"regions/{name}") for name in frames.detectors}
        self.primary = pd.DataFrame([texts[0] for texts in self.samples.texts])
        self.texts = pd.DataFrame([text for texts in self.samples.texts for text in texts])


def counts(values: Any, count: str = "count", most: int = 10_000) -> list[Values]:
    """Names with how often each occurs, the most frequent first, then by name."""
    ranked = sorted(Counter(values).items(), key=lambda own: (-own[1], own[0]))[:most]
    return [{"name": name, count: number} for name, number in ranked]


def totals(t: Tables) -> Values:
    known = (t.candidates.reason == "known").sum()
    kept = t.candidates.kept.sum()
    dropped = len(t.candidates) - kept - known
    return {"candidates": len(t.candidates), "kept": kept, "dropped": dropped, "known": known}


def funnel(t: Tables) -> list[Values]:
    rows, seen = [], len(t.candidates)
    for stage in DECIDING:
        here = t.candidates[(t.candidates.stage == stage) & ~t.candidates.kept]
        known = (here.reason == "known").sum()
        reasons = counts(here.reason[here.reason != "known"])
        rows.append([stage, seen, seen - len(here), len(here) - known, known, reasons])
        seen -= len(here)
    return rows


def domains(urls: pd.Series) -> list[Values]:
    return counts((urlsplit(url).hostname or "" for url in urls), most=200)


def histogram(values: Any, *edges: float) -> list[int]:
    """NumPy's histogram; the last bin is open, and the first one takes what is below it."""
    found, _ = np.histogram(np.maximum(np.asarray(values, np.float64), edges[0]), [*edges, np.inf])
    return found.tolist()


_SIDES = (0, 64, 128, 200, 256, 384, 512, 768, 1024, 1536, 2048, 4096)


def histograms(t: Tables) -> dict[str, list[int]]:
    texts, w, h = t.primary.text, t.samples.width, t.samples.height
    letters = [sum(unicodedata.category(c)[0] == "L" for c in text) for text in texts]
    han = [len(HAN.findall(text)) / max(1, count) for text, count in zip(texts, letters, strict=True)]
    kilobytes = (0, 5, 10, 20, 50, 100, 200, 500, 1000, 2000)
    regions = {
        f"regions/{name}": histogram(rows.scores.map(len), 0, 1, 2, 5, 9, 17, 25, 36, 37)
        for name, rows in t.regions.items()
    }
    return {
        "characters": histogram(texts.map(len), 0, 2, 4, 6, 8, 10, 15, 20, 30, 50, 100, 200, 500),
        "words": histogram([len(words_of(x)) for x in texts], 0, 1, 2, 3, 4, 5, 6, 8, 10, 15, 20, 30, 50, 100),
        "han_letters": histogram(han, *(i / 10 for i in range(10))),
        "texts": histogram(t.samples.texts.map(len), *range(1, 9)),
        "short_side": histogram(np.minimum(w, h), *_SIDES),
        "long_side": histogram(np.maximum(w, h), *_SIDES),
        "aspect": histogram(w / h, 0.0, 1 / 3, 1 / 2, 2 / 3, 0.9, 1.1, 1.5, 2.0, 3.0),
        "bytes": histogram(t.samples.image_size / 1000, *kilobytes),
        **regions,
    }


def frequent(t: Tables) -> Values:
    own = Counter[str]()
    for text in t.primary.text:
        own.update({w for w in words_of(text) if len(w) > 1 and w not in stop_words() and HAN.search(w)})
    return dict(sorted(own.items(), key=lambda item: (-item[1], item[0]))[:40])


def groups(t: Tables) -> Counter[int]:
    copies = t.candidates[(t.candidates.duplicate_of != "") & (t.candidates.duplicate_of != t.candidates.id)]
    return Counter(copies.groupby("duplicate_of").size() + 1)


def removed(t: Tables) -> dict[tuple[str, str, str], int]:
    found = Counter[tuple[str, str, str]]()
    for name in ("extract", "admit"):
        stage = t.build.stage(name)
        for record in stage.records():
            for texts in stage.table(record, columns=["removed"])["removed"].to_pylist():
                found.update((name, text["kind"], text["reason"]) for text in texts or ())
    return dict(found)


SIZES = {2: 0, 3: 1, 4: 2, 5: 3, 6: 4, 8: 5, 11: 6, 21: 7, 51: 8, 101: 9}


def sizes(t: Tables) -> list[int]:
    own = [size for size, number in groups(t).items() for _ in range(number)]
    return histogram(own, *SIZES) if own else [0] * len(SIZES)


ORACLES: dict[str, tuple[Callable[[Values], Any], Callable[[Tables], Any]]] = {
    "totals": (lambda r: r["totals"], totals),
    "funnel": (
        lambda r: [
            [row[name] for name in ("stage", "seen", "kept", "dropped", "known", "reasons")]
            for row in r["funnel"]
            if row["stage"] in DECIDING
        ],
        funnel,
    ),
    "reasons": (
        lambda r: r["reasons"],
        lambda t: counts(x for x in t.candidates.reason if x not in ("", "known")),
    ),
    "sources": (
        lambda r: {s["name"]: [s["candidates"], s["kept"], s["known"]] for s in r["sources"] if s["candidates"]},
        lambda t: {
            name: [len(own), own.kept.sum(), (own.reason == "known").sum()]
            for name, own in t.candidates.groupby("source")
        },
    ),
    "splits": (
        lambda r: {s["name"]: s["samples"] for s in r["splits"] if s["samples"]},
        lambda t: dict(Counter(t.samples.split)),
    ),
    "duplicates": (
        lambda r: r["duplicates"],
        lambda t: ((t.candidates.duplicate_of != "") & (t.candidates.reason != "known")).sum(),
    ),
    "cluster_sizes": (lambda r: [b["count"] for b in r["cluster_sizes"]["bins"]], sizes),
    "not_shown": (lambda r: r["not_shown"], lambda t: t.candidates.reason.isin(HIDDEN).sum()),
    "histograms": (lambda r: {h["name"]: [b["count"] for b in h["bins"]] for h in r["histograms"]}, histograms),
    "kinds": (
        lambda r: {k["name"]: (k["texts"], k["primary"]) for k in r["kinds"]},
        lambda t: {
            kind: (number, (t.primary.kind == kind).sum()) for kind, number in Counter(t.texts.kind).items()
        },
    ),
    "formats": (lambda r: r["formats"], lambda t: counts(t.samples.format)),
    "image_domains": (lambda r: r["image_domains"], lambda t: domains(t.samples.image_url)),
    "page_domains": (lambda r: r["page_domains"], lambda t: domains(t.samples.page_url[t.samples.page_url != ""])),
    "regions": (
        lambda r: {d["detector"]: (d["images"], d["mean"], d["without"]) for d in r["regions"]},
        lambda t: {
            name: (len(rows), round(rows.scores.map(len).mean(), 3), (rows.scores.map(len) == 0).sum())
            for name, rows in t.regions.items()
        },
    ),
    "words": (lambda r: {word["name"]: word["count"] for word in r["words"]}, frequent),
    "texts": (
        lambda r: {k["name"]: (k["primary"], k["fallbacks"]) for k in r["kinds"] if k["primary"]},
        lambda t: {
            kind: (len(own), (own.text_rank > 0).sum())
            for kind, own in t.samples.assign(kind=t.primary.kind).groupby("kind")
        },
    ),
    "removed": (
        lambda r: {(g["stage"], g["kind"], g["reason"]): g["count"] for g in r["texts"]["removed"]},
        removed,
    ),
}  # fmt: skip
"""What the report says, and what pandas says, by name."""


@pytest.mark.parametrize("name", ORACLES)
def test_the_report_counts_as_pandas_does(told: tuple[Tables, Values], name: str) -> None:
    tables, report = told
    said, counted = ORACLES[name]
    assert said(report) == counted(tables)


def test_a_sound_build_has_no_faults_and_rows_that_are_shown_are_its_decisions(told: tuple[Tables, Values]) -> None:
    tables, report = told
    assert report["faults"] == []
    decided = tables.candidates.set_index(["id", "reason"])
    for row in page.rows(report):
        if row["id"] in decided.index and "reason" in row:
            own = decided.loc[(row["id"], row["reason"])]
            assert {name: row[name] for name in ("source", "stage", "url", "text")} == {
                name: own[name] for name in ("source", "stage", "url", "text")
            }
