"""Features of an image, all taken from one decode. One file each.

A feature is a plug-in without options whose file name is its column of `pipeline.records.FEATURE_SCHEMA`;
`pipeline.measure` calls every one of them once an image. What the header alone tells (format, sides, frames, alpha,
orientation) needs no plug-in. Results are cached by the image's sha256 under an id made of the features' versions.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import numpy as np
import numpy.typing as npt

from data_specs.shard import canonical_json
from pipeline.pictures import FORMATS, Picture, Pixels
from pipeline.plugins import Plugin, configure, names

REDUCE_TO = 64
"""Shorter side, in pixels, that a decode for features keeps at least: every feature is of coarse structure."""

LONGEST = 1024
"""A view's longer side is below twice this: a strip of a thousand screens costs no more than a picture."""

THUMB = 64
"""Side of the square to which the grey picture is averaged down; hashes and signatures start from it."""


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


class View:
    """A decoded picture as the features look at it: small, in colour and in planes, each made once.

    All of it is integer arithmetic, or floats in which nothing is rounded: every machine sees the same.
    """

    def __init__(self, picture: Picture) -> None:
        self.header = picture.header
        self.colour: Pixels = _narrowed(picture.pixels)  # [H, W, 3] RGB

    @functools.cached_property
    def planes(self) -> tuple[Pixels, Pixels, Pixels]:
        """Y, Cr and Cb (JFIF), each [H, W]."""
        import cv2

        return cast("tuple[Pixels, Pixels, Pixels]", cv2.split(cv2.cvtColor(self.colour, cv2.COLOR_RGB2YCrCb)))

    @property
    def grey(self) -> Pixels:
        """[H, W]"""
        return self.planes[0]

    @functools.cached_property
    def thumb(self) -> Pixels:
        """[64, 64]: the grey picture, averaged down."""
        return averaged(self.grey, THUMB)

    @functools.cached_property
    def levels(self) -> npt.NDArray[np.float64]:
        """[256]: the share of each grey level."""
        import cv2

        counts = cv2.calcHist([self.grey], [0], None, [256], [0, 256])
        found: npt.NDArray[np.float64] = counts.ravel().astype(np.float64) / self.grey.size
        return found


def averaged(plane: Pixels, side: int) -> Pixels:
    """[side, side]: means of a plane [H, W] over so many cells; side is at most 64.

    Two products of matrices. Weights are whole, 256 for each cell, so that the sums fit into the 24 bits that a
    float32 holds exactly, in whatever order a BLAS adds them.
    """
    height, width = plane.shape
    sums = _cells(height, side) @ plane.astype(np.float32) @ _cells(width, side).T
    found: Pixels = (sums * 2.0**-16 + 0.5).astype(np.uint8)
    return found


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
    """A matrix applied down and across each of some boxes of a square plane, once for what boxes share.

    `matrix` gives, for the shares of a side where a range starts and stops, what to apply along it: [n, side].
    """

    def __init__(self, boxes: Sequence[Box], matrix: Callable[[float, float], npt.NDArray[Any]]) -> None:
        down = sorted({(box.top, box.bottom) for box in boxes})
        across = sorted({(box.left, box.right) for box in boxes})
        self._down = np.concatenate([matrix(*of) for of in down])
        self._across = np.concatenate([matrix(*of) for of in across]).T.copy()
        self._shape = (len(down), len(self._down) // len(down), len(across), self._across.shape[1] // len(across))
        self._at = (
            [down.index((box.top, box.bottom)) for box in boxes],
            slice(None),
            [across.index((box.left, box.right)) for box in boxes],
        )

    def of(self, plane: Pixels) -> npt.NDArray[Any]:
        """[boxes, n, n] of a plane [side, side], in the matrix's type: exact while its whole numbers are."""
        found = self._down @ plane.astype(self._down.dtype) @ self._across
        boxes: npt.NDArray[Any] = found.reshape(self._shape)[self._at]
        return boxes


@functools.lru_cache(512)
def _cells(length: int, side: int) -> npt.NDArray[np.float32]:
    return cells(0, 1, length, side, 256).astype(np.float32)


def _narrowed(pixels: Pixels) -> Pixels:
    """Pixels with no side at or above twice LONGEST: means over blocks along a side that is longer."""
    height, width = pixels.shape[:2]
    if max(height, width) < 2 * LONGEST:
        return pixels
    from PIL import Image

    factors = (max(1, width // LONGEST), max(1, height // LONGEST))
    return np.asarray(Image.fromarray(pixels).reduce(factors))


class Feature(Plugin):
    """One column of FEATURE_SCHEMA."""

    def of(self, view: View) -> Any:
        """The column's value."""
        raise TypeError(f"{type(self).__name__} must give a value")


def features() -> dict[str, Feature]:
    """All features by column."""
    return {name: configure("features", name, {}, Feature) for name in names("features")}


def feature_id() -> str:
    """`features-<12 hex digits>` over everything that may change a value: where STORE caches the rows."""
    versions = [feature.identity() for feature in features().values()]
    value = [DECODE_VERSION, FORMATS, REDUCE_TO, LONGEST, THUMB, BOXES, HALVES, versions]
    return f"features-{hashlib.sha256(canonical_json(value)).hexdigest()[:12]}"
