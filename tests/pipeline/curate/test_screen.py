"""screen: filters that look at pixels run once per image, on what dedup kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from pipeline import model_runner
from pipeline.curate import screen
from pipeline.detectors import detector_ids
from pipeline.filters import PixelFilter
from pipeline.filters.image_nsfw import ImageNsfw
from pipeline.pictures.faces import Finder
from pipeline.report.funnel import faults, read_funnels
from pipeline.rows.records import SCORE_SCHEMA
from pipeline.store.build import Build
from tests import curated
from tests.drawn import encoded
from tests.stages import run_stage

pytestmark = pytest.mark.slow


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

    def score(self, plugin: PixelFilter, state: Any, pictures: Sequence[Any]) -> list[float]:
        self.shown += [picture.shape for picture in pictures]
        return [float(picture[..., 0].mean()) / 255 for picture in pictures]


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> Looks:
    made = Looks()
    monkeypatch.setattr(ImageNsfw, "load", lambda self: None)
    monkeypatch.setattr(ImageNsfw, "score_id", "image_nsfw-of-the-test")
    monkeypatch.setattr(ImageNsfw, "score", lambda *args: made.score(*args))
    return made


NSFW = [{"name": "image_nsfw", "max_score": 0.7}]


@pytest.fixture
def screened(fetched_build: Callable[..., Build], got: Any, looks: Looks) -> Callable[..., Build]:
    def make(filters: list[dict[str, Any]] = NSFW, **more: Any) -> Build:
        images = [got(f"good-{i}", picture(i), f"好图{i}") for i in range(8)]
        red = picture(50, 250)
        images += [got("red", red, "红"), got("red-elsewhere", red, "又红"), got("red-too", picture(51, 240), "更红")]
        regions = {"detectors": [{"name": "grid", "n": 2}]}
        build = fetched_build(images, parts=3, filters=filters, regions=regions, **more)
        run_stage(build, "measure", "filter", "dedup", "curate", "detect", "shard")
        return build

    return make


def test_what_a_model_refuses_goes_with_its_reason_and_the_funnel_adds_up(screened: Callable[..., Build]) -> None:
    build = screened()
    dropped = curated.dropped(build)
    assert {d["reason"] for d in dropped} == {"nsfw"}
    assert len(dropped) == 2  # the copy of red went in dedup, with its leader as the reason
    assert all("at most 0.7" in d["evidence"] for d in dropped)
    packed = curated.table_of(build, "shard")
    assert {curated.name_of(row["image_url"]) for row in packed} == {f"good-{i}" for i in range(8)}
    assert len(curated.table_of(build, "detect", f"{detector_ids(build.spec)[0]}.parquet")) == 8
    for record in build.stage("curate").records():
        assert record.counts["seen"] == record.counts["kept"] + record.counts["dropped"]
    candidates, _ = read_funnels(build)
    by_stage = {row.stage: row for row in candidates.stages(["dedup", "curate", "shard"])}
    assert (by_stage["curate"].seen, by_stage["curate"].dropped, by_stage["shard"].kept) == (10, 2, 8)
    assert [line for line in faults(build, candidates) if line.startswith(("dedup", "curate", "shard"))] == []


def test_without_such_a_filter_there_is_no_stage_and_dedup_is_what_goes_on(screened: Callable[..., Build]) -> None:
    build = screened([])
    assert "curate" not in build.passes
    assert len(curated.table_of(build, "shard")) == 10


@pytest.mark.drill(1)
def test_no_picture_is_looked_at_twice_whatever_the_threshold(screened: Callable[..., Build], looks: Looks) -> None:
    screened()
    assert len(looks.shown) == 10
    assert all(min(shape[:2]) < 256 * 2 for shape in looks.shown)
    build = screened([{"name": "image_nsfw", "max_score": 1.0}], snapshot="2026-02-02")
    assert len(looks.shown) == 10
    assert sum(record.counts["scored"] for record in build.stage("curate.screen").records()) == 0
    assert len(curated.table_of(build, "shard")) == 10


def test_the_token_follows_threshold_and_weights(
    fetched_build: Callable[..., Build], looks: Looks, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = fetched_build([], filters=NSFW)
    before = screen.token(build)
    assert screen.token(fetched_build([], name="other", filters=[{"name": "image_nsfw"}])) != before
    monkeypatch.setattr(ImageNsfw, "score_id", "image_nsfw-other-weights")
    assert screen.token(build) != before


def test_a_picture_not_safe_for_work_is_in_no_report(screened: Callable[..., Build]) -> None:
    from pipeline.report import pictures as report_pictures
    from pipeline.report import sample_sheet
    from pipeline.report.section import Material
    from pipeline.store.sql import Tables

    build = screened()
    with Tables.of(build) as tables:
        takedowns = Material(build, tables).takedowns
        choice = sample_sheet.choose(build, tables, takedowns)
        listed = {row["url"].rpartition("/")[2]: row for row in choice.rows()}
        assert {"red", "red-elsewhere", "red-too"} <= set(listed)  # listed, by text and reason
        report_pictures.add_pictures(build, tables, list(listed.values()), takedowns)
        assert {name for name, row in listed.items() if not row["picture"]} == {"red", "red-elsewhere", "red-too"}
        # the same bytes, of a candidate that another stage dropped
        stray = {**listed["good-0"], "fetch_id": listed["red"]["fetch_id"]}
        report_pictures.add_pictures(build, tables, [stray], takedowns)
        assert stray["picture"] == ""


def test_scores_survive_a_model_that_dies(
    fetched_build: Callable[..., Build], got: Any, looks: Looks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_runner, "BATCH", 2)
    monkeypatch.setattr(model_runner, "SAVE", 2)
    build = fetched_build([got(f"{i}", picture(i), f"图{i}") for i in range(6)], filters=NSFW)
    run_stage(build, "measure", "filter", "dedup")
    scored = looks.score

    def dying(*args: Any) -> list[float]:
        if len(looks.shown) >= 4:
            raise InterruptedError
        return scored(*args)

    monkeypatch.setattr(looks, "score", dying)
    with pytest.raises(InterruptedError):
        run_stage(build, "curate")
    monkeypatch.setattr(looks, "score", scored)
    run_stage(build, "curate")
    assert len(looks.shown) == 6


def test_a_partition_asks_once_what_its_scores_are_called(
    screened: Callable[..., Build], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An id is a digest of the model's file: image_faces took 1.6 ms for every image, to judge scores that it had."""
    build, asked = screened(), list[str]()
    name = ImageNsfw.score_id
    monkeypatch.setattr(ImageNsfw, "score_id", property(lambda self: asked.append("") or name))
    build.passes["curate.screen"].run(build, build.stage("dedup").partitions()[0])
    assert len(asked) == len(NSFW)


def test_scores_are_cached_as_they_are_judged(fetched_build: Callable[..., Build], got: Any, looks: Looks) -> None:
    build = fetched_build([got("a", picture(1))], filters=NSFW)
    run_stage(build, "measure", "filter", "dedup", "curate")
    cached = build.store.features("image_nsfw-of-the-test")
    (sha256,) = [row["sha256"] for row in curated.table_of(build, "measure")]
    table = cached.get([sha256])
    assert table is not None
    assert table.schema.equals(SCORE_SCHEMA)
    cached.put(pa.table({"sha256": [sha256], "score": pa.array([0.99], pa.float32())}))
    [partition] = build.stage("dedup").partitions()
    for name in ("curate.screen", "curate"):
        build.stage(name).delete_record(partition)
        build.passes[name].run(build, partition)
    assert len(curated.dropped(build)) == 1


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
        run_stage(build, "measure", "filter", "dedup", "curate")
    assert min(shown[0]) < 640 <= max(shown[1])
