"""How `deal` hands images on to `meet`, and `meet` what it found to `lead`: flat files, and the names of parts.

Images have numbers over all runs of a build: those of a run follow those of the runs before it, and within a run the
number grows with the position. What `meet` found is a list of such numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.matching.meetings import BUCKETS, Key, Table, plan
from pipeline.store.build import Build
from pipeline.store.partitions import Record
from pipeline.store.rewrite import Rewrite

VERSION = 1
"""Of `deal` and `meet`."""

FEWEST = 1_000_000
"""Pairs of a build below which nothing is dealt out: one pass over all of them is done sooner."""

FOUND, BYTES = "found.bin", "bytes.bin"
"""What a part found, as int64; the first 64 bits of each image's sha256."""

SAME_BYTES = "bytes"
"""The part that looks for images with the same bytes."""


def keys_of(build: Build) -> tuple[Key, ...]:
    """The keys by which the images of a build are compared; none where `lead` does it alone.

    None for a build whose `lead` is done: one of an older wenlan does not begin anew what it needs no more.
    """
    pairs = sum(record.counts["pairs"] for record in build.stage("rank").records())
    if pairs < FEWEST or build.stage("lead").finished():
        return ()
    return plan(pairs, build.spec.dedup.image_distance)


def suffix_of(number: int) -> str:
    """The file of a run that holds its entries of a key."""
    return f"{number:02d}.bin"


@dataclass(frozen=True)
class Part:
    """The buckets first to last - 1 of a key."""

    key: int
    first: int
    last: int

    def __str__(self) -> str:
        return f"{self.key:02d}-{self.first:04d}-{self.last:04d}"

    @staticmethod
    def named(name: str) -> Part:
        return Part(*map(int, name.split("-")))


def write(path: Path, table: Table, starts: npt.NDArray[np.int64]) -> None:
    """The entries of a run: where buckets begin, and column after column."""
    with path.open("wb") as file:
        for column in (starts, table.codes, table.tones, table.owner):
            file.write(np.ascontiguousarray(column).tobytes())


def read(path: Path, part: Part) -> Table:
    """Those of a part's buckets; nothing else of the file is read."""
    starts = np.fromfile(path, np.int64, BUCKETS + 1)
    first, last, size = int(starts[part.first]), int(starts[part.last]), int(starts[-1])
    size8, at = 8 * size, starts.nbytes
    codes, tones = (np.fromfile(path, np.uint64, last - first, offset=at + own + 8 * first) for own in (0, size8))
    return Table(codes, tones, np.fromfile(path, np.uint32, last - first, offset=at + 2 * size8 + 4 * first))


def starts_of(records: Sequence[Record]) -> npt.NDArray[np.int64]:
    """The number of the first image of each run, and the number of all."""
    return np.concatenate([[0], np.cumsum([record.counts["pairs"] for record in records])]).astype(np.int64)


def without(rewrite: Rewrite) -> None:
    """Deletes all: nothing of it is needed once `lead` is done, and until then `lead` does without."""
    rewrite.stage.delete_records()
    rewrite.stage.finish([], VERSION)


class Alone:
    """Which pairs of a build have an image that looks like no other of the build and has no other's bytes."""

    def __init__(self, build: Build) -> None:
        self._starts: npt.NDArray[np.int64] | None = None
        if not {"deal", "meet"} <= set(build.fingerprints):
            return
        deal, meet, runs = build.stage("deal"), build.stage("meet"), build.stage("rank").partitions()
        if not (deal.finished() and meet.finished()) or not runs or deal.partitions() != runs or not meet.partitions():
            return  # nobody has looked, or it was taken away
        self._starts = starts_of(deal.records())
        self._flags = np.ones(int(self._starts[-1]), np.bool_)
        for record in meet.records():
            with meet.file(record, FOUND) as path:
                self._flags[np.fromfile(path, np.int64)] = False

    def of(self, rows: pa.Table, run_of_row: npt.NDArray[np.int32]) -> npt.NDArray[np.bool_] | None:
        """[N] for rows of RUN_SCHEMA and the number of each one's run; None if nobody has looked."""
        if self._starts is None:
            return None
        flags: npt.NDArray[np.bool_] = self._flags[self._starts[run_of_row] + rows["position"].to_numpy()]
        return flags
