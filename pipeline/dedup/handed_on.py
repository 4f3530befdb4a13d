"""How `deal` hands images and texts on to `meet`, and `meet` what it found to `lead`: flat files, and names of parts.

What keys, entries, parts, and what is found, met or alone are, says `pipeline.matching.meetings`.

Images have numbers over all runs of a build: those of a run follow those of the runs before it, and within a run the
number grows with the rank. Texts have numbers of their own, which grow with the rank of their pair and its order of
texts. What `meet` found is a list of such numbers, and one of numbers in pieces of what earlier builds kept
(`pipeline.dedup.dealt_earlier`).

Limits: who asks what was found (`Alone`) holds a byte for each pair of the build, a bit for each text, and eight bytes
for what may be met of earlier builds.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data_specs.shard import SPLITS
from pipeline.dedup.dealt_earlier import Piece
from pipeline.dedup.stored_signatures import StoredSignatures
from pipeline.matching.looks import ROW, Details
from pipeline.matching.meetings import BUCKETS, Ints, Key, plan
from pipeline.pictures.signatures import GRIDS, SIZE
from pipeline.store.build import Build
from pipeline.store.identities import DETAILS, SIGNATURES, Identities
from pipeline.store.partitions import Record, StageDir
from pipeline.store.store import Store

VERSION = 5
"""Of `deal` and `meet`."""

FEWEST = 50_000
"""Pairs of a build below which one pass is done sooner: nothing is dealt out, unless FEWEST_KEPT were kept before."""

FEWEST_KEPT = 100_000
"""Images of earlier builds from which on they are not loaded, but looked up by keys."""

FOUND = "found.bin"
"""What a part found: numbers of images, of a part of texts those of texts, as int64."""

MET = "met.bin"
"""What a part found of earlier builds: piece << 32 | number within it, as int64. Pieces are numbered as `deal` did."""

STORED = "store"
"""What the names of partitions of `deal` begin with that see to pieces of STORE, and deal out no run."""

AGAIN = "again.bin"
"""Texts of a run that occur more than once in it, by their numbers within the run, as int64."""

OWN_SPLITS = "splits.bin"
"""The split of each image of a run by its own bytes: numbers in SPLITS, by rank, as uint8."""

ORDERED = "ordered.arrow"
"""A run's rows as `lead` reads them (`ranked_runs.write_ordered`): without signatures and details, which it looks up
where it needs them."""

SKETCHES = "sketches.bin"
"""What the distinct texts of a run are compared by."""

BYTES, TEXTS = "bytes", "texts"
"""Parts that look for images with the same bytes, and for texts that are the same; others have the number of a key."""


def keys_of(build: Build) -> tuple[Key, ...]:
    """The keys by which the images of a build are compared; none where `lead` does it alone.

    None for a build whose `lead` is done: one of an older wenlan does not begin anew what it needs no more.
    """
    if build.stage("dedup.lead").finished():  # asked first: commits that it has read may be gone by now
        return ()
    runs = build.stage("dedup.rank").records()
    pairs, detailed = (sum(record.counts.get(what, 0) for record in runs) for what in ("pairs", "detailed"))
    kept, kept_detailed = _kept_earlier(build.store, build.identities)
    if not pairs or (pairs < FEWEST and kept < FEWEST_KEPT):
        return ()
    compared, detailed = pairs + kept, detailed + kept_detailed if detailed else 0
    if build.identities:  # so that what was dealt out in STORE serves later builds
        compared, detailed = _stepped(compared), _stepped(detailed)
    return plan(compared, build.spec.dedup.image_distance, detailed)


def _stepped(count: int) -> int:
    """The least power of four that is no less, above 1."""
    return 1 << 2 * -(-(count - 1).bit_length() // 2) if count > 1 else count


@lru_cache(maxsize=64)
def _kept_earlier(store: Store, commits: tuple[str, ...]) -> tuple[int, int]:
    """(about how many images commits have, how many of them have details), by the sizes of their files."""
    identities = Identities(store)
    files = [identities.read(commit).files for commit in commits]
    detailed = sum(own[DETAILS].bytes for own in files if DETAILS in own)
    return sum(own[SIGNATURES].bytes for own in files) // (GRIDS * SIZE), detailed // ROW


def dealt_runs(build: Build) -> list[Record]:
    """Records of `deal`, run by run."""
    return [record for record in build.stage("dedup.deal").records() if not record.partition.startswith(STORED)]


def dealt_pieces(build: Build) -> list[Piece]:
    """The pieces of STORE that a build is compared with, as `deal` noted them."""
    stored = (record for record in build.stage("dedup.deal").records() if record.partition.startswith(STORED))
    return [Piece(*piece) for record in stored for piece in record.info["pieces"]]


def suffix_of(what: str) -> str:
    """The file of a run that holds its entries of a key, or of BYTES or TEXTS."""
    return f"{what}.bin"


def name_of(key: int) -> str:
    """The key with this number, as parts call it."""
    return f"{key:02d}"


@dataclass(frozen=True)
class Part:
    """The buckets first to last - 1 of a key, or of BYTES or TEXTS."""

    what: str
    first: int
    last: int

    def __str__(self) -> str:
        return f"{self.what}-{self.first:04d}-{self.last:04d}"

    @staticmethod
    def named(name: str) -> Part:
        what, first, last = name.split("-")
        return Part(what, int(first), int(last))

    @staticmethod
    def all_of(what: str, entries: int, at_most: int) -> list[Part]:
        """Parts that have about `at_most` of so many entries each."""
        count = min(BUCKETS, -(-max(1, entries) // at_most))
        borders = [BUCKETS * part // count for part in range(count + 1)]
        return [Part(what, first, last) for first, last in itertools.pairwise(borders)]


def write(path: Path, starts: npt.NDArray[np.int64], *columns: npt.NDArray[Any]) -> None:
    """Entries of a run: where buckets begin, and column after column."""
    with path.open("wb") as file:
        for column in (starts.astype(np.int64), *columns):
            file.write(np.ascontiguousarray(column).tobytes())


def read(path: Path, part: Part, *types: type[np.generic]) -> Iterator[npt.NDArray[Any]]:
    """The columns, of these types, of a part's buckets; nothing else of the file is read."""
    starts = np.fromfile(path, np.int64, BUCKETS + 1)
    first, last, size = int(starts[part.first]), int(starts[part.last]), int(starts[-1])
    at = starts.nbytes
    for kind in types:
        width = np.dtype(kind).itemsize
        yield np.fromfile(path, kind, last - first, offset=at + width * first)
        at += width * size


def starts_of(records: Sequence[Record], what: str = "pairs") -> npt.NDArray[np.int64]:
    """The number of the first image (of "texts" the first text) of each run, and the number of all."""
    return np.concatenate([[0], np.cumsum([record.counts[what] for record in records])]).astype(np.int64)


def signatures_of(deal: StageDir, records: Sequence[Record], files: ExitStack) -> StoredSignatures:
    """Signatures and details of all images; the files stay open in `files`."""
    paths, of_details = (
        [files.enter_context(deal.file(record, part)) for record in records] for part in (SIGNATURES, DETAILS)
    )
    return files.enter_context(StoredSignatures(paths, of_details, starts_of(records)))


class Bits:
    """Numbers from 0 to size - 1, a bit each."""

    def __init__(self, size: int) -> None:
        self._bytes = np.zeros(-(-size // 8), np.uint8)

    def add(self, numbers: npt.NDArray[np.int64]) -> None:
        np.bitwise_or.at(self._bytes, numbers >> 3, (1 << (numbers & 7)).astype(np.uint8))

    def has(self, numbers: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """[N] which numbers were added."""
        bits: npt.NDArray[np.bool_] = (self._bytes[numbers >> 3] >> (numbers & 7).astype(np.uint8) & 1).astype(np.bool_)
        return bits


class Alone:
    """Which images and texts of a build are like no other: that nothing else of it, nor of earlier builds, can match.

    Asked once for all pairs of a build, in the order of ranks. Files of `deal` stay open in `files`.
    """

    def __init__(self, build: Build, files: ExitStack) -> None:
        self.known = False
        """Whether somebody has looked."""
        self.ordered: list[Path] = []
        """Files of the runs in their order, if each has one (ORDERED)."""
        if not {"dedup.deal", "dedup.meet"} <= set(build.fingerprints):
            return
        deal, meet, runs = build.stage("dedup.deal"), build.stage("dedup.meet"), build.stage("dedup.rank").partitions()
        if not (deal.finished() and meet.finished()) or not runs or not meet.partitions():
            return  # nobody has, or it was taken away
        dealt = dealt_runs(build)
        if [record.partition for record in dealt] != runs or not _saw_earlier(build):
            return
        self.known = True
        self._images, self._texts = starts_of(dealt), starts_of(dealt, "texts")
        self._images_found, self._texts_found = Bits(int(self._images[-1])), Bits(int(self._texts[-1]))
        for record, start in zip(dealt, self._texts.tolist(), strict=False):
            self._texts_found.add(start + _numbers(deal, record, AGAIN))
        met = [np.zeros(0, np.int64)]
        for record in meet.records():
            found = self._texts_found if Part.named(record.partition).what == TEXTS else self._images_found
            found.add(_numbers(meet, record, FOUND))
            if MET in record.files:
                met.append(np.union1d(met.pop(), _numbers(meet, record, MET)))
        self._met, self._pieces = met[0], dealt_pieces(build)
        self._next_image, self._next_text = self._images[:-1].copy(), self._texts[:-1].copy()  # of each run
        self._signatures = signatures_of(deal, dealt, files)
        if all(ORDERED in record.files for record in dealt):
            self.ordered = [files.enter_context(deal.file(record, ORDERED)) for record in dealt]
        splits = [files.enter_context(deal.file(record, OWN_SPLITS)) for record in dealt]
        self._splits = np.concatenate([np.zeros(0, np.uint8), *(np.fromfile(path, np.uint8) for path in splits)])

    def earlier(self) -> list[tuple[Piece, Ints]]:
        """Of each piece of earlier builds the numbers, ascending, of what an image, or text, of the build may match."""
        borders = np.searchsorted(self._met, np.arange(len(self._pieces) + 1) << 32)
        return [
            (piece, self._met[low:high] & 0xFFFFFFFF)
            for piece, low, high in zip(self._pieces, borders, borders[1:], strict=False)
        ]

    def numbers(self, run_of_row: npt.NDArray[np.int32]) -> Ints:
        """[N] the numbers of the images of the next rows, of which each has the run [N]."""
        return _next_of(self._next_image, run_of_row)

    def images(self, numbers: Ints) -> npt.NDArray[np.bool_]:
        """[N] which images are alone."""
        return ~self._images_found.has(numbers)

    def signatures(self, numbers: Ints) -> npt.NDArray[np.uint8]:
        """[N, bytes] of images."""
        return self._signatures.whole(numbers)

    def details(self, numbers: Ints) -> Details:
        """Of images [N], which then are numbers 0 to N - 1."""
        return self._signatures.details(numbers)

    def splits(self, numbers: Ints) -> list[str]:
        """The splits of images by their own bytes."""
        splits: list[str] = np.array(SPLITS, object)[self._splits[numbers]].tolist()
        return splits

    def texts(self, counts: npt.NDArray[np.int64], run_of_row: npt.NDArray[np.int32]) -> npt.NDArray[np.bool_]:
        """Which texts of the next rows are alone, row after row; counts [N]: how many each row has."""
        return ~self._texts_found.has(_next_of(self._next_text, np.repeat(run_of_row, counts)))


def _next_of(following: Ints, run: npt.NDArray[np.int32]) -> Ints:
    """[N] the numbers of what comes next, of which each has the run [N]; following: of each run, counted on.

    A run's rows come in the run's order, and so do their texts.
    """
    numbers = np.empty(len(run), np.int64)
    for one in np.unique(run).tolist():
        own = np.flatnonzero(run == one)
        numbers[own] = following[one] + np.arange(len(own))
        following[one] += len(own)
    return numbers


def _saw_earlier(build: Build) -> bool:
    """Whether `deal` and `meet` have compared with all that the build is to be compared with."""
    stored = [record for record in build.stage("dedup.deal").records() if record.partition.startswith(STORED)]
    return all(record.info["identities"] == build.identity_revision for record in stored) and bool(stored) == bool(
        build.identities
    )


def _numbers(stage: StageDir, record: Record, suffix: str) -> npt.NDArray[np.int64]:
    with stage.file(record, suffix) as path:
        return np.fromfile(path, np.int64)
