"""Differences between two arms, paired by seed, with 95% intervals, and how large one is beside another.

Two arms of one seed begin from the same weights and see the same pairs in the same order, so what the seed brings them
both is taken out by subtracting. The interval is Student's t over the seeds' differences.

Limits: it speaks of new seeds on this data, not of other data. With two seeds the interval is 12.7 standard errors wide
to each side, with five 2.8: few seeds show large differences only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Literal

Outcome = Literal["above", "below", "open"]
"""Whether the interval of a difference lies above zero, below it, or holds it."""


@dataclass(frozen=True, slots=True)
class Interval:
    """Mean of n values and the ends of its 95% interval; of a single value there is none, and both are infinite."""

    mean: float
    low: float
    high: float
    n: int

    @property
    def outcome(self) -> Outcome:
        """Where zero lies."""
        return "above" if self.low > 0 else "below" if self.high < 0 else "open"


def interval(values: list[float]) -> Interval:
    """The mean's interval. Raises ValueError on no values."""
    if not values:
        raise ValueError("an interval needs a value")
    mean, n = fmean(values), len(values)
    if n == 1:
        return Interval(mean, float("-inf"), float("inf"), 1)
    from scipy.stats import t

    half = float(t.ppf(0.975, n - 1)) * stdev(values) / n**0.5
    return Interval(mean, mean - half, mean + half, n)


def share(parts: list[float], wholes: list[float], draws: int = 10_000) -> Interval:
    """The mean of parts over that of wholes, paired by seed, 0 where that of wholes is not above 0.

    Its interval is the middle 95% of the bootstrap: seeds are drawn again with replacement, parts and wholes together,
    since the ratio of two means has no interval of Student's. The draws are the same each time. Raises ValueError on no
    values, or of different numbers.
    """
    import numpy as np

    if not parts or len(parts) != len(wholes):
        raise ValueError(f"a share needs parts and wholes of the same seeds, not {len(parts)} and {len(wholes)}")
    if len(parts) == 1:
        return Interval(parts[0] / wholes[0] if wholes[0] > 0 else 0.0, float("-inf"), float("inf"), 1)
    chosen = np.random.default_rng(0).integers(len(parts), size=(draws, len(parts)))
    chosen = np.concatenate([np.arange(len(parts))[None], chosen])  # the first row is the seeds as they are
    over, of = (np.asarray(values, np.float64)[chosen].mean(axis=1) for values in (parts, wholes))
    shares = np.divide(over, of, out=np.zeros_like(over), where=of > 0)
    low, high = np.quantile(shares[1:], [0.025, 0.975]).tolist()
    return Interval(float(shares[0]), low, high, len(parts))


def difference(one: Mapping[int, float], other: Mapping[int, float]) -> Interval | None:
    """Interval of one - other over the seeds that both have; None where there is none."""
    seeds = sorted(one.keys() & other.keys())
    return interval([one[seed] - other[seed] for seed in seeds]) if seeds else None
