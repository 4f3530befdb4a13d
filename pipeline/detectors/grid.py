"""The grid of BriVL 2: divides a picture into n x n cells (6 x 6 in its code) instead of detecting objects.

Needs no weights and no pixels. Every cell has score 1 and label 0.

Thresholds: n is BriVL 2's (6 x 6).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from pydantic import Field

from pipeline.detectors import Boxes, Detector, Picture


class Grid(Detector):
    """n x n equal cells, row by row."""

    NEEDS_PIXELS: ClassVar[bool] = False
    n: int = Field(6, ge=1, le=32, description="cells per side")

    def detect(self, state: Any, pictures: Sequence[Picture]) -> list[Boxes]:
        return [self._cells(*picture.shape[:2]) for picture in pictures]

    def _cells(self, height: int, width: int) -> Boxes:
        x = np.linspace(0, width, self.n + 1, dtype=np.float32)
        y = np.linspace(0, height, self.n + 1, dtype=np.float32)
        left, top = np.meshgrid(x[:-1], y[:-1])
        right, bottom = np.meshgrid(x[1:], y[1:])
        boxes = np.stack([left, top, right, bottom], axis=-1).reshape(-1, 4)
        return boxes, np.ones(len(boxes), np.float32), np.zeros(len(boxes), np.int32)
