"""Signature: mean colour on an 8 x 8 grid, for each of `features.CROPS`: verifies what the hashes find.

A perceptual hash sees grey structure only: many pictures of one shape in other colours share one.
`distance` looks at colour where two pictures differ most, so that a small thing in another colour on a white
ground, which hardly moves a mean over everything, still tells them apart.

Limits: blind to what is finer than an eighth of a side.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pipeline.features import Feature, View

SIDE = 8
SIZE = SIDE * SIDE * 3
"""Bytes of one grid; a signature holds one for each of CROPS."""

LOOKED_AT = SIDE * SIDE // 8
"""Cells, those of the largest difference, whose mean is the distance."""


class Signature(Feature):
    """Bytes: RGB of each cell, row by row, whole picture first."""

    def of(self, view: View) -> bytes:
        return b"".join(grid.tobytes() for grid in view.grids(view.colour, SIDE))


def distance(a: npt.NDArray[np.uint8], b: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
    """Distances 0 to 1 between grids [N, 192] and [N, 192]: mean difference of the eighth of cells that differ most."""
    difference = np.abs(a.astype(np.int16) - b.astype(np.int16)).reshape(-1, SIDE * SIDE, 3).sum(axis=2)
    most = np.partition(difference, SIDE * SIDE - LOOKED_AT, axis=1)[:, -LOOKED_AT:]
    found: npt.NDArray[np.float64] = most.mean(axis=1) / (3 * 255)
    return found
