"""Image bytes as fetched, read back out of the fetch stage's tars by offset.

Rows from admit on are sorted by `order_key`, and fetch's partitions are ranges of it. So a reader that asks in that
order opens each tar once and moves through the partitions in order; nothing but one partition's offsets is held.

Limits: on an object store `read_images` copies a tar to the local disk before it reads; `sparse=True` asks for single
ranges instead, which is better below a few per cent of a tar's images and worse above.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import StageError
from pipeline.records import order_key, order_range
from pipeline.store.build import Build
from pipeline.store.partitions import Record, StageDir


@dataclass(frozen=True, slots=True)
class FetchedImage:
    """One fetched image: bytes as they came, and their sha256 in hex as fetch noted it."""

    fetch_id: str
    sha256: str
    data: bytes


def range_of(partition: str) -> tuple[str, str]:
    """Half-open range of order keys that a partition called `00003-of-00010`, or `00003-00005-of-00010`, covers."""
    numbers, _, of = partition.partition("-of-")
    first, _, last = numbers.partition("-")
    return order_range(int(first), int(of))[0], order_range(int(last or first), int(of))[1]


def records_between(stage: StageDir, first: str, last: str) -> list[Record]:
    """Records of the partitions whose range meets the order keys `first` .. `last` (both inclusive), in order.

    The stage's partitions must be named as `range_of` reads them.
    """
    return [
        stage.record(name) for name in stage.partitions() if range_of(name)[0] <= last and first < range_of(name)[1]
    ]


def read_images(build: Build, fetch_ids: Sequence[str], sparse: bool = False) -> Iterator[FetchedImage]:
    """The images of `fetch_ids` (any order, repeats allowed once), given in order of (order_key, fetch_id).

    Ids that fetch did not get are left out. Raises StoreError for a tar that is missing or not whole, and StageError
    for one that ends before an image.
    """
    wanted = sorted((order_key(fetch_id, build.spec.seed), fetch_id) for fetch_id in set(fetch_ids))
    stage = build.stage("fetch")
    if not wanted:
        return
    for record in records_between(stage, wanted[0][0], wanted[-1][0]):
        low, high = range_of(record.partition)
        ids = [fetch_id for key, fetch_id in wanted if low <= key < high]
        if ids:
            yield from _of_partition(stage, record, ids, sparse)


def _of_partition(stage: StageDir, record: Record, ids: list[str], sparse: bool) -> Iterator[FetchedImage]:
    columns = ["fetch_id", "sha256", "offset", "size"]
    here = pc.field("fetch_id").isin(pa.array(ids, pa.string())) & pc.field("ok")
    places = {row["fetch_id"]: row for row in stage.table(record, columns=columns, filters=here).to_pylist()}
    found = [places[fetch_id] for fetch_id in ids if fetch_id in places]
    name = record.files["tar"].name
    if sparse and not stage.folder.is_local:
        yield from _images(stage.folder.at(name), found, lambda at, n: stage.folder.read_range(name, at, n))
        return
    with stage.file(record, "tar") as path, path.open("rb") as tar:
        yield from _images(str(path), found, lambda at, n: os.pread(tar.fileno(), n, at))


def _images(tar: str, found: list[dict[str, object]], read: Callable[[int, int], bytes]) -> Iterator[FetchedImage]:
    for row in found:
        offset, size = int(str(row["offset"])), int(str(row["size"]))
        data = read(offset, size)
        if len(data) != size:
            raise StageError(tar, f"ends before the image {row['fetch_id']}; delete the stage's folder to fetch again")
        yield FetchedImage(str(row["fetch_id"]), str(row["sha256"]), data)
