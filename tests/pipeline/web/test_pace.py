"""The rate limit of a host: however many workers ask, the host sees its pace."""

from __future__ import annotations

import asyncio
import itertools
import random
import threading
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.web import pace
from pipeline.web.pace import LEASE_S, HostSchedule, RateLimiter


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


async def requests(workers: int, delay_s: float, gaps: list[float], until: float) -> list[float]:
    """Times at which a host is asked by workers that do their own work for `gaps` seconds between two requests."""
    clock = Clock()
    schedule = HostSchedule(clock)
    sides = [RateLimiter(schedule, clock) for _ in range(workers)]
    ready = [(clock.now, number) for number in range(workers)]
    rng, starts = random.Random(0), []
    while (at := min(ready))[0] < 1000 + until:
        ready.remove(at)
        clock.now, number = at
        start = clock.now + await sides[number].next_slot("a.cn", delay_s)
        starts.append(start)
        ready.append((start + rng.choice(gaps), number))
    return sorted(starts)


@pytest.mark.slow
@given(
    st.integers(1, 5),
    st.sampled_from([0.01, 0.05, 0.3, 1.0]),
    st.lists(st.floats(0.001, 2.0), min_size=1, max_size=4),
)
def test_no_window_of_time_holds_more_requests_than_the_pace_allows(workers, delay_s, gaps):
    starts = asyncio.run(requests(workers, delay_s, gaps, until=20 * delay_s + 3))
    if delay_s >= LEASE_S:
        assert all(b - a >= delay_s - 1e-6 for a, b in itertools.pairwise(starts))
    for first, start in enumerate(starts):
        for last in range(first, len(starts)):
            assert last - first + 1 <= (starts[last] - start + 2 * LEASE_S) / delay_s + workers + 1


@pytest.mark.slow
@pytest.mark.parametrize("delay_s", [0.002, 1.0])
def test_workers_in_a_hurry_use_the_whole_pace(delay_s):
    starts = asyncio.run(requests(3, delay_s, [0.0001], until=1000 * delay_s))
    assert len(starts) >= 0.8 * 1000


def test_a_pause_that_the_host_asks_for_holds_for_every_worker():
    async def paused() -> list[float]:
        clock = Clock()
        schedule = HostSchedule(clock)
        one, two = RateLimiter(schedule, clock), RateLimiter(schedule, clock)
        first = await one.next_slot("a.cn", 0.0)
        await one.pause("a.cn", 30.0)
        return [first, await one.next_slot("a.cn", 0.0), await two.next_slot("a.cn", 0.0), await two.next_slot("b", 1)]

    assert asyncio.run(paused()) == pytest.approx([0.0, 30.0, 30.0, 0.0], abs=1.0)


def test_a_host_that_asked_for_a_pause_is_asked_half_as_often_until_it_has_answered_for_a_while():
    async def starts(delay_s: float, pauses: int, slots: int) -> list[float]:
        clock = Clock()
        schedule = HostSchedule(clock)
        one, two = RateLimiter(schedule, clock), RateLimiter(schedule, clock)
        await one.next_slot("a.cn", delay_s)
        for _ in range(pauses):  # of one burst: they count once
            await one.pause("a.cn", 3.0)
            await one.next_slot("a.cn", delay_s)
            await two.pause("a.cn", 3.0)
        times = []
        for _ in range(slots):
            clock.now += await two.next_slot("a.cn", delay_s)
            times.append(clock.now)
        return times

    for delay_s in (0.02, 1.0):
        paused = asyncio.run(starts(delay_s, 2, 300))
        gaps = [later - earlier for earlier, later in itertools.pairwise(paused)]
        least = max(2 * delay_s, 2 * pace.LEAST_S)
        assert paused[0] >= 1003.0
        assert gaps[:5] == pytest.approx([least] * 5, rel=0.1)
        assert gaps[-5:] == pytest.approx([delay_s] * 5, rel=0.1)
    assert asyncio.run(starts(0.02, 0, 50))[-1] < 1002


def test_a_schedule_forgets_hosts_that_are_free(monkeypatch):
    monkeypatch.setattr(pace, "_FORGET_AT", 10)
    clock = Clock()
    schedule = HostSchedule(clock)
    for number in range(100):
        schedule.book([(f"{number}.cn", 0.5, 1)])
        clock.now += 0.2
    assert len(schedule._hosts) <= 10


class SlowSchedule(HostSchedule):
    """Notes what it is asked, books it, and answers when it may."""

    def __init__(self, fails: bool = False) -> None:
        super().__init__()
        self.may, self.asked, self.fails = threading.Event(), list[list[str]](), fails

    def book(self, bookings):
        self.asked.append([host for host, _, _ in bookings])
        waits = super().book(bookings)
        self.may.wait(60)
        if self.fails:
            raise ConnectionError("the actor is gone")
        return waits


async def under_way(schedule: SlowSchedule) -> None:
    """Wait for the first call."""
    while not schedule.asked:
        await asyncio.sleep(0.001)


def test_what_is_wanted_while_a_call_is_under_way_goes_into_the_next_one():
    schedule, hosts = SlowSchedule(), [f"{number}.cn" for number in range(12)]

    async def asked() -> Counter[int]:
        side = RateLimiter(schedule)
        slots = [asyncio.create_task(side.next_slot(hosts[0], 1.0))]
        await under_way(schedule)
        slots += [asyncio.create_task(side.next_slot(host, 1.0)) for host in hosts[1:] * 2]
        await asyncio.sleep(0.01)
        schedule.may.set()
        return Counter(round(wait) for wait in await asyncio.gather(*slots))

    assert asyncio.run(asked()) == {0: 12, 1: 11}, "each host's second slot comes a second later"
    assert schedule.asked[0] == hosts[:1]
    assert sorted(schedule.asked[1]) == sorted(hosts[1:])
    assert sorted(host for call in schedule.asked[2:] for host in call) == sorted(hosts[1:])


def test_a_host_that_pauses_while_it_is_booked_is_booked_again():
    schedule = SlowSchedule()

    async def paused() -> float:
        side = RateLimiter(schedule)
        slot = asyncio.create_task(side.next_slot("a.cn", 0.0))
        await under_way(schedule)
        pause = asyncio.create_task(side.pause("a.cn", 3600.0))
        await asyncio.sleep(0.01)
        schedule.may.set()
        await pause
        return await slot

    assert asyncio.run(paused()) == pytest.approx(3600.0, abs=60)


def test_a_call_that_fails_fails_what_waits_for_it():
    schedule = SlowSchedule(fails=True)
    schedule.may.set()

    async def asked() -> list[float | BaseException]:
        side = RateLimiter(schedule)
        return await asyncio.gather(*(side.next_slot(f"{n}.cn", 0.0) for n in range(3)), return_exceptions=True)

    assert [str(e) for e in asyncio.run(asked())] == ["the actor is gone"] * 3
