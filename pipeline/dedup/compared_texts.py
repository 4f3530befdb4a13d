"""What the distinct texts of runs are compared by: one flat file per run, which is mapped and read where it is needed.

The file: the numbers of texts and of shingles, then column after column. It is all that `meet` reads to verify texts.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.matching.sketches import Sketches, spread
from pipeline.matching.text_meetings import Compared

Ints = npt.NDArray[np.int64]


def write_texts(path: Path, words: npt.NDArray[np.uint64], sketches: Sketches, at: Ints) -> None:
    """Write the distinct texts [N] of a run.

    words: the first 64 bits of each one's id. at: its number among all texts of the run, of which some are equal.
    """
    with path.open("wb") as file:
        file.write(np.array([len(words), len(sketches.shingles)], np.int64).tobytes())
        for column in (words, sketches.numerals, sketches.parity, sketches.starts, at, sketches.shingles):
            file.write(np.ascontiguousarray(column).tobytes())


class ComparedTexts:
    """The distinct texts of all runs, which have numbers over all runs: those of a run follow the runs' before it."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._runs = [_Run(path) for path in paths]
        self.starts: Ints = np.concatenate([[0], np.cumsum([len(run.words) for run in self._runs])]).astype(np.int64)
        """The number of the first distinct text of each run, and the number of all."""

    def read(self, numbers: Ints) -> Compared:
        """What texts [N] are compared by; `numbers` ascend."""
        parts = [run.read(rows) for run, rows in self._by_run(numbers)]
        words, numerals, parity, sizes, shingles = (np.concatenate(column) for column in zip(*parts, strict=True))
        starts = np.concatenate([[0], np.cumsum(sizes)])
        keys = np.empty((len(words), 0), np.uint32)
        return Compared(words, Sketches(shingles, starts, numerals, parity, keys))

    def among_all(self, numbers: Ints, first: Ints) -> Ints:
        """Numbers of distinct texts, ascending, as numbers among all texts; first: the number of each run's first."""
        found = [run.at[rows] + start for (run, rows), start in zip(self._by_run(numbers), first.tolist(), strict=True)]
        return np.concatenate(found)

    def _by_run(self, numbers: Ints) -> list[tuple[_Run, Ints]]:
        borders = np.searchsorted(numbers, self.starts)
        return [
            (run, numbers[low:high] - start)
            for run, start, low, high in zip(self._runs, self.starts, borders, borders[1:], strict=False)
        ]


class _Run:
    """The columns of a run's file, mapped."""

    def __init__(self, path: Path) -> None:
        texts, shingles = np.fromfile(path, np.int64, 2).tolist()
        data, at = np.memmap(path, np.uint8, "r"), 16
        columns = list[Any]()
        for kind, size in ((np.uint64, texts),) * 3 + ((np.int64, texts + 1), (np.int64, texts), (np.uint32, shingles)):
            end = at + size * np.dtype(kind).itemsize
            columns.append(data[at:end].view(kind))
            at = end
        self.words, self._numerals, self._parity, self._starts, self.at, self._shingles = columns

    def read(self, rows: Ints) -> tuple[Any, ...]:
        """(words, numerals, parity, numbers of shingles, shingles) of texts."""
        low, high = self._starts[rows], self._starts[rows + 1]
        own = self.words[rows], self._numerals[rows], self._parity[rows]
        return (*own, high - low, self._shingles[spread(low, high)])
