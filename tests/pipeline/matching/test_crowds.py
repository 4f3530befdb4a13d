"""crowds: each pair is compared, or open: one of the two follows another one and stands before the other."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.matching import crowds
from pipeline.matching.crowds import Crowds, Partners, represent


@pytest.mark.slow
@given(st.integers(0, 2**32 - 1), st.integers(0, 30), st.sampled_from([1, 2, 5, 64]), st.sampled_from([0.0, 0.5]))
def test_every_pair_is_compared_or_open_or_left_over(seed: int, size: int, at_once: int, least: float) -> None:
    rng = np.random.default_rng(seed)
    alike = np.triu(rng.random((size, size)) < rng.choice([0, 0.1, 0.9]), 1)
    alike |= alike.T
    compared, known = np.eye(size, dtype=bool), rng.random(size) < rng.choice([0, 0.5])

    def same(ones: Any, others: Any) -> Any:
        compared[np.ix_(ones, others)] = compared[np.ix_(others, ones)] = True
        one, other = np.nonzero(alike[np.ix_(ones, others)])
        return ones[one], others[other]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(crowds, "AT_ONCE", at_once)
        order, follows, rest = represent(known, same, least)
    assert sorted(order.tolist()) == list(range(size))
    assert follows[np.argsort(order)][known].all()
    for item in order[follows & ~known[order]].tolist():
        assert alike[item, :item].any(), "what follows is the same as something before it"
    members = rng.permutation(100)[:size]
    partners = Partners(Crowds.concat([Crowds.of([]), Crowds.of([(members[order], follows)])]))
    open_ = np.array([np.isin(members, partners.of(member)) for member in members], bool).reshape(size, size)
    assert (open_ == open_.T).all()
    left = np.isin(np.arange(size), rest)
    assert (compared | open_ | (left[:, None] & left[None, :])).all()
    if least == 0:
        assert not len(rest)


def test_who_is_in_no_crowd_has_no_partner() -> None:
    assert Partners(Crowds.of([])).of(3).tolist() == []
    assert Partners(Crowds.of([(np.array([1, 2]), np.array([False, True]))])).of(3).tolist() == []
