"""Intervals are Student's, with scipy's own test of paired samples as the oracle."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import ttest_rel

from training.study.paired import difference, interval

_SHARES = st.floats(0, 1, allow_nan=False).map(lambda x: round(x, 4))


@given(st.lists(st.tuples(_SHARES, _SHARES), min_size=2, max_size=8))
def test_an_interval_is_that_of_the_paired_t_test(pairs):
    one, other = (dict(enumerate(values)) for values in zip(*pairs, strict=True))
    if len({a - b for a, b in pairs}) == 1:
        return  # scipy has no interval where all differences are equal
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
