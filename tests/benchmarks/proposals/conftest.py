"""What tests of making the weights share: cut-outs whose masks are known."""

from __future__ import annotations

import numpy as np
import pytest

from tests.benchmarks.proposals.cutouts import Cutouts


@pytest.fixture
def cutouts() -> Cutouts:
    """Things whose mask is known: discs and bars of one colour, on grounds of another."""
    disc = np.zeros((64, 64, 4), np.uint8)
    y, x = np.mgrid[:64, :64]
    disc[(x - 31.5) ** 2 + (y - 31.5) ** 2 < 31**2] = (0, 0, 255, 255)
    bar = np.full((20, 80, 4), (0, 255, 0, 255), np.uint8)
    return Cutouts([disc, bar], [bar], [np.full((100, 100, 3), 90, np.uint8)])
