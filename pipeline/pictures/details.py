"""Details of pictures without texture, as screens, charts and drawings are: fine maps and their hashes, as stored.

Twelve cells a side do not tell two dialogs of one program apart, and thin lines make the hashes of `hashing` tremble.
So a picture that is plain (`signatures.is_plain`) has a map of SIDE x SIDE cells of brightness, means over all pixels
and not samples of them, in 64 levels. Hashes of it find candidates, and maps of two candidates are laid over
each other before they are compared (`pictures.alignment`).

What the hashes are of: the whole, what one crop or border leaves of it, what two of them leave (a framed copy beside a
cropped one), and halves of the whole and of what is inside a border, for copies with something stamped onto them.
"""

from __future__ import annotations

import functools
from typing import cast

import numpy as np
import numpy.typing as npt

from pipeline.pictures import hashing, signatures
from pipeline.pictures.decode import Pixels
from pipeline.pictures.parts import BOXES, Box, Parts, cells
from pipeline.pictures.thumbs import THUMB

SIDE = 46
"""Cells to a side of a map."""

GREY = 4
"""Grey levels from one level of a cell to the next: there are 64."""

_ONE = 1 << 8
"""Weight of a cell, in whole numbers."""

_MAP = SIDE * SIDE // 4 * 3
"""Bytes of a map: four cells in three of them."""

_ONCE, _TWICE = 0.02 / 1.04, 0.06 / 1.04
"""Shares of a side that a border of 2% takes, and that it takes together with a crop of 4%."""

WHOLES = (
    *BOXES,
    Box(_TWICE, _TWICE, 1 - _TWICE, 1 - _TWICE),
    Box(_ONCE, _ONCE, 1 - _TWICE, 1 - _TWICE),
    Box(_ONCE, _TWICE, 1 - _TWICE, 1 - _ONCE),
    Box(_TWICE, _ONCE, 1 - _ONCE, 1 - _TWICE),
    Box(_TWICE, _TWICE, 1 - _ONCE, 1 - _ONCE),
)
"""Parts that are compared with the whole, which is the first."""


def _halves(edge: float) -> tuple[Box, ...]:
    """Upper, lower, left and right half of what lies within an edge."""
    far = 1 - edge
    return (
        Box(edge, edge, far, 0.5),
        Box(edge, 0.5, far, far),
        Box(edge, edge, 0.5, far),
        Box(0.5, edge, far, far),
    )


FAMILIES = (
    tuple(range(len(WHOLES))),
    *((len(WHOLES) + half, len(WHOLES) + 4 + half) for half in range(4)),
)
"""Numbers of parts whose hashes are compared: the first of each family with all of it."""

PARTS = (*WHOLES, *_halves(0), *_halves(_ONCE))
BOXES_OF_PARTS = np.array(PARTS, np.float64)

CROPS = np.array([*range(len(BOXES)), 2, 3, 4, 5, 6, *[0] * 8])
"""For each part the one of BOXES that is nearest to it: that of a half is the whole."""

_WORDS = 8 * len(PARTS)

SIZE = 2 * _WORDS + _MAP
"""Bytes of the details of a picture: hashes and tones of its parts, and its map."""

FLAT, PLAIN = 8, 7
"""Pictures with a map: of at least 8% of the neighbouring pixels of a square, and more than 7 neighbouring cells of a
grid (`signatures.is_plain`), with one level. A copy of a plain picture may be less plain, so there are more of them."""

THIN = 1_000
"""A picture more than so many times as long as wide is a line, and gets no map. To make one, a pixel's width would
be enlarged to a square's, and the length with it: of 1 x 65,500 pixels to 268 MB, in two seconds."""

Maps = npt.NDArray[np.uint8]
Stored = npt.NDArray[np.uint8]
Hashes = npt.NDArray[np.uint64]


def squares_of(pixels: Pixels) -> tuple[Pixels, Maps]:
    """(grey levels [THUMB, THUMB] to be hashed, map [SIDE, SIDE] of 64 levels) of a picture [H, W, 3]."""
    import cv2

    grey = cast("Pixels", cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY))
    return _shrink(grey, THUMB), _shrink(grey, SIDE) // GREY


def _shrink(grey: Pixels, side: int) -> Pixels:
    """A grey picture as a square, each cell the mean of what it covers."""
    import cv2

    height, width = grey.shape
    if min(height, width) < side:  # INTER_AREA averages where it makes smaller only
        times = max(2, -(-side // min(height, width)))
        grey = cast("Pixels", cv2.resize(grey, (width * times, height * times), interpolation=cv2.INTER_LINEAR_EXACT))
    return cast("Pixels", cv2.resize(grey, (side, side), interpolation=cv2.INTER_AREA))


def stored(hashes: Hashes, maps: Maps) -> Stored:
    """Details [N, SIZE] of pictures with hashes [N, PARTS] and maps [N, SIDE, SIDE]."""
    a, b, c, d = maps.reshape(len(maps), SIDE * SIDE // 4, 4).transpose(2, 0, 1)
    cells = np.stack([a << 2 | b >> 4, b << 4 | c >> 2, c << 6 | d], axis=-1).reshape(len(maps), _MAP)
    words = np.concatenate([hashes, signatures.tones(grids_of(maps))], axis=1).astype("<u8")
    return np.concatenate([words.view(np.uint8), cells], axis=1)


def hashes_in(stored: Stored) -> Hashes:
    """Hashes [N, PARTS] of details [N, SIZE]."""
    return _to_words(stored[:, :_WORDS])


def tones_in(stored: Stored) -> Hashes:
    """Tones [N, PARTS] (`signatures.tones`) of details [N, SIZE]."""
    return _to_words(stored[:, _WORDS : 2 * _WORDS])


def _to_words(raw: Stored) -> Hashes:
    words: Hashes = np.ascontiguousarray(raw).view("<u8").astype(np.uint64)
    return words


def maps_in(stored: Stored) -> Maps:
    """Maps [N, SIDE, SIDE] of details [N, SIZE]."""
    a, b, c = stored[:, 2 * _WORDS :].reshape(len(stored), _MAP // 3, 3).transpose(2, 0, 1)
    levels = np.stack([a >> 2, (a << 4 | b >> 4) & 63, (b << 2 | c >> 6) & 63, c & 63], axis=-1)
    return levels.reshape(-1, SIDE, SIDE)


def may_have_map(pixels: Pixels, square: Pixels) -> bool:
    """True if a picture [H, W, 3], and as a square [THUMB, THUMB, channels], may be plain; spares photographs a map."""
    height, width = pixels.shape[:2]
    if max(height, width) > THIN * min(height, width):
        return False
    green = square[..., 1]
    return bool(np.count_nonzero(green[:, 1:] == green[:, :-1]) * 100 >= FLAT * THUMB * THUMB)


def hashes_of(squares: Pixels) -> Hashes:
    """Hashes [N, PARTS] of grey squares [N, THUMB, THUMB], as `hashing.hashes_of` makes them."""
    return hashing.codes_of(hashing.levels_by(_frequencies(), squares))


def grids_of(maps: Maps) -> Maps:
    """Brightness [N, PARTS, SIDE^2 cells of a grid] of the parts of maps [N, SIDE, SIDE]."""
    means = _grid_cells().of(maps * np.uint8(GREY)) / _ONE**2
    return (means + 0.5).astype(np.uint8).reshape(len(maps), len(PARTS), signatures.SIDE**2)


@functools.cache
def _frequencies() -> Parts:
    return hashing.frequencies_of(PARTS, THUMB)


@functools.cache
def _grid_cells() -> Parts:
    side = signatures.SIDE
    return Parts(PARTS, lambda start, stop: cells(start, stop, SIDE, side, _ONE).astype(np.float32))
