"""Features of an image, all taken from one decode. One file each.

A feature is a plug-in without options whose file name is its column of `pipeline.records.FEATURE_SCHEMA`;
`pipeline.measure` calls every one of them once an image. What the header alone tells (format, sides, frames, alpha,
orientation) needs no plug-in. Results are cached by the image's sha256 under an id made of the features' versions.
"""

from __future__ import annotations

import functools
import hashlib
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from data_specs.shard import canonical_json
from pipeline.pictures import FORMATS, Picture, Pixels
from pipeline.plugins import Plugin, configure, names

REDUCE_TO = 64
"""Shorter side, in pixels, that a decode for features keeps at least: every feature is of coarse structure."""

LONGEST = 1024
"""A view's longer side is below twice this: a strip of a thousand screens costs no more than a picture."""

CROPS = (0.0, 0.02, 0.04)
"""Shares cut off at each side: a crop of up to about 5% meets one of these views of the original."""

DECODE_VERSION = 2
"""Raised when `pipeline.pictures` shows another picture for the same bytes."""


class View:
    """A decoded picture as the features look at it: small, in colour and in grey, each made once.

    All of it is integer arithmetic, or floats in which nothing is rounded: every machine sees the same.
    """

    def __init__(self, picture: Picture) -> None:
        self.header = picture.header
        self.colour: Pixels = _narrowed(picture.pixels)  # [H, W, 3] RGB

    @functools.cached_property
    def grey(self) -> npt.NDArray[np.uint8]:
        """[H, W]"""
        import cv2

        return cast("npt.NDArray[np.uint8]", cv2.cvtColor(self.colour, cv2.COLOR_RGB2GRAY))

    @functools.cached_property
    def levels(self) -> npt.NDArray[np.float64]:
        """[256]: the share of each grey level."""
        import cv2

        counts = cv2.calcHist([self.grey], [0], None, [256], [0, 256])
        found: npt.NDArray[np.float64] = counts.ravel().astype(np.float64) / self.grey.size
        return found

    def grids(self, image: npt.NDArray[np.uint8], side: int) -> npt.NDArray[np.uint8]:
        """[len(CROPS), side, side] or [..., 3]: means of the image over side x side cells, for each of CROPS.

        Two products of matrices. Weights are whole, 256 for each cell, so that the sums fit into the 24 bits that a
        float32 holds exactly, in whatever order a BLAS adds them.
        """
        (height, width), channels, views = image.shape[:2], image.shape[2:], len(CROPS)
        strips = _cells(height, side) @ image.reshape(height, -1).astype(np.float32)
        across = _cells(width, side).reshape(views, side, width).swapaxes(1, 2)
        if channels:  # one product for each crop, not one for each strip of it
            strips = strips.reshape(views, side, width, *channels).swapaxes(2, 3)
        sums = strips.reshape(views, -1, width) @ across
        sums += 2.0**15
        sums *= 2.0**-16
        found: npt.NDArray[np.uint8] = sums.astype(np.uint8).reshape(views, side, *channels, side)
        return found.swapaxes(2, 3) if channels else found


@functools.lru_cache(256)
def _cells(length: int, side: int) -> npt.NDArray[np.float32]:
    """[len(CROPS) * side, length]: how much of each of `length` pixels goes into each cell, in 256ths of the cell."""
    pixels = np.arange(length + 1)
    rows = []
    for crop in CROPS:
        edges = length * (crop + (1 - 2 * crop) * np.arange(side + 1) / side)
        covered = np.clip(pixels[None, :], edges[:-1, None], edges[1:, None]) - edges[:-1, None]
        steps = np.rint(256 * covered / (edges[1:, None] - edges[:-1, None]))
        rows.append(np.diff(steps, axis=1))  # rounding the running sum keeps each cell's sum at 256
    return np.concatenate(rows).astype(np.float32)


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
    value = [DECODE_VERSION, FORMATS, REDUCE_TO, LONGEST, CROPS, versions]
    return f"features-{hashlib.sha256(canonical_json(value)).hexdigest()[:12]}"
