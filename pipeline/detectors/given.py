"""Boxes that came with the source: `url_table` read them, in its column `bbox` or in a row of BriVL's release.

What came with several rows of one image is taken from the first. Such boxes are the build's own: they are not kept in
STORE, and an image whose row had none gets none. Boxes keep their order, as falling scores; every label is 0.

Limits: boxes are taken to be pixels of the picture as shown, that is, with its EXIF orientation applied.
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
        """Nothing: who has only a picture does not know its source."""
        return [NONE for _ in pictures]

    @staticmethod
    def ranked(boxes: Any) -> Boxes:
        """Boxes from a flat list x1 y1 x2 y2 ..., the best first."""
        found = np.asarray(boxes, np.float32).reshape(-1, 4)
        scores = np.linspace(1, 0, len(found), endpoint=False, dtype=np.float32)
        return found, scores, np.zeros(len(found), np.int32)
