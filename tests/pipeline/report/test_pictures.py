"""Pictures of the report: the sheet, thumbnails, boxes, clusters, and what is shown to nobody."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from typing import Any

import pytest
from PIL import Image

from pipeline.report import page
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
    by_reason = {row["reason"]: row["picture"] for row in made["sheet"]}
    assert by_reason["same_image"]
    assert not by_reason["corrupt_image"]
    assert not by_reason["data_uri"]
