"""Classification figures: top-1 and top-5 with intervals and chance, per class, and the pairs that are mixed up most.

Input are scores of every item for every class: cosines with the classes' texts. Ties count against us, as in retrieval:
a model that scores all classes alike is never right.

The interval of a share is Wilson's score interval where items are independent of one another, and a percentile of
resampled images where several items (boxes) are of one image. That of the mean over classes resamples the items of each
class. The seed is fixed.

Limits: scores of all items for all classes are in memory, [N, C] float32.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from training.errors import InputError
from training.evaluation.hits import Features, Ids, Mask

Bounds = tuple[float, float]

RESAMPLES = 1_000
"""Bootstrap resamples of an interval; it spans their 2.5th to 97.5th percentile."""

PAIRS = 10
"""Pairs of classes that are listed as mixed up most."""

_Z = 1.959963984540054
"""97.5th percentile of the normal distribution."""


@dataclass(frozen=True)
class Classified:
    """N items with their labels and ranked predictions.

    rank_N: of the right class, 1 is the best; classes that score the same come before it. said_N: the class that was
    said: the right one if its rank is 1, otherwise the best of the others.
    """

    scores_NC: Features
    label_N: Ids
    rank_N: Ids
    said_N: Ids

    @property
    def classes(self) -> int:
        return int(self.scores_NC.shape[1])

    def best(self, item: int, count: int) -> list[tuple[int, float]]:
        """(class, score) of the best `count` classes of an item, best first."""
        scores_C = self.scores_NC[item].astype(np.float64)
        order = np.lexsort((np.arange(len(scores_C)) != self.said_N[item], -scores_C))
        return [(int(c), float(scores_C[c])) for c in order[:count]]


def cosines(features_ND: Features, classes_CD: Features) -> Features:
    """Scores [N, C] of unit features and unit class vectors. Raises InputError on features not finite."""
    if not (np.isfinite(features_ND).all() and np.isfinite(classes_CD).all()):
        raise InputError("classification", "the model returns features that are not finite")
    scores_NC = np.empty((len(features_ND), len(classes_CD)), np.float32)
    for start in range(0, len(features_ND), 4096):  # float64 is for the sum only; the block bounds its copies
        some = slice(start, start + 4096)
        scores_NC[some] = features_ND[some].astype(np.float64) @ classes_CD.astype(np.float64).T
    return scores_NC


def classify(scores_NC: Features, label_N: Ids) -> Classified:
    """Ranks of the right classes of items with known labels, by scores."""
    rows = np.arange(len(label_N))
    own_N = scores_NC[rows, label_N]
    rank_N = (scores_NC >= own_N[:, None]).sum(1)  # the right class itself counts 1
    others_NC = scores_NC.copy()
    others_NC[rows, label_N] = -np.inf
    said_N = np.where(rank_N == 1, label_N, others_NC.argmax(1))
    return Classified(scores_NC, label_N, rank_N, said_N)


def figures(
    found: Classified, names: Sequence[str], asks: Mask | None = None, units_N: Ids | None = None
) -> dict[str, Any]:
    """Figures over all items, or those of a mask, as they are printed; shares of 1.

    n, top1, top1_interval, chance_top1, and the same of top5 (where there are more than 5 classes); majority: the share
    of the largest class, which is what always saying it would reach; mean_per_class and its interval, over the classes
    that have an item; per_class and worst_pairs. units_N: the image of each item, where several items are of one.

    Only {"n": 0} where no item is asked for.
    """
    asks_N = np.ones(len(found.label_N), np.bool_) if asks is None else asks
    label_Q, rank_Q, said_Q = found.label_N[asks_N], found.rank_N[asks_N], found.said_N[asks_N]
    if not len(label_Q):
        return {"n": 0}
    values: dict[str, Any] = {"n": len(label_Q)}
    for k in (1, 5):
        if k == 1 or found.classes > k:
            hit_Q = rank_Q <= k
            interval = wilson(int(hit_Q.sum()), len(hit_Q)) if units_N is None else resampled(hit_Q, units_N[asks_N])
            values |= {f"top{k}": float(hit_Q.mean()), f"top{k}_interval": list(interval)}
            values[f"chance_top{k}"] = k / found.classes
    count_C = np.bincount(label_Q, minlength=found.classes)
    right_C = np.bincount(label_Q, rank_Q == 1, minlength=found.classes)
    values["majority"] = float(count_C.max() / len(label_Q))
    some_C = count_C > 0
    values["mean_per_class"] = float((right_C[some_C] / count_C[some_C]).mean())
    values["mean_per_class_interval"] = list(_mean_interval(right_C[some_C], count_C[some_C]))
    values["per_class"] = [
        {
            "class": names[c],
            "n": int(count_C[c]),
            "top1": float(right_C[c] / count_C[c]),
            "top1_interval": list(wilson(int(right_C[c]), int(count_C[c]))),
        }
        for c in np.flatnonzero(some_C).tolist()
    ]
    values["worst_pairs"] = _worst_pairs(label_Q, said_Q, count_C, names)
    return values


def wilson(hits: int, count: int) -> Bounds:
    """95% score interval of a share (Wilson 1927); unlike the bootstrap's it has a width at 0 and at 1."""
    share, z2 = hits / count, _Z**2
    middle, half = share + z2 / (2 * count), _Z * math.sqrt(share * (1 - share) / count + z2 / (4 * count**2))
    return max(0.0, (middle - half) / (1 + z2 / count)), min(1.0, (middle + half) / (1 + z2 / count))


def resampled(values_Q: npt.NDArray[Any], units_Q: Ids) -> Bounds:
    """95% interval of a mean of values that come in groups: percentiles over resampled groups, each with all of it."""
    _, group_Q = np.unique(units_Q, return_inverse=True)
    sums_U2 = np.stack([np.bincount(group_Q), np.bincount(group_Q, values_Q.astype(np.float64))], axis=1)
    generator, means = np.random.default_rng(0), np.empty(RESAMPLES)
    for i in range(RESAMPLES):
        drawn_U = np.bincount(generator.integers(0, len(sums_U2), len(sums_U2)), minlength=len(sums_U2))
        count, total = drawn_U @ sums_U2
        means[i] = total / count
    return percentiles(means)


def _mean_interval(right_C: npt.NDArray[Any], count_C: Ids) -> Bounds:
    """95% interval of the mean of the classes' shares: the hits of a resampled class are binomial."""
    drawn_RC = np.random.default_rng(0).binomial(count_C, right_C / count_C, (RESAMPLES, len(count_C)))
    return percentiles((drawn_RC / count_C).mean(1))


def percentiles(values: npt.NDArray[np.float64]) -> Bounds:
    """The 95% interval of resampled values."""
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)


def _worst_pairs(label_Q: Ids, said_Q: Ids, count_C: Ids, names: Sequence[str]) -> list[dict[str, Any]]:
    """Most frequent confusions by class: class, the class that was said, count; the larger share first."""
    pairs, counts = np.unique(np.stack([label_Q, said_Q], 1)[label_Q != said_Q], axis=0, return_counts=True)
    rows = [
        {"class": names[c], "taken_for": names[other], "count": int(n), "share": float(n / count_C[c])}
        for (c, other), n in zip(pairs.tolist(), counts.tolist(), strict=True)
    ]
    return sorted(rows, key=lambda row: (-row["count"], -row["share"], row["class"], row["taken_for"]))[:PAIRS]
