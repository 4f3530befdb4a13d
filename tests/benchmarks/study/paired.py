"""Differences between two arms, paired by seed, style and name, with 95% intervals.

Two arms of one seed begin from the same weights and see the same pairs in the same order, so what the seed brings them
both is taken out by subtracting. `interval` is Student's t over the seeds' differences: it speaks of new seeds on these
drawings. `crossed` draws seeds, styles and families of names again, each on its own (Owen, The pigeonhole bootstrap,
2007, who shows that it errs on the wide side): it speaks of new ones of each.

Limits: with two seeds Student's interval is 12.7 standard errors wide to each side, with five 2.8: few seeds show large
differences only. Two styles, of which the bootstrap knows nothing beyond, are few too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from statistics import fmean, stdev
from typing import Literal

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

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


def crossed(gains_SYF: Array, counts_YF: Array, draws: int = 4000) -> tuple[float, float]:
    """The middle 95% of the bootstrap of a mean gain over seeds, styles and families.

    gains_SYF: sums over the family's names; counts_YF: names that each style has of a family. Styles weigh alike. The
    draws are the same each time.
    """
    weights_DS, weights_DY, weights_DF = _weights(*gains_SYF.shape, draws)
    gains_DSY = np.einsum("df,syf->dsy", weights_DF, gains_SYF, optimize=True)
    means_DSY = gains_DSY / np.maximum(weights_DF @ counts_YF.T, 1)[:, None]
    low, high = np.quantile(np.einsum("dsy,ds,dy->d", means_DSY, weights_DS, weights_DY), [0.025, 0.975])
    return float(low), float(high)


@lru_cache(maxsize=4)  # a page asks for many figures of one study, and drawing names costs more than all else
def _weights(seeds: int, styles: int, families: int, draws: int) -> tuple[Array, Array, Array]:
    """How often each draw takes a seed and a style, as shares, and a family."""
    rng = np.random.default_rng(0)
    weights_DF = rng.multinomial(families, np.full(families, 1 / families), draws).astype(np.float64)
    weights_DS, weights_DY = (rng.multinomial(n, np.full(n, 1 / n), draws) / n for n in (seeds, styles))
    return weights_DS, weights_DY, weights_DF


def difference(one: Mapping[int, float], other: Mapping[int, float]) -> Interval | None:
    """Interval of one - other over the seeds that both have; None where there is none."""
    seeds = sorted(one.keys() & other.keys())
    return interval([one[seed] - other[seed] for seed in seeds]) if seeds else None
