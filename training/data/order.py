"""The order of samples in training: a permutation that is computed, never stored, and the same on every machine.

The stream of a training run is endless: entry g is entry g mod N of epoch g div N. Inside an epoch the shards are
permuted, then the samples inside each window of `window_shards` shards of that order; both permutations follow from
(seed, epoch) alone. So entry g is computed from O(1) shards whatever the number of ranks, workers or steps before it:
resume is a number (`position`, samples consumed), and a global batch may straddle two epochs without a short batch.

Negative entries are earlier epochs: the queues are prefilled with entries -K .. -1, as if the run had begun before.

`Mixture` interleaves the orders of several parts by weights: every block of the stream holds a fixed number of entries
of each part, in an order that follows from (seed, block). So where a part stands is again a number.

Limits: shares of a mixture are rounded to 1/1024. One window's permutation is in memory at a time (8 bytes per sample).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt

_BLOCK = 1024
"""Entries of a block of a mixture."""


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
        # ends[w] is the number of entries before window w + 1 of this epoch, so the window is the first whose end lies
        # beyond `inside`.
        _, ends = self._layout(epoch)
        window = int(np.searchsorted(ends, inside, side="right"))
        start = 0 if window == 0 else int(ends[window - 1])
        return epoch, int(self._rows(epoch, window)[inside - start])

    def windows(self, position: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Shards of the window that holds an entry, and of the one after it."""
        epoch, inside = divmod(position, self._total)
        if not self._shuffle:
            at = int(np.searchsorted(self._starts, inside, side="right")) - 1
            every = range(len(self._sizes))
            return tuple(every[at : at + self._window]), tuple(every[at + self._window : at + 2 * self._window])
        _, ends = self._layout(epoch)
        window = int(np.searchsorted(ends, inside, side="right"))
        here = self._shards_of(epoch, window)
        return here, self._shards_of(*((epoch, window + 1) if window + 1 < len(ends) else (epoch + 1, 0)))

    def _shards_of(self, epoch: int, window: int) -> tuple[int, ...]:
        shards, _ = self._layout(epoch)
        return tuple(shards[window * self._window : (window + 1) * self._window].tolist())

    def _make_layout(self, epoch: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Permuted shards of an epoch, and where each window of them ends in the epoch."""
        shards = _generator("shards", self._seed, epoch).permutation(len(self._sizes))
        # Place of each window's last shard in `shards`: window - 1, 2 * window - 1, ..., and the very last one.
        last = np.append(np.arange(self._window, len(shards), self._window), len(shards)) - 1
        return shards, np.cumsum(self._sizes[shards])[last]

    def _make_rows(self, epoch: int, window: int) -> npt.NDArray[np.int64]:
        shards, _ = self._layout(epoch)
        mine = shards[window * self._window : (window + 1) * self._window]
        rows = np.concatenate([np.arange(self._starts[s], self._starts[s] + self._sizes[s]) for s in mine])
        return _generator("window", self._seed, epoch, window).permutation(rows)


class Mixture:
    """Orders of several parts as one stream, by weights. An entry is (epoch of its part, row number over all parts)."""

    def __init__(self, parts: Sequence[Sequence[int]], weights: Sequence[float], seed: int, window_shards: int) -> None:
        """`parts`: the shard sizes of each part, in the order in which their rows are numbered."""
        self._orders = [Order(sizes, seed_of("part", seed, i), window_shards) for i, sizes in enumerate(parts)]
        self._first_row = np.cumsum([0, *(len(order) for order in self._orders)])
        self._first_shard = np.cumsum([0, *(len(sizes) for sizes in parts)])
        total = sum(weights)
        # Entries of each part in a block: its exact share rounded down, at least 1; what is missing to a full block
        # goes one by one to the parts that lost most by the rounding.
        exact = np.asarray([_BLOCK * weight / total for weight in weights])
        counts = np.maximum(np.floor(exact), 1).astype(np.int64)
        for at in np.argsort(counts - exact, kind="stable")[: max(0, _BLOCK - int(counts.sum()))]:
            counts[at] += 1
        self._counts = counts
        self._seed = seed
        self._block = lru_cache(maxsize=2)(self._make_block)

    def __len__(self) -> int:
        """Samples of all parts."""
        return int(self._first_row[-1])

    def entry(self, position: int) -> tuple[int, int]:
        """(epoch of the part, row number) of an entry of the stream; any integer is an entry."""
        part, inside = self.locate(position)
        epoch, row = self._orders[part].entry(inside)
        return epoch, row + int(self._first_row[part])

    def locate(self, position: int) -> tuple[int, int]:
        """(part, position in that part's own stream) of an entry."""
        block, inside = divmod(position, int(self._counts.sum()))
        parts, ranks = self._block(block)
        part = int(parts[inside])
        return part, block * int(self._counts[part]) + int(ranks[inside])

    def epochs(self, position: int) -> list[float]:
        """Epochs of each part before an entry."""
        block, inside = divmod(position, int(self._counts.sum()))
        parts, _ = self._block(block)
        seen = np.bincount(parts[:inside], minlength=len(self._orders)) + block * self._counts
        return [float(n) / len(order) for n, order in zip(seen, self._orders, strict=True)]

    def windows(self, position: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Shards, numbered over all parts, that the stream is in at an entry, and those it enters next."""
        block = position // int(self._counts.sum())
        here: list[int] = []
        later: list[int] = []
        for part, order in enumerate(self._orders):
            now, after = order.windows(block * int(self._counts[part]))
            first = int(self._first_shard[part])
            here += [first + shard for shard in now]
            later += [first + shard for shard in after]
        return tuple(here), tuple(later)

    def _make_block(self, block: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """The part of each entry of a block, and how many entries of that part come before it in the block.

        Each part's entries are spread evenly over the block, each at random within its share of it: no part lumps."""
        generator = _generator("mixture", self._seed, block)
        parts = np.repeat(np.arange(len(self._counts)), self._counts)
        ranks = np.concatenate([np.arange(count) for count in self._counts])
        order = np.argsort((ranks + generator.random(len(parts))) / self._counts[parts], kind="stable")
        return parts[order], ranks[order]


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
