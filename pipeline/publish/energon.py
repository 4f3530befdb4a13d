"""Megatron Energon's index of a dataset, so that it opens the shard folder without `energon prepare` reading every tar.

    train-000000.tar.idx       where each sample begins, and where the last one ends: unsigned 64-bit, little endian
    .nv-meta/index.sqlite      samples and their parts with offsets and sizes, by which Energon finds single samples
    .nv-meta/index.uuid        names this index; made from content_digest, so that the same tars give the same one
    .nv-meta/split.yaml        tars of each split: train, dev and val under their own names
    .nv-meta/dataset.yaml      a sample is an image (KEY.jpg) and its caption (KEY.txt)
    .nv-meta/.info.json        samples of each tar; with it Energon takes the folder for a dataset, so it comes last
    .nv-meta/.info.yaml        the same for versions before 7

All of it follows from the index that packing left, Parquet by Parquet; the same dataset gives the same bytes. The
format is that of megatron-energon 7.4 (https://nvidia.github.io/Megatron-Energon/).

Limits: regions and the other texts of a sample stay in Parquet and KEY.json. index.sqlite has four rows a sample, about
600 bytes, and is written by one process: some minutes for ten million samples. Another SQLite may write other bytes.
"""

from __future__ import annotations

import json
import sqlite3
import tempfile
import uuid
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import yaml

from data_specs.shard import SPLITS, Manifest, ShardFiles
from pipeline.files.folder import Folder
from pipeline.files.tars import BLOCK, padded

META = ".nv-meta"
INFOS = (".info.json", ".info.yaml")
INDEX = ".idx"
"""Suffix of a tar's index, after its own name."""

PARTS = {"jpg": "image", "txt": "text", "json": "json"}
"""Suffixes of a sample's members in the order of the tar, with their names in the Parquet."""

_NAMESPACE = uuid.UUID("b6a7f8a2-8b0e-5d0a-9d2f-6a3f5f1d7c11")

_TABLES = """
CREATE TABLE samples (tar_file_id INTEGER NOT NULL, sample_key TEXT NOT NULL UNIQUE, sample_index INTEGER NOT NULL,
    byte_offset INTEGER, byte_size INTEGER);
CREATE TABLE sample_parts (tar_file_id INTEGER, sample_index INTEGER, part_name TEXT, content_byte_offset INTEGER,
    content_byte_size INTEGER);
"""
_INDEXES = """
CREATE INDEX idx_samples_by_tar_and_idx ON samples (tar_file_id, sample_index);
CREATE INDEX idx_sample_parts_seq ON sample_parts (tar_file_id, sample_index, content_byte_offset);
CREATE INDEX idx_sample_parts_full ON sample_parts (tar_file_id, sample_index, part_name, content_byte_offset,
    content_byte_size);
"""


def withdraw(folder: Folder) -> None:
    """Take the index of what is there away, whole or half; what tells Energon of the dataset goes first."""
    names = folder.names()
    if META in names:
        for name in (*(f"{META}/{info}" for info in INFOS), META):
            folder.delete(name)
    for name in names:
        if name.endswith(f".tar{INDEX}"):
            folder.delete(name)


def write(folder: Folder, manifest: Manifest) -> None:
    """Write the index of the shards that a manifest names, in its order, but for what `complete` writes."""
    with tempfile.TemporaryDirectory(dir=folder.scratch(), prefix=".tmp-") as scratch:
        path = Path(scratch) / "index.sqlite"
        with closing(sqlite3.connect(path, isolation_level=None)) as db:
            db.execute("PRAGMA journal_mode = OFF")  # half a file is thrown away as a whole
            db.execute("PRAGMA synchronous = OFF")
            db.execute("BEGIN")
            for statement in _TABLES.strip().split(";\n"):
                db.execute(statement)
            for number, shard in enumerate(manifest.shards):
                places = _Places.of(folder, shard)
                folder.write(shard.tar.path + INDEX, places.starts())
                db.executemany("INSERT INTO samples VALUES (?, ?, ?, ?, ?)", places.samples(number))
                db.executemany("INSERT INTO sample_parts VALUES (?, ?, ?, ?, ?)", places.parts(number))
            for statement in _INDEXES.strip().split(";\n"):
                db.execute(statement)
            db.execute("COMMIT")
        folder.take(path, f"{META}/index.sqlite")
    splits = {split: [shard.tar.path for shard in manifest.of_split(split)] for split in SPLITS}
    sample = {"__module__": "megatron.energon", "__class__": "CaptioningSample"}
    texts = {
        "index.uuid": str(uuid.uuid5(_NAMESPACE, manifest.content_digest)).encode(),
        "split.yaml": _yaml({"split_parts": {split: tars for split, tars in splits.items() if tars}, "exclude": []}),
        "dataset.yaml": _yaml({"sample_type": sample, "field_map": {"image": "jpg", "caption": "txt"}}),
    }
    for name, data in texts.items():
        folder.write(f"{META}/{name}", data)


def complete(folder: Folder, manifest: Manifest) -> None:
    """Write what makes the folder a dataset for Energon."""
    counts = {"shard_counts": {shard.tar.path: shard.samples for shard in manifest.shards}}
    for name, data in zip(INFOS, (json.dumps(counts, indent=2).encode() + b"\n", _yaml(counts)), strict=True):
        folder.write(f"{META}/{name}", data)


def _yaml(value: Any) -> bytes:
    return yaml.safe_dump(value, sort_keys=False).encode()


class _Places:
    """Where the samples of one shard lie."""

    def __init__(self, keys: list[str], members: dict[str, tuple[list[int], list[int]]]) -> None:
        self._keys, self._members = keys, members
        self._begins = [at - BLOCK for at in members["jpg"][0]]  # of the first member's header
        self._ends = [padded(at + size) for at, size in zip(*members["json"], strict=True)]

    @staticmethod
    def of(folder: Folder, shard: ShardFiles) -> _Places:
        """Read from the shard's index."""
        columns = [f"{name}_{what}" for name in PARTS.values() for what in ("offset", "size")]
        with folder.local(shard.parquet.path) as path:
            table = pq.read_table(path, columns=["key", *columns])
        found = {column: table[column].to_pylist() for column in columns}
        members = {suffix: (found[f"{name}_offset"], found[f"{name}_size"]) for suffix, name in PARTS.items()}
        return _Places(table["key"].to_pylist(), members)

    def starts(self) -> bytes:
        """The content of the tar's .idx."""
        return np.array([*self._begins, *self._ends[-1:]], "<u8").tobytes()

    def samples(self, number: int) -> Iterable[tuple[int, str, int, int, int]]:
        """Rows of the table `samples`."""
        for i, (key, begin, end) in enumerate(zip(self._keys, self._begins, self._ends, strict=True)):
            yield number, key, i, begin, end - begin

    def parts(self, number: int) -> Iterable[tuple[int, int, str, int, int]]:
        """Rows of the table `sample_parts`."""
        for i in range(len(self._keys)):
            for suffix, (offsets, sizes) in self._members.items():
                yield number, i, suffix, offsets[i], sizes[i]
