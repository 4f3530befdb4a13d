"""Reads image bytes, as fetched, from the tars of the fetch stage: their only reader.

Rows from admit on are sorted by `order_key`, fetch's partitions are ranges of it, and a partition's tar holds its
images in that order. A reader that asks in that order opens each tar once and moves forward through it. Images that
are neighbours in a tar are read together, and each is returned as a view of what was read, not as a copy. In memory
are the offsets of one partition and one read of READ_AHEAD bytes (or of one image, if that is larger).

Limits: on an object store a tar is copied to the local disk before it is read; `read_images(sparse=True)` asks for
single ranges instead, which is better below a few per cent of a tar's images and worse above.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import StageError
from pipeline.rows.records import order_key
from pipeline.store.build import Build
from pipeline.store.commits import Record
from pipeline.store.partitions import StageDir
from pipeline.store.ranges import KeyRange

READ_AHEAD, GAP = 1 << 20, 64 << 10
"""Bytes of a tar that are read at once, and between two images that are read along rather than skipped."""


@dataclass(frozen=True, slots=True)
class FetchedImage:
    """One fetched image: its bytes as they came (a view of what was read), and their sha256 as fetch noted it."""

    fetch_id: str
    sha256: str
    data: bytes | memoryview


def records_between(stage: StageDir, first: str, last: str) -> list[Record]:
    """Records of the partitions whose range meets the order keys `first` .. `last` (both inclusive), in order.

    The stage's partitions must be ranges of order keys.
    """
    return [stage.record(name) for name in stage.partitions() if KeyRange.of_partition(name).meets(first, last)]


def partition_images(build: Build, partition: str, only: Collection[str] | None = None) -> Iterator[FetchedImage]:
    """The images of a fetch partition, in the order of its tar.

    only: the sha256 of the images wanted, where not all are; of URLs that had the same bytes only the first is read.
    Raises StoreError for a tar that is missing or not whole, and StageError for one that ends before an image.
    """
    stage = build.stage("fetch")
    record = stage.record(partition)
    places = sorted(_image_locations(stage, record, pc.field("ok")), key=lambda place: place.offset)
    if build.images_build is not None:
        first_of = {place.sha256: place.fetch_id for place in reversed(places) if only is None or place.sha256 in only}
        yield from read_images(build, list(first_of.values()))
        return
    if only is not None:
        first: dict[str, _TarLocation] = {}
        for place in places:
            if place.sha256 in only:
                first.setdefault(place.sha256, place)
        places = list(first.values())
    yield from _images(stage, record, _runs(places))


def read_images(build: Build, fetch_ids: Sequence[str], sparse: bool = False) -> Iterator[FetchedImage]:
    """The images of `fetch_ids` (in any order), each once, in the order of (order_key, fetch_id).

    Ids that fetch did not get are left out. A trial's own images come first, and then those of the build that it is on.
    Raises StoreError for a tar that is missing or not whole, and StageError
    for one that ends before an image.
    """
    wanted = sorted((order_key(fetch_id, build.spec.seed), fetch_id) for fetch_id in set(fetch_ids))
    stage, read = build.stage("fetch"), set[str]()
    if not wanted:
        return
    for record in records_between(stage, wanted[0][0], wanted[-1][0]):
        low, high = KeyRange.of_partition(record.partition).bounds
        ids = [fetch_id for key, fetch_id in wanted if low <= key < high]
        if ids:
            here = pc.field("fetch_id").isin(pa.array(ids, pa.string())) & pc.field("ok")
            place_of = {place.fetch_id: place for place in _image_locations(stage, record, here)}
            places = [place_of[fetch_id] for fetch_id in ids if fetch_id in place_of]
            if build.images_build is not None:
                places = [place for place in places if place.offset >= 0]
                read.update(place.fetch_id for place in places)
            # One read per image: packing handles each at once, while it lies in the processor's caches.
            runs = ([place] for place in places)
            yield from _images(stage, record, runs, sparse and not stage.folder.is_local)
    if build.images_build is not None:
        yield from read_images(build.images_build, [name for _, name in wanted if name not in read], sparse)


class _TarLocation(NamedTuple):
    """Location of an image in a tar."""

    fetch_id: str
    sha256: str
    offset: int
    size: int

    @property
    def end(self) -> int:
        return self.offset + self.size


def _image_locations(stage: StageDir, record: Record, rows: pc.Expression) -> Iterator[_TarLocation]:
    """Places of a partition's images, of the rows of FETCH_SCHEMA that the expression selects."""
    table = stage.table(record, columns=list(_TarLocation._fields), filters=rows)
    return map(_TarLocation._make, zip(*(table[name].to_pylist() for name in _TarLocation._fields), strict=True))


def _images(
    stage: StageDir, record: Record, runs: Iterable[list[_TarLocation]], ranges: bool = False
) -> Iterator[FetchedImage]:
    """The images of a partition's tar, in their order; those of a run are read at once.

    ranges: read ranges of the remote file instead of a local copy of it.
    """
    with _reader(stage, record, ranges) as read:
        for run in runs:
            start, end = run[0].offset, run[-1].end
            data = read(start, end - start)
            for place in run:
                # bytes of one image are faster to look into than a view of them
                view = data if len(run) == 1 else memoryview(data)[place.offset - start : place.end - start]
                if len(view) != place.size:
                    tar = stage.folder.at(record.files["tar"].name)
                    raise StageError(
                        tar, f"truncated before the image {place.fetch_id}; delete the stage's folder to fetch again"
                    )
                yield FetchedImage(place.fetch_id, place.sha256, view)


@contextlib.contextmanager
def _reader(stage: StageDir, record: Record, ranges: bool) -> Iterator[Callable[[int, int], bytes]]:
    """A function that reads `size` bytes of a partition's tar from `offset` on; fewer where the tar ends before."""
    if ranges:
        name = record.files["tar"].name
        yield lambda offset, size: stage.folder.read_range(name, offset, size)
        return
    with stage.file(record, "tar") as path, path.open("rb", buffering=0) as tar:
        yield lambda offset, size: os.pread(tar.fileno(), size, offset)


def _runs(places: Iterable[_TarLocation]) -> Iterator[list[_TarLocation]]:
    """Places cut into runs that one read covers: at most READ_AHEAD bytes long, or a single image, without large gaps.

    A place that lies before the one ahead of it begins a run of its own, so that a run's first offset is its lowest.
    """
    run: list[_TarLocation] = []
    for place in places:
        if run and (place.end - run[0].offset > READ_AHEAD or not 0 <= place.offset - run[-1].end <= GAP):
            yield run
            run = []
        run.append(place)
    if run:
        yield run
