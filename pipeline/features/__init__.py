"""Features of images, cached by the image's sha256 under an id made of their versions (`columns`, `_rows`)."""

from __future__ import annotations

import hashlib

from data_specs.shard import canonical_json
from pipeline.features.columns import FEATURES
from pipeline.pictures.decode import DECODE_VERSION
from pipeline.pictures.formats import FORMATS
from pipeline.pictures.parts import BOXES, HALVES
from pipeline.pictures.thumbs import REDUCE_TO, THUMB


def feature_id() -> str:
    """`features-<12 hex digits>` over everything that may change a value: where STORE caches the rows."""
    versions = [{"name": name, "version": of.version, "options": {}} for name, of in FEATURES.items()]
    value = [DECODE_VERSION, FORMATS, REDUCE_TO, THUMB, BOXES, HALVES, versions]
    return f"features-{hashlib.sha256(canonical_json(value)).hexdigest()[:12]}"
