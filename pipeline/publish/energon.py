"""Megatron Energon's index of a dataset: with it Energon opens the shard folder without `energon prepare`, which reads
every tar.

    train-000000.tar.idx       offset of each sample, and the end of the last one: unsigned 64-bit, little endian
    .nv-meta/index.sqlite      samples and their parts with offsets and sizes, by which Energon finds single samples
    .nv-meta/index.uuid        identifies this index; derived from content_digest, so the same tars have the same one
    .nv-meta/split.yaml        tars of each split: train, dev and val under their own names
    .nv-meta/dataset.yaml      a sample is an image (KEY.jpg) and its caption (KEY.txt)
    .nv-meta/.info.json        samples of each tar; Energon takes a folder with it for a dataset, so it is written last
    .nv-meta/.info.yaml        the same for versions before 7

A release has a file `energon.yaml` instead, a metadataset (version 2) that names the folders of its builds.

All of it is made from the Parquet beside each tar; the same dataset gives the same bytes. The format is that of
megatron-energon 7.4 (https://nvidia.github.io/Megatron-Energon/).

Limits: regions and the other texts of a sample stay in Parquet and KEY.json. index.sqlite has four rows per sample,
about 600 bytes, and is written by one process: some minutes for ten million samples. Another version of SQLite may
write other bytes.
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
import yaml

from data_specs.shard import MEMBERS, SPLITS, Manifest, ShardFiles
from pipeline.files.folder import Folder
from pipeline.files.parquet import read_parquet
from pipeline.files.tars import BLOCK, padded

METADATASET = "energon.yaml"
"""File beside a release."""
META = ".nv-meta"
INFOS = (".info.json", ".info.yaml")
"""Files of META that make a folder a dataset for Energon."""
INDEX = ".idx"
"""Suffix of a tar's index, after its own name."""

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
    """Remove the index, complete or not. INFOS go first, so that Energon never sees a dataset with half an index."""
    names = folder.names()
    if META in names:
        for name in (*(f"{META}/{info}" for info in INFOS), META):
            folder.delete(name)
    for name in names:
        if name.endswith(f".tar{INDEX}"):
            folder.delete(name)


def write(folder: Folder, manifest: Manifest) -> None:
    """Write the index of the shards that a manifest names, in its order, except what `complete` writes."""
    _write_database(folder, manifest)
    splits = {split: [shard.tar.path for shard in manifest.of_split(split)] for split in SPLITS}
    sample = {"__module__": "megatron.energon", "__class__": "CaptioningSample"}
    texts = {
        "index.uuid": str(uuid.uuid5(_NAMESPACE, manifest.content_digest)).encode(),
        "split.yaml": _yaml({"split_parts": {split: tars for split, tars in splits.items() if tars}, "exclude": []}),
        "dataset.yaml": _yaml({"sample_type": sample, "field_map": {"image": "jpg", "caption": "txt"}}),
    }
    for name, data in texts.items():
        folder.write(f"{META}/{name}", data)


def _write_database(folder: Folder, manifest: Manifest) -> None:
    """Write index.sqlite, and the index of each tar, which is read along the way."""
    with tempfile.TemporaryDirectory(dir=folder.scratch(), prefix=".tmp-") as scratch:
        path = Path(scratch) / "index.sqlite"
        with closing(sqlite3.connect(path, isolation_level=None)) as db:
            db.execute("PRAGMA journal_mode = OFF")  # a partial file is discarded, never repaired
            db.execute("PRAGMA synchronous = OFF")
            db.execute("BEGIN")
            for statement in _TABLES.strip().split(";\n"):
                db.execute(statement)
            for number, shard in enumerate(manifest.shards):
                offsets = _Offsets.of(folder, shard)
                folder.write(shard.tar.path + INDEX, offsets.index())
                db.executemany("INSERT INTO samples VALUES (?, ?, ?, ?, ?)", offsets.samples(number))
                db.executemany("INSERT INTO sample_parts VALUES (?, ?, ?, ?, ?)", offsets.parts(number))
            for statement in _INDEXES.strip().split(";\n"):
                db.execute(statement)
            db.execute("COMMIT")
        folder.take(path, f"{META}/index.sqlite")


def complete(folder: Folder, manifest: Manifest) -> None:
    """Write INFOS, which make the folder a dataset for Energon."""
    counts = {"shard_counts": {shard.tar.path: shard.samples for shard in manifest.shards}}
    for name, data in zip(INFOS, (json.dumps(counts, indent=2).encode() + b"\n", _yaml(counts)), strict=True):
        folder.write(f"{META}/{name}", data)


def metadataset(manifest: Manifest) -> bytes:
    """A release for Energon: in an epoch of a split every sample of every build once.

    A folder that the manifest names relative to itself is relative to this file too.
    """
    splits = {
        split: [
            {"repetitions": 1, "path": build.folder, "split_part": split}
            for build in manifest.builds
            if build.samples.get(split)
        ]
        for split in SPLITS
    }
    named = {split: {"blend_epochized": parts} for split, parts in splits.items() if parts}
    return _yaml({"__module__": "megatron.energon", "__class__": "MetadatasetV2", "splits": named})


def _yaml(value: Any) -> bytes:
    return yaml.safe_dump(value, sort_keys=False).encode()


class _Offsets:
    """Offsets of the samples of one shard and of their members, in bytes of its tar.

    members: (offsets, sizes) of the data of all members of one suffix, in the order of the tar.
    """

    def __init__(self, keys: list[str], members: dict[str, tuple[list[int], list[int]]]) -> None:
        self._keys, self._members = keys, members
        # a sample begins with the header of its first member, one block before the data, and ends with the padding of
        # its last one
        self._begins = [at - BLOCK for at in members["jpg"][0]]
        self._ends = [padded(at + size) for at, size in zip(*members["json"], strict=True)]

    @staticmethod
    def of(folder: Folder, shard: ShardFiles) -> _Offsets:
        """Read the offsets from the Parquet of a shard."""
        columns = [f"{name}_{what}" for name in MEMBERS.values() for what in ("offset", "size")]
        with folder.local(shard.parquet.path) as path:
            table = read_parquet(path, ["key", *columns])
        values = {column: table[column].to_pylist() for column in columns}
        members = {suffix: (values[f"{name}_offset"], values[f"{name}_size"]) for suffix, name in MEMBERS.items()}
        return _Offsets(table["key"].to_pylist(), members)

    def index(self) -> bytes:
        """Content of the tar's .idx: the offset of each sample, and the end of the last one."""
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
