"""Checks a build or a release against its manifest and the contract. `verify` returns every fault as one line that
names the file, and the key where it is about one sample.

Quick: every file is there with its size and sha256, the manifest names every shard of the folder, and the
Parquet files hold what the contract asks. Full: in addition every tar is walked member by member against its index, and
every image is decoded. Nothing that STORE lists as taken down may be inside. Of a dataset whose faces are blurred every
image is looked at in the boxes of the detector that found them: there it must be a mosaic, and hold no metadata.

Limits: memory is one shard's index, plus 16 bytes per sample for the keys and 8 bytes per sample for the image leaders:
2.4 GB for 100 million samples. Two leaders with the same first 64 bits count as one.
"""

from __future__ import annotations

import contextlib
import re
from collections import Counter
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data_specs.shard import SHARD_SCHEMA, SPLITS, FileDigest, Manifest, ShardFiles, content_digest, leaves_folder
from data_specs.storage.whole_files import sha256_of
from pipeline.files.folder import Folder
from pipeline.publish.dataset import unreachable
from pipeline.publish.shard_content import (
    PER_FILE,
    Faces,
    faces_of,
    first_faults,
    place_faults,
    read_table,
    region_faults,
    row_faults,
    tar_faults,
)
from pipeline.store.dataset import Dataset, samples_by_split
from pipeline.store.store import Store
from pipeline.store.takedowns import Takedowns

Uint64s = npt.NDArray[np.uint64]


def verify(folder: str | Path, quick: bool = False, store: str = "") -> list[str]:
    """Faults of a dataset, one line each; empty if it is sound. `folder` is a build's folder or its shard folder.

    store: the STORE whose takedowns must not be inside; if not given, the one that the build or the release belongs to,
    none for a copy. Raises ContractError for a manifest that is missing, unreadable or of a newer version,
    and StoreError for an invalid `store`.
    """
    dataset = Dataset.open(folder)
    if store:
        Store(store).must_exist()
    store = store or dataset.store
    across = _AcrossShards(Store(store).takedowns() if store else Takedowns())
    away = unreachable(Store(dataset.store), dataset.manifest.builds) if dataset.store else {}
    faults = [*away.values(), *_manifest_faults(dataset.manifest), *_unnamed_shards(dataset)]
    for shard in dataset.manifest.shards:
        if shard.build not in away:
            faults += _shard_faults(dataset, shard, quick, across)
    return faults + across.faults()


@dataclass
class _AcrossShards:
    """Collects what must hold across shards: keys are unique, and the images of one cluster are in one split."""

    takedowns: Takedowns
    keys: list[npt.NDArray[np.void]] = field(default_factory=list)
    leaders: dict[str, list[Uint64s]] = field(default_factory=dict)

    def add(self, split: str, rows: list[dict[str, Any]]) -> None:
        keys = b"".join(bytes.fromhex(row["key"]) for row in rows)
        self.keys.append(np.frombuffer(keys, dtype="V16"))  # KEY is 32 hexadecimal digits
        leaders = np.array([int(row["image_leader"][:16], 16) for row in rows], dtype=np.uint64)
        self.leaders.setdefault(split, []).append(np.unique(leaders))

    def faults(self) -> list[str]:
        """Faults of the shards together, once all of them were added."""
        return [*self._repeated_keys(), *self._leaders_in_two_splits()]

    def _repeated_keys(self) -> Iterator[str]:
        if self.keys:
            keys, counts = np.unique(np.concatenate(self.keys), return_counts=True)
            for key in keys[counts > 1][:PER_FILE]:
                yield f"{bytes(key).hex()}: duplicate key"

    def _leaders_in_two_splits(self) -> Iterator[str]:
        merged = {split: np.unique(np.concatenate(parts)) for split, parts in self.leaders.items()}
        for i, a in enumerate(SPLITS):
            for b in SPLITS[i + 1 :]:
                if a in merged and b in merged:
                    for leader in np.intersect1d(merged[a], merged[b])[:PER_FILE]:
                        yield f"image_leader {int(leader):016x}...: in {a} and in {b}"


def _manifest_faults(manifest: Manifest) -> Iterator[str]:
    """Yields contradictions of the manifest, and files that it names outside the shard folder."""
    for split, samples in samples_by_split(manifest.shards).items():
        total = manifest.samples.get(split, 0)
        if samples != total:
            yield f"manifest.json: the {split} shards have {samples:,} samples, but the total is {total:,}"
    if content_digest(manifest.shards) != manifest.content_digest:
        yield "manifest.json: content_digest does not match the tars"
    paths = Counter((shard.build, file.path) for shard in manifest.shards for file in _files(shard))
    for (_, path), times in paths.items():
        if times > 1:
            yield f"manifest.json: lists {path} {times} times"
        if leaves_folder(path):
            yield f"manifest.json: path {path!r} is outside the shard folder"


def _unnamed_shards(dataset: Dataset) -> Iterator[str]:
    """Shards in a folder that the manifest does not name: a reader that lists files would take them for its own."""
    named: dict[str, set[str]] = {dataset.shards.url: set()} if not dataset.manifest.builds else {}
    for shard in dataset.manifest.shards:
        named.setdefault(dataset.folder_of(shard).url, set()).update(file.path for file in _files(shard))
    for url, names in named.items():
        for name in Folder(url).names():
            if re.fullmatch(rf"({'|'.join(SPLITS)})-\d+\.(tar|parquet)", name) and name not in names:
                yield f"{name}: not listed in the manifest"


def _files(shard: ShardFiles) -> list[FileDigest]:
    return [shard.tar, shard.parquet, *shard.regions.values()]


def _shard_faults(dataset: Dataset, shard: ShardFiles, quick: bool, across: _AcrossShards) -> list[str]:
    """Faults of one shard. The content of a file is checked only if its size and sha256 match, and that of tar and
    regions only if the index is sound, so that one damage is reported once."""
    if any(leaves_folder(file.path) for file in _files(shard)):
        return []  # reported by _manifest_faults; nothing outside the folder is opened
    folder = dataset.folder_of(shard)
    with contextlib.ExitStack() as copies:  # a file of an object store is fetched once
        paths, damaged = dict[str, Path](), dict[str, str]()
        for file in _files(shard):
            try:
                paths[file.path] = copies.enter_context(folder.local(file.path))
                fault = _digest_fault(paths[file.path], file)
            except FileNotFoundError:
                fault = f"{file.path}: missing"
            except OSError as e:
                fault = f"{file.path}: cannot be read ({e.strerror or e})"
            if fault:
                damaged[file.path] = fault
        return [*damaged.values(), *_content_faults(dataset, shard, quick, across, paths, damaged)]


def _content_faults(
    dataset: Dataset,
    shard: ShardFiles,
    quick: bool,
    across: _AcrossShards,
    paths: Mapping[str, Path],
    damaged: Container[str],
) -> list[str]:
    """Faults of what the files of a shard hold. paths: where they lie here; damaged: those that are not looked into."""
    faults = list[str]()
    blurred = dataset.manifest.images.faces_blurred if dataset.manifest.images else ""
    needed = dict.fromkeys((*dataset.manifest.detectors, *([blurred] if blurred else [])))
    missing = [detector for detector in needed if detector not in shard.regions]
    faults += [f"{shard.tar.path}: no regions of {detector}" for detector in missing]
    if shard.parquet.path in damaged:
        return faults
    rows, index_faults = _index(dataset, shard, paths[shard.parquet.path])
    if index_faults:
        return faults + index_faults
    across.add(shard.split, rows)
    name = shard.parquet.path
    faults += first_faults(
        name, [f"{name}: {key}: taken down, but still present" for key in across.takedowns.taken_down_keys(rows)]
    )
    faces: Faces | None = {} if not blurred else None
    for detector, file in shard.regions.items():
        if file.path not in damaged:
            of_file = region_faults(paths[file.path], file.path, rows)
            if detector == blurred and not of_file:
                faces = faces_of(paths[file.path])
            faults += first_faults(file.path, of_file)
    if quick:
        faults += first_faults(name, list(place_faults(shard, rows)))
    elif shard.tar.path not in damaged and faces is not None:
        faults += first_faults(shard.tar.path, list(tar_faults(paths[shard.tar.path], shard.tar.path, rows, faces)))
    return faults


def _index(dataset: Dataset, shard: ShardFiles, path: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """Rows of a shard's Parquet, and its faults."""
    images = dataset.manifest.images
    table, faults = read_table(path, shard.parquet.path, SHARD_SCHEMA, shard.samples)
    rows = table.to_pylist()
    return rows, faults or first_faults(
        shard.parquet.path, list(row_faults(shard, rows, images.max_side if images else 0))
    )


def _digest_fault(path: Path, file: FileDigest) -> str:
    """Difference of a file, or of its copy here, from the manifest; "" if none. Raises OSError."""
    if not path.exists():
        return f"{file.path}: missing"
    if not path.is_file():
        return f"{file.path}: not a regular file"  # to read a FIFO would wait for ever
    size = path.stat().st_size
    if size != file.bytes:
        return f"{file.path}: {size:,} bytes, but {file.bytes:,} in the manifest"
    digest = sha256_of(path)
    return "" if digest == file.sha256 else f"{file.path}: sha256 is {digest}, but {file.sha256} in the manifest"
