"""Boxes that come with the source: `url_table` reads them from its column `bbox` or from BriVL's rows.

If an image has several rows, the boxes of the first count. Such boxes belong to the build: they are not kept in STORE,
and an image whose row had none gets none. Boxes keep their order, as falling scores; every label is 0.

Needs: a `url_table` with boxes.

Limits: boxes are taken to be in pixels of the picture as shown, that is, with its EXIF orientation applied.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from pipeline.detectors import NONE, Boxes, Detector, Picture


class Given(Detector):
    """The boxes of the build's sources."""

    NEEDS_PIXELS: ClassVar[bool] = False
    OF_SOURCES: ClassVar[bool] = True

    def detect(self, state: Any, pictures: Sequence[Picture]) -> list[Boxes]:
        """No boxes: a picture alone does not tell its source."""
        return [NONE for _ in pictures]

    @staticmethod
    def ranked(boxes: Any) -> Boxes:
        """Boxes from a flat list x1 y1 x2 y2 ..., the best first."""
        boxes_R4 = np.asarray(boxes, np.float32).reshape(-1, 4)
        scores = np.linspace(1, 0, len(boxes_R4), endpoint=False, dtype=np.float32)
        return boxes_R4, scores, np.zeros(len(boxes_R4), np.int32)
