"""Signatures of images as `deal` wrote them: mapped from one flat file per run, and read where they are needed.

Pages that were read go back, so that the memory of whoever asks does not grow with the build.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.pictures.signatures import GRIDS, SIZE

Ints = npt.NDArray[np.int64]
Bytes = npt.NDArray[np.uint8]

READ = 64 << 20
"""Bytes after whose reading the pages that were read are given back."""


class StoredSignatures:
    """Signatures by the numbers of images over all runs; starts: the number of each run's first image, and of all."""

    def __init__(self, paths: Sequence[Path], starts: Ints) -> None:
        self.starts, self._read = starts, 0
        self._maps = [_mapped(path) for path in paths]

    def grids(self, image: Ints, grid: Ints) -> Bytes:
        """[N, SIZE] grids [N] of images [N]."""
        wanted = np.empty((len(image), SIZE), np.uint8)
        for stored, rows, own in self._by_run(image):
            wanted[rows] = stored[own, grid[rows]]
        self._give_back(wanted.nbytes)
        return wanted

    def whole(self, image: Ints) -> Bytes:
        """[N, GRIDS * SIZE] signatures of images [N]."""
        wanted = np.empty((len(image), GRIDS, SIZE), np.uint8)
        for stored, rows, own in self._by_run(image):
            wanted[rows] = stored[own]
        self._give_back(wanted.nbytes)
        return wanted.reshape(-1, GRIDS * SIZE)

    def _by_run(self, image: Ints) -> Iterator[tuple[Bytes, Ints, Ints]]:
        """(signatures [images, GRIDS, SIZE] of a run, which of `image` are its own, their numbers within it)."""
        run = np.searchsorted(self.starts[:-1], image, side="right") - 1
        for number in np.unique(run).tolist():
            rows = np.flatnonzero(run == number)
            stored = np.frombuffer(self._maps[number], np.uint8).reshape(-1, GRIDS, SIZE)
            yield stored, rows, image[rows] - self.starts[number]

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
