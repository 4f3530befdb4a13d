"""Perceptual hashes: 64 bits for each of the parts of a picture that `parts.BOXES` and `parts.HALVES` name.

The classic hash (Zauner, "Implementation and Benchmarking of Perceptual Image Hash Functions", 2010) is the signs of
low DCT frequencies of the grey picture. Here a bit tells whether a frequency is clearly positive: above `CLEARLY`
times the root mean square of all 64, each times its distance from the constant, because pictures hold less of a
frequency the higher it is. Signs alone are noise wherever a picture holds nothing of a frequency, as symmetric shapes
on white do by the dozen: over clip art saved at half size, one picture in ten lost 6 of 64 bits by signs and loses 3
this way.

Several hashes, because a single one finds about half of the pictures that lost 4% at each side, and few with a text
stamped onto them; against parts of the original, a radius of 4 bits finds nearly all. Computed in whole numbers:
every machine computes the same bits. A picture without structure has hash 0.

Limits: not made for mirrored or turned pictures (`symmetries`), crops beyond about 5% at a side, or several of these at
once, but for a frame (`frames`), which comes off first. A text across the middle touches both halves.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from pipeline.pictures.decode import Pixels
from pipeline.pictures.parts import BOXES, HALVES, Box, Parts, cells
from pipeline.pictures.thumbs import THUMB

CONTENT = len(BOXES)
"""Number of the hash of what lies between the margins, 0 of a picture without margins; those of HALVES follow."""

HASHES = len(BOXES) + 1 + len(HALVES)

SIDE = 32
"""Cells to a side of a part, of which the DCT is taken."""

CLEARLY = (1, 10)
"""0.1 as a fraction. More of it forgives more, and puts more different pictures side by side."""

FLAT = 1.5
"""Grey levels, root mean square of the weighted frequencies, below which a part is noise."""

_ONE = 256
"""A grey level in the whole numbers that are compared."""

_ORDER = sorted(((u, v) for u in range(10) for v in range(10) if u or v), key=lambda at: (at[0] ** 2 + at[1] ** 2, at))[
    :64
]
"""(vertical, horizontal) numbers of the 64 lowest frequencies."""

_FREQUENCIES = 1 + max(max(at) for at in _ORDER)
_PICKED = np.array([u * _FREQUENCIES + v for u, v in _ORDER])
_BASIS_ONE = 1 << 6
_CELL_ONE = 1 << 8
_DCT = np.array(
    [
        [round(_BASIS_ONE * math.cos(math.pi * (2 * x + 1) * u / (2 * SIDE))) for x in range(SIDE)]
        for u in range(_FREQUENCIES)
    ],
    dtype=np.float64,
)
"""[frequencies, 32]: the first rows of the DCT-II, in whole numbers."""

_WEIGHTS = np.array([math.hypot(u, v) * (0.5**0.5 if u == 0 or v == 0 else 1) * 2 / SIDE**2 for u, v in _ORDER]) * (
    _ONE / (_BASIS_ONE * _CELL_ONE) ** 2
)
"""[64]: distance from the constant x the DCT's own norm, and back from whole numbers to 256ths of a grey level."""


def frequencies_of(boxes: Sequence[Box], side: int) -> Parts:
    """Returns the transform to the lowest frequencies of parts of squares of `side` cells."""
    return Parts(boxes, lambda start, stop: _DCT @ cells(start, stop, side, SIDE, _CELL_ONE))


_PARTS = frequencies_of(BOXES + HALVES, THUMB)


def hashes_of(thumbs: Pixels) -> npt.NDArray[np.uint64]:
    """Hashes [N, BOXES + HALVES] of grey thumbnails [N, 64, 64]; bit 63 is the lowest frequency."""
    return codes_of(levels_of(thumbs))


def levels_of(thumbs: Pixels) -> npt.NDArray[np.float64]:
    """[N, BOXES + HALVES, 64] weighted frequencies of grey thumbnails [N, 64, 64], as `levels_by`."""
    return levels_by(_PARTS, thumbs)


def levels_by(parts: Parts, planes: Pixels) -> npt.NDArray[np.float64]:
    """[N, parts, 64] weighted frequencies, in 256ths of a grey level. Exact until they are cut: below 2^53."""
    samples = parts.of(planes)
    levels: npt.NDArray[np.float64] = samples.reshape(*samples.shape[:2], _FREQUENCIES**2)[..., _PICKED]
    levels *= _WEIGHTS
    np.rint(levels, out=levels)
    return levels


def codes_of(levels: npt.NDArray[np.float64]) -> npt.NDArray[np.uint64]:
    """[...] hashes of weighted frequencies [..., 64]."""
    squares = levels**2  # whole numbers still
    energy = squares.sum(axis=-1, keepdims=True)
    times, of = CLEARLY
    # level > times / of * sqrt(energy / 64), squared and multiplied out so that no root or quotient is rounded
    clear = (levels > 0) & (squares * (64 * of**2) > energy * times**2)
    clear &= energy >= 64 * (FLAT * _ONE) ** 2
    packed = np.ascontiguousarray(np.packbits(clear, axis=-1))  # [..., 8] bytes, first bit highest
    return packed.view(">u8")[..., 0].astype(np.uint64)
