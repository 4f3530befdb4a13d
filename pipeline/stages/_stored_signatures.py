"""Signatures and details of images as `deal` wrote them: mapped from flat files per run, and read where needed.

Pages of signatures that were read go back, so that the memory of whoever asks does not grow with the build.

Limits: 8 bytes in memory for each image with details. Pages of details stay mapped until the system wants them back.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.matching.looks import NO_DETAILS, Details
from pipeline.pictures.signatures import GRIDS, SIZE

Ints = npt.NDArray[np.int64]
Bytes = npt.NDArray[np.uint8]

READ = 64 << 20
"""Bytes after whose reading the pages that were read are given back."""


class StoredSignatures:
    """Signatures by the numbers of images over all runs; starts: the number of each run's first image, and of all.

    paths, of_details: a file of each run with its signatures, and one with its details.
    """

    def __init__(self, paths: Sequence[Path], of_details: Sequence[Path], starts: Ints) -> None:
        self.starts, self._read = starts, 0
        self._maps = [_mapped(path) for path in paths]
        self._details = [Details.read(path) for path in of_details]

    def grids(self, image: Ints, grid: Ints) -> Bytes:
        """[N, SIZE] grids [N] of images [N]."""
        wanted = np.empty((len(image), SIZE), np.uint8)
        for stored, rows, own in self._by_run(image):
            wanted[rows] = stored[own, grid[rows]]
        self._give_back(wanted.nbytes)
        return wanted

    def details(self, image: Ints) -> Details:
        """Details of images [N], which then are numbers 0 to N - 1."""
        if not any(map(len, self._details)):
            return NO_DETAILS
        run, places, stored = self._run_of(image), list[Ints](), list[Bytes]()
        for number in np.unique(run).tolist():
            rows = np.flatnonzero(run == number)
            at, own = self._details[number].at(image[rows] - self.starts[number])
            places.append(rows[at])
            stored.append(np.asarray(self._details[number].stored[own]))
        if not places:
            return NO_DETAILS
        order = np.argsort(np.concatenate(places))
        return Details(np.concatenate(places)[order], np.concatenate(stored)[order])

    def whole(self, image: Ints) -> Bytes:
        """[N, GRIDS * SIZE] signatures of images [N]."""
        wanted = np.empty((len(image), GRIDS, SIZE), np.uint8)
        for stored, rows, own in self._by_run(image):
            wanted[rows] = stored[own]
        self._give_back(wanted.nbytes)
        return wanted.reshape(-1, GRIDS * SIZE)

    def _by_run(self, image: Ints) -> Iterator[tuple[Bytes, Ints, Ints]]:
        """(signatures [images, GRIDS, SIZE] of a run, which of `image` are its own, their numbers within it)."""
        run = self._run_of(image)
        for number in np.unique(run).tolist():
            rows = np.flatnonzero(run == number)
            stored = np.frombuffer(self._maps[number], np.uint8).reshape(-1, GRIDS, SIZE)
            yield stored, rows, image[rows] - self.starts[number]

    def _run_of(self, image: Ints) -> Ints:
        """[N] the run of each image."""
        runs: Ints = np.searchsorted(self.starts[:-1], image, side="right") - 1
        return runs

    def _give_back(self, read: int) -> None:
        self._read += read
        if self._read > READ:
            for mapped in self._maps:
                if isinstance(mapped, mmap.mmap):
                    mapped.madvise(mmap.MADV_DONTNEED)
            self._read = 0


def _mapped(path: Path) -> Any:
    """A file as bytes that are read where they are looked at; one without bytes cannot be mapped."""
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if path.stat().st_size else b""
