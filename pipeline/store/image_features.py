"""Features of images by their sha256: those that STORE has, and those of bytes that are measured here."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import pyarrow as pa
import pyarrow.compute as pc

from data_specs.pictures.jpeg import Bytes
from pipeline.errors import OURS, evidence
from pipeline.features import feature_id
from pipeline.features._rows import FeatureRows
from pipeline.pictures.decode import PictureError, decode
from pipeline.pictures.thumbs import REDUCE_TO
from pipeline.rows.decisions import DropReason
from pipeline.rows.records import FEATURE_SCHEMA
from pipeline.store.store import Store

Fault = tuple[DropReason, str]
"""Why an image is without features, and the evidence."""


def known_features(store: Store, images: Iterable[str]) -> pa.Table:
    """Rows of FEATURE_SCHEMA that STORE has of images, by their sha256."""
    cached = store.features(feature_id()).get(images)
    return FEATURE_SCHEMA.empty_table() if cached is None else cached.select(FEATURE_SCHEMA.names)


def measure_images(images: Iterable[tuple[str, Bytes]], max_pixels: int) -> tuple[pa.Table, dict[str, Fault]]:
    """Rows of FEATURE_SCHEMA, and faults by sha256, of images (sha256, bytes), each given once."""
    rows, faults = FeatureRows(), dict[str, Fault]()
    for sha256, data in images:
        try:
            rows.add(sha256, len(data), decode(data, max_pixels, REDUCE_TO))
        except PictureError as e:
            reason = DropReason.TOO_MANY_PIXELS if e.too_many_pixels else DropReason.CORRUPT_IMAGE
            faults[sha256] = (reason, str(e))
        except OURS:
            raise
        except Exception as e:
            faults[sha256] = (DropReason.UNREADABLE, evidence(e, f"image {sha256}"))
    table = rows.table()
    faults |= {sha256: (DropReason.UNREADABLE, fault) for sha256, fault in rows.faults.items()}
    return table, faults


def features_of(
    store: Store, images: Iterable[str], read: Callable[[str], Bytes], max_pixels: int
) -> tuple[pa.Table, pa.Table]:
    """Rows of FEATURE_SCHEMA of images by sha256: (those that STORE has, those made now of what `read` returns).

    Images without features, such as damaged ones, are in neither.
    """
    wanted = list(dict.fromkeys(images))
    known = known_features(store, wanted)
    missing = set(wanted).difference(known["sha256"].to_pylist())
    return known, measure_images(((sha256, read(sha256)) for sha256 in wanted if sha256 in missing), max_pixels)[0]


def without_images(rows: pa.Table, images: Iterable[str]) -> pa.Table:
    return rows.filter(pc.invert(pc.is_in(rows["sha256"], pa.array(sorted(images), pa.string()))))
