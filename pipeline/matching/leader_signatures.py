"""Signatures of image leaders, by leader number: in memory, or mapped from the files of earlier builds.

Signatures are most of the bytes of a leader and are seldom read: only candidates of the hash index are verified, a few
per image. So signatures that come as a memory map of a file, as those of earlier builds do, stay on disk. They are read
through once for their tones, and then where they are compared. The others grow in memory.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]
Ints = npt.NDArray[np.int64]


class LeaderSignatures:
    """Signatures of leaders 0, 1, 2 ..., each of `grids` grids of `size` bytes, or fewer of an older wenlan."""

    def __init__(self, grids: int, size: int) -> None:
        self._shape = (grids, size)
        self._pieces: list[Bytes] = []  # [rows, grids * size] each; the last one in memory has unused rows at its end
        self._starts: list[int] = []  # number of the first leader of each piece
        self.count = 0
        self._open = 0  # rows used of the last piece; 0 if that is a map

    def add(self, signature: Bytes) -> None:
        """Add the signatures of the next leaders [N, ...], in any shape of grids * size bytes each, or of fewer."""
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
                piece.resize((max(end, len(piece) * 9 // 8), width), refcheck=False)  # in place: never in memory twice
            piece[self._open : end, : rows.shape[1]] = rows
            self._open = end
        self.count += len(rows)

    def of(self, leaders: Ints, grids: Ints) -> Bytes:
        """[N, size]: grid number grids[i] of leader leaders[i]."""
        wanted = np.empty((len(leaders), self._shape[1]), np.uint8)
        which = np.searchsorted(self._starts, leaders, side="right") - 1  # the last piece that starts at or before it
        for piece in np.unique(which):
            rows = np.flatnonzero(which == piece)
            stored = self._pieces[piece].reshape(len(self._pieces[piece]), -1, self._shape[1])
            wanted[rows] = stored[leaders[rows] - self._starts[piece], grids[rows]]
        return wanted
