"""Signatures: compare two pictures whose hashes match, to tell a copy from a look-alike.

A signature holds a grid for each of `parts.BOXES`, and one of what lies between the margins: brightness in 12 x 12
cells, colour in 6 x 6. A perceptual hash sees coarse structure in grey only, so many different pictures share one.
`distance` looks where two pictures differ most, so that a small thing in another colour or shape on a white ground,
which hardly moves a mean over everything, still tells them apart; and it forgives what a copy may go through:

- edges that moved a little within their cells: a difference counts only beyond a share of the contrast around it;
- lost colours: if one picture is grey, brightness is compared alone, and must agree `STRICTER` times as well;
- a text along the upper or lower edge: the rest is compared alone, and must agree as much better;
- in a picture with texture everywhere (`PLAIN`), as photographs have, another exposure (`pictures.exposure`), and a
  text across it or a seal anywhere (`STAMPS`): the cells of the one that differ most are left out, and the rest must
  agree as much better. Of two charts, or windows of one program, such places are all that tells them apart; there a
  seal is forgiven only where it is red (`one_has_seal`), by `pictures.alignment`.

A block that stands out from its half of the picture, and does not in the other one, shows in eight bytes per grid, its
`tones`: comparing them first spares most of the full comparisons.

Limits: blind to what is finer than a twelfth of a side, such as the words of a dialog; a text across the middle of a
drawing is a difference. Of a shape in two colours of one brightness, a grey copy goes to whichever is ranked first.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.pictures import exposure
from pipeline.pictures.decode import Pixels
from pipeline.pictures.parts import BOXES, Parts, cells
from pipeline.pictures.thumbs import COLOUR_THUMB, THUMB

SIDE, COLOUR_SIDE = 12, 6
SIZE = SIDE * SIDE + 2 * COLOUR_SIDE * COLOUR_SIDE
"""Bytes of one grid: Y, Cr and Cb (JFIF), row by row."""

CONTENT = len(BOXES)
"""Number of the grid of what lies between the margins, of zeros of a picture without margins."""

GRIDS = CONTENT + 1

STRICTER = 2
"""Factor by which brightness must agree better where colours, or an edge, are left out of the comparison."""

EDGE = 2
"""Rows at the upper or lower edge that a text may cover."""

STAMPS = ((3, SIDE), (4, 4))
"""Neighbouring rows and columns that a line of text, or a seal, may cover in a picture with texture everywhere."""

PLAIN = 30
"""Neighbouring cells, of 264, that may have one level in a picture with texture everywhere; photographs have 18."""

LOOKED_AT = 9
"""Cells, those of the largest difference, whose mean is the distance."""

GREY = 10
"""Most that a cell of a grey picture is off from grey, of 128."""

COLOUR_OFF, COLOURED = 12, 1
"""A cell is of another colour if it is 12 of 128 beyond those around it; one of 36 may be."""

SEAL, SEAL_RED = (3, 3), 40
"""Neighbouring cells of colour that a red seal may lie in, and the least sum of the Cr that it adds to them. Of Cb it
changes half as much at most: two shapes, one red and one blue, are no seal."""

TONE = 15
"""By so much, 20 grey levels, the tone of a block may differ."""

_MOVED, _COLOUR_MOVED = 8, 4
"""A difference counts beyond an eighth, in colours beyond a quarter, of the contrast between neighbouring cells.

Differences are therefore kept in eighths of a level: int16 holds 8 * 255."""

_ONE = 1 << 8
"""Weight of a cell, in whole numbers."""

_IS_COLOUR = np.arange(SIZE) >= SIDE * SIDE

Blocks = tuple[int, ...]

ALL: Blocks = (0, 7, 3, 4, 1, 6, 2, 5)
"""Blocks of tones that must agree in a grid. Those that differ most come first, the corners."""

UPPER: Blocks = (0, 3, 1, 2)
LOWER: Blocks = (4, 7, 5, 6)
"""The same of the halves of a grid."""

Grids = npt.NDArray[np.uint8]
Cells = npt.NDArray[np.int16]
Tones = npt.NDArray[np.uint64]


def signatures_of(thumbs: Pixels, colour_thumbs: Pixels) -> Grids:
    """Grids [N, BOXES, SIZE] of brightness [N, 64, 64] and colours [N, 2, 32, 32].

    Sums are whole numbers of at most 24 bits, which float32 holds exactly.
    """
    bright = _part_means(_BRIGHT, thumbs)
    colours = _part_means(_COLOUR, colour_thumbs.reshape(-1, COLOUR_THUMB, COLOUR_THUMB))
    colours = colours.reshape(-1, 2, *colours.shape[1:])
    return np.concatenate([bright, colours[:, 0], colours[:, 1]], axis=2)


def distance(a: Grids, b: Grids, blocks: Blocks = ALL) -> npt.NDArray[np.float64]:
    """Distances from 0 to 2 between grids [N, SIZE] and [N, SIZE]: 1 is black against white in cells that matter.

    It is 2 for grids whose tones differ too much in one of `blocks`. A half alone says little of drawings, it may be
    empty: where `blocks` are those of a half, they are taken to be STRICTER times as far apart.
    """
    textured = _both_textured(a, b)
    distances = _distance(_cell_differences(a, b), textured, blocks)
    rows = np.flatnonzero(textured)
    near, far = a[rows], b[rows]
    for one, other in ((exposed(near, far), far), (near, exposed(far, near))):  # levels that one lacks are lost
        distances[rows] = np.minimum(distances[rows], _distance(_cell_differences(one, other), textured[rows], blocks))
    return np.where(of_one_tone(tones(a), tones(b), blocks), distances, 2.0)


def exposed(a: Grids, b: Grids) -> Grids:
    """Grids `a` [N, SIZE] as bright and as rich in contrast and colours as `b` [N, SIZE], as far as a copy may be."""
    one, other = (of[:, : SIDE * SIDE].astype(np.float64) for of in (a, b))
    gain, added = exposure.between(one, other, 1, np.ones(one.shape, np.bool_))
    level = a.astype(np.float64) - np.where(_IS_COLOUR, 128.0, 0.0)  # 128 in JFIF is grey
    level = level * gain[:, None] + np.where(_IS_COLOUR, 128, added[:, None])
    grids: Grids = np.rint(np.clip(level, 0, 255)).astype(np.uint8)
    return grids


def tones(grids: Grids) -> Tones:
    """[...] eight bytes for each grid [..., SIZE]: how bright 2 x 4 blocks between the edges are beside their half.

    The upper blocks against the mean of the upper half, and the lower ones likewise: a copy that is brighter has the
    same, and a text in one half leaves the other as it was. In 12/16 of a grey level, 128 for the mean.
    The eight bytes are one uint64, so that N tones are an array [N] and are compared a word at a time.
    """
    inner = grids[..., EDGE * SIDE : (SIDE - EDGE) * SIDE].astype(np.float32)  # rows of brightness between the edges
    beside = np.clip(inner @ _BLOCKS + 128, 0, 255)
    words: Tones = beside.astype(np.uint8).view(np.uint64)[..., 0]
    return words


def of_one_tone(a: Tones, b: Tones, blocks: Blocks = ALL) -> npt.NDArray[np.bool_]:
    """[N] whether none of `blocks` of tones [N] and [N] differs by more than TONE."""
    one, other = a.view(np.uint8).reshape(-1, 8), b.view(np.uint8).reshape(-1, 8)
    near = np.maximum(one, other) - np.minimum(one, other) <= TONE  # [N, 8] booleans, one byte each
    wanted = _block_mask(blocks)
    all_near: npt.NDArray[np.bool_] = near.view(np.uint64)[:, 0] & wanted == wanted  # all eight at once
    return all_near


def within(a: Grids, b: Grids, threshold: float, one_tone: bool = False, blocks: Blocks = ALL) -> npt.NDArray[np.bool_]:
    """`distance(a, b, blocks) <= threshold`, in a fraction of the time where most pairs are far apart.

    Grids are too far apart, whichever cells are left out, if LOOKED_AT of the others differ by more than the
    threshold: in brightness, which is looked at first, or in all. So pairs are discarded in three steps, cheapest
    first: by their tones, by brightness, by colours. one_tone: all pairs are known as `of_one_tone`.
    """
    rows = np.arange(len(a)) if one_tone else np.flatnonzero(of_one_tone(tones(a), tones(b), blocks))
    near, textured = np.zeros(len(a), np.bool_), np.zeros(len(a), np.bool_)
    textured[rows] = _both_textured(a[rows], b[rows])
    near[rows] = _within_exposed(a[rows], b[rows], threshold, textured[rows], blocks)
    for turned in (False, True):
        rows = np.flatnonzero(textured & ~near)
        one, other = (b[rows], a[rows]) if turned else (a[rows], b[rows])
        near[rows] = _within_exposed(exposed(one, other), other, threshold, textured[rows], blocks)
    return near


def _within_exposed(
    a: Grids, b: Grids, threshold: float, textured: npt.NDArray[np.bool_], blocks: Blocks
) -> npt.NDArray[np.bool_]:
    """`within` of grids as they are exposed, of one tone, some of them textured [N]."""
    apart = _brightness_differences(a, b)  # [12, 12, N]
    rows = np.flatnonzero(_may_be_within(apart, threshold, textured))
    apart = _add_colour_differences(apart[..., rows], a[rows], b[rows])
    possible = _may_be_within(apart, threshold, textured[rows])
    rows, apart = rows[possible], apart[..., possible]
    near = np.zeros(len(a), np.bool_)
    near[rows] = _distance(apart, textured[rows], blocks) <= threshold
    return near


def _may_be_within(apart: Cells, threshold: float, textured: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """[N] whether differences [12, 12, N], which colours may still enlarge, can end within the threshold.

    Not if LOOKED_AT cells between the edges are above it, which every way of comparing but one includes: so is their
    mean. Nor, where a stamp may be left out, if so many are above it wherever that lies.
    """
    far = apart > math.floor(255 * _MOVED * threshold)
    in_row = far.view(np.uint8).sum(axis=1, dtype=np.uint8)  # [12, N]
    possible: npt.NDArray[np.bool_] = in_row[EDGE : SIDE - EDGE].sum(axis=0, dtype=np.uint8) < LOOKED_AT
    others = np.flatnonzero(textured & ~possible)
    if len(others):
        is_far = far[..., others].view(np.uint8)
        every = is_far.sum(axis=(0, 1), dtype=np.uint8)
        for stamp in STAMPS:
            possible[others] |= every - _stamp_sums(is_far, stamp).max(axis=0) < LOOKED_AT
    return possible


def _cell_differences(a: Grids, b: Grids) -> Cells:
    """[12, 12, N] differences of brightness or, where that is more, of colours, in eighths."""
    return _add_colour_differences(_brightness_differences(a, b), a, b)


def _brightness_differences(a: Grids, b: Grids) -> Cells:
    """[12, 12, N] differences of brightness, in eighths."""
    return _differences(_brightness(a), _brightness(b), _MOVED)


def _add_colour_differences(apart: Cells, a: Grids, b: Grids) -> Cells:
    """The larger of differences in brightness [12, 12, N] and in colours; stricter ones where a picture has none."""
    colour, other = _colours(a), _colours(b)
    red, blue = _differences(colour, other, _COLOUR_MOVED)
    in_colour = (red + blue)[:, None, :, None]  # [6, 1, 6, 1, N]: for each of the 2 x 2 cells of brightness in one
    times = SIDE // COLOUR_SIDE
    bright = apart.reshape(COLOUR_SIDE, times, COLOUR_SIDE, times, -1)
    larger: Cells = np.maximum(bright, in_colour).reshape(apart.shape)
    grey = np.flatnonzero(_is_grey(colour) | _is_grey(other))
    larger[..., grey] = STRICTER * apart[..., grey]
    return larger


def _distance(apart: Cells, textured: npt.NDArray[np.bool_], blocks: Blocks) -> npt.NDArray[np.float64]:
    """[N] from differences [12, 12, N]: the mean of the largest, over all cells or, STRICTER, without an edge.

    Of the `textured` [N] also, STRICTER, without the one of STAMPS that differs most.
    """
    flat = apart.reshape(SIDE * SIDE, -1).T.copy()  # [N, 144]
    without_upper, without_lower = flat[:, EDGE * SIDE :], flat[:, : -EDGE * SIDE]
    most = np.minimum(
        _sum_of_largest(flat), STRICTER * np.minimum(_sum_of_largest(without_upper), _sum_of_largest(without_lower))
    )
    rows = np.flatnonzero(textured)
    for stamp in STAMPS:
        at = _stamp_sums(apart[..., rows].astype(np.int32), stamp).argmax(axis=0)  # the place that differs most
        uncovered = np.where(_stamp_masks(stamp)[at], 0, flat[rows])
        most[rows] = np.minimum(most[rows], STRICTER * _sum_of_largest(uncovered))
    if blocks != ALL:
        most[~textured] *= STRICTER
    distances: npt.NDArray[np.float64] = most / (255.0 * _MOVED * LOOKED_AT)
    return distances


def _stamp_sums(cells: npt.NDArray[Any], stamp: tuple[int, int]) -> npt.NDArray[Any]:
    """[places, N] sums of cells [side, side, N] at each place where a stamp may lie."""
    for size in stamp:  # down, then across: the axes change places
        sums = np.cumsum(cells, axis=0, dtype=cells.dtype)
        sums[size:] -= sums[:-size].copy()
        cells = sums[size - 1 :].swapaxes(0, 1)
    return cells.reshape(cells.shape[0] * cells.shape[1], cells.shape[2])


@lru_cache(maxsize=8)
def _stamp_masks(stamp: tuple[int, int], side: int = SIDE) -> npt.NDArray[np.bool_]:
    """[places, side^2] the cells that a stamp covers at each place, in the order of `_stamp_sums`."""
    rows, columns = stamp
    places = np.zeros((side - rows + 1, side - columns + 1, side, side), np.bool_)
    for row, column in np.ndindex(*places.shape[:2]):
        places[row, column, row : row + rows, column : column + columns] = True
    return places.reshape(-1, side * side)


def _both_textured(a: Grids, b: Grids) -> npt.NDArray[np.bool_]:
    """[N] whether both of grids [N, SIZE] and [N, SIZE] have texture everywhere."""
    return ~(is_plain(a) | is_plain(b))


def is_plain(grids: Grids, most: int = PLAIN) -> npt.NDArray[np.bool_]:
    """[N] whether more than `most` neighbouring cells of brightness of grids [N, SIZE] have one level."""
    bright = grids[:, : SIDE * SIDE].reshape(-1, SIDE, SIDE)
    count = np.zeros(len(grids), np.int64)
    for one, other in ((bright[:, 1:], bright[:, :-1]), (bright[..., 1:], bright[..., :-1])):
        count += np.count_nonzero(one == other, axis=(1, 2))
    plain: npt.NDArray[np.bool_] = count > most
    return plain


def of_one_colour(a: Grids, b: Grids) -> npt.NDArray[np.bool_]:
    """[N] whether colours of grids [N, SIZE], whose cells may have moved by less than one, are those of one picture.

    Cells beyond the colours around them in the other one are few. A grey picture has the colours of any.
    """
    one, other = _colours(a), _colours(b)
    few: npt.NDArray[np.bool_] = np.count_nonzero(_colour_outliers(one, other), axis=(0, 1)) <= COLOURED
    return few | _is_grey(one) | _is_grey(other)


def one_has_seal(a: Grids, b: Grids) -> npt.NDArray[np.bool_]:
    """[N] whether one of grids [N, SIZE] and [N, SIZE] is red in a place where the other one is not, as by a seal.

    Outside of this place their colours are those of one picture.
    """
    one, other = _colours(a), _colours(b)
    red, blue = (_stamp_sums(one[at].astype(np.int32) - other[at], SEAL) for at in (0, 1))  # [places, N]
    place = np.abs(red).argmax(axis=0)
    red, blue = (np.abs(of[place, np.arange(len(a))]) for of in (red, blue))
    far = (
        _colour_outliers(one, other).reshape(COLOUR_SIDE**2, -1).T & ~_stamp_masks(SEAL, COLOUR_SIDE)[place]
    )  # [N, 36]
    sealed: npt.NDArray[np.bool_] = (np.count_nonzero(far, axis=1) <= COLOURED) & (
        red >= np.maximum(SEAL_RED, 2 * blue)
    )
    return sealed


def _colour_outliers(one: Grids, other: Grids) -> npt.NDArray[np.bool_]:
    """[6, 6, N] cells of one of two pictures beyond the colours around them in the other one."""
    far = np.zeros(one.shape[1:], np.bool_)
    for here, there in ((one, other), (other, one)):
        low = _over_neighbours(np.minimum, _over_neighbours(np.minimum, there, -2), -3).astype(np.int16)
        high = _over_neighbours(np.maximum, _over_neighbours(np.maximum, there, -2), -3).astype(np.int16)
        far |= (np.maximum(low - here, here - high) > COLOUR_OFF).any(axis=0)
    return far


@lru_cache(maxsize=8)
def _block_mask(blocks: Blocks) -> np.uint64:
    """A word whose bytes are 1 for some blocks."""
    wanted: np.uint64 = np.isin(np.arange(8), blocks).view(np.uint64)[0]
    return wanted


def _brightness(grids: Grids) -> Grids:
    """[12, 12, N] brightness of grids [N, SIZE]: grids last, so that each step runs along memory."""
    bright: Grids = grids[:, : SIDE * SIDE].T.copy().reshape(SIDE, SIDE, -1)
    return bright


def _colours(grids: Grids) -> Grids:
    """[2, 6, 6, N] Cr and Cb of grids [N, SIZE]."""
    colours: Grids = grids[:, SIDE * SIDE :].T.copy().reshape(2, COLOUR_SIDE, COLOUR_SIDE, -1)
    return colours


def _differences(a: Grids, b: Grids, moved: int) -> Cells:
    """Differences of cells, in eighths, less what a little shift explains: 1 / `moved` of the contrast around."""
    differences: Cells = (np.maximum(a, b) - np.minimum(a, b)).astype(np.int16)  # a - b would wrap around in uint8
    differences *= _MOVED
    allowed = np.minimum(_contrast(a), _contrast(b)).astype(np.int16)
    allowed *= _MOVED // moved
    differences -= allowed
    return np.maximum(differences, 0, out=differences)


def _contrast(planes: Grids) -> Grids:
    """Largest less smallest of the 3 x 3 cells around each one; cells are the last but one axes."""
    highest, lowest = planes, planes
    for axis in (-2, -3):
        highest, lowest = _over_neighbours(np.maximum, highest, axis), _over_neighbours(np.minimum, lowest, axis)
    contrast: Grids = highest - lowest
    return contrast


def _over_neighbours(pick: np.ufunc, planes: Grids, axis: int) -> Grids:
    """`pick` over each cell and its two neighbours along an axis."""
    picked: Grids = planes.copy()
    all_but_first = (..., slice(1, None)) + (slice(None),) * (-axis - 1)
    all_but_last = (..., slice(None, -1)) + (slice(None),) * (-axis - 1)
    pick(picked[all_but_first], planes[all_but_last], out=picked[all_but_first])
    pick(picked[all_but_last], planes[all_but_first], out=picked[all_but_last])
    return picked


def _sum_of_largest(apart: Cells) -> npt.NDArray[np.int64]:
    """[N] sum of the LOOKED_AT largest of [N, cells]."""
    largest = np.partition(apart, apart.shape[1] - LOOKED_AT, axis=1)[:, -LOOKED_AT:]
    sums: npt.NDArray[np.int64] = largest.sum(axis=1, dtype=np.int64)
    return sums


def _is_grey(colour: Grids) -> npt.NDArray[np.bool_]:
    """[N] whether colours [2, 6, 6, N] are those of a grey picture: 128 in JFIF is grey."""
    off = np.maximum(colour, 128) - np.minimum(colour, 128)
    grey: npt.NDArray[np.bool_] = off.reshape(2 * COLOUR_SIDE * COLOUR_SIDE, -1).max(axis=0) <= GREY
    return grey


def _part_means(parts: Parts, planes: Pixels) -> Grids:
    """[N, BOXES, side * side] of planes [N, side, side]."""
    means = parts.of(planes)
    means *= 1.0 / (_ONE * _ONE)  # cells were weighted down and across
    means += 0.5  # to the nearest level
    grids: Grids = means.astype(np.uint8).reshape(len(planes), len(BOXES), -1)
    return grids


def _part_sampling(thumb: int, side: int) -> Parts:
    return Parts(BOXES, lambda start, stop: cells(start, stop, thumb, side, _ONE).astype(np.float32))


def _tone_weights() -> npt.NDArray[np.float32]:
    """[cells between the edges, 8]: 2 x 4 blocks less means of their halves, in 64ths, which floats hold exactly."""
    rows, columns = np.divmod(np.arange((SIDE - 2 * EDGE) * SIDE), SIDE)
    half = rows // (SIDE // 2 - EDGE)
    own, beside = half * 4 + columns // (SIDE // 4), half[:, None] == np.arange(8) // 4
    weights: npt.NDArray[np.float32] = (4 * (own[:, None] == np.arange(8)) - beside.astype(np.float32)) / 64
    return weights.astype(np.float32)


_BLOCKS = _tone_weights()
_BRIGHT, _COLOUR = _part_sampling(THUMB, SIDE), _part_sampling(COLOUR_THUMB, COLOUR_SIDE)
