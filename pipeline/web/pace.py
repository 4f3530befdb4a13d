"""Per-host rate limiting, shared by every worker of every build on the cluster.

One schedule says when each host is free. On a Ray cluster it is a named actor (`pipeline.actors.shared`), so that two
sources, two partitions or two builds that want one host share its pace; without Ray it is an object of this process. A
worker books a slot in the schedule and sleeps until it comes. For a host that may be asked many times a second it books
several at once (a lease, of at most LEASE_S of the host's time): a call to the schedule per request would cost more
than the request. Where its threads want many hosts, what they want while a call is under way goes into the next one.

The schedule speaks in seconds from now, never in clock times: clocks of two machines differ.

Limits: slots of a lease may be used up to LEASE_S late, so in a short while a fast host may see as many requests as in
2 * LEASE_S more; a host asked less than once in LEASE_S gets exact pauses. A schedule whose process dies is started
again and has forgotten what was booked. One actor answers some thousand calls a second.
"""

from __future__ import annotations

import threading
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

_NAME = "wenlan-host-schedule-2"
"""Raised when its methods change: a cluster may still have the actor of an older wenlan."""

Booking = tuple[str, float, int]
"""(host, delay_s, slots): so many slots of a host, `delay_s` apart."""


class HostSchedule:
    """When each host is free. Not for several threads; `clock` is for tests."""

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
        """Whether all slots are used, or the booked time (at most LEASE_S) has been over for LEASE_S."""
        return self.used == self.slots or now > self.start + min(self.slots * self.delay_s, LEASE_S) + LEASE_S


class RateLimiter:
    """The rate limit as one worker sees it. Safe for several threads; `schedule` and `clock` are for tests."""

    def __init__(self, schedule: HostSchedule | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._schedule = schedule if schedule is not None else actors.shared(HostSchedule, _NAME)
        self._clock = clock
        self._leases: dict[str, _Lease] = {}
        self._changed = threading.Condition()
        self._wanted: dict[str, Booking] = {}
        self._asking: dict[str, Booking] | None = None
        """The bookings of the call that some thread is making. A host that pauses meanwhile leaves them."""

    def next_slot(self, host: str, delay_s: float) -> float:
        """Take the host's next slot; returns the seconds to sleep until it comes."""
        while True:
            with self._changed:
                now = self._clock()
                lease = self._leases.get(host)
                if lease is not None and lease.delay_s == delay_s and not lease.over(now):
                    at = lease.start + lease.used * lease.delay_s
                    lease.used += 1
                    return max(0.0, at - now)
                if self._asking is not None:
                    if host not in self._asking:
                        self._want(host, delay_s)
                    self._changed.wait()
                    continue
                self._want(host, delay_s)
                self._asking, self._wanted = self._wanted, {}
            self._book(list(self._asking.values()))

    def _book(self, bookings: Sequence[Booking]) -> None:
        """Ask the schedule for what this thread and others wanted. What fails is wanted again by whoever waits."""
        waits: list[float] = []
        try:
            waits = self._schedule.book(bookings)
        finally:
            with self._changed:
                remaining, self._asking = self._asking or {}, None
                now = self._clock()  # booking may have taken a while
                if len(self._leases) >= _FORGET_AT:
                    self._leases.clear()
                for (host, delay_s, slots), wait in zip(bookings, waits, strict=False):
                    if host in remaining:
                        self._leases[host] = _Lease(now + wait, delay_s, slots)
                self._changed.notify_all()

    def pause(self, host: str, seconds: float) -> None:
        """Nobody asks the host for so long: what Retry-After is for."""
        with self._changed:
            self._leases.pop(host, None)
            if self._asking is not None:
                self._asking.pop(host, None)
            self._schedule.pause(host, seconds)

    def _want(self, host: str, delay_s: float) -> None:
        """Want a lease: twice the slots of the last one if those were used up, else as many as were used of it.

        The first lease of a host is one slot.
        """
        before = self._leases.get(host)
        most = max(1, int(LEASE_S / delay_s)) if delay_s > 0 else MANY
        wanted = 1 if delay_s > 0 else MANY
        if before is not None and delay_s > 0:
            wanted = 2 * before.slots if before.used == before.slots else before.used
        self._wanted[host] = (host, delay_s, min(max(1, wanted), most))
