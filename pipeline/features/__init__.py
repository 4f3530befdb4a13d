"""Features of an image, all taken from one decode. One file each.

A feature is a plug-in without options whose file name is its column of `pipeline.records.FEATURE_SCHEMA`. Features look
at many images at once, since at these sizes a call of NumPy costs more than what it does. What the header alone tells
(format, sides, frames, alpha, orientation) needs no plug-in. Results are cached by the image's sha256 under an id made
of the features' versions.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import numpy as np
import numpy.typing as npt

from data_specs.shard import canonical_json
from pipeline.pictures.decode import FORMATS, Picture, Pixels
from pipeline.plugins import Plugin, configure, names

REDUCE_TO = 64
"""Shorter side, in pixels, that a decode for features keeps at least: every feature is of coarse structure."""

THUMB = 64
"""Side of the square that a picture becomes; hashes and signatures start from it."""

COLOUR_THUMB = THUMB // 2
"""Side of the squares of its colours."""


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

HALVES = (Box(0, 0, 1, 0.5), Box(0, 0.5, 1, 1))
"""Upper and lower half: a text stamped into one leaves the other as it was."""

DECODE_VERSION = 2
"""Raised when `pipeline.pictures` shows another picture for the same bytes."""


def squares_of(pictures: Sequence[Picture]) -> Pixels:
    """[B, 64, 64, 4]: pictures as Views looks at them."""
    squares = np.empty((len(pictures), THUMB, THUMB, 4), np.uint8)
    for square, picture in zip(squares, pictures, strict=True):
        fill(square, picture)
    return squares


def fill(square: Pixels, picture: Picture) -> None:
    """Make a square [64, 64, 4] of a picture: RGB and a fourth channel that means nothing.

    Resized once, by OpenCV's bit-exact bilinear filter: since a picture comes with 64 to 127 pixels to its shorter
    side, that is close to the mean of what a pixel of the square covers. The fourth channel is for speed alone: OpenCV
    has vector code for one, two and four channels, and takes half as long again over three.

    Limits: the longer side of a picture beyond 2 : 1 is sampled, not averaged.
    """
    import cv2

    pixels = cv2.cvtColor(picture.pixels, cv2.COLOR_RGB2RGBA)
    cv2.resize(pixels, (THUMB, THUMB), square, interpolation=cv2.INTER_LINEAR_EXACT)


class Views:
    """Pictures as the features look at them: squares of one size [B, 64, 64, 4], in grey and in colour.

    Everything is for all pictures at once. It is integer arithmetic, or floats in which nothing is rounded: every
    machine sees the same.
    """

    def __init__(self, squares: Pixels) -> None:
        import cv2

        count = len(squares)
        planes = cast("Pixels", cv2.cvtColor(squares.reshape(-1, THUMB, 4), cv2.COLOR_RGB2YCrCb))
        size = (COLOUR_THUMB, count * COLOUR_THUMB)
        halves = cast("Pixels", cv2.resize(planes, size, interpolation=cv2.INTER_AREA))
        self.thumbs: Pixels = np.ascontiguousarray(planes[..., 0]).reshape(count, THUMB, THUMB)
        """[B, 64, 64]: Y (JFIF)."""
        colours = halves.reshape(count, COLOUR_THUMB, COLOUR_THUMB, 3)[..., 1:]
        self.colour_thumbs: Pixels = np.ascontiguousarray(colours.transpose(0, 3, 1, 2))
        """[B, 2, 32, 32]: Cr and Cb."""

    @functools.cached_property
    def levels(self) -> npt.NDArray[np.float64]:
        """[B, 256]: the share of each grey level."""
        import cv2

        counts = [cv2.calcHist([thumb], [0], None, [256], [0, 256]) for thumb in self.thumbs]
        return np.array(counts, np.float64).reshape(-1, 256) / THUMB**2


def cells(start: float, stop: float, length: int, number: int, weight: int) -> npt.NDArray[np.float64]:
    """[number, length]: how much of each of `length` pixels goes into each of `number` cells of equal width.

    Cells cover the shares `start` to `stop` of the pixels; weights are whole, `weight` in all for each cell.
    """
    edges = length * (start + (stop - start) * np.arange(number + 1) / number)
    covered = np.clip(np.arange(length + 1)[None, :], edges[:-1, None], edges[1:, None]) - edges[:-1, None]
    steps = np.rint(weight * covered / (edges[1:, None] - edges[:-1, None]))
    weights: npt.NDArray[np.float64] = np.diff(steps, axis=1)  # rounding the running sum keeps a cell's sum as it is
    return weights


class Parts:
    """A matrix applied down and across each of some boxes of a square plane.

    `matrix` gives, for the shares of a side where a range starts and stops, what to apply along it: [n, side].
    """

    def __init__(self, boxes: Sequence[Box], matrix: Callable[[float, float], npt.NDArray[Any]]) -> None:
        down = sorted({(box.top, box.bottom) for box in boxes})
        self._down = np.concatenate([matrix(*of) for of in down])
        self._cells, self._boxes = len(self._down) // len(down), len(boxes)
        self._across: list[tuple[list[int], npt.NDArray[Any]]] = []
        """For each range down the numbers of its boxes, and what to apply across all of them."""
        for of in down:
            here = [number for number, box in enumerate(boxes) if (box.top, box.bottom) == of]
            ranges = [matrix(boxes[number].left, boxes[number].right) for number in here]
            self._across.append((here, np.concatenate(ranges).T.copy()))

    def of(self, planes: Pixels) -> npt.NDArray[Any]:
        """[B, boxes, n, n] of planes [B, side, side], in the matrix's type: exact while its whole numbers are.

        Two products over some planes at once: down all columns for every range, then across what a range's boxes need.
        """
        count, side, _ = planes.shape
        found = np.empty((count, self._boxes, self._cells, self._cells), self._down.dtype)
        most = min(count, AT_ONCE) * side
        columns, rows = np.empty(side * most, found.dtype), np.empty(len(self._down) * most, found.dtype)  # used again
        for start in range(0, count, AT_ONCE):
            some = planes[start : start + AT_ONCE].transpose(1, 0, 2)
            here = columns[: some.size].reshape(some.shape)
            here[...] = some
            size = some.shape[1]
            down = rows[: len(self._down) * size * side].reshape(len(self._down), -1)
            np.matmul(self._down, here.reshape(side, -1), out=down)
            self._apply_across(down.reshape(len(self._across), -1, side), found[start : start + size])
        return found

    def _apply_across(self, down: npt.NDArray[Any], found: npt.NDArray[Any]) -> None:
        """Fill found [B, boxes, n, n] from rows [ranges down, n * B, side]."""
        for rows, (boxes, across) in zip(down, self._across, strict=True):
            parts = (rows @ across).reshape(self._cells, len(found), len(boxes), self._cells)
            for at, box in enumerate(boxes):
                found[:, box] = parts[:, :, at].transpose(1, 0, 2)


class Feature(Plugin):
    """One column of FEATURE_SCHEMA."""

    def of(self, views: Views) -> list[Any]:
        """The column's value for each picture."""
        raise TypeError(f"{type(self).__name__} must give values")


def features() -> dict[str, Feature]:
    """All features by column."""
    return {name: configure("features", name, {}, Feature) for name in names("features")}


def feature_id() -> str:
    """`features-<12 hex digits>` over everything that may change a value: where STORE caches the rows."""
    versions = [feature.identity() for feature in features().values()]
    value = [DECODE_VERSION, FORMATS, REDUCE_TO, THUMB, BOXES, HALVES, versions]
    return f"features-{hashlib.sha256(canonical_json(value)).hexdigest()[:12]}"
