"""Exposure: the line by which one picture becomes as bright, and as rich in contrast, as a copy of it.

Reposts are made brighter, darker or crisper. Such a copy has the shape of its original and other levels, so the levels
of both are fitted by least squares (`gain` times a level, plus `added`) before they are compared. The fit is bound to
what a repost does: two pictures of one subject by day and by night stay two. What differs for another reason, as a
stamp does, must not pull the line: cells that are further apart than NEARLY take no part, nor do those whose levels
were cut off at black or white. At first these are all that are black or white in either picture. Once there is a line,
they are those that it takes beyond: the white of a page that became darker lies on the line.

Sums are of whole numbers, so that every machine finds the same line.

Limits: a curve (gamma) is a line to it. Where fewer than LEAST cells take part, everything is left as it is.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

GAIN = (0.8, 1.25)
"""Least and most contrast of a copy, as a share of the original's."""

ADDED = 45
"""Grey levels that a copy may have more or less beside that."""

NEARLY = (56, 40, 40)
"""Grey levels from which two cells are too far apart to take part, fit by fit, each over the cells that are near, and
not cut off, by the one before it. White that became a fifth darker is 51 levels off at first."""

SATURATED, WHITE = 2, 252
"""Within 2 grey levels of black or white a level may have been cut off; maps (`details`) hold no more than 252."""

LEAST = 10
"""Cells that must take part."""

Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]


def between(a: Floats, b: Floats, unit: float, inside: Flags) -> tuple[Floats, Floats]:
    """(gain [N], added [N]) by which planes `a` [N, ...] become `b` [N, ...], as their cells `inside` [N, ...] tell.

    unit: a grey level. (1, 0) of planes that tell nothing.
    """
    flat = len(a), math.prod(a.shape[1:])
    one, other, inside = a.reshape(flat), b.reshape(flat), inside.reshape(flat)
    fitted, whole = one, inside & _is_unclipped(one, unit) & _is_unclipped(other, unit)
    for near in NEARLY:
        gain, added = _fit_line(one, other, whole & (np.abs(other - fitted) < near * unit), unit)
        fitted = one * gain[:, None] + added[:, None]
        whole = inside & _is_unclipped(fitted, unit)
    return gain, added


def _is_unclipped(levels: Floats, unit: float) -> Flags:
    """Whether levels were not cut off at black or white."""
    whole: Flags = (levels > SATURATED * unit) & (levels < (WHITE - SATURATED) * unit)
    return whole


def _fit_line(a: Floats, b: Floats, near: Flags, unit: float) -> tuple[Floats, Floats]:
    """The line of least squares, within bounds, through those of cells [N, cells] that are `near`."""
    count = np.count_nonzero(near, axis=1)
    own = a * near
    sum_a, sum_b = own.sum(axis=1), (b * near).sum(axis=1)
    spread = count * (own * a).sum(axis=1) - sum_a * sum_a
    both = count * (own * b).sum(axis=1) - sum_a * sum_b
    gain = np.clip(np.divide(both, spread, out=np.ones(len(a)), where=spread > 0), *GAIN)
    added = np.clip((sum_b - gain * sum_a) / np.maximum(1, count), -ADDED * unit, ADDED * unit)
    tells = count >= LEAST
    return np.where(tells, gain, 1.0), np.where(tells, added, 0.0)
