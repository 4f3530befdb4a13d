"""Samples of a dataset one by one: the row, the stored JPEG and the boxes of each, joined as they are read.

What writes a dataset in another format (`pipeline.exports`), shows it (`pipeline.report.gallery`) or feeds it to a
training that is not ours reads samples here. Row, image and boxes lie in three files in one order; a sample whose key
differs between them stops the reading.

Limits: of an object store a shard's tar is copied to the local disk while it is read from start to end.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc

from data_specs.shard import KEY_LENGTH, ContractError, ShardFiles
from pipeline.errors import StoreError
from pipeline.files.folder import Folder
from pipeline.store.build import REGIONS
from pipeline.store.frames import SAMPLES, Frames, TableFile
from pipeline.store.takedowns import NO_TAKEDOWNS, Takedowns

Floats = npt.NDArray[np.float32]

BATCH = 1_000
"""Rows in memory at once."""

PREFIX = 8
"""Fewest digits of a key."""


@dataclass(frozen=True, slots=True)
class Stored:
    """One sample.

    row: columns of SHARD_SCHEMA. image: JPEG. json: KEY.json. boxes_R4: x1 y1 x2 y2 in pixels of the image, scores_R
    descending; none of either where the dataset is read without regions.
    """

    row: dict[str, Any]
    image: bytes
    json: bytes
    boxes_R4: Floats
    scores_R: Floats
    labels_R: npt.NDArray[np.int32]

    @property
    def key(self) -> str:
        return str(self.row["key"])

    @property
    def text(self) -> str:
        return str(self.row["texts"][0]["text"])


@dataclass(frozen=True)
class Samples:
    """The samples of a dataset with the boxes of one detector, without what is taken down.

    detector: its id; "" for no boxes.
    """

    frames: Frames
    detector: str = ""
    takedowns: Takedowns = NO_TAKEDOWNS

    @staticmethod
    def of(frames: Frames, detector: str = "", takedowns: Takedowns | None = None) -> Samples:
        """With the detector of that id or name; by default the dataset's first one, or none where it has none.

        takedowns: by default those of the dataset's STORE. Raises StoreError for a detector that it does not have.
        """
        chosen = frames.detector(detector) if detector or frames.detectors else ""
        return Samples(frames, chosen, frames.takedowns if takedowns is None else takedowns)

    def read(self, split: str = "") -> Iterator[Stored]:
        """Every sample of a split, or of all, in the order of the shards. Raises StoreError for a damaged shard."""
        for (folder, shard), rows, boxes in self._shards(split):
            with folder.local(shard.tar.path) as path, _reader(path, folder.at(shard.tar.path)) as read:
                for row, regions in _rows_with_regions(rows, boxes):
                    if not self.takedowns.holds(row):
                        yield _stored(row, regions, read)

    def find(self, key: str) -> Stored:
        """The sample of a key, or of the beginning of one (8 digits or more), or of a candidate_id.

        Raises KeyError if there is none, or it is taken down. Reads the keys of all shards until it is found.
        """
        prefix = key.lower()[:KEY_LENGTH]
        if len(prefix) < PREFIX:
            raise KeyError(f"{key}: at least {PREFIX} digits of a key are required")
        for stored in self.look(pc.starts_with(pc.field("key"), prefix)):
            return stored
        raise KeyError(f"{key}: no such sample in {self.frames.place}")

    def first(self, count: int, split: str = "") -> list[Stored]:
        """The first samples of a split, or of all; no more of the tars is read than these."""
        found: list[Stored] = []
        for (folder, shard), rows, _ in self._shards(split):
            batch = next(rows.batches(rows=2 * count), None)  # more than wanted: some may be taken down
            for row in batch.to_pylist() if batch is not None else ():
                if len(found) < count and not self.takedowns.holds(row):
                    found.append(_stored(row, None, _ranges(folder, shard)))
            if len(found) == count:
                break
        return found

    def look(self, filters: Any, split: str = "") -> Iterator[Stored]:
        """Samples that a filter selects, each read by its place in the tar. Raises StoreError."""
        for (folder, shard), rows, boxes in self._shards(split):
            for row in rows.table(filters=filters).to_pylist():
                if self.takedowns.holds(row):
                    continue
                of_key = pc.field("key") == row["key"]
                regions = boxes.table(filters=of_key).to_pylist()[0] if boxes is not None else None
                yield _stored(row, regions, _ranges(folder, shard))

    def _shards(self, split: str) -> Iterator[tuple[tuple[Folder, ShardFiles], TableFile, TableFile | None]]:
        """Each shard with the Parquet of its rows and of its boxes."""
        rows = self.frames.parts(SAMPLES, split)
        boxes = self.frames.parts(REGIONS + self.detector, split) if self.detector else None
        for own, part in zip(self.frames.of_split(split), rows, strict=True):
            yield own, part, next(boxes) if boxes is not None else None


Read = Callable[[str, int, int], bytes]
"""Reads (key, offset, size) of a tar. Raises StoreError where the tar ends before."""


def _bounded(name: str, end: int, read: Callable[[int, int], bytes]) -> Read:
    """A Read of a tar of so many bytes; it looks at the bounds before memory is taken. read: (offset, size)."""

    def bounded(key: str, offset: int, size: int) -> bytes:
        if not 0 <= offset <= offset + size <= end:
            raise StoreError(name, f"truncated before the sample {key}")
        return read(offset, size)

    return bounded


@contextlib.contextmanager
def _reader(path: Path, name: str) -> Iterator[Read]:
    """Reads of a local tar. name: for messages."""
    try:
        file = path.open("rb", buffering=0)
    except OSError as e:
        raise StoreError(name, f"cannot be read ({e.strerror or e})") from None
    with file:
        end = os.fstat(file.fileno()).st_size
        yield _bounded(name, end, lambda offset, size: os.pread(file.fileno(), size, offset))


def _ranges(folder: Folder, shard: ShardFiles) -> Read:
    """Reads of a tar wherever it is, range by range."""
    path = shard.tar.path
    return _bounded(folder.at(path), shard.tar.bytes, lambda offset, size: folder.read_range(path, offset, size))


def _rows_with_regions(
    rows: TableFile, boxes: TableFile | None
) -> Iterator[tuple[dict[str, Any], dict[str, Any] | None]]:
    """Yields each row with its regions. Raises StoreError if the two files differ in their samples or order."""
    samples = (row for batch in rows.batches(rows=BATCH) for row in batch.to_pylist())
    if boxes is None:
        yield from ((row, None) for row in samples)
        return
    regions = (row for batch in boxes.batches(rows=BATCH) for row in batch.to_pylist())
    for row in samples:
        own = next(regions, None)
        if own is None or row["key"] != own["key"]:
            raise StoreError(boxes.url, f"{row['key']}: its regions belong to another sample")
        yield row, own


_NO_REGIONS: dict[str, Any] = {"boxes": (), "scores": (), "labels": ()}


_KEY = re.compile(f"[0-9a-f]{{{KEY_LENGTH}}}")


def _stored(row: dict[str, Any], regions: dict[str, Any] | None, read: Read) -> Stored:
    """Raises StoreError for a key that is none: an export names files by it, and `../../x` leaves its folder."""
    if not _KEY.fullmatch(str(row["key"])):
        raise StoreError(str(row["key"])[:100], f"not the key of a sample ({KEY_LENGTH} hex digits)")
    own = regions or _NO_REGIONS
    return Stored(
        row,
        read(row["key"], row["image_offset"], row["image_size"]),
        read(row["key"], row["json_offset"], row["json_size"]),
        np.asarray(own["boxes"], np.float32).reshape(-1, 4),
        np.asarray(own["scores"], np.float32),
        np.asarray(own["labels"], np.int32),
    )


def webdataset(samples: Samples, split: str) -> Any:
    """A pipeline of `webdataset` over the tars of a split, with the regions of each sample as further members.

    A sample has the fields of the tar (jpg, txt, json) and, where there is a detector, boxes.npy [R, 4], scores.npy and
    labels.npy, as bytes: `.decode("pil")` makes all of them Python objects. Shards are divided among nodes and the
    workers of a DataLoader. Raises ContractError for a split without samples.
    """
    import webdataset as wds

    shards = {folder.at(shard.tar.path): boxes for (folder, shard), _, boxes in samples._shards(split)}
    if not shards:
        raise ContractError(f"{samples.frames.place}: no samples in the {split} split")
    read = _Tars(shards, samples.takedowns)
    return wds.FluidWrapper(wds.SimpleShardList(list(shards))).compose(wds.split_by_node, wds.split_by_worker, read)


@dataclass(frozen=True)
class _Tars:
    """The stage of a webdataset pipeline that reads tars, wherever they are, and joins regions. Picklable.

    The regions of one shard are in memory at a time.
    """

    shards: dict[str, TableFile | None]
    takedowns: Takedowns

    def __call__(self, source: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        import fsspec
        from webdataset.tariterators import group_by_keys, tar_file_expander

        for shard in source:
            boxes = self.shards[shard["url"]]
            of_key = {row["key"]: row for row in boxes.table().to_pylist()} if boxes is not None else {}
            with fsspec.open(shard["url"], "rb") as stream:
                for sample in group_by_keys(tar_file_expander([{**shard, "stream": stream}])):
                    if not self.takedowns or not self.takedowns.holds(json.loads(sample["json"])):
                        yield sample | _as_members(of_key.get(sample["__key__"]))


def _as_members(regions: dict[str, Any] | None) -> dict[str, bytes]:
    if regions is None:
        return {}
    return {
        "boxes.npy": _npy(regions["boxes"], np.float32, (-1, 4)),
        "scores.npy": _npy(regions["scores"], np.float32),
        "labels.npy": _npy(regions["labels"], np.int32),
    }


def _npy(values: Sequence[float], kind: Any, shape: tuple[int, ...] = (-1,)) -> bytes:
    out = io.BytesIO()
    np.save(out, np.asarray(values, kind).reshape(shape), allow_pickle=False)
    return out.getvalue()
