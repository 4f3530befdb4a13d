"""Parts of a picture that are hashed and compared beside the whole, and one matrix product that samples them all.

A copy that was cropped, framed or stamped with a text is not close to the original as a whole, but close to one of
these parts of it. Sampling a part is linear (a mean over cells, a DCT), so it is a matrix applied down the columns and
across the rows of the thumbnail, and the matrices of all parts are stacked into two products.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from pipeline.pictures.decode import Pixels

AT_ONCE = 16
"""Planes multiplied at once: what that needs fits into a processor's cache."""


class Box(NamedTuple):
    """A part of a picture, as shares of its sides."""

    left: float
    top: float
    right: float
    bottom: float


BOXES = (
    Box(0, 0, 1, 1),
    Box(0.02, 0.02, 0.98, 0.98),
    Box(0.04, 0.04, 0.96, 0.96),
    Box(0.04, 0.04, 1, 1),
    Box(0, 0.04, 0.96, 1),
    Box(0.04, 0, 1, 0.96),
    Box(0, 0, 0.96, 0.96),
)
"""The whole picture, then what crops leave of it: a copy that lost up to about 5% at each side or towards one corner,
or has as much of a border, is as a whole close to one of these parts of the original, or the other way round."""

HALVES = (Box(0.04, 0.04, 0.96, 0.5), Box(0.04, 0.5, 0.96, 0.96))
"""Upper and lower half: a text stamped into one leaves the other as it was. Without the margins, where copies that were
framed or cropped by a little differ most."""


def cells(start: float, stop: float, length: int, number: int, weight: int) -> npt.NDArray[np.float64]:
    """[number, length]: how much of each of `length` pixels goes into each of `number` cells of equal width.

    Cells cover the shares `start` to `stop` of the pixels; weights are whole, `weight` in all for each cell.
    """
    edges = length * (start + (stop - start) * np.arange(number + 1) / number)  # in pixels, not whole
    # [number, length + 1]: how much of each cell lies before each pixel border
    covered = np.clip(np.arange(length + 1)[None, :], edges[:-1, None], edges[1:, None]) - edges[:-1, None]
    steps = np.rint(weight * covered / (edges[1:, None] - edges[:-1, None]))
    weights: npt.NDArray[np.float64] = np.diff(steps, axis=1)  # rounding the running sum keeps a cell's sum as it is
    return weights


class Parts:
    """A matrix applied down and across each of some boxes of a square plane.

    `matrix(start, stop)` returns what to apply along a side between two of its shares: [n, side].
    """

    def __init__(self, boxes: Sequence[Box], matrix: Callable[[float, float], npt.NDArray[Any]]) -> None:
        # Boxes share their vertical ranges (top, bottom): each range is sampled down the columns once for all of them.
        down = sorted({(box.top, box.bottom) for box in boxes})
        self._down = np.concatenate([matrix(*of) for of in down])  # [ranges * n, side]
        self._cells, self._boxes = len(self._down) // len(down), len(boxes)
        self._across: list[tuple[list[int], npt.NDArray[Any]]] = []
        """For each vertical range the numbers of its boxes, and what to apply across all of them [side, boxes * n]."""
        for of in down:
            here = [number for number, box in enumerate(boxes) if (box.top, box.bottom) == of]
            ranges = [matrix(boxes[number].left, boxes[number].right) for number in here]
            self._across.append((here, np.concatenate(ranges).T.copy()))

    def of(self, planes: Pixels) -> npt.NDArray[Any]:
        """[B, boxes, n, n] of planes [B, side, side], in the matrix's type: exact while its whole numbers are.

        Two products over some planes at once: down all columns for every range, then across what a range's boxes need.
        """
        count, side, _ = planes.shape
        samples = np.empty((count, self._boxes, self._cells, self._cells), self._down.dtype)
        most = min(count, AT_ONCE) * side
        # Two buffers, used again for each batch of planes.
        columns, rows = np.empty(side * most, samples.dtype), np.empty(len(self._down) * most, samples.dtype)
        for start in range(0, count, AT_ONCE):
            some = planes[start : start + AT_ONCE].transpose(1, 0, 2)  # [side, b, side]: columns of all planes in line
            here = columns[: some.size].reshape(some.shape)
            here[...] = some
            size = some.shape[1]
            down = rows[: len(self._down) * size * side].reshape(len(self._down), -1)
            np.matmul(self._down, here.reshape(side, -1), out=down)  # [ranges * n, b * side]
            self._apply_across(down.reshape(len(self._across), -1, side), samples[start : start + size])
        return samples

    def _apply_across(self, down: npt.NDArray[Any], samples: npt.NDArray[Any]) -> None:
        """Fill samples [b, boxes, n, n] from columns already sampled, [ranges, n * b, side]."""
        for rows, (boxes, across) in zip(down, self._across, strict=True):
            parts = (rows @ across).reshape(self._cells, len(samples), len(boxes), self._cells)
            for at, box in enumerate(boxes):
                samples[:, box] = parts[:, :, at].transpose(1, 0, 2)  # [n, b, n] -> [b, n, n]
