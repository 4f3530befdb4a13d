"""Signatures of image leaders by number: most of what a leader takes, and seldom read.

Only candidates of the hash index are verified, a few for each image asked for. So what comes as a memory map of a file,
as earlier builds' signatures do, stays on disk: it is gone through once for its tones, and then read where it is
compared; the rest grows in memory.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]
Ints = npt.NDArray[np.int64]


class Grids:
    """Signatures of `grids` grids of `size` bytes."""

    def __init__(self, grids: int, size: int) -> None:
        self._shape = (grids, size)
        self._pieces: list[Bytes] = []
        self._starts: list[int] = []  # number of the first leader of each piece
        self.count = 0
        self._open = 0  # rows used of the last piece; 0 if that is a map

    def add(self, signature: Bytes) -> None:
        """Those of the next leaders [N, bytes], in any shape."""
        if not len(signature):
            return
        rows, width = signature.reshape(len(signature), -1), self._shape[0] * self._shape[1]
        mapped = isinstance(signature, np.memmap)
        if mapped or not self._open:
            self._starts.append(self.count)
            self._pieces.append(rows if mapped else np.zeros((1024, width), np.uint8))
            self._open = 0
        if not mapped:
            piece, end = self._pieces[-1], self._open + len(rows)
            if end > len(piece):
                piece.resize((max(end, len(piece) * 9 // 8), width), refcheck=False)  # in place: never held twice
            piece[self._open : end] = rows
            self._open = end
        self.count += len(rows)

    def of(self, leaders: Ints, grids: Ints) -> Bytes:
        """[N, size]: one grid of each leader."""
        found = np.empty((len(leaders), self._shape[1]), np.uint8)
        which = np.searchsorted(self._starts, leaders, side="right") - 1
        for piece in np.unique(which):
            rows = np.flatnonzero(which == piece)
            kept = self._pieces[piece].reshape(-1, *self._shape)
            found[rows] = kept[leaders[rows] - self._starts[piece], grids[rows]]
        return found
