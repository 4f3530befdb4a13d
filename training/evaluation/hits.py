"""Hits of a query: the two definitions by which retrieval is measured.

    Clusters    pairs of an image and a text; a hit has the same image leader or text leader (near-copies count)
    Captions    images and the texts that describe them, several per image

Each lists its hits for a block of rows, so that no matrix of all pairs is in memory.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

Features = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


class Hits(Protocol):
    """Pairs of N images and M texts that belong together."""

    @property
    def images(self) -> int:
        """N."""

    @property
    def texts(self) -> int:
        """M."""

    def pairs(self, start: int, stop: int) -> tuple[Ids, Ids]:
        """(image, text) of each hit of images start..stop-1, in order of images; no pair twice."""

    def unit(self) -> Ids:
        """[M]: the image with which a text is resampled for an interval."""


@dataclass(frozen=True)
class Clusters:
    """N pairs of an image and a text; a hit is any pair with the same image id or the same text id."""

    image_ids_N: Ids
    text_ids_N: Ids

    @property
    def images(self) -> int:
        return len(self.image_ids_N)

    @property
    def texts(self) -> int:
        return len(self.text_ids_N)

    def pairs(self, start: int, stop: int) -> tuple[Ids, Ids]:
        size = len(self.image_ids_N)
        pairs = [np.zeros(0, np.int64)]
        for by_id in self._sorted:
            rows, others = _equal_pairs(*by_id, start, stop)
            pairs.append(rows * size + others)
        found = np.unique(np.concatenate(pairs))
        return found // size, found % size

    def unit(self) -> Ids:
        """See `Hits`: a text belongs to the image of its own pair."""
        return np.arange(self.texts)

    @functools.cached_property
    def _sorted(self) -> list[tuple[Ids, Ids, Ids]]:
        return [_sorted(self.image_ids_N), _sorted(self.text_ids_N)]


@dataclass(frozen=True)
class Captions:
    """Texts that describe images: pairs [P] of the number of an image and of a text, in any order.

    A text may describe several images. An image without a text is a candidate, but not a query.
    """

    images: int
    texts: int
    image_P: Ids
    text_P: Ids

    def pairs(self, start: int, stop: int) -> tuple[Ids, Ids]:
        image_P, text_P = self._by_image
        low, high = np.searchsorted(image_P, [start, stop])
        return image_P[low:high], text_P[low:high]

    def unit(self) -> Ids:
        """See `Hits`: a text belongs to the first of its images."""
        first = np.full(self.texts, self.images)
        np.minimum.at(first, self.text_P, self.image_P)
        return first

    @functools.cached_property
    def _by_image(self) -> tuple[Ids, Ids]:
        pairs = np.unique(self.image_P * max(self.texts, 1) + self.text_P)
        return pairs // max(self.texts, 1), pairs % max(self.texts, 1)


def _sorted(ids: Ids) -> tuple[Ids, Ids, Ids]:
    """The order of ids, the ids in that order, and the ids."""
    order = np.argsort(ids, kind="stable")
    return order, ids[order], ids


def _equal_pairs(order: Ids, sorted_ids: Ids, ids: Ids, start: int, stop: int) -> tuple[Ids, Ids]:
    """(row, other) of all pairs with the same id, of rows start..stop-1, in order of rows."""
    low, high = (np.searchsorted(sorted_ids, ids[start:stop], side) for side in ("left", "right"))
    return np.repeat(np.arange(start, stop), high - low), order[_ranges(low, high - low)]


def _ranges(low: Ids, counts: Ids) -> Ids:
    """low[0], low[0] + 1, ... counts[0] of them, then those of low[1], end to end."""
    before = np.cumsum(counts) - counts
    ranges: Ids = np.arange(int(counts.sum())) + np.repeat(low - before, counts)
    return ranges
