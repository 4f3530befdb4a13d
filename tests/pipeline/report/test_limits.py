"""limits: what the limits of filters keep and drop, by measure, and the texts nearest to them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data_specs.build import BuildSpec
from pipeline import opening
from pipeline.filters import Limit
from pipeline.plugins import find, names
from pipeline.report import limits
from pipeline.report.measures import MEASURES, SHOWN_TEXT
from pipeline.report.page import environment
from pipeline.stages import STAGES
from pipeline.store.build import Build
from pipeline.store.commits import DECISIONS
from pipeline.store.sql import Tables
from tests.drawn import blobs
from tests.stages import run_noted

FILTERS: list[dict[str, Any]] = [
    {"name": "text_length", "min_chars": 4, "max_chars": 30},
    {"name": "han_share", "min_share": 0.7},
    {"name": "image_sides", "min_side": 150, "max_side": 500},
    {"name": "image_aspect", "max_aspect": 2.0},
    {"name": "image_blank", "max_blankness": 0.6},
    {"name": "image_bytes", "min_bytes": 2_000},
    {"name": "image_entropy", "min_entropy": 3.0},
    {"name": "image_sharpness", "min_sharpness": 10.0},
    {"name": "image_frames"},
]
CAPTIONS = [
    "公园里的花草树木",
    "花",
    "花草",
    "公园里",
    "a park in spring 春天的公园",
    "春天 spring",
    "春天的公园" * 8,
    "春" * 250,
]
SIDES = [(320, 240), (140, 240), (100, 90), (460, 180), (700, 300), (640, 480), (200, 160)]


def picture(number: int) -> Image.Image:
    width, height = SIDES[number % len(SIDES)]
    pixels = np.array(blobs(number, (width, height)))
    pixels += np.random.default_rng(number).integers(0, 20, pixels.shape, dtype=np.uint8) // 2
    if number % 5 == 1:  # flat in parts
        pixels[: height * (number % 7 + 2) // 9] = 255
    return Image.fromarray(pixels)


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Build:
    """A build over pictures of many sizes with texts of many lengths, up to dedup."""
    folder = tmp_path_factory.mktemp("limits")
    (folder / "photos").mkdir()
    for number in range(100):
        path = folder / f"photos/{number}.jpg"
        picture(number).save(path, quality=30 if number % 3 else 90)
        caption = CAPTIONS[number // 2 % len(CAPTIONS)] if number % 2 else f"{CAPTIONS[0]}，第{number}张"
        path.with_suffix(".txt").write_text(caption, "utf-8")
    source = {"kind": "folder", "name": "mine", "source_kind": "library", "path": "photos"}
    spec = {"name": "photos", "contact": "mailto:a@b.c", "base": str(folder), "sources": [source], "filters": FILTERS}
    made = opening.open_build(BuildSpec.model_validate(spec), str(folder / "out"), str(folder / "store"), "1")
    run_noted(made, "crawl", "extract", "admit", "fetch", "measure", "filter", "dedup")
    return made


def collected(build: Build) -> list[dict[str, Any]]:
    """The charts of a build, all kept ones counted here."""
    with Tables.of(build) as tables:
        return limits.charts(build.spec, tables, {})


@pytest.fixture(scope="module")
def charts(build: Build) -> dict[str, dict[str, Any]]:
    return {chart["name"]: chart for chart in collected(build)}


def dropped(build: Build, stage: str) -> list[dict[str, Any]]:
    tables = build.tables(stage, DECISIONS, ["id", "fetch_id", "text", "reasons"])
    return [row for table in tables for row in table.to_pylist()]


def limits_of(charts: dict[str, dict[str, Any]]) -> Iterator[dict[str, Any]]:
    yield from itertools.chain.from_iterable(chart["limits"] for chart in charts.values())


@pytest.mark.slow
def test_every_picture_and_every_text_is_in_one_bar(build: Build, charts: dict[str, dict[str, Any]]) -> None:
    for name, chart in charts.items():
        stage = "admit" if MEASURES[name].of == "text" else "filter"
        assert sum(b["own"] + b["other"] for b in chart["bins"]) == len(dropped(build, stage)), name
        kept = sum(record.counts["kept"] for record in build.stage("dedup").records())
        assert sum(b["count"] for b in chart["bins"]) == chart["total"] == kept, name
        reasons = [limit["reason"] for limit in chart["limits"]]
        named = sum(1 for row in dropped(build, stage) if set(reasons) & set(row["reasons"]))
        assert sum(b["own"] for b in chart["bins"]) <= named, name


@pytest.mark.slow
def test_beside_a_limit_on_texts_stand_those_just_dropped_and_just_kept(
    build: Build, charts: dict[str, dict[str, Any]]
) -> None:
    least, most = charts["characters"]["limits"]
    assert least["just_dropped"] == ["公园里", "花草", "花"]
    assert most["just_dropped"] == ["春天的公园" * 8, "春" * SHOWN_TEXT]
    stage = build.stage("dedup")
    tables = [stage.table(record, columns=["texts"]) for record in stage.records()]
    kept = {texts[0]["text"] for table in tables for texts in table["texts"].to_pylist()}
    for limit in (least, most):
        nearest = sorted(kept, key=lambda text: (abs(sum(map(len, text.split())) - limit["value"]), text))
        assert limit["just_kept"] == nearest[: limits.EXAMPLES]
    assert charts["short_side"]["limits"][0]["just_dropped"] == []  # pictures have a sheet of their own


def test_a_bar_is_on_the_side_of_its_limit(charts: dict[str, dict[str, Any]]) -> None:
    sides = charts["short_side"]
    [limit] = sides["limits"]
    assert (limit["value"], limit["keeps"], limit["at"]) == (150, "from", [round(2 + 22 / 72, 3)])  # bin 128–199
    assert sum(b["own"] for b in sides["bins"][:3]) == limit["dropped"] > 0
    [aspect] = charts["aspect"]["limits"]
    assert aspect["at"] == [2.0, 7.0]  # 1:2 and 2:1, where their bins begin
    least, most = charts["characters"]["limits"]
    assert (least["at"], most["at"]) == ([2.0], [round(8 + 1 / 20, 3)])  # 30 is let in, 31 is not


def test_a_spec_without_limits_has_no_charts(synthetic_build: Build, run_stage: Any) -> None:
    spec = synthetic_build.spec.model_copy(update={"filters": ()})
    assert collected(replace(synthetic_build, spec=spec)) == []


@pytest.mark.parametrize("name", names("filters"))
def test_limits_of_filters_name_their_options_and_known_measures(name: str) -> None:
    plugin = find("filters", name).model_construct()
    for limit in plugin.limits() if hasattr(plugin, "limits") else ():
        assert isinstance(limit, Limit)
        assert limit.option in type(plugin).model_fields
        assert limit.measure in MEASURES
        assert (limit.least > -np.inf) != (limit.most < np.inf)


def test_sources_with_different_limits_have_a_line_each() -> None:
    """A folder's captions may be of one character, a site's need two."""
    site = {"kind": "site", "name": "s", "source_kind": "news", "start": ["https://a.example/"]}
    folder = {"kind": "folder", "name": "f", "source_kind": "library", "path": "x"}
    strict = {**folder, "filters": {"text_length": {"min_chars": 2}}}

    def drawn(*sources: dict[str, Any]) -> list[tuple[str, float, tuple[str, ...]]]:
        values = {"name": "n", "contact": "a@b.example", "sources": sources, "filters": [{"name": "text_length"}]}
        found = limits.limits_of(BuildSpec.model_validate(values))
        return [(own.option, max(own.least, -own.most), of) for _, own, of in found]

    longest = [("max_chars", -50.0, ("s",)), ("max_chars", -1000.0, ("f",))]
    assert drawn(site) == [("min_chars", 2, ()), ("max_chars", -50, ())]
    assert sorted(drawn(site, folder)) == sorted([("min_chars", 2, ("s",)), ("min_chars", 1, ("f",)), *longest])
    assert sorted(drawn(site, strict)) == sorted([("min_chars", 2, ()), *longest])


@pytest.mark.slow
def test_a_source_is_counted_at_its_own_limits(tmp_path: Path) -> None:
    for seed, name in enumerate(("own", "strict")):
        (tmp_path / name).mkdir()
        for side in (120, 160, 240):
            Image.fromarray(blobs(side + seed, (side, side))).save(tmp_path / f"{name}/{side}.jpg")
            (tmp_path / f"{name}/{side}.txt").write_text(f"春天的{name}{side}", "utf-8")
    own: dict[str, Any] = {"kind": "folder", "name": "own", "source_kind": "library", "path": "own"}
    strict = {
        **own,
        "name": "strict",
        "path": "strict",
        "filters": {"image_sides": {"min_side": 200}, "text_length": {"min_chars": 8}},
    }
    filters = [{"name": "text_length"}, {"name": "image_sides", "min_side": 150}]
    spec = {"name": "photos", "contact": "mailto:a@b.c", "base": str(tmp_path), "sources": [own, strict]}
    made = opening.open_build(
        BuildSpec.model_validate({**spec, "filters": filters}), str(tmp_path / "out"), str(tmp_path / "store"), "1"
    )
    run_noted(made, "crawl", "extract", "admit", "fetch", "measure", "filter", "dedup")
    charts = {chart["name"]: chart for chart in collected(made)}
    short = [limit for limit in charts["characters"]["limits"] if limit["option"] == "min_chars"]
    assert [(limit["value"], limit["sources"], limit["just_kept"]) for limit in short] == [
        (1, ["own"], ["春天的own160", "春天的own240"]),
        (8, ["strict"], ["春天的strict240"]),
    ]
    sides = charts["short_side"]
    assert [(limit["value"], limit["sources"], limit["dropped"]) for limit in sides["limits"]] == [
        (150, ["own"], 1),
        (200, ["strict"], 2),
    ]
    shown = environment(STAGES).from_string("{{ histogram(chart) }}").render(chart=sides)
    assert [shown.count(f"· {name}") for name in ("own", "strict")] == [1, 1]
