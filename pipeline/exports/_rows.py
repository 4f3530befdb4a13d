"""Samples as Arrow tables, for the formats that are tables: one row per sample, the image as its JPEG bytes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from data_specs.shard import SHARD_SCHEMA, Split
from pipeline.exports import ExportData
from pipeline.store.samples import Stored

COPIED = ("source", "source_kind", "page_url", "image_url", "sha256", "width", "height", "image_leader", "split")
"""Columns of a shard's table that are taken as they are."""

_COLUMNS = {
    "text": pa.string(),  # the primary text
    "texts": pa.list_(pa.struct([("kind", pa.string()), ("text", pa.string())])),
    **{name: SHARD_SCHEMA.field(name).type for name in COPIED},
    "boxes": pa.list_(pa.list_(pa.float32())),  # R x [x1, y1, x2, y2], pixels of the image
    "scores": pa.list_(pa.float32()),
    "labels": pa.list_(pa.int32()),
}

ROWS, BYTES = 1_000, 32 << 20
"""A batch ends at so many rows, or bytes of images."""


def schema(image: pa.DataType) -> pa.Schema:
    """The columns of a table of samples, with images of a type."""
    return pa.schema([("key", pa.string()), ("image", image), *_COLUMNS.items()])


def batches(data: ExportData, split: Split, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    """The samples of a split as batches of a schema; memory is one of them."""
    in_struct = pa.types.is_struct(schema.field("image").type)
    rows: list[dict[str, Any]] = []
    size = 0
    for stored in data.of(split):
        rows.append(_row(stored, in_struct))
        size += len(stored.image)
        if len(rows) >= ROWS or size >= BYTES:
            yield pa.RecordBatch.from_pylist(rows, schema)
            rows, size = [], 0
    if rows:
        yield pa.RecordBatch.from_pylist(rows, schema)


def _row(stored: Stored, in_struct: bool) -> dict[str, Any]:
    image = {"bytes": stored.image, "path": f"{stored.key}.jpg"} if in_struct else stored.image
    return {
        "key": stored.key,
        "image": image,
        "text": stored.text,
        "texts": [{"kind": text["kind"], "text": text["text"]} for text in stored.row["texts"]],
        **{name: stored.row[name] for name in COPIED},
        "boxes": stored.boxes_R4.tolist(),
        "scores": stored.scores_R.tolist(),
        "labels": stored.labels_R.tolist(),
    }
