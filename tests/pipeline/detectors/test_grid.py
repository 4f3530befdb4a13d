"""grid: its boxes tile the picture."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.detectors.grid import Grid


def test_the_grid_tiles_the_picture() -> None:
    boxes, scores, labels = Grid(n=4).detect(None, [np.zeros((70, 101, 3), np.uint8)])[0]
    area = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    assert area.sum() == pytest.approx(70 * 101)
    assert boxes[0].tolist() == [0, 0, 25.25, 17.5]
    assert len(boxes) == 16
    assert set(scores) == {1}
    assert set(labels) == {0}
