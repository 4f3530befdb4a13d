"""Intervals are Student's, with scipy's own test of paired samples as the oracle."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.benchmarks.study.paired import crossed, difference, interval

_SHARES = st.floats(0, 1, allow_nan=False).map(lambda x: round(x, 4))


@pytest.mark.slow
@given(st.lists(st.tuples(_SHARES, _SHARES), min_size=2, max_size=8))
def test_an_interval_is_that_of_the_paired_t_test(pairs):
    one, other = (dict(enumerate(values)) for values in zip(*pairs, strict=True))
    if len({round(a - b, 4) for a, b in pairs}) == 1:
        return  # scipy has no interval where all differences are equal
    from scipy.stats import ttest_rel

    found = difference(one, other)
    expected = ttest_rel(list(one.values()), list(other.values())).confidence_interval(0.95)
    assert found is not None
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-9)
    assert found.outcome == ("above" if expected.low > 0 else "below" if expected.high < 0 else "open")


def test_one_value_has_no_interval_and_none_no_mean():
    assert interval([0.3]).outcome == "open"
    assert math.isinf(interval([0.3]).high)
    assert difference({0: 0.1}, {1: 0.2}) is None
    with pytest.raises(ValueError, match="needs a value"):
        interval([])


def test_the_crossed_bootstrap_knows_names_as_well_as_seeds():
    rng = np.random.default_rng(2)
    counts = rng.integers(1, 4, (2, 60)).astype(float)
    same = np.repeat((rng.normal(0.1, 0.5, (1, 1, 60)) * counts), 4, axis=0)  # seeds and styles agree, names do not
    low, high = crossed(same, counts)
    rates = (same[0] / counts).mean(0)
    assert low < 0.1 < high
    # With one value for each family the interval is that of the plain bootstrap over families: two standard errors.
    assert high - low == pytest.approx(2 * 1.96 * rates.std() / 60**0.5, rel=0.25)
    seeds = np.array([0.0, 0.1, 0.2, 0.3])[:, None, None] * counts  # names and styles agree, seeds do not
    low, high = crossed(seeds, counts)
    assert (low, high) == pytest.approx((0.15 - 1.96 * 0.1118 / 2, 0.15 + 1.96 * 0.1118 / 2), abs=0.02)
    assert crossed(seeds, counts) == (low, high)
    assert crossed(np.full((3, 2, 60), 0.2) * counts, counts) == pytest.approx((0.2, 0.2))
