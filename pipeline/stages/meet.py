"""Stage meet: finds the images that may look like another one of the build, or have its bytes; all others are alone.

An image that is alone needs no look-up in the one pass that goes in order (`pipeline.stages.lead`), and nobody needs to
look it up. A partition is a part of one key (`pipeline.matching.meetings`) over all runs, and reads no more of them.

Limits: a partition holds about ENTRIES entries of 60 bytes and a byte for each image of the build; the one for equal
bytes holds 40 bytes for each image.
"""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import pulse
from pipeline.matching.meetings import BUCKETS, Finder, Ints, Signatures, equal
from pipeline.pictures.signatures import GRIDS, SIZE
from pipeline.stages import _meetings
from pipeline.stages._meetings import BYTES, FOUND, SAME_BYTES, Part
from pipeline.store.build import Build
from pipeline.store.identities import SIGNATURES
from pipeline.store.stage import Stage, StageFile

ENTRIES = 1 << 22
"""Entries of a partition, on average."""

READ = 1 << 15
"""Grids after whose reading the pages that were read are given back."""


def token(build: Build) -> Any:
    return build.spec.dedup.image_signature


def partitions(build: Build) -> list[str]:
    """Parts of every key, each of as many buckets as hold about ENTRIES entries, and one for equal bytes."""
    keys, names = _meetings.keys_of(build), list[str]()
    pairs = int(_meetings.starts_of(build.stage("deal").records())[-1])
    for number, key in enumerate(keys):
        count = min(BUCKETS, -(-max(1, pairs * len(key.family.parts)) // ENTRIES))
        borders = [BUCKETS * part // count for part in range(count + 1)]
        names += (str(Part(number, borders[part], borders[part + 1])) for part in range(count))
    return [*names, SAME_BYTES] if keys else []


def run_partition(build: Build, partition: str) -> None:
    """The numbers of the images that a part finds."""
    stage = build.stage("deal")
    records = stage.records()
    starts = _meetings.starts_of(records)
    pulse.expect(int(starts[-1]))
    with ExitStack() as files, build.stage("meet").attempt(partition) as attempt:

        def paths(suffix: str) -> list[Path]:
            return [files.enter_context(stage.file(record, suffix)) for record in records]

        counts = {"compared": 0, "apart": 0}
        if partition == SAME_BYTES:
            words = np.concatenate([np.fromfile(path, np.uint64) for path in paths(BYTES)])
            found = equal(words, np.arange(len(words)), len(words))
        else:
            part = Part.named(partition)
            grids = _Grids(paths(SIGNATURES), starts)
            key = _meetings.keys_of(build)[part.key]
            finder = Finder(key, build.spec.dedup.image_signature, int(starts[-1]), grids.of)
            tables = [_meetings.read(path, part) for path in paths(_meetings.suffix_of(part.key))]
            finder.look(list(zip(starts[:-1].tolist(), tables, strict=True)))
            found, counts = finder.found, {"compared": finder.compared, "apart": finder.apart}
        images = np.flatnonzero(found)
        attempt.path(FOUND).write_bytes(images.astype(np.int64).tobytes())
        pulse.advance(int(starts[-1]))
        attempt.commit({"images": int(starts[-1]), "found": len(images), **counts})


class _Grids:
    """Grids of images, mapped from the files of their runs, whose pages go back so that memory does not grow."""

    def __init__(self, paths: Sequence[Path], starts: Ints) -> None:
        self._starts, self._read = starts[:-1], 0
        self._maps = [_mapped(path) for path in paths]

    def of(self, image: Ints, grid: Ints) -> Signatures:
        """[N, SIZE] grids [N] of images [N]."""
        wanted = np.empty((len(image), SIZE), np.uint8)
        run = np.searchsorted(self._starts, image, side="right") - 1
        for number in np.unique(run).tolist():
            rows = np.flatnonzero(run == number)
            stored = np.frombuffer(self._maps[number], np.uint8).reshape(-1, GRIDS, SIZE)
            wanted[rows] = stored[image[rows] - self._starts[number], grid[rows]]
        self._read += len(image)
        if self._read > READ:
            for mapped in self._maps:
                if isinstance(mapped, mmap.mmap):
                    mapped.madvise(mmap.MADV_DONTNEED)
            self._read = 0
        return wanted


def _mapped(path: Path) -> Any:
    """A file as bytes that are read where they are looked at; one without bytes cannot be mapped."""
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if path.stat().st_size else b""


STAGE = Stage(
    name="meet",
    zh="比图",
    folder="met",
    inputs=("deal",),
    version=_meetings.VERSION,
    token=token,
    partitions=partitions,
    run=run_partition,
    files=(StageFile("*.bin"),),
    subject="",
    unit="images",
    done=("images",),
    rewrites_others=False,
    without=_meetings.without,
)
