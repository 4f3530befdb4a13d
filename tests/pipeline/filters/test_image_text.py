"""image_text: a page of text is told from a picture by its model, and lines are grown back to their size."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest

from pipeline.filters import PixelFilter
from pipeline.filters.image_text import text_share
from pipeline.plugins import configure
from tests.judged import needs, scores_of


def page(lines: int, size: tuple[int, int] = (480, 640)) -> Any:
    """A picture with so many lines of text, over a soft ground."""
    ground = np.random.default_rng(1).integers(120, 230, (4, 5, 3), dtype=np.uint8)
    pixels = cv2.resize(ground, size[::-1], interpolation=cv2.INTER_CUBIC)
    for i in range(lines):
        cv2.putText(pixels, "wenlan builds data sets", (20, 45 + 48 * i), cv2.FONT_HERSHEY_SIMPLEX, 1.4, (0, 0, 0), 3)
    return pixels


@pytest.mark.slow
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
