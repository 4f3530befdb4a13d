"""Signatures and details of image leaders, by leader number: in memory, or mapped from the files of earlier builds.

Signatures are most of the bytes of a leader and are seldom read: only candidates of the hash index are verified, a few
per image. So signatures that come as a memory map of a file, as those of earlier builds do, stay on disk, and are read
where they are compared. The others grow in memory.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pipeline.matching.looks import Details
from pipeline.pictures import details
from pipeline.pictures.signatures import GRIDS, SIZE

Bytes = npt.NDArray[np.uint8]
Ints = npt.NDArray[np.int64]


class LeaderSignatures:
    """Signatures of leaders 0, 1, 2 ..., each of GRIDS grids, or fewer of an older wenlan, and details of some."""

    def __init__(self) -> None:
        self._grids, self._details = _Rows(GRIDS, SIZE), _Rows(1, details.SIZE)
        self._of = np.full(1024, -1, np.int32)  # row of the details of each leader, -1 for none

    def add(self, signature: Bytes, own: Details) -> None:
        """Add the signatures of the next leaders [N, ...], in any shape, and the details of those that have some."""
        first = self._grids.count
        self._grids.add(signature)
        while len(self._of) < self._grids.count:
            self._of = np.concatenate([self._of, np.full(len(self._of), -1, np.int32)])
        self._of[own.of + first] = np.arange(self._details.count, self._details.count + len(own))
        self._details.add(own.stored)

    def grids(self, leaders: Ints, grids: Ints) -> Bytes:
        """[N, SIZE]: grid number grids[i] of leader leaders[i]; zeros of one that an older wenlan did not make."""
        return self._grids.of(leaders, grids)

    def details(self, leaders: Ints) -> Details:
        """Details of leaders [N], which then are numbers 0 to N - 1."""
        rows = self._of[leaders].astype(np.int64)
        having = np.flatnonzero(rows >= 0)
        return Details(having, self._details.of(rows[having], np.zeros(len(having), np.int64)))


class _Rows:
    """Rows 0, 1, 2 ... of `grids` pieces of `size` bytes each."""

    def __init__(self, grids: int, size: int) -> None:
        self._shape = (grids, size)
        self._pieces: list[Bytes] = []  # [rows, grids * size] each; the last one in memory has unused rows at its end
        self._starts: list[int] = []  # number of the first leader of each piece
        self.count = 0
        self._open = 0  # rows used of the last piece; 0 if that is a map

    def add(self, signature: Bytes) -> None:
        """Add the next rows [N, ...], in any shape of grids * size bytes each, or of fewer."""
        if not len(signature):
            return
        width = self._shape[0] * self._shape[1]
        # a map may have gaps between its rows, which `reshape` would read it for
        rows = signature if signature.ndim == 2 else signature.reshape(len(signature), -1)
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
        """[N, size]: piece number grids[i] of row leaders[i]; zeros of one that is not there."""
        wanted = np.zeros((len(leaders), self._shape[1]), np.uint8)
        which = np.searchsorted(self._starts, leaders, side="right") - 1  # the last piece that starts at or before it
        for piece in np.unique(which):
            own = self._pieces[piece]
            if self._shape[0] == 1:
                rows = np.flatnonzero(which == piece)
                wanted[rows] = own[leaders[rows] - self._starts[piece]]
                continue
            stored = own.reshape(len(own), -1, self._shape[1])
            rows = np.flatnonzero((which == piece) & (grids < stored.shape[1]))
            wanted[rows] = stored[leaders[rows] - self._starts[piece], grids[rows]]
        return wanted
