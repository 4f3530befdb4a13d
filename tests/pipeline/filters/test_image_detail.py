"""image_detail: a picture that was enlarged has the score of its true size, whatever it shows."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest

from pipeline.filters import PixelFilter
from pipeline.filters.image_detail import CROP, detail
from pipeline.pictures.decode import decode, encode_jpeg
from pipeline.plugins import configure
from pipeline.report.translations import evidence_zh


def natural(seed: int, side: int = 512) -> Any:
    """[side, side, 3] with as much power in each octave as photographs have: amplitudes by 1 / frequency."""
    rng = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.fftfreq(side)[None])
    waves = np.fft.fft2(rng.normal(size=(side, side))) / np.maximum(frequency, 1 / side)
    grey = np.fft.ifft2(waves).real
    grey = (grey - grey.mean()) / grey.std() * 45 + 128
    return np.repeat(grey.clip(0, 255).astype(np.uint8)[..., None], 3, axis=2)


def enlarged(picture: Any, times: float) -> Any:
    """The picture reduced and enlarged again, through JPEG."""
    small = cv2.resize(picture, None, fx=1 / times, fy=1 / times, interpolation=cv2.INTER_AREA)
    return decode(encode_jpeg(cv2.resize(small, picture.shape[1::-1], interpolation=cv2.INTER_CUBIC), 85)).pixels


@pytest.mark.slow
def test_what_was_enlarged_has_the_share_that_is_left() -> None:
    shares: dict[int, list[float]] = {times: [] for times in (2, 4, 8)}
    for seed in range(5):
        picture = natural(seed)
        assert detail(picture) == 1
        for times, of_pictures in shares.items():
            of_pictures.append(detail(enlarged(picture, times)))
    twice, four, eight = (float(np.median(of_pictures)) for of_pictures in shares.values())
    assert 0.4 <= twice <= 0.85
    assert 0.2 <= four <= 0.4
    assert 0.1 <= eight <= 0.2


def test_of_a_large_picture_the_middle_is_looked_at_and_of_one_colour_nothing_is_missing() -> None:
    large = np.zeros((CROP + 200, CROP + 400, 3), np.uint8)
    large[100:-100, 200:-200] = natural(0)
    assert detail(large) == detail(natural(0)) == 1
    assert detail(np.full((90, 120, 3), 200, np.uint8)) == 1
    assert 0 < detail(natural(1, 64)) <= 1


def test_it_drops_what_has_less() -> None:
    judge = configure("filters", "image_detail", {}, PixelFilter).judge
    assert judge(0.4) is None
    drop = judge(0.297)
    assert drop is not None
    assert (drop.reason.value, drop.evidence) == ("low_detail", "detail of 30% of its side; at least 40%")
    assert "细节相当于其边长的 30%" in evidence_zh(drop.evidence)
