"""Perceptual hashes: 64 signs of low DCT frequencies of the grey picture, for each of `features.CROPS`.

The classic hash (Zauner, "Implementation and Benchmarking of Perceptual Image Hash Functions", 2010): average down to
32 x 32, two-dimensional DCT-II, the 8 x 8 lowest frequencies without the constant row and column, each bit tells
whether a frequency is above their median. Several hashes from one decode, because a single one finds only about half
of the pictures that lost 4% at each side. Computed in integers: every machine gives the same bits.

Limits: not made for mirrored or turned pictures, nor for crops beyond about 5% at a side; flat pictures hash at random.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from pipeline.features import Feature, View

SIDE, BITS_SIDE = 32, 8
BASIS = np.array(
    [
        [round(4096 * math.cos(math.pi * (2 * x + 1) * u / (2 * SIDE))) for x in range(SIDE)]
        for u in range(1, BITS_SIDE + 1)
    ],
    dtype=np.float64,
)
"""[8, 32]: rows 1 to 8 of the DCT-II, scaled to whole numbers."""


class PHash(Feature):
    """List of 64-bit hashes, whole picture first."""

    def of(self, view: View) -> list[int]:
        return hashes_of(view.grids(view.grey, SIDE))


def hash_of(grid: npt.NDArray[np.uint8]) -> int:
    """Hash of a grey grid [32, 32]; bit 63 is the lowest frequency."""
    return hashes_of(grid[None])[0]


def hashes_of(grids: npt.NDArray[np.uint8]) -> list[int]:
    """Hash of each grey grid [N, 32, 32]. Whole numbers below 2^43 in doubles: nothing is rounded."""
    frequencies = (BASIS @ grids.astype(np.float64) @ BASIS.T).reshape(len(grids), -1)
    middle = np.sort(frequencies, axis=1)[:, BITS_SIDE * BITS_SIDE // 2 - 1]  # above it = above the median
    hashes: list[int] = np.packbits(frequencies > middle[:, None], axis=1).view(">u8").ravel().tolist()
    return hashes
