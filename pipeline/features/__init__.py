"""Features: measurements from a single decode of an image, one file per feature.

A feature is a plug-in without options whose file name is its column of `pipeline.records.FEATURE_SCHEMA`. Features look
at many images at once, since at these sizes a call of NumPy costs more than what it does. What the header alone tells
(format, sides, frames, alpha, orientation) needs no plug-in. Results are cached by the image's sha256 under an id made
of the features' versions.
"""

from __future__ import annotations

import hashlib
from typing import Any

from data_specs.shard import canonical_json
from pipeline.pictures.decode import DECODE_VERSION
from pipeline.pictures.formats import FORMATS
from pipeline.pictures.parts import BOXES, HALVES
from pipeline.pictures.thumbs import REDUCE_TO, THUMB, Views
from pipeline.plugins import Plugin, configure, names


class Feature(Plugin):
    """One column of FEATURE_SCHEMA."""

    def of(self, views: Views) -> list[Any]:
        """The column's value for each picture."""
        raise TypeError(f"{type(self).__name__} must return values")


def features() -> dict[str, Feature]:
    return {name: configure("features", name, {}, Feature) for name in names("features")}


def feature_id() -> str:
    """`features-<12 hex digits>` over everything that may change a value: where STORE caches the rows."""
    versions = [feature.identity() for feature in features().values()]
    value = [DECODE_VERSION, FORMATS, REDUCE_TO, THUMB, BOXES, HALVES, versions]
    return f"features-{hashlib.sha256(canonical_json(value)).hexdigest()[:12]}"
