"""Decides whether two pictures without texture are one, by aligning and comparing their maps (`pictures.details`).

Maps are aligned by Lucas and Kanade's method (IJCAI 1981) with a shift and a scale along each axis, from where the two
hashes say that they lie, coarse cells first. A part of one that the other lacks is not a difference. Then the mean
difference of 3 x 3 cells, less a share of the contrast there (edges never fall onto the same cells), must be small
everywhere but in MOST cells, once one has the exposure of the other (`pictures.exposure`). In one frame, as two
screens of one program have, it must be smaller, and in every cell: a copy that was only saved again or scaled agrees
there. A text or a logo stamped onto one of two copies is forgiven only as one dense block of strong difference outside
of which hardly a cell differs: of two dialogs or charts, the difference is spread or faint. A block that is no line may
be a seal, which colours tell (`signatures.one_has_seal`): of two charts or steps, a box may be filled in another way.

The order of the two does not matter. The alignment is floating point, rounded to ROUNDED of a side; sums after it are
of whole numbers, so that machines can differ only where an alignment lies within their rounding of such a step.

Limits: words that differ by less than some cells of 50 a side, colours, and what is turned or mirrored are not seen. A
title above a chart is a line of text, and a red square in it a seal.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pipeline.pictures import exposure
from pipeline.pictures.details import GREY, SIDE, Maps

BEYOND, BEYOND_SHARE = 20, 20
"""Not alike if more than 20% of the cells are more than 20 grey levels beyond those around them in the other one."""

MOST, VERY = 10, 15
"""Cells that may differ: less than a word of a dialog. None by 15 tenths of what counts as a difference."""

AS_FAR = 186
"""Grey levels of a difference at a threshold of 1: 13 at the default of 0.07."""

SAME_FRAME, FRAMED = 0.6, 0.006
"""The share of a difference that counts where scales and shifts are off by less than 0.006: nothing was cut off or
added then, and a cell of one picture is a cell of the other. No cell may differ."""

LITTLE = 15
"""Maps of which no more than 15% of the cells differ lie well over each other: what differs was changed."""

STAMP_LEAST, STAMP_WORD, STAMP_LINE, STAMP_WIDE = 8, 15, 10, 4
"""Thousandths of the cells that must differ for a stamp, and those below which a word of another dialog differs, unless
it is as long as a line of so many cells; and half lengths of its height that a stamp must be wide: a sign that is
filled in another way is not a line of text."""

STAMP_AREA, STAMP_FILLED, STAMP_STRENGTH, STAMP_OUTSIDE = 12, 35, 24, 3
"""Bounds of a forgiven stamp: at most 12% of the cells, at least 35% of them different and by 24 grey levels
on average, with 3 different cells outside of it at most."""

SEAL_LEAST, SEAL_FILLED, SEAL_STRENGTH = 4, 55, 40
"""Least side of a seal in cells, and the least share of its block, in hundredths, and grey levels, that differ."""

_MOVED, _FAR, _OVERLAP = 0.02, 0.06, 0.7
"""Largest distance of an alignment's scales and shifts from those that the hashes say (a small and a large
letter are two pictures), the same where maps part what grids merge, and the least share of one picture that the other
must cover."""

ROUNDED = 1 << 12
_WEIGHT = 1 << 6
"""An alignment is rounded to 1/4096 of a side, the weights of the cells between which a point lies to 1/64."""

_APART, _REACH = 0.4, 0.75
"""Cells between the edges of two pictures from which one goes on beyond the other, and from an edge to the centre of a
cell that may reach over it."""

_EDGES = 5
"""One part in five of the contrast around a cell is taken off its difference."""

_COARSE, _FINE = 5, 4
"""Steps of the alignment over cells of twice the size, and over those of the map."""

_HUBER = 20.0 / GREY
"""Levels from which a difference counts linearly: a stamp must not pull the alignment."""

AT_ONCE = 32
"""Pairs aligned at once: what they need stays in a processor's cache."""

Flags = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]


def starts_of(a: Floats, b: Floats) -> Floats:
    """[N, 4] alignments (`_align`) that take places `b` [N, 4] of second pictures to places `a` of first ones."""
    starts = np.empty((len(a), 4))
    for axis in (0, 1):
        starts[:, 2 * axis] = (a[:, axis + 2] - a[:, axis]) / (b[:, axis + 2] - b[:, axis])
        starts[:, 2 * axis + 1] = a[:, axis] - starts[:, 2 * axis] * b[:, axis]
    return starts


def judged(a: Maps, b: Maps, starts: Floats, threshold: float) -> tuple[Flags, Flags, Flags]:
    """[N] whether maps [N, SIDE, SIDE] and [N, SIDE, SIDE] are of one picture, are so if one has a seal, or are of two.

    None is known of maps that cannot be laid over each other. starts [N, 4]: as of `starts_of`.
    """
    same, sealed, other = (np.zeros(len(a), np.bool_) for _ in range(3))
    for at in range(0, len(a), AT_ONCE):
        here = slice(at, at + AT_ONCE)
        one, two, aligned = _sort_pairs(a[here], b[here], starts[here])
        rows = np.flatnonzero(_may_be_alike(one, two, aligned))
        found = _compare(one[rows], two[rows], aligned[rows], threshold)
        same[at + rows], sealed[at + rows], other[at + rows] = found
    return same, sealed, other


def _sort_pairs(a: Maps, b: Maps, starts: Floats) -> tuple[Maps, Maps, Floats]:
    """The same pairs, each with the one first that is darker where they first differ: their order must not matter."""
    flat, other = a.reshape(len(a), -1), b.reshape(len(b), -1)
    rows, at = np.arange(len(a)), (flat != other).argmax(axis=1)
    swapped = flat[rows, at] > other[rows, at]
    inverse = np.empty_like(starts)
    inverse[:, ::2] = 1 / starts[:, ::2]
    inverse[:, 1::2] = -starts[:, 1::2] / starts[:, ::2]
    both = swapped[:, None, None]
    return np.where(both, b, a), np.where(both, a, b), np.where(swapped[:, None], inverse, starts)


def _may_be_alike(a: Maps, b: Maps, starts: Floats) -> Flags:
    """[N] whether few cells of twice the size are beyond what lies around them where the pictures start from.

    A twentieth of the time of an alignment, which most candidates are spared by it.
    """
    unit = _WEIGHT**2 / GREY  # a grey level: in whole numbers, as in `_compare_at`
    starts = np.rint(starts * ROUNDED) / ROUNDED
    one, inside = _warp(_halve(a.astype(np.float64)), starts, SIDE // 2, whole=True)
    other = _halve(b.astype(np.float64)) * _WEIGHT**2
    low, high = _extremes_3x3(_match_exposure(one, other, inside, unit))
    beyond = np.maximum(low - other, other - high) > BEYOND * unit
    possible: Flags = np.count_nonzero(beyond & inside, axis=(1, 2)) * 100 <= BEYOND_SHARE * (SIDE // 2) ** 2
    return possible


def _compare(a: Maps, b: Maps, starts: Floats, threshold: float) -> tuple[Flags, Flags, Flags]:
    """`judged` of some maps, once they are aligned; most copies agree from where they start, and need no alignment."""
    same, sealed, other = _compare_at(a, b, np.rint(starts * ROUNDED) / ROUNDED, starts, threshold)
    rows = np.flatnonzero(~same & ~sealed)
    if len(rows):
        a, b, starts = a[rows], b[rows], starts[rows]
        aligned = np.rint(_align(a, b, starts) * ROUNDED) / ROUNDED
        same[rows], sealed[rows], other[rows] = _compare_at(a, b, aligned, starts, threshold)
    return same, sealed, other


def _compare_at(a: Maps, b: Maps, aligned: Floats, starts: Floats, threshold: float) -> tuple[Flags, Flags, Flags]:
    """`judged` of some maps by an alignment."""
    off = np.abs(aligned - starts).max(axis=1)
    sane: Flags = off < _FAR
    aligned[~sane] = (1, 0, 1, 0)
    moved, inside = _warp(a, aligned, SIDE, whole=True)
    sane &= np.count_nonzero(inside, axis=(1, 2)) >= _OVERLAP * SIDE * SIDE
    inside &= _clear_of_edges(aligned)
    stricter = np.where(np.abs(aligned - (1, 0, 1, 0)).max(axis=1) < FRAMED, SAME_FRAME, 1)
    agree, sealed, differ = _compare_planes(moved, b.astype(np.float64) * _WEIGHT**2, inside, threshold, stricter)
    near = sane & (off < _MOVED)
    return near & agree, near & sealed, sane & differ


def _align(a: Maps, b: Maps, starts: Floats) -> Floats:
    """[N, 4] (scale, shift) across, then down: a point x of `b`, in shares of its side, is scale * x + shift of `a`."""
    one, other = a.astype(np.float64), b.astype(np.float64)
    starts = _gauss_newton(_smooth(_halve(one)), _smooth(_halve(other)), starts, _COARSE)
    return _gauss_newton(one, other, starts, _FINE)


def _gauss_newton(a: Floats, b: Floats, aligned: Floats, count: int) -> Floats:
    """Gauss-Newton steps from an alignment [N, 4] of planes [N, side, side]."""
    side = a.shape[1]
    at = (np.arange(side) + 0.5) / side
    damping = np.eye(4) * (side * side * 0.01 / GREY**2)
    for _ in range(count):
        moved, inside = _warp(a, aligned, side)
        across, down = _gradient(moved, 2) * (side / aligned[:, 0])[:, None, None], _gradient(moved, 1)
        down *= (side / aligned[:, 2])[:, None, None]
        apart = b - moved
        weights = np.minimum(1, _HUBER / np.maximum(np.abs(apart), 1e-6)) * inside
        normal, right = _normal_equations(across, down, weights, apart, at)
        step = np.linalg.solve(normal + damping, right[..., None])[..., 0]
        aligned = np.clip(aligned + np.clip(step, -0.05, 0.05), [0.5, -1, 0.5, -1], [2, 1, 2, 1])
    return aligned


def _normal_equations(
    across: Floats, down: Floats, weights: Floats, apart: Floats, at: Floats
) -> tuple[Floats, Floats]:
    """Normal equations [N, 4, 4] and [N, 4] of the slopes (across * x, across, down * y, down) of planes [N, y, x].

    Summed along one axis first, as x and y are the same along the other.
    """
    by_across, by_down = weights * across, weights * down
    in_x, in_y = (by_across * across).sum(axis=1), (by_down * down).sum(axis=2)
    both = by_across * down
    both_x, both_1 = both @ at, both.sum(axis=2)  # [N, y], times x and as they are
    right_x, right_y = (by_across * apart).sum(axis=1), (by_down * apart).sum(axis=2)
    normal = np.empty((len(apart), 4, 4))
    for first, of in ((0, in_x), (2, in_y)):
        normal[:, first, first], normal[:, first + 1, first + 1] = of @ at**2, of.sum(axis=1)
        normal[:, first, first + 1] = normal[:, first + 1, first] = of @ at
    normal[:, 0, 2], normal[:, 0, 3] = both_x @ at, both_x.sum(axis=1)
    normal[:, 1, 2], normal[:, 1, 3] = both_1 @ at, both_1.sum(axis=1)
    normal[:, 2:, :2] = normal[:, :2, 2:].transpose(0, 2, 1)
    right = np.stack([right_x @ at, right_x.sum(axis=1), right_y @ at, right_y.sum(axis=1)], axis=1)
    return normal, right


def _gradient(planes: Floats, axis: int) -> Floats:
    """Central differences along an axis, one-sided ones at the ends, as `numpy.gradient` has them."""
    slope, moved = np.empty_like(planes), np.moveaxis(planes, axis, 0)
    out = np.moveaxis(slope, axis, 0)
    np.subtract(moved[2:], moved[:-2], out=out[1:-1])
    out[1:-1] *= 0.5
    out[0], out[-1] = moved[1] - moved[0], moved[-1] - moved[-2]
    return slope


def _warp(a: Floats | Maps, aligned: Floats, side: int, whole: bool = False) -> tuple[Floats, Flags]:
    """Planes [N, side, side] where an alignment says, and which of their cells `a` has; whole: in whole numbers."""
    across, within_x = _sampling(aligned[:, 0], aligned[:, 1], side, whole)
    down, within_y = _sampling(aligned[:, 2], aligned[:, 3], side, whole)
    return down @ a @ across.transpose(0, 2, 1), within_y[:, :, None] & within_x[:, None, :]


def _sampling(scale: Floats, shift: Floats, side: int, whole: bool) -> tuple[Floats, Flags]:
    """[N, side, side] what to apply along an axis to move its cells, and which cells [N, side] lie within."""
    at = (scale[:, None] * ((np.arange(side) + 0.5) / side) + shift[:, None]) * side - 0.5
    within = (at > -0.5) & (at < side - 0.5)
    at = np.clip(at, 0, side - 1)
    first = np.minimum(at.astype(np.int64), side - 2)
    second = at - first
    if whole:
        second = np.rint(second * _WEIGHT)
    sampled = np.zeros((len(scale), side, side))
    rows, cell = np.arange(len(scale))[:, None], np.arange(side)[None]
    sampled[rows, cell, first] = (_WEIGHT if whole else 1) - second
    sampled[rows, cell, first + 1] = second
    return sampled, within


def _clear_of_edges(aligned: Floats) -> Flags:
    """[N, SIDE, SIDE] cells but for those at the edges of either picture where the other one goes on beyond them.

    What lies beyond, such as a border, is mixed into a cell that reaches over the edge.
    """
    across, down = (
        _clear_of_edges_along(aligned[:, 0], aligned[:, 1]),
        _clear_of_edges_along(aligned[:, 2], aligned[:, 3]),
    )
    return down[:, :, None] & across[:, None, :]


def _clear_of_edges_along(scale: Floats, shift: Floats) -> Flags:
    """[N, SIDE] the same along an axis."""
    begin, end = shift * SIDE, (scale + shift - 1) * SIDE  # of the second picture, from the first one's, in its cells
    centre = begin[:, None] + scale[:, None] * (np.arange(SIDE) + 0.5)
    unmixed = np.ones(centre.shape, np.bool_)
    unmixed[(centre < _REACH) & (begin < -_APART)[:, None]] = False
    unmixed[(centre > SIDE - _REACH) & (end > _APART)[:, None]] = False
    unmixed[begin > _APART, 0] = False
    unmixed[end < -_APART, -1] = False
    return unmixed


def _compare_planes(
    a: Floats, b: Floats, inside: Flags, threshold: float, stricter: Floats
) -> tuple[Flags, Flags, Flags]:
    """[N] whether aligned planes [N, SIDE, SIDE] agree `inside`, but for a line of text, or but for what may be a seal,
    and whether they differ in places, most of them being the same; both in levels times _WEIGHT^2.

    stricter [N]: shares of what counts as a difference by which planes without a stamp are judged, below 1 of those
    in one frame.
    """
    unit = _WEIGHT**2 / GREY  # a grey level
    a = _match_exposure(a, b, inside, unit)
    apart = (b - a) * inside
    contrast = np.minimum(_range_3x3(a), _range_3x3(b))
    limit = _EDGES * 9 * threshold * AS_FAR * unit
    off = (_EDGES * np.abs(_sum_3x3(apart)) - _sum_3x3(contrast)) / limit  # of 3 x 3 cells
    judged = off / stricter[:, None, None]
    far = judged > 1
    most = np.where(stricter < 1, 1, MOST)
    agree: Flags = (np.count_nonzero(far, axis=(1, 2)) < most) & ~(judged * 10 > VERY).any(axis=(1, 2))
    sealed = np.zeros(len(a), np.bool_)
    for row in np.flatnonzero(~agree):
        agree[row], sealed[row] = _classify_stamp(off[row] > 1, off[row] * 10 > VERY, np.abs(apart[row]) / unit)
    little: Flags = np.count_nonzero(far, axis=(1, 2)) * 100 <= LITTLE * SIDE * SIDE
    return agree, sealed, ~agree & little


def _match_exposure(a: Floats, b: Floats, inside: Flags, unit: float) -> Floats:
    """Planes `a` as bright and as rich in contrast as `b`, within what a copy may be changed by; unit: a grey level."""
    gain, added = exposure.between(a, b, unit, inside)
    planes: Floats = np.clip(a * gain[:, None, None] + added[:, None, None], 0, exposure.WHITE * unit)
    return planes


def _classify_stamp(far: Flags, very: Flags, apart: Floats) -> tuple[bool, bool]:
    """(True if the cells [SIDE, SIDE] that are far apart are those of a line of text and no others; if of a seal).

    apart: in grey levels.
    """
    rows = np.flatnonzero(np.count_nonzero(far, axis=1) > 2)
    band = slice(rows[0], rows[-1] + 1) if len(rows) else slice(0)
    columns = np.flatnonzero(np.count_nonzero(far[band], axis=0) > 1)
    if not len(columns):
        return False, False
    block = (band, slice(columns[0], columns[-1] + 1))
    within, (height, width) = np.count_nonzero(far[block]), far[block].shape
    size, strength = height * width, float(apart[block].sum())
    is_block = (
        within * 1_000 >= STAMP_LEAST * far.size
        and np.count_nonzero(far) - within <= STAMP_OUTSIDE
        and np.count_nonzero(very) == np.count_nonzero(very[block])
        and size * 100 <= STAMP_AREA * far.size
    )
    is_line = (within * 1_000 >= STAMP_WORD * far.size or width >= STAMP_LINE) and 2 * width >= STAMP_WIDE * height
    is_line &= within * 100 >= STAMP_FILLED * size and strength >= STAMP_STRENGTH * size
    is_seal = min(height, width) >= SEAL_LEAST and within * 100 >= SEAL_FILLED * size
    is_seal &= strength >= SEAL_STRENGTH * size
    return bool(is_block and is_line), bool(is_block and is_seal)


def _halve(planes: Floats) -> Floats:
    """Means of 2 x 2 cells."""
    means: Floats = planes.reshape(len(planes), SIDE // 2, 2, SIDE // 2, 2).mean(axis=(2, 4))
    return means


def _smooth(planes: Floats) -> Floats:
    """Planes weighted 1, 2, 1 down and across."""
    wide = np.pad(planes, ((0, 0), (1, 1), (1, 1)), mode="edge")
    down = wide[:, :-2] + 2 * wide[:, 1:-1] + wide[:, 2:]
    smooth: Floats = (down[..., :-2] + 2 * down[..., 1:-1] + down[..., 2:]) / 16
    return smooth


def _sum_3x3(planes: Floats) -> Floats:
    """Sums over the 3 x 3 cells around each one."""
    wide = np.pad(planes, ((0, 0), (1, 1), (1, 1)), mode="edge")
    down = wide[:, :-2] + wide[:, 1:-1] + wide[:, 2:]
    sums: Floats = down[..., :-2] + down[..., 1:-1] + down[..., 2:]
    return sums


def _range_3x3(planes: Floats) -> Floats:
    """Largest less smallest of the 3 x 3 cells around each one."""
    low, high = _extremes_3x3(planes)
    return high - low


def _extremes_3x3(planes: Floats) -> tuple[Floats, Floats]:
    """Smallest and largest of the 3 x 3 cells around each one."""
    wide = np.pad(planes, ((0, 0), (1, 1), (1, 1)), mode="edge")
    found = list[Floats]()
    for pick in (np.minimum, np.maximum):
        down = pick(pick(wide[:, :-2], wide[:, 1:-1]), wide[:, 2:])
        found.append(pick(pick(down[..., :-2], down[..., 1:-1]), down[..., 2:]))
    return found[0], found[1]
