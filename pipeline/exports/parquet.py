"""Export `parquet`: tables that contain the images, for any tool that reads Parquet.

    OUT/train-00000.parquet ...    one row per sample: key, image, text, texts, source, URLs, size, boxes
    OUT/README.md                  a card of the hub, by which `datasets.load_dataset(OUT)` knows the splits

`image` is a struct of `bytes` (JPEG) and `path`, the form in which Hugging Face `datasets` stores images; the schema
says so, and `datasets` decodes them.

Limits: a file ends after 500 MB of images; other versions of pyarrow may write other bytes.
"""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from data_specs.shard import Split
from pipeline.exports import ExportData
from pipeline.exports._card import card
from pipeline.exports._rows import batches, schema

FILE_BYTES = 500_000_000
"""Bytes of images after which the next file begins."""

_IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
_METADATA = {"huggingface": json.dumps({"info": {"features": {"image": {"_type": "Image"}}}})}
SCHEMA = schema(_IMAGE).with_metadata(_METADATA)


COLUMNS = """`image` is the JPEG, `text` the primary text, `texts` all texts with their kind, `image_leader` the
group of near-copies of the image."""


def write(data: ExportData, out: Path) -> dict[Split, int]:
    counts = {split: _write_split(data, split, out) for split in data.splits}
    (out / "README.md").write_text(card(data, counts, "{split}-*.parquet", COLUMNS), encoding="utf-8")
    return counts


def _write_split(data: ExportData, split: Split, out: Path) -> int:
    """Write the files of a split; returns its samples."""
    files, count, size = 0, 0, FILE_BYTES
    with contextlib.ExitStack() as opened:
        for batch in batches(data, split, SCHEMA):
            if size >= FILE_BYTES:
                opened.close()
                path = out / f"{split}-{files:05d}.parquet"
                writer = opened.enter_context(pq.ParquetWriter(path, SCHEMA, compression="zstd"))
                files, size = files + 1, 0
            writer.write_batch(batch)  # a row group each
            count, size = count + batch.num_rows, size + batch["image"].nbytes
    return count
