"""Drops pictures that are mostly text, such as posters, screenshots and scanned pages, using a text detector.

The detector is PP-OCR's (Du et al., "PP-OCR: A Practical Ultra Lightweight OCR System", 2020), from the package
rapidocr (Apache-2.0, 10 MB); a picture of 512 pixels takes about 100 ms on one core. It returns a map of shrunken text
lines. Each is taken as its smallest rotated rectangle and grown back as its training had shrunk it (Liao et al.,
"Real-time Scene Text Detection with Differentiable Binarization", 2020). The score is the share of the picture under
these rectangles.

The detector sees a plate of food as one huge letter, so a short thick shape is not a line: without that rule 12
of 25 photos of dishes were over a third text, with it the highest of 70 had 16%, a page of nine lines 75%.

Not among the default filters.

Needs: the extra models, whose package rapidocr has the weights.

Thresholds: ours, between photos of dishes (at most 16%) and pages of text (75%).

Limits: letters below about 8 pixels at a longer side of 640 are not detected, nor is a word of few letters that fills
the picture; a watermark counts as text, though its share is small.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from pydantic import Field

from pipeline.filters import Drop, PixelFilter
from pipeline.pictures import models
from pipeline.pictures.decode import Pixels
from pipeline.rows.decisions import DropReason

LONGEST = 640
"""Pixels of the longer side that the detector sees at most; sides are multiples of 32."""

SURE, SURE_LINE, GROWN = 0.3, 0.6, 1.6
"""The detector's own settings: probability of a pixel, mean probability of a line, and how a line is grown back."""

THICK, LONG = 0.12, 5
"""A shrunken line thicker than this share of the picture's shorter side must be so many times as long."""


class ImageText(PixelFilter):
    """Share of the picture that lines of text cover."""

    NEEDS_SIDE: ClassVar[int] = LONGEST

    max_share: float = Field(0.3, ge=0, le=1, description="maximum share of the picture covered by lines of text")

    def weights(self) -> Path:
        return models.find("rapidocr", "models/*_det_*.onnx", "rapidocr")

    def score(self, session: Any, pictures: Sequence[Pixels]) -> list[float]:
        name = session.get_inputs()[0].name
        return [text_share(session.run(None, {name: _input(picture)})[0][0, 0]) for picture in pictures]

    def judge(self, score: float) -> Drop | None:
        if score > self.max_share:
            return Drop(DropReason.TEXT_HEAVY, f"text covers {score:.1%}; at most {self.max_share:.1%}")
        return None


def text_share(probability: npt.NDArray[np.float32]) -> float:
    """Share, 0 to 1, of a map [H, W] of probabilities that its text lines cover, grown back to their full height."""
    import cv2

    covered = np.zeros(probability.shape, np.uint8)
    lines, _ = cv2.findContours((probability > SURE).astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    for line in lines:
        centre, (width, height), angle = cv2.minAreaRect(line)
        thickness, length = sorted((width, height))
        if thickness < 2 or (thickness > THICK * min(probability.shape) and length < LONG * thickness):
            continue
        if _mean(probability, line) < SURE_LINE:
            continue
        grow = GROWN * width * height / (width + height)  # on both sides: 2 x area x ratio / perimeter
        corners = cv2.boxPoints((centre, (width + grow, height + grow), angle))
        cv2.fillPoly(covered, [np.rint(corners).astype(np.int32)], 1)
    return float(covered.mean())


def _mean(probability: npt.NDArray[np.float32], contour: Any) -> float:
    import cv2

    x, y, width, height = cv2.boundingRect(contour)
    inside = np.zeros((height, width), np.uint8)
    cv2.fillPoly(inside, [contour - [x, y]], 1)
    return float(cv2.mean(probability[y : y + height, x : x + width], inside)[0])


def _input(picture: Pixels) -> npt.NDArray[np.float32]:
    """[1, 3, H, W] of a picture [H, W, 3]: scaled to LONGEST, BGR, from -1 to 1."""
    import cv2

    height, width = picture.shape[:2]
    scale = min(1.0, LONGEST / max(height, width))
    sides = [max(32, round(side * scale / 32) * 32) for side in (width, height)]
    small = cv2.resize(picture, sides, interpolation=cv2.INTER_LINEAR)
    channels = small[..., ::-1].transpose(2, 0, 1).astype(np.float32)  # BGR, as the detector was trained
    return np.ascontiguousarray(channels[None] / 127.5 - 1)
