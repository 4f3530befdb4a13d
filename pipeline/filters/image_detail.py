"""Drops pictures with far less detail than their size suggests: enlarged thumbnails, photos out of focus.

The score is the share of its side to which a picture could be reduced and lose little. Natural pictures have about as
much power in each octave of their spectrum (Field, "Relations between the statistics of natural images and the response
properties of cortical cells", 1987); above the highest quarter octave that has at least 2% of the strongest one's power
there is next to nothing. That frequency, as a share of the highest which the size allows, is the score. It is measured
in the middle of the picture, in a square of at most CROP pixels.

`image_sharpness` looks at a thumbnail of 64 pixels, whatever the size: it finds what is all haze. This one needs the
picture at its full size.

Not among the default filters: a smaller picture in a larger file is still a picture.

Thresholds: ours, from photos of dishes of 512 pixels: the least of 44 had 0.50, and half of them 1; enlarged by two
half of them had 0.59, by three 0.42, by four at most 0.35, and blurred with a radius of 2 pixels at most 0.35.

Limits: noise, and text or a logo laid over a picture that was enlarged, are detail. What blurs a picture on purpose,
as the ground of a portrait, counts as the share that it covers.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import Field

from pipeline.filters import Drop, PixelFilter
from pipeline.pictures.decode import Pixels
from pipeline.rows.decisions import DropReason

EMPTY = 0.02
"""Share of the strongest quarter octave's power below which another one is nearly empty."""
CROP = 512
"""Pixels of a side that are looked at, at most: a transform of all of a large photo takes a second."""
RINGS = 20
"""Quarter octaves that are distinguished, from the finest on."""


class ImageDetail(PixelFilter):
    """Share of its side to which a picture could be reduced and lose little."""

    min_share: float = Field(0.4, ge=0, le=1, description="minimum share")

    def model_identity(self) -> list[Any]:
        return []

    def load(self) -> Any:
        return None

    def score(self, state: Any, pictures: Sequence[Pixels]) -> list[float]:
        return [detail(picture) for picture in pictures]

    def judge(self, score: float) -> Drop | None:
        if score < self.min_share:
            return Drop(DropReason.LOW_DETAIL, f"detail of {score:.0%} of its side; at least {self.min_share:.0%}")
        return None


def detail(picture: Pixels) -> float:
    """The score of a picture [H, W, 3] RGB; 1 for one of one colour."""
    import cv2

    height, width = (min(side, CROP) for side in picture.shape[:2])
    top, left = (picture.shape[0] - height) // 2, (picture.shape[1] - width) // 2
    grey = cv2.cvtColor(picture[top : top + height, left : left + width], cv2.COLOR_RGB2GRAY).astype(np.float32)
    ring_of, window = _rings(height, width)
    waves = cv2.dft((grey - grey.mean()) * window, flags=cv2.DFT_COMPLEX_OUTPUT)
    power_R = np.bincount(ring_of, (waves**2).sum(axis=2).ravel(), RINGS + 1)[:RINGS]
    if power_R.max() < 1:
        return 1.0
    return float(2.0 ** (-np.argmax(power_R >= EMPTY * power_R.max()) / 4))


@functools.lru_cache(8)
def _rings(height: int, width: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """The ring [H * W] of each frequency, 0 for the finest quarter octave and RINGS for what is left out, and a window
    [H, W] that fades to the edges, where one side of a picture meets the other.
    """
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None])
    octaves = -4 * np.log2(np.maximum(frequency, 1e-9) / 0.5)
    ring = np.where((octaves > 0) & (octaves <= RINGS), np.ceil(octaves) - 1, RINGS).astype(np.int64)
    window = np.hanning(height)[:, None] * np.hanning(width)[None]
    return ring.ravel(), window.astype(np.float32)
