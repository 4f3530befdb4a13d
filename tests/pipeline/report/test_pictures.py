"""Pictures of the report: the sheet, thumbnails, boxes, clusters, and what is shown to nobody."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.detectors import Detector
from pipeline.report import page
from pipeline.report import pictures as report_pictures
from pipeline.store.build import Build

pytestmark = pytest.mark.slow

Run = Callable[[Build, str], None]


def test_thumbnails_are_small_pictures_and_boxes_belong_to_them(
    synthetic_build: Build, synthetic: Any, run_stage: Run
) -> None:
    run_stage(synthetic_build, "shard")
    made = page.make_report(synthetic_build)
    kept = [row for row in made["sheet"] if row["kept"]]
    assert len(kept) == synthetic.KEPT
    for row in kept:
        data = base64.b64decode(row["picture"].removeprefix("data:image/jpeg;base64,"))
        with Image.open(io.BytesIO(data)) as image:
            assert max(image.size) <= synthetic_build.spec.report.picture_side
        [boxes] = row["boxes"].values()
        assert boxes
        for x1, y1, x2, y2, score in boxes:
            assert 0 <= x1 < x2 <= row["width"]
            assert 0 <= y1 < y2 <= row["height"]
            assert 0 < score <= 1
    for row in made["sheet"]:
        assert row["kept"] or bool(row["boxes"]) == bool(row["picture"]), "dropped ones with a picture have regions too"
    by_reason = {row["reason"]: row["picture"] for row in made["sheet"]}
    assert by_reason["same_image"]
    assert not by_reason["corrupt_image"]
    assert not by_reason["data_uri"]


def test_a_detector_looks_at_the_pixels_of_dropped_pictures(
    synthetic_build: Build, run_stage: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, ...]] = []

    class Middle(Detector):
        def detect(self, state: Any, pictures: Any) -> Any:
            seen.extend(picture.shape for picture in pictures)
            half = [np.array([[0, 0, p.shape[1] / 2, p.shape[0]]], np.float32) for p in pictures]
            return [(box, np.ones(1, np.float32), np.zeros(1, np.int32)) for box in half]

    run_stage(synthetic_build, "shard")
    monkeypatch.setattr(report_pictures, "detectors_of", lambda spec: [Middle()])
    dropped = [row for row in page.make_report(synthetic_build)["sheet"] if row["picture"] and not row["kept"]]
    assert dropped
    for row in dropped:
        assert (row["height"], row["width"], 3) in seen, "at full size, as shown"
        assert row["boxes"] == {Middle().detector_id: [[0.0, 0.0, row["width"] / 2, row["height"], 1.0]]}
