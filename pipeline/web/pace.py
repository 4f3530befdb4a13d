"""Per-host rate limiting, shared by every worker of every build on the cluster.

One schedule says when each host is free. On a Ray cluster it is a named actor (`pipeline.processes.actors.shared`), so
that two sources, two partitions or two builds that want one host share its pace; without Ray it is an object of this
process. A worker books a slot in the schedule and sleeps until it comes. For a host that may be asked many times a
second it books several at once (a lease, of at most LEASE_S of the host's time): a call to the schedule per request
would cost more than the request. What is wanted while a call is under way goes into the next one.

A host that asks for a pause (429, Retry-After) has been asked too often: from then on its requests are twice as far
apart, and come closer again with each that is booked. A host that answers slowly needs no such rule, since the
connections to it are bounded: 50 requests a second over 8 connections become 2.7 where it takes 3 s for an answer.

The schedule speaks in seconds from now, never in clock times: clocks of two machines differ.

Limits: slots of a lease may be used up to LEASE_S late, so in a short while a fast host may see as many requests as in
2 * LEASE_S more; a host asked less than once in LEASE_S gets exact pauses. A schedule whose process dies is started
again and has forgotten what was booked. One actor answers some thousand calls a second.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pipeline.processes import actors

LEASE_S = 0.25
"""Seconds of a host's time that are booked at once."""

UNLIMITED = 1_000_000
"""Slots of a lease where no pause is wanted: Retry-After holds there too."""

SLOWER, FASTER, LEAST_S, SLOWEST_S = 2.0, 0.99, 0.05, 8.0
"""After a pause: the factor of a host's delay; its factor with each slot booked since; the delay from which it is
doubled at least, and to which at most."""

_FORGET_AT = 100_000
"""Hosts a schedule or a limiter remembers before it forgets those that need no memory."""

_NAME = "wenlan-host-schedule"

Booking = tuple[str, float, int]
"""(host, delay_s, slots): at most so many slots of a host, `delay_s` apart or more."""

Booked = tuple[float, float, int]
"""(seconds from now to the first slot, delay_s, slots), as a host has them."""


@dataclass(slots=True)
class _Host:
    """A host in the schedule. free_at: when its next slot is. delay_s: between its last ones. min_delay_s: between its
    next ones, since it asked for a pause. paused_until: the end of that."""

    free_at: float = 0.0
    delay_s: float = 0.0
    min_delay_s: float = 0.0
    paused_until: float = 0.0


class HostSchedule:
    """Schedule of hosts: when each is free. One call at a time; `clock` is for tests."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._hosts: dict[str, _Host] = {}

    def book(self, bookings: Sequence[Booking]) -> list[Booked]:
        return [self._book(*booking) for booking in bookings]

    def _book(self, host: str, delay_s: float, slots: int) -> Booked:
        now = self._clock()
        if len(self._hosts) >= _FORGET_AT:
            self._hosts = {name: state for name, state in self._hosts.items() if state.free_at > now}
        state = self._hosts.setdefault(host, _Host())
        if state.min_delay_s > delay_s:
            delay_s, slots = state.min_delay_s, min(slots, max(1, int(LEASE_S / state.min_delay_s)))
            state.min_delay_s *= FASTER**slots
        start, state.delay_s = max(now, state.free_at), delay_s
        state.free_at = start + delay_s * slots
        return start - now, delay_s, slots

    def pause(self, host: str, seconds: float) -> None:
        """The host asked for a pause: no slot before it is over, and slower ones then. Requests that were under way
        when it began ask for the same one."""
        state, now = self._hosts.setdefault(host, _Host()), self._clock()
        if now >= state.paused_until:
            state.min_delay_s = min(SLOWER * max(state.delay_s, LEAST_S), SLOWEST_S)
        state.paused_until = max(state.paused_until, now + seconds)
        state.free_at = max(state.free_at, state.paused_until)


@dataclass(slots=True)
class _Lease:
    """Slots of one host that were booked together: slot i is at `start + i * delay_s`. asked_s: the delay asked for."""

    start: float
    delay_s: float
    slots: int
    asked_s: float
    used: int = 0

    def is_over(self, now: float) -> bool:
        """True if all slots are used, or the booked time (at most LEASE_S) has been over for LEASE_S."""
        return self.used == self.slots or now > self.start + min(self.slots * self.delay_s, LEASE_S) + LEASE_S


class RateLimiter:
    """The rate limit as one worker sees it. Used from one event loop; `schedule` and `clock` are for tests."""

    def __init__(self, schedule: HostSchedule | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._schedule = schedule if schedule is not None else actors.shared(HostSchedule, _NAME)
        self._clock = clock
        self._leases: dict[str, _Lease] = {}
        self._wanted: dict[str, Booking] = {}
        self._booked: dict[str, Booking] = {}  # of the call that is under way; a host that pauses meanwhile leaves it
        self._call: asyncio.Future[None] | None = None
        self._turn = asyncio.Lock()  # of calls to the schedule, which is not safe for two threads

    async def next_slot(self, host: str, delay_s: float) -> float:
        """Take the host's next slot; returns the seconds to sleep until it comes."""
        while True:
            now = self._clock()
            lease = self._leases.get(host)
            if lease is not None and lease.asked_s == delay_s and not lease.is_over(now):
                at = lease.start + lease.used * lease.delay_s
                lease.used += 1
                return max(0.0, at - now)
            if host not in self._booked:
                self._wanted[host] = (host, delay_s, self._slots(host, delay_s))
            if self._call is None or self._call.done():
                self._call = asyncio.ensure_future(self._book())
            await asyncio.shield(self._call)

    async def _book(self) -> None:
        """Ask the schedule for all that is wanted."""
        async with self._turn:
            self._booked, self._wanted = self._wanted, {}
            bookings = list(self._booked.values())
            try:
                booked = await asyncio.to_thread(self._schedule.book, bookings)
                now = self._clock()  # booking may have taken a while
                if len(self._leases) >= _FORGET_AT:
                    self._leases.clear()
                for (host, asked_s, _), (wait, delay_s, slots) in zip(bookings, booked, strict=True):
                    if host in self._booked:
                        self._leases[host] = _Lease(now + wait, delay_s, slots, asked_s)
            finally:
                self._booked = {}

    async def pause(self, host: str, seconds: float) -> None:
        """Let no worker ask the host for so long: what Retry-After is for."""
        self._leases.pop(host, None)
        self._booked.pop(host, None)
        async with self._turn:
            self._leases.pop(host, None)
            await asyncio.to_thread(self._schedule.pause, host, seconds)

    def _slots(self, host: str, delay_s: float) -> int:
        """Slots to book: twice those of the last lease if all were used, else as many as were used; at first one."""
        if delay_s <= 0:
            return UNLIMITED
        last, limit = self._leases.get(host), max(1, int(LEASE_S / delay_s))
        if last is None:
            return 1
        return min(max(1, 2 * last.slots if last.used == last.slots else last.used), limit)
