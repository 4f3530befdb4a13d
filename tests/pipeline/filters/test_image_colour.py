"""image_colour: the measure is the paper's, computed here as it is written there."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pipeline.filters import PixelFilter
from pipeline.filters.image_colour import SIDE, colourfulness
from pipeline.plugins import configure
from pipeline.report.translations import evidence_zh


def as_written(picture: Any) -> float:
    """M3 of Hasler and Suesstrunk (2003), section 7."""
    red, green, blue = (picture[..., i].astype(float) for i in range(3))
    rg, yb = red - green, 0.5 * (red + green) - blue
    sigma, mu = np.sqrt(np.var(rg) + np.var(yb)), np.sqrt(np.mean(rg) ** 2 + np.mean(yb) ** 2)
    return float(sigma + 0.3 * mu)


def test_it_is_that_of_the_paper() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (SIDE, 80, 3), dtype=np.uint8)
    assert colourfulness(picture) == pytest.approx(as_written(picture))
    red = np.zeros((SIDE, SIDE, 3), np.uint8)
    red[..., 0] = 255
    assert colourfulness(red) == pytest.approx(0.3 * np.hypot(255, 127.5))


def test_grey_pictures_have_none_and_size_does_not_matter() -> None:
    grey = np.repeat(np.random.default_rng(0).integers(0, 256, (200, 300, 1), dtype=np.uint8), 3, axis=2)
    assert colourfulness(grey) == 0
    small = np.random.default_rng(1).integers(0, 256, (SIDE, 96, 3), dtype=np.uint8)
    large = np.repeat(np.repeat(small, 8, axis=0), 8, axis=1)
    assert colourfulness(large) == pytest.approx(colourfulness(small), rel=0.02)


def test_both_ends_are_dropped() -> None:
    judge = configure("filters", "image_colour", {"min_colour": 5, "max_colour": 100}, PixelFilter).judge
    said = {score: drop.reason.value if (drop := judge(score)) else "" for score in (4.9, 5, 100, 101)}
    assert said == {4.9: "colourfulness", 5: "", 100: "", 101: "colourfulness"}
    assert configure("filters", "image_colour", {}, PixelFilter).judge(1000) is None
    drop = judge(3.21)
    assert drop is not None
    assert "色彩丰富度 3.2" in evidence_zh(drop.evidence)
