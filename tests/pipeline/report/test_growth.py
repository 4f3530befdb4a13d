"""Cost follows what was measured, and goes on beyond it without magnifying noise."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.report.growth import PEAK, Growth, measured_growth
from pipeline.stages import STAGES


def test_measured_sizes_are_met_and_between_them_cost_follows_their_power():
    growth = Growth((100, 10_000), {"leaders": {"cpu_seconds": (1.0, 1_000.0)}})
    assert growth.at("leaders", "cpu_seconds", 100) == pytest.approx(1.0)
    assert growth.at("leaders", "cpu_seconds", 10_000) == pytest.approx(1_000.0)
    assert growth.at("leaders", "cpu_seconds", 1_000) == pytest.approx(10**1.5)
    assert growth.ratio("leaders", "cpu_seconds", 10_000, 1_000_000) == pytest.approx(1_000.0)


def test_beyond_the_largest_noise_is_no_exponent_and_nothing_but_memory_grows_slower_than_candidates():
    noisy = Growth((10, 100), {"fetch": {"seconds": (1.0, 10.4), PEAK: (5e8, 5e8)}, "report": {"seconds": (2.0, 3.0)}})
    assert noisy.ratio("fetch", "seconds", 100, 100_000) == pytest.approx(1_000)
    assert noisy.ratio("report", "seconds", 100, 100_000) == pytest.approx(1_000)
    assert noisy.at("fetch", PEAK, 10**9) == pytest.approx(5e8)


def test_below_the_smallest_a_stage_costs_what_it_costs_at_least():
    growth = Growth((1_000, 10_000), {"report": {"seconds": (2.0, 2.0)}, "fetch": {"seconds": (1.0, 20.0)}})
    assert growth.at("report", "seconds", 10) == pytest.approx(2.0)
    assert growth.at("fetch", "seconds", 10) == pytest.approx(0.01)


def test_a_stage_begins_with_the_size_at_which_it_was_seen_first():
    growth = Growth((100, 1_000), {"edges": {"seconds": (0, 30.0)}})
    assert growth.at("edges", "seconds", 999) == 0
    assert growth.at("edges", "seconds", 10_000) == pytest.approx(300.0)
    assert growth.ratio("screen", "seconds", 100, 500) == 5  # never measured


@given(st.integers(1, 10**9), st.integers(1, 10**9))
def test_more_candidates_never_cost_less(one, other):
    growth = measured_growth()
    few, many = sorted((one, other))
    for stage in growth.stages:
        assert growth.at(stage, "cpu_seconds", few) <= growth.at(stage, "cpu_seconds", many) * (1 + 1e-9)


def test_what_comes_with_the_package_is_of_stages_that_are_there():
    growth = measured_growth()
    assert set(growth.stages) <= set(STAGES)
    assert {"extract", "fetch", "measure", "leaders", "shard", "report"} <= set(growth.stages)
    assert list(growth.sizes) == sorted(growth.sizes)
    for figures in growth.stages.values():
        assert {len(values) for values in figures.values()} == {len(growth.sizes)}
