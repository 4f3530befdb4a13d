"""Signatures and details of images, in flat files per run, of which no more is read than is asked for.

They are read, one by one where they lie apart, and not mapped: around each one that is looked at the kernel maps up to
160 KB, and some thousands would be a build's whole file in memory.

Limits: 8 bytes in memory for each image with details. Pages of details stay mapped until the system wants them back.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pipeline.matching.image_comparison import NO_DETAILS, Details
from pipeline.pictures.signatures import GRIDS, SIZE

Ints = npt.NDArray[np.int64]
Bytes = npt.NDArray[np.uint8]


CLOSE = 2
"""Signatures that are read for each one that is asked for, at the most, where a range of them is read at once."""


class StoredSignatures:
    """Signatures by the numbers of images over all runs; starts: the number of each run's first image, and of all.

    paths, of_details: a file of each run with its signatures, and one with its details. Files are open as long as the
    block runs.
    """

    def __init__(self, paths: Sequence[Path], of_details: Sequence[Path], starts: Ints) -> None:
        self.starts, self._details = starts, [Details.read(path) for path in of_details]
        with contextlib.ExitStack() as files:
            self._files = [files.enter_context(path.open("rb", buffering=0)) for path in paths]
            self._open = files.pop_all()

    def __enter__(self) -> StoredSignatures:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def grids(self, image: Ints, grid: Ints) -> Bytes:
        """[N, SIZE] grids [N] of images [N]."""
        distinct, at = np.unique(image * GRIDS + grid, return_inverse=True)  # one image is compared with many
        return self._read(distinct // GRIDS, distinct % GRIDS * SIZE, SIZE)[at]

    def details(self, image: Ints) -> Details:
        """Details of images [N], which then are numbers 0 to N - 1."""
        if not any(map(len, self._details)):
            return NO_DETAILS
        run, places, stored = self._run_of(image), list[Ints](), list[Bytes]()
        for number in np.unique(run).tolist():
            rows = np.flatnonzero(run == number)
            at, own = self._details[number].rows_of(image[rows] - self.starts[number])
            places.append(rows[at])
            stored.append(np.asarray(self._details[number].stored[own]))
        if not places:
            return NO_DETAILS
        order = np.argsort(np.concatenate(places))
        return Details(np.concatenate(places)[order], np.concatenate(stored)[order])

    def signatures(self, image: Ints) -> Bytes:
        """[N, GRIDS * SIZE] signatures of images [N]; of a run those that lie close together are read at once."""
        run, signatures = self._run_of(image), np.empty((len(image), GRIDS * SIZE), np.uint8)
        for number in np.unique(run).tolist():
            rows = np.flatnonzero(run == number)
            own = image[rows] - self.starts[number]
            first, count = int(own.min()), int(np.ptp(own)) + 1
            if count > CLOSE * len(rows):
                signatures[rows] = self._read(image[rows], np.zeros(len(rows), np.int64), GRIDS * SIZE)
                continue
            data = os.pread(self._files[number].fileno(), count * GRIDS * SIZE, first * GRIDS * SIZE)
            signatures[rows] = np.frombuffer(data, np.uint8).reshape(count, GRIDS * SIZE)[own - first]
        return signatures

    def _read(self, image: Ints, at: Ints, size: int) -> Bytes:
        """[N, size] bytes of the signatures of images [N], each from byte at[i] on."""
        run = self._run_of(image)
        offsets = (image - self.starts[run]) * (GRIDS * SIZE) + at
        numbers = [file.fileno() for file in self._files]
        read = [
            os.pread(numbers[own], size, offset) for own, offset in zip(run.tolist(), offsets.tolist(), strict=True)
        ]
        return np.frombuffer(b"".join(read), np.uint8).reshape(-1, size)

    def _run_of(self, image: Ints) -> Ints:
        """[N] the run of each image."""
        runs: Ints = np.searchsorted(self.starts[:-1], image, side="right") - 1
        return runs
