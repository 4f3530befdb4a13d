"""The rate limit of a host: however many workers ask, the host sees its pace."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.web import pace
from pipeline.web.pace import LEASE_S, HostSchedule, RateLimiter


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def requests(workers: int, delay_s: float, gaps: list[float], until: float) -> list[float]:
    """Times at which a host is asked by workers that do their own work for `gaps` seconds between two requests."""
    clock = Clock()
    schedule = HostSchedule(clock)
    sides = [RateLimiter(schedule, clock) for _ in range(workers)]
    ready = [(clock.now, number) for number in range(workers)]
    rng, starts = random.Random(0), []
    while (at := min(ready))[0] < 1000 + until:
        ready.remove(at)
        clock.now, number = at
        start = clock.now + sides[number].next_slot("a.cn", delay_s)
        starts.append(start)
        ready.append((start + rng.choice(gaps), number))
    return sorted(starts)


@given(
    st.integers(1, 5),
    st.sampled_from([0.01, 0.05, 0.3, 1.0]),
    st.lists(st.floats(0.001, 2.0), min_size=1, max_size=4),
)
def test_no_window_of_time_holds_more_requests_than_the_pace_allows(workers, delay_s, gaps):
    starts = requests(workers, delay_s, gaps, until=20 * delay_s + 3)
    if delay_s >= LEASE_S:
        assert all(b - a >= delay_s - 1e-6 for a, b in itertools.pairwise(starts))
    for first, start in enumerate(starts):
        for last in range(first, len(starts)):
            assert last - first + 1 <= (starts[last] - start + 2 * LEASE_S) / delay_s + workers + 1


@pytest.mark.parametrize("delay_s", [0.002, 1.0])
def test_workers_in_a_hurry_use_the_whole_pace(delay_s):
    starts = requests(3, delay_s, [0.0001], until=1000 * delay_s)
    assert len(starts) >= 0.8 * 1000


def test_a_pause_that_the_host_asks_for_holds_for_every_worker():
    clock = Clock()
    schedule = HostSchedule(clock)
    one, two = RateLimiter(schedule, clock), RateLimiter(schedule, clock)
    assert one.next_slot("a.cn", 0.0) == 0.0
    one.pause("a.cn", 30.0)
    assert two.next_slot("a.cn", 0.0) == pytest.approx(30.0)
    assert two.next_slot("b.cn", 1.0) == 0.0


def test_a_schedule_forgets_hosts_that_are_free(monkeypatch):
    monkeypatch.setattr(pace, "_FORGET_AT", 10)
    clock = Clock()
    schedule = HostSchedule(clock)
    for number in range(100):
        schedule.book(f"{number}.cn", 0.5, 1)
        clock.now += 0.2
    assert len(schedule._free_at) <= 10
