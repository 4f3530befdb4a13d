"""Per-host rate limiting, shared by every worker of every build on the cluster.

One schedule says when each host is free. On a Ray cluster it is a named actor (`pipeline.actors.shared`), so that two
sources, two partitions or two builds that want one host share its pace; without Ray it is an object of this process. A
worker books a slot in the schedule and sleeps until it comes. For a host that may be asked many times a second it books
several at once (a lease, of at most LEASE_S of the host's time): a call to the schedule per request would cost more
than the request. What is wanted while a call is under way goes into the next one.

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

from pipeline import actors

LEASE_S = 0.25
"""Seconds of a host's time that are booked at once."""

MANY = 1_000_000
"""Slots of a lease where no pause is wanted: Retry-After holds there too."""

_FORGET_AT = 100_000
"""Hosts a schedule or a limiter remembers before it forgets those that need no memory."""

_NAME = "wenlan-host-schedule"

Booking = tuple[str, float, int]
"""(host, delay_s, slots): so many slots of a host, `delay_s` apart."""


class HostSchedule:
    """Schedule of hosts: when each is free. One call at a time; `clock` is for tests."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._free_at: dict[str, float] = {}

    def book(self, bookings: Sequence[Booking]) -> list[float]:
        """Book slots of hosts; returns for each booking the seconds from now until its first slot."""
        return [self._book(*booking) for booking in bookings]

    def _book(self, host: str, delay_s: float, slots: int) -> float:
        now = self._clock()
        if len(self._free_at) >= _FORGET_AT:
            self._free_at = {h: at for h, at in self._free_at.items() if at > now}
        start = max(now, self._free_at.get(host, 0.0))
        self._free_at[host] = start + delay_s * slots
        return start - now

    def pause(self, host: str, seconds: float) -> None:
        """The host asked for a pause: no slot before it is over."""
        self._free_at[host] = max(self._free_at.get(host, 0.0), self._clock() + seconds)


@dataclass(slots=True)
class _Lease:
    """Slots of one host that were booked together: slot i is at `start + i * delay_s`."""

    start: float
    delay_s: float
    slots: int
    used: int = 0

    def over(self, now: float) -> bool:
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
            if lease is not None and lease.delay_s == delay_s and not lease.over(now):
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
                waits = await asyncio.to_thread(self._schedule.book, bookings)
                now = self._clock()  # booking may have taken a while
                if len(self._leases) >= _FORGET_AT:
                    self._leases.clear()
                for (host, delay_s, slots), wait in zip(bookings, waits, strict=True):
                    if host in self._booked:
                        self._leases[host] = _Lease(now + wait, delay_s, slots)
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
            return MANY
        before, most = self._leases.get(host), max(1, int(LEASE_S / delay_s))
        if before is None:
            return 1
        return min(max(1, 2 * before.slots if before.used == before.slots else before.used), most)
