"""Features of an image, all taken from one decode. One file each.

A feature is a plug-in without options whose file name is its column of `pipeline.records.FEATURE_SCHEMA`;
`pipeline.measure` calls every one of them once an image. What the header alone tells (format, sides, frames, alpha,
orientation) needs no plug-in. Results are cached by the image's sha256 under an id made of the features' versions.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from data_specs.shard import canonical_json
from pipeline.pictures import FORMATS, Picture
from pipeline.plugins import Plugin, configure, names

if TYPE_CHECKING:
    import PIL.Image

REDUCE_TO = 128
"""Shorter side, in pixels, that a decode for features keeps at least: every feature is of coarse structure."""

CROPS = (0.0, 0.02, 0.04)
"""Shares cut off at each side: a crop of up to about 5% meets one of these views of the original."""

DECODE_VERSION = 1
"""Raised when `pipeline.pictures` shows another picture for the same bytes."""


class View:
    """A decoded picture as the features look at it: small, in colour and in grey, each made once."""

    def __init__(self, picture: Picture) -> None:
        from PIL import Image

        self.header = picture.header
        self.colour: PIL.Image.Image = Image.fromarray(picture.pixels)

    @functools.cached_property
    def grey(self) -> PIL.Image.Image:
        return self.colour.convert("L")

    def grids(self, image: PIL.Image.Image, side: int) -> Iterator[np.ndarray[Any, np.dtype[np.uint8]]]:
        """The image averaged down to side x side cells, once for each of CROPS. Integer arithmetic within Pillow."""
        from PIL import Image

        width, height = image.size
        for crop in CROPS:
            box = (width * crop, height * crop, width * (1 - crop), height * (1 - crop))
            yield np.asarray(image.resize((side, side), Image.Resampling.BOX, box=box))


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
    value = [DECODE_VERSION, FORMATS, REDUCE_TO, CROPS, versions]
    return f"features-{hashlib.sha256(canonical_json(value)).hexdigest()[:12]}"
