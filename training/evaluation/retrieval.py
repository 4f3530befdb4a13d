"""Retrieval figures from features: recall at k both ways, median rank, chance, and bootstrap intervals.

Every image asks for its texts among all texts, every text for its images among all images; which pairs are hits is
said by `Clusters` (near-copies are not mistakes) or by `Captions` (several captions per image). Because a query may
have many hits, chance is not k / N; it is computed for each query from its own number of hits, in the same averages as
the recall itself. Intervals are percentiles over resampled images, each with all of its captions: captions of one image
are not independent queries. The seed is fixed, so equal ranks have equal intervals.

All similarities are computed once, in float32, for both directions, in tiles of images x texts that fit a core's cache:
no matrix of all is ever in memory. Comparisons that rounding could turn are repeated in float64, so ranks follow from
the features alone, not from the size of a block or the number of threads. Ties count against us: a model that maps
every sample to one feature ranks last, not first.

Limits: exhaustive comparison; all features in memory. The interval of a recall of 0 or 1 is empty:
resampling shows only what the samples contain. Where more than TIES of a block's similarities are within rounding of a
query's best hit, they count as ties without being computed again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from training.errors import InputError
from training.evaluation.classification import RESAMPLES, Bounds, percentiles
from training.evaluation.hits import Features, Hits, Ids, Mask

if TYPE_CHECKING:
    import torch
    from torch import Tensor

KS = (1, 5, 10)

ROUNDING = 2e-6
"""Bound on the rounding error of a float32 similarity of unit rows: measured below 5e-7 at 2,048 dimensions."""

TIES = 0.01

_BLOCK = 16 << 20
"""Most pairs of an image and a text of which hits are listed at once."""
_ROWS = 1024
"""Images of a tile, where their hits are not too many."""
_TILE = 1024
"""Texts of a tile on CPUs: with `_ROWS` 4 MB, which stay in the cache while they are compared. A product of few images
with all texts takes 1.6 times as long."""
_GATHERED = 4 << 20
"""Numbers of a side that are gathered at once for a similarity in float64: 32 MB."""


@dataclass(frozen=True)
class Ranks:
    """Rank of the best hit of every query (1 is the first, 0: without a hit), and how many hits each has.

    image_N, text_M: of images that ask for texts and of texts that ask for images. unit_M: as in `Hits`.
    """

    image_N: Ids
    text_M: Ids
    image_hits_N: Ids
    text_hits_M: Ids
    unit_M: Ids


@dataclass(frozen=True)
class Direction:
    """Recall by k, that of a random ranking, and the median rank of the best hit (1 is the first). Shares of 1.

    intervals: 95% of the recall by k; None where they were not asked for.
    """

    recall: dict[int, float]
    chance: dict[int, float]
    median_rank: float
    queries: int = 0
    intervals: dict[int, tuple[float, float]] | None = None

    def to_json(self) -> dict[str, Any]:
        """r1, r5, r10, chance_r1 ... and median_rank; with intervals also queries and r1_interval [low, high] ..."""
        values: dict[str, Any] = {f"r{k}": value for k, value in self.recall.items()}
        values |= {f"chance_r{k}": value for k, value in self.chance.items()}
        values["median_rank"] = self.median_rank
        if self.intervals is not None:
            values["queries"] = self.queries
            values |= {f"r{k}_interval": list(bounds) for k, bounds in self.intervals.items()}
        return values


@dataclass(frozen=True)
class Retrieval:
    """Both directions over the queries of `samples` images."""

    samples: int
    image_to_text: Direction
    text_to_image: Direction
    interval: tuple[float, float] | None = None
    """95% of the mean recall."""

    @property
    def mean_recall(self) -> float:
        directions = (self.image_to_text, self.text_to_image)
        return float(np.mean([value for d in directions for value in d.recall.values()]))

    def to_json(self) -> dict[str, Any]:
        """The numbers as `wenlan-train eval --json` prints them; recalls are shares of 1."""
        values: dict[str, Any] = {
            "samples": self.samples,
            "i2t": self.image_to_text.to_json(),
            "t2i": self.text_to_image.to_json(),
            "mean_recall": self.mean_recall,
        }
        return values if self.interval is None else {**values, "mean_recall_interval": list(self.interval)}


def rank(image_ND: Features, text_MD: Features, hits: Hits, device: torch.device | str = "cpu") -> Ranks:
    """Ranks of all queries both ways. Raises InputError where nothing can be found and on features not finite."""
    if not len(image_ND) or not len(text_MD):
        raise InputError("retrieval", "no readable samples in the split")
    if not (_all_finite(image_ND) and _all_finite(text_MD)):
        raise InputError("retrieval", "the model returns features that are not finite")
    best_N, best_M = np.full(hits.images, -np.inf), np.full(hits.texts, -np.inf)
    hits_N, hits_M = np.zeros(hits.images, np.int64), np.zeros(hits.texts, np.int64)
    for start, stop, image_P, text_P in _hit_blocks(hits.pairs, hits.images, hits.texts):
        similar_P = _exact(image_ND, text_MD, image_P, text_P)
        np.maximum.at(best_N, image_P, similar_P)
        np.maximum.at(best_M, text_P, similar_P)
        hits_N[start:stop] = np.bincount(image_P - start, minlength=stop - start)
        hits_M += np.bincount(text_P, minlength=hits.texts)
    # Without a hit, the rank is 0: nothing is as similar as 2.
    best_N[hits_N == 0], best_M[hits_M == 0] = 2, 2
    counter = _Counter(image_ND, text_MD, best_N, best_M, device)
    for start, stop, image_P, text_P in _hit_blocks(hits.pairs, hits.images, hits.texts):
        counter.add(start, stop, image_P, text_P)
    image_N, text_M = np.where(hits_N > 0, 1 + counter.above_N, 0), np.where(hits_M > 0, 1 + counter.above_M, 0)
    return Ranks(image_N, text_M, hits_N, hits_M, hits.unit())


def figures(
    ranks: Ranks, images: Mask | None = None, texts: Mask | None = None, *, intervals: bool = False
) -> Retrieval:
    """Both directions over all queries, or over those of a mask [N] of images and one [M] of texts.

    The candidates are all of them in any case. Raises InputError where a direction lacks queries.
    """
    asks_N = (ranks.image_hits_N > 0) & (True if images is None else images)
    asks_M = (ranks.text_hits_M > 0) & (True if texts is None else texts)
    if not asks_N.any() or not asks_M.any():
        raise InputError("retrieval", "no query has a hit among the candidates")
    i2t, t2i, both = _intervals(ranks, asks_N, asks_M) if intervals else (None, None, None)
    texts_total, images_total = len(ranks.text_M), len(ranks.image_N)
    return Retrieval(
        int(asks_N.sum()),
        _direction(ranks.image_N[asks_N], ranks.image_hits_N[asks_N], texts_total, i2t),
        _direction(ranks.text_M[asks_M], ranks.text_hits_M[asks_M], images_total, t2i),
        both,
    )


def chance_recall(total: int, hits_N: Sequence[int] | Ids, k: int) -> float:
    """Expected recall at k of a random ranking of `total` candidates, averaged over queries with `hits_N` hits each.

    1 - C(N-h, k) / C(N, k): the chance that k draws without replacement meet one of h hits.
    """
    hits = np.asarray(hits_N, dtype=np.float64)
    misses = np.ones_like(hits)
    for drawn in range(k):
        misses *= np.clip((total - hits - drawn) / max(total - drawn, 1), 0.0, 1.0)
    return float(np.mean(1 - misses))


def _direction(rank_Q: Ids, hits_Q: Ids, candidates: int, intervals: dict[int, Bounds] | None) -> Direction:
    return Direction(
        recall={k: float(np.mean(rank_Q <= k)) for k in KS},
        chance={k: chance_recall(candidates, hits_Q, k) for k in KS},
        median_rank=float(np.median(rank_Q)),
        queries=len(rank_Q),
        intervals=intervals,
    )


def _intervals(ranks: Ranks, asks_N: Mask, asks_M: Mask) -> tuple[dict[int, Bounds], dict[int, Bounds], Bounds]:
    """Intervals of the recalls of images, of those of texts, and of the mean recall, from the same resamples."""
    size, unit_Q = len(asks_N), ranks.unit_M[asks_M]
    columns: list[npt.NDArray[Any]] = [asks_N, np.bincount(unit_Q, minlength=size)]
    for k in KS:
        columns.append(asks_N & (ranks.image_N <= k))
        columns.append(np.bincount(unit_Q, ranks.text_M[asks_M] <= k, minlength=size))
    sums_UC = np.stack([column.astype(np.float64) for column in columns], axis=1)
    sums_UC = sums_UC[sums_UC[:, :2].any(axis=1)]  # images with a query, and what their queries add up to
    generator, resampled = np.random.default_rng(0), np.empty((RESAMPLES, sums_UC.shape[1]))
    for i in range(RESAMPLES):
        drawn_U = np.bincount(generator.integers(0, len(sums_UC), len(sums_UC)), minlength=len(sums_UC))
        resampled[i] = drawn_U @ sums_UC
    images, texts = resampled[:, 0:1], resampled[:, 1:2]
    # A resample of very few images may lack queries of one direction: it says nothing, and is left out.
    counts = (images[:, 0] > 0) & (texts[:, 0] > 0)
    recalls_RK = resampled[counts, 2::2] / images[counts], resampled[counts, 3::2] / texts[counts]
    i2t, t2i = ({k: percentiles(of_k) for k, of_k in zip(KS, recalls.T, strict=True)} for recalls in recalls_RK)
    return i2t, t2i, percentiles(np.concatenate(recalls_RK, axis=1).mean(axis=1))


class _Counter:
    """Counts, block by block, the candidates without a hit that are as similar to a query as its best hit, or more."""

    def __init__(
        self,
        image_ND: Features,
        text_MD: Features,
        best_N: npt.NDArray[np.float64],
        best_M: npt.NDArray[np.float64],
        device: torch.device | str,
    ) -> None:
        import torch

        self._image_ND, self._text_MD, self._best_N, self._best_M = image_ND, text_MD, best_N, best_M
        self._texts_DM = torch.from_numpy(text_MD).to(device).T
        self._device = device
        # [2, N] and [2, M]: bounds below and above which rounding cannot turn a comparison
        self._bounds_N, self._bounds_M = (
            torch.from_numpy(np.stack([best - ROUNDING, best + ROUNDING]).astype(np.float32)).to(device)
            for best in (best_N, best_M)
        )
        self.above_N, self.above_M = np.zeros(len(best_N), np.int64), np.zeros(len(best_M), np.int64)

    def add(self, start: int, stop: int, image_P: Ids, text_P: Ids) -> None:
        """Count images start..stop-1 against all texts, both ways; the pairs [P], their hits, are not."""
        import torch

        image_BD = torch.from_numpy(self._image_ND[start:stop]).to(self._device)
        low_B, high_B = self._bounds_N[:, start:stop, None]
        by_text = np.argsort(text_P, kind="stable")
        image_P, text_P = image_P[by_text] - start, text_P[by_text]
        texts = len(self.above_M)
        width = _TILE if image_BD.device.type == "cpu" else max(1, _BLOCK // (stop - start))
        room = max(TIES * (stop - start) * texts, 100_000)
        rooms = [room, room]
        for left in range(0, texts, width):
            right = min(left + width, texts)
            similar_BT = image_BD @ self._texts_DM[:, left:right]
            pairs = slice(*np.searchsorted(text_P, (left, right)))
            at = (torch.from_numpy(column).to(self._device) for column in (image_P[pairs], text_P[pairs] - left))
            similar_BT[tuple(at)] = -torch.inf
            low_T, high_T = self._bounds_M[:, left:right]
            self.above_N[start:stop] += self._count(similar_BT, low_B, high_B, 1, (start, left), rooms)
            self.above_M[left:right] += self._count(similar_BT, low_T, high_T, 0, (start, left), rooms)

    def _count(
        self, similar_BT: Tensor, low: Tensor, high: Tensor, axis: int, corner: tuple[int, int], rooms: list[float]
    ) -> Ids:
        """Per image of a tile (axis 1), or per text (axis 0). corner: of the tile; rooms: ties still to be computed."""
        import torch

        counted = _count_true(similar_BT > high, axis)
        close_BT = similar_BT >= low
        close = _count_true(close_BT, axis) - counted
        unclear = int(close.sum())
        rooms[axis] -= unclear
        if rooms[axis] < 0:
            return counted + close
        if unclear:
            close_BT &= similar_BT <= high
            image_P, text_P = (_numpy(column) for column in torch.nonzero(close_BT, as_tuple=True))
            image_P, text_P = image_P + corner[0], text_P + corner[1]
            exact_P = _exact(self._image_ND, self._text_MD, image_P, text_P)
            best_P = self._best_N[image_P] if axis else self._best_M[text_P]
            query_P = image_P - corner[0] if axis else text_P - corner[1]
            counted += np.bincount(query_P[exact_P >= best_P], minlength=len(counted))
        return counted


def _exact(image_ND: Features, text_MD: Features, image_P: Ids, text_P: Ids) -> npt.NDArray[np.float64]:
    """Similarities [P] of pairs, in float64."""
    similar_P = np.empty(len(image_P))
    step = max(1, _GATHERED // image_ND.shape[1])
    for start in range(0, len(image_P), step):
        some = slice(start, start + step)
        left, right = image_ND[image_P[some]], text_MD[text_P[some]]
        similar_P[some] = np.einsum("pd,pd->p", left.astype(np.float64), right.astype(np.float64))
    return similar_P


def _hit_blocks(
    of: Callable[[int, int], tuple[Ids, Ids]], images: int, texts: int
) -> Iterator[tuple[int, int, Ids, Ids]]:
    """(start, stop, image, text): the pairs of successive images, at most `_ROWS` of them and about `_BLOCK` pairs."""
    step = max(1, min(_ROWS, _BLOCK // texts))  # so that one call lists no more than _BLOCK
    began, pieces = 0, list[tuple[Ids, Ids]]()
    for start in range(0, images, step):
        stop = min(start + step, images)
        pieces.append(of(start, stop))
        if stop == images or stop + step - began > _ROWS or sum(len(piece[0]) for piece in pieces) >= _BLOCK:
            image_P, text_P = (np.concatenate(column) for column in zip(*pieces, strict=True))
            yield began, stop, image_P, text_P
            began, pieces = stop, []


def _all_finite(features: Features) -> bool:
    return all(bool(np.isfinite(features[i : i + 4096]).all()) for i in range(0, len(features), 4096))


def _count_true(mask: Tensor, axis: int) -> Ids:
    if mask.device.type == "cpu":  # NumPy's takes a tenth of the time of torch's, a third of all otherwise
        counts: Ids = np.asarray(np.count_nonzero(mask.numpy(), axis=axis))
        return counts
    return _numpy(mask.sum(axis))


def _numpy(tensor: Tensor) -> Ids:
    array: Ids = tensor.cpu().numpy()
    return array
