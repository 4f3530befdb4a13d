"""Symmetries of the square: a picture mirrored, or turned by 90, 180 or 270 degrees, as an order of its stored cells.

A hash of pixels (`hashing`) does not tell that of the mirrored picture: a frequency that is clearly positive may become
clearly negative, and a bit knows nothing of that. Cells are only put into another order. So where mirrored and turned
copies are looked for, hashes are taken once more, of the grids (`signatures`) and maps (`details`) that are stored: of
the whole and two crops of it as they are, which are compared with the whole in each other form. Pixels are not read,
and what is stored of a picture does not change.

Limits: grids hold less than pixels. A copy that is turned and cropped towards a corner, or stamped over more than a
little, is found by chance.
"""

from __future__ import annotations

import functools

import numpy as np
import numpy.typing as npt

from pipeline.pictures import details, hashing, signatures
from pipeline.pictures.parts import BOXES, Parts

FORMS = 8
"""As it is, turned by 90, 180 and 270 degrees, then the same of the mirrored picture."""

UPRIGHT = 3
"""Parts that are compared with the whole in the other forms: the first of `parts.BOXES`, the whole and equal crops."""

HASHES = UPRIGHT + FORMS - 1
"""Hashes of a picture: of the upright parts, then of the whole in the other forms."""

Cells = npt.NDArray[np.uint8]
Ints = npt.NDArray[np.int64]
Words = npt.NDArray[np.uint64]


def grids_in(grids: Cells, forms: Ints) -> Cells:
    """Grids [..., signatures.SIZE] of pictures in forms [...]."""
    if not forms.any():
        return grids
    ordered: Cells = np.take_along_axis(grids, _GRID[forms], axis=-1)
    return ordered


def maps_in(maps: Cells, forms: Ints) -> Cells:
    """Maps [N, details.SIDE, details.SIDE] of pictures in forms [N]."""
    if not forms.any():
        return maps
    ordered: Cells = np.take_along_axis(maps.reshape(len(maps), details.SIDE**2), _MAP[forms], axis=1)
    return ordered.reshape(maps.shape)


def forms_and_boxes(parts: Ints) -> tuple[Ints, Ints]:
    """(forms [N], numbers of boxes [N]) of hashes number `parts` [N]."""
    upright = parts < UPRIGHT
    return np.where(upright, 0, parts - UPRIGHT + 1), np.where(upright, parts, 0)


def of_grids(grids: Cells) -> tuple[Words, Words]:
    """(hashes [N, HASHES], tones [N, HASHES]) of signatures [N, signatures.GRIDS, signatures.SIZE]."""
    forms, boxes = forms_and_boxes(np.arange(HASHES))
    every, side = grids_in(grids[:, boxes], np.broadcast_to(forms, (len(grids), HASHES))), signatures.SIDE
    planes = every[..., : side * side].reshape(-1, side, side)
    return _part_hashes(planes, 1).reshape(-1, HASHES), signatures.tones(every)


def of_maps(maps: Cells) -> tuple[Words, Words]:
    """(hashes [N, HASHES], tones [N, HASHES]) of maps [N, details.SIDE, details.SIDE]."""
    others = maps_in(maps.repeat(FORMS - 1, axis=0), np.tile(np.arange(1, FORMS), len(maps)))
    found = list[Words]()
    for of in (lambda planes, boxes: _part_hashes(planes * np.uint8(details.GREY), boxes), _part_tones):
        found.append(np.concatenate([of(maps, UPRIGHT), of(others, 1).reshape(-1, FORMS - 1)], axis=1))
    return found[0], found[1]


def _part_hashes(planes: Cells, boxes: int) -> Words:
    """[N, boxes] hashes of the first of BOXES of planes [N, side, side]."""
    return hashing.codes_of(hashing.levels_by(_frequencies(boxes, planes.shape[1]), planes))


def _part_tones(maps: Cells, boxes: int) -> Words:
    """[N, boxes] tones of the first of BOXES of maps."""
    return signatures.tones(details.grids_of(maps)[:, :boxes])


@functools.cache
def _frequencies(boxes: int, side: int) -> Parts:
    return hashing.frequencies_of(BOXES[:boxes], side)


def _cell_orders(side: int) -> Ints:
    """[FORMS, side * side] the cell that stands at each place of each form."""
    cells = np.arange(side * side).reshape(side, side)
    return np.stack([np.rot90(of, turns).ravel() for of in (cells, cells[:, ::-1]) for turns in range(4)])


_BRIGHT, _COLOUR = _cell_orders(signatures.SIDE), _cell_orders(signatures.COLOUR_SIDE)
_GRID = np.concatenate(
    [_BRIGHT, *(_COLOUR + signatures.SIDE**2 + plane * signatures.COLOUR_SIDE**2 for plane in (0, 1))], axis=1
)
_MAP = _cell_orders(details.SIDE)
