"""Drops pictures with hardly any colour (scans of print, sketches, black and white photos) or with too much.

Colourfulness as Hasler and Suesstrunk measured what people call colourful ("Measuring colourfulness in natural images",
2003): with rg = R - G and yb = (R + G) / 2 - B, the length of their standard deviations and 0.3 times that of their
means. Their subjects called a picture at 0 not colourful, at 15 slightly, 33 moderately, 45 averagely, 59 quite, 82
highly and 109 extremely so.

It is computed of a picture whose shorter side is 64 to 127 pixels: colours are coarse, and a JPEG decodes to that size
in a fraction of the time.

Not among the default filters: photos without colours are photos.

Thresholds: ours; a grey picture that was saved as a JPEG in colour stays below 1.

Limits: one number for the whole picture: a red logo on white paper is colourful.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

from pydantic import Field

from pipeline.decisions import DropReason
from pipeline.filters import Drop, PixelFilter
from pipeline.pictures.decode import Pixels

SIDE = 64


class ImageColour(PixelFilter):
    """Colourfulness of the picture."""

    NEEDS_SIDE: ClassVar[int] = SIDE

    min_colour: float = Field(5.0, ge=0, description="minimum colourfulness; 0 keeps grey pictures")
    max_colour: float = Field(0, ge=0, description="maximum colourfulness; 0: no limit")

    def model_identity(self) -> list[Any]:
        return []

    def load(self) -> Any:
        return None

    def score(self, state: Any, pictures: Sequence[Pixels]) -> list[float]:
        return [colourfulness(picture) for picture in pictures]

    def judge(self, score: float) -> Drop | None:
        if score < self.min_colour:
            return Drop(DropReason.COLOURFULNESS, f"colourfulness {score:.1f}; at least {self.min_colour:g}")
        if self.max_colour and score > self.max_colour:
            return Drop(DropReason.COLOURFULNESS, f"colourfulness {score:.1f}; at most {self.max_colour:g}")
        return None


def colourfulness(picture: Pixels) -> float:
    """M3 of the paper, of a picture [H, W, 3] RGB, reduced to SIDE pixels on its shorter side."""
    import cv2
    import numpy as np

    pixels: Any = picture
    height, width = pixels.shape[:2]
    scale = SIDE / min(height, width)
    if scale < 1:
        sides = max(1, round(width * scale)), max(1, round(height * scale))
        pixels = cv2.resize(pixels, sides, interpolation=cv2.INTER_AREA)
    red, green, blue = np.moveaxis(pixels.astype(np.float64), 2, 0)
    rg, yb = red - green, (red + green) / 2 - blue
    return math.hypot(rg.std(), yb.std()) + 0.3 * math.hypot(rg.mean(), yb.mean())
