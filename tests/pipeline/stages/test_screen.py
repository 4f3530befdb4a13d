"""screen: filters that look at pixels run once per image, on what dedup kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from pipeline.detectors import detector_ids
from pipeline.filters import PixelFilter
from pipeline.filters.image_nsfw import ImageNsfw
from pipeline.pictures.faces import Finder
from pipeline.records import SCORE_SCHEMA
from pipeline.report import pictures, sheet
from pipeline.report.funnel import faults, read_funnels
from pipeline.report.unshown import make_refused
from pipeline.stages import _model_runner, dedup, detect, filter, lead, measure, rank, screen, shard
from pipeline.store.build import Build
from pipeline.store.sql import Tables
from pipeline.store.takedowns import Takedowns
from tests.drawn import encoded


def picture(seed: int, redness: int = 0, size: tuple[int, int] = (320, 240)) -> bytes:
    """A picture that only this seed has; with a redness, its red channel is all that value."""
    small = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    if redness:
        small[..., 0], small[..., 1:] = redness, small[..., 1:] // 4
    return encoded(Image.fromarray(small).resize(size, Image.Resampling.BICUBIC), quality=95)


class Looks:
    """In place of the model of image_nsfw: the mean of red, 0 to 1, and every picture that it was shown."""

    def __init__(self) -> None:
        self.shown: list[tuple[int, ...]] = []

    def score(self, plugin: PixelFilter, state: Any, shown: Sequence[Any]) -> list[float]:
        self.shown += [picture.shape for picture in shown]
        return [float(picture[..., 0].mean()) / 255 for picture in shown]


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> Looks:
    made = Looks()
    monkeypatch.setattr(ImageNsfw, "load", lambda self: None)
    monkeypatch.setattr(ImageNsfw, "score_id", "image_nsfw-of-the-test")
    monkeypatch.setattr(ImageNsfw, "score", lambda *args: made.score(*args))
    return made


def run(build: Build, *stages: Any) -> None:
    for stage in stages or (measure, filter, rank, lead, dedup, screen, detect, shard):
        name = stage.__name__.rpartition(".")[2]
        wanted = stage.partitions(build)
        for partition in wanted:
            stage.run_partition(build, partition)
        build.stage(name).finish(wanted, stage.STAGE.version)


def rows(build: Build, stage: str, suffix: str) -> list[dict[str, Any]]:
    directory = build.stage(stage)
    return [row for record in directory.records() for row in directory.table(record, suffix).to_pylist()]


def ends(rows: list[dict[str, Any]], column: str) -> set[str]:
    return {row[column].rpartition("/")[2] for row in rows}


NSFW = [{"name": "image_nsfw", "max_score": 0.7}]


@pytest.fixture
def screened(fetched_build: Callable[..., Build], got: Any, looks: Looks) -> Callable[..., Build]:
    def make(filters: list[dict[str, Any]] = NSFW, **more: Any) -> Build:
        images = [got(f"good-{i}", picture(i), f"好图{i}") for i in range(8)]
        red = picture(50, 250)
        images += [got("red", red, "红"), got("red-elsewhere", red, "又红"), got("red-too", picture(51, 240), "更红")]
        regions = {"detectors": [{"name": "grid", "n": 2}]}
        build = fetched_build(images, parts=3, filters=filters, regions=regions, **more)
        run(build)
        return build

    return make


def test_what_a_model_refuses_goes_with_its_reason_and_the_funnel_adds_up(screened: Callable[..., Build]) -> None:
    build = screened()
    dropped = rows(build, "screen", "decisions.parquet")
    assert {d["reason"] for d in dropped} == {"nsfw"}
    assert len(dropped) == 2  # the copy of red went in dedup, with its leader as the reason
    assert all("at most 0.7" in d["evidence"] for d in dropped)
    packed = rows(build, "shard", "parquet")
    assert ends(packed, "image_url") == {f"good-{i}" for i in range(8)}
    assert len(rows(build, "detect", f"{detector_ids(build.spec)[0]}.parquet")) == 8
    for record in build.stage("screen").records():
        assert record.counts["seen"] == record.counts["kept"] + record.counts["dropped"]
    candidates, _ = read_funnels(build)
    by_stage = {row.stage: row for row in candidates.stages(["dedup", "screen", "shard"])}
    assert (by_stage["screen"].seen, by_stage["screen"].dropped, by_stage["shard"].kept) == (10, 2, 8)
    assert [line for line in faults(build, candidates) if line.startswith(("dedup", "screen", "shard"))] == []


def test_without_such_a_filter_the_stage_is_empty_and_dedup_is_what_goes_on(screened: Callable[..., Build]) -> None:
    build = screened([])
    assert build.stage("screen").records() == []
    assert build.stage("screen").finished()
    assert len(rows(build, "shard", "parquet")) == 10


def test_no_picture_is_looked_at_twice_whatever_the_threshold(screened: Callable[..., Build], looks: Looks) -> None:
    screened()
    assert len(looks.shown) == 10
    assert all(min(shape[:2]) < 256 * 2 for shape in looks.shown)
    build = screened([{"name": "image_nsfw", "max_score": 1.0}], snapshot="2026-02-02")
    assert len(looks.shown) == 10
    assert sum(record.counts["scored"] for record in build.stage("screen").records()) == 0
    assert len(rows(build, "shard", "parquet")) == 10


def test_the_token_follows_threshold_and_weights(
    fetched_build: Callable[..., Build], looks: Looks, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = fetched_build([], filters=NSFW)
    before = screen.token(build)
    assert screen.token(fetched_build([], name="other", filters=[{"name": "image_nsfw"}])) != before
    monkeypatch.setattr(ImageNsfw, "score_id", "image_nsfw-other-weights")
    assert screen.token(build) != before


def test_a_picture_not_safe_for_work_is_in_no_report(screened: Callable[..., Build]) -> None:
    build, takedowns = screened(), Takedowns()
    with Tables.of(build) as tables:
        make_refused(tables, takedowns)
        choice = sheet.choose(build, tables, takedowns)
        listed = {row["url"].rpartition("/")[2]: row for row in choice.rows()}
        assert {"red", "red-elsewhere", "red-too"} <= set(listed)  # listed, by text and reason
        pictures.add_pictures(build, tables, listed.values(), takedowns)
        assert {name for name, row in listed.items() if not row["picture"]} == {"red", "red-elsewhere", "red-too"}
        # the same bytes, of a candidate that another stage dropped
        stray = {**listed["good-0"], "fetch_id": listed["red"]["fetch_id"]}
        pictures.add_pictures(build, tables, [stray], takedowns)
        assert stray["picture"] == ""


def test_scores_survive_a_model_that_dies(
    fetched_build: Callable[..., Build], got: Any, looks: Looks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_model_runner, "BATCH", 2)
    monkeypatch.setattr(_model_runner, "SAVE", 2)
    build = fetched_build([got(f"{i}", picture(i), f"图{i}") for i in range(6)], filters=NSFW)
    run(build, measure, filter, rank, lead, dedup)
    scored = looks.score

    def dying(*args: Any) -> list[float]:
        if len(looks.shown) >= 4:
            raise InterruptedError
        return scored(*args)

    monkeypatch.setattr(looks, "score", dying)
    with pytest.raises(InterruptedError):
        run(build, screen)
    monkeypatch.setattr(looks, "score", scored)
    run(build, screen)
    assert len(looks.shown) == 6


def test_a_partition_asks_once_what_its_scores_are_called(
    screened: Callable[..., Build], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An id is a digest of the model's file: image_faces took 1.6 ms for every image, to judge scores that it had."""
    build, asked = screened(), list[str]()
    name = ImageNsfw.score_id
    monkeypatch.setattr(ImageNsfw, "score_id", property(lambda self: asked.append("") or name))
    screen.run_partition(build, screen.partitions(build)[0])
    assert len(asked) == len(NSFW)


def test_scores_are_cached_as_they_are_judged(fetched_build: Callable[..., Build], got: Any, looks: Looks) -> None:
    build = fetched_build([got("a", picture(1))], filters=NSFW)
    run(build, measure, filter, rank, lead, dedup, screen)
    cached = build.store.features("image_nsfw-of-the-test")
    (sha256,) = [row["sha256"] for row in rows(build, "measure", "parquet")]
    table = cached.get([sha256])
    assert table is not None
    assert table.schema.equals(SCORE_SCHEMA)
    cached.put(pa.table({"sha256": [sha256], "score": pa.array([0.99], pa.float32())}))
    run(build, screen)
    assert len(rows(build, "screen", "decisions.parquet")) == 1


def test_faces_are_sought_in_a_picture_as_large_as_the_option_says(
    fetched_build: Callable[..., Build], got: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = list[tuple[int, ...]]()

    def find(self: Finder, state: Any, pixels: Any) -> tuple[Any, Any]:
        shown.append(pixels.shape[:2])
        return np.zeros((0, 4)), np.zeros(0)

    monkeypatch.setattr(Finder, "find", find)
    for side in (160, 640):
        images = [got("large", picture(1, size=(1600, 1200)))]
        build = fetched_build(images, filters=[{"name": "image_faces", "side": side}], name=f"of-{side}")
        run(build, measure, filter, rank, lead, dedup, screen)
    assert min(shown[0]) < 640 <= max(shown[1])
