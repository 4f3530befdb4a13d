"""The rate limit of a host: however many workers ask, the host sees its pace."""

from __future__ import annotations

import itertools
import random
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.web import pace
from pipeline.web.pace import LEASE_S, HostSchedule, RateLimiter
from tests.processes import wait_until


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
        schedule.book([(f"{number}.cn", 0.5, 1)])
        clock.now += 0.2
    assert len(schedule._free_at) <= 10


class SlowSchedule(HostSchedule):
    """Notes what it is asked, books it, and answers when it may."""

    def __init__(self) -> None:
        super().__init__()
        self.may, self.asked = threading.Event(), list[list[str]]()

    def book(self, bookings):
        self.asked.append([host for host, _, _ in bookings])
        waits = super().book(bookings)
        self.may.wait()
        return waits


def test_what_threads_want_while_a_call_is_under_way_goes_into_the_next_one():
    schedule, hosts = SlowSchedule(), [f"{number}.cn" for number in range(12)]
    side = RateLimiter(schedule)
    with ThreadPoolExecutor(24) as threads:
        first = threads.submit(side.next_slot, hosts[0], 1.0)
        wait_until(lambda: bool(schedule.asked), "the first call is under way")
        rest = [threads.submit(side.next_slot, host, 1.0) for host in hosts[1:] * 2]
        wait_until(lambda: len(side._wanted) == 11, "all others are wanted")
        schedule.may.set()
        waits = Counter(round(one.result(60)) for one in (first, *rest))
    assert waits == {0: 12, 1: 11}, "each host's second slot comes a second later"
    assert schedule.asked[0] == hosts[:1]
    assert sorted(schedule.asked[1]) == sorted(hosts[1:])
    assert sorted(host for call in schedule.asked[2:] for host in call) == sorted(hosts[1:])


def test_a_host_that_pauses_while_it_is_booked_is_booked_anew():
    schedule = SlowSchedule()
    side = RateLimiter(schedule)
    with ThreadPoolExecutor(1) as threads:
        slot = threads.submit(side.next_slot, "a.cn", 0.0)
        wait_until(lambda: bool(schedule.asked), "the call is under way")
        side.pause("a.cn", 3600.0)
        schedule.may.set()
        assert slot.result(60) == pytest.approx(3600.0, abs=60)


def test_a_call_that_fails_fails_one_thread_and_the_others_ask_again():
    class Failing(SlowSchedule):
        def book(self, bookings):
            waits = super().book(bookings)
            if len(self.asked) == 1:
                raise ConnectionError("the actor is gone")
            return waits

    schedule = Failing()
    side = RateLimiter(schedule)
    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(side.next_slot, "a.cn", 0.0)
        wait_until(lambda: bool(schedule.asked), "the call is under way")
        second = threads.submit(side.next_slot, "a.cn", 0.0)
        schedule.may.set()
        with pytest.raises(ConnectionError):
            first.result(60)
        assert second.result(60) == 0.0
