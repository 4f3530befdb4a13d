"""The order of samples: a permutation that is computed, never stored, and the same on every machine.

The stream of a training run is endless: entry g is entry g mod N of epoch g div N. Inside an epoch the shards are
permuted, then the samples inside each window of `window_shards` shards of that order; both permutations follow from
(seed, epoch) alone. So entry g is found in O(1) shards whatever the number of ranks, workers or steps before it: resume
is a number (`position`, samples consumed), and a global batch may straddle two epochs without a short batch.

Negative entries are earlier epochs: the queues are prefilled with entries -K .. -1, as if the run had begun before.

Limits: one window's permutation is held at a time (8 bytes a sample of the window).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt


class Order:
    """Permutation of the rows of a dataset for every epoch."""

    def __init__(self, shard_sizes: Sequence[int], seed: int, window_shards: int, *, shuffle: bool = True) -> None:
        if sum(shard_sizes) < 1:
            raise ValueError("an order needs at least one sample")
        self._sizes = np.asarray(shard_sizes, dtype=np.int64)
        self._starts = np.concatenate([[0], np.cumsum(self._sizes)[:-1]]).astype(np.int64)
        self._total = int(self._sizes.sum())
        self._seed = seed
        self._window = max(1, window_shards)
        self._shuffle = shuffle
        self._layout = lru_cache(maxsize=2)(self._make_layout)
        self._rows = lru_cache(maxsize=2)(self._make_rows)

    def __len__(self) -> int:
        """Samples of one epoch."""
        return self._total

    def entry(self, position: int) -> tuple[int, int]:
        """(epoch, row number) of an entry of the stream; any integer is an entry."""
        epoch, inside = divmod(position, self._total)
        if not self._shuffle:
            return epoch, inside
        _, ends = self._layout(epoch)
        window = int(np.searchsorted(ends, inside, side="right"))
        start = 0 if window == 0 else int(ends[window - 1])
        return epoch, int(self._rows(epoch, window)[inside - start])

    def _make_layout(self, epoch: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Permuted shards of an epoch, and where each window of them ends in the epoch."""
        shards = _generator("shards", self._seed, epoch).permutation(len(self._sizes))
        last = np.append(np.arange(self._window, len(shards), self._window), len(shards)) - 1
        return shards, np.cumsum(self._sizes[shards])[last]

    def _make_rows(self, epoch: int, window: int) -> npt.NDArray[np.int64]:
        """Permuted row numbers of one window."""
        shards, _ = self._layout(epoch)
        mine = shards[window * self._window : (window + 1) * self._window]
        rows = np.concatenate([np.arange(self._starts[s], self._starts[s] + self._sizes[s]) for s in mine])
        return _generator("window", self._seed, epoch, window).permutation(rows)


def fraction(*parts: object) -> float:
    """A number in [0, 1) that follows from its arguments alone, equal on every machine."""
    return int.from_bytes(_digest(parts)[:8], "big") / 2**64


def seed_of(*parts: object) -> int:
    """A 63-bit seed that follows from its arguments alone."""
    return int.from_bytes(_digest(parts)[:8], "big") >> 1


def _digest(parts: tuple[object, ...]) -> bytes:
    return hashlib.blake2b("\n".join(str(part) for part in parts).encode(), digest_size=16).digest()


def _generator(*parts: object) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(int.from_bytes(_digest(parts), "big")))
