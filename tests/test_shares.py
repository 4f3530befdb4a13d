"""Shares of the drills (tests/shares.py)."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests import shares
from tests.shares import Budget, Share


def drill(*seconds: float) -> Any:
    mark = SimpleNamespace(args=seconds) if seconds else None
    return SimpleNamespace(nodeid=f"{seconds}", get_closest_marker=lambda name: mark)


@pytest.mark.slow
@given(st.lists(st.floats(1, 900).map(drill), min_size=1, max_size=60), st.integers(1, 9))
def test_each_drill_is_in_one_share_in_order_and_shares_are_about_equal(items: list[Any], count: int) -> None:
    parts = [shares.of(items, Share(number, count)) for number in range(count)]
    assert [item for part in parts for item in part] == items
    seconds = [shares.seconds_of(item) for item in items]
    for part in parts:
        assert sum(map(shares.seconds_of, part)) <= sum(seconds) / count + 2 * max(seconds)


def test_a_commits_hash_chooses_a_share() -> None:
    assert Share.parse("0x1f/6") == Share(1, 6)
    for text in ("", "3", "a/b", "1/0"):
        with pytest.raises(Exception, match="not a share"):
            Share.parse(text)


def test_what_would_end_too_late_is_skipped_and_named() -> None:
    budget = Budget(60, Share(1, 6))
    budget.pytest_runtest_setup(drill(50))
    with pytest.raises(pytest.skip.Exception, match="not reached in 1 minutes"):
        budget.pytest_runtest_setup(drill(70))
    first, *missed = budget.lines()
    assert first.startswith("drills: share 1 of 6, 0.0 of 1 minutes")
    assert missed == ["drills: not reached: (70,)"]


def test_a_budget_is_a_plug_in_of_pytest() -> None:
    plugins, budget = pytest.PytestPluginManager(), Budget(60, None)
    plugins.register(budget)
    calls = plugins.subset_hook_caller("pytest_runtest_setup", [])
    assert [call.plugin for call in calls.get_hookimpls() if call.plugin is budget] == [budget]
    without = plugins.subset_hook_caller("pytest_runtest_setup", [budget])
    assert [call.plugin for call in without.get_hookimpls() if call.plugin is budget] == []
