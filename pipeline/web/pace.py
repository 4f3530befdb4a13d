"""Whose turn it is: how often one host is asked, by however many workers of however many builds on a cluster.

There is one desk. On a Ray cluster it is a named actor that crawl and fetch of every build share, so that two sources,
two partitions or two builds that want one host share its pace; without Ray it is an object of this process. A worker
books a turn at the desk and sleeps until it comes. For a host that may be asked many times a second it books several
at once (a lease, of at most LEASE_S of the host's time), else asking the desk would cost more than the turn is worth.

The desk speaks in seconds from now, never in clock times: clocks of two machines differ.

Limits: turns of a lease may be used up to LEASE_S late, so in a short while a fast host may see as many requests as in
2 * LEASE_S more; a host asked less than once in LEASE_S gets exact pauses. A desk that dies is started again and has
forgotten what was booked. One actor answers some thousand bookings a second.
"""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

LEASE_S = 0.25
"""Seconds of a host's time that are booked at once."""

MANY = 1_000_000
"""Turns of a lease where no pause is wanted: Retry-After holds there too."""

_FORGET_AT = 100_000
_NAME, _NAMESPACE = "wenlan-turns", "wenlan"


class Desk:
    """When each host is free. Not for several threads; `clock` is for tests."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._free: dict[str, float] = {}

    def book(self, host: str, delay_s: float, turns: int) -> float:
        """Seconds from now until the first of `turns` turns that follow each other by `delay_s`."""
        now = self._clock()
        if len(self._free) >= _FORGET_AT:
            self._free = {h: at for h, at in self._free.items() if at > now}
        start = max(now, self._free.get(host, 0.0))
        self._free[host] = start + delay_s * turns
        return start - now

    def hold(self, host: str, seconds: float) -> None:
        """The host asked for a pause: no turn before it is over."""
        self._free[host] = max(self._free.get(host, 0.0), self._clock() + seconds)


@dataclass(slots=True)
class _Lease:
    start: float
    delay_s: float
    turns: int
    used: int = 0

    def over(self, now: float) -> bool:
        return self.used == self.turns or now > self.start + min(self.turns * self.delay_s, LEASE_S) + LEASE_S


class Turns:
    """The turns of one worker. Safe for several threads."""

    def __init__(self, desk: Any = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._desk = desk if desk is not None else _common_desk()
        self._clock = clock
        self._leases: dict[str, _Lease] = {}
        self._lock = threading.Lock()

    def take(self, host: str, delay_s: float) -> float:
        """Take the host's next turn; gives the seconds to sleep until it comes."""
        with self._lock:
            now = self._clock()
            lease = self._leases.get(host)
            if lease is None or lease.over(now) or lease.delay_s != delay_s:
                lease = self._lease(host, delay_s, lease)
                now = self._clock()
            at = lease.start + lease.used * lease.delay_s
            lease.used += 1
            return max(0.0, at - now)

    def hold(self, host: str, seconds: float) -> None:
        """Nobody asks the host for so long: what Retry-After is for."""
        with self._lock:
            self._leases.pop(host, None)
            self._desk.hold(host, seconds)

    def _lease(self, host: str, delay_s: float, before: _Lease | None) -> _Lease:
        """Twice what the last lease gave if it was used up, what was used of it if not; the first is one turn."""
        most = max(1, int(LEASE_S / delay_s)) if delay_s > 0 else MANY
        wanted = 1 if delay_s > 0 else MANY
        if before is not None and delay_s > 0:
            wanted = 2 * before.turns if before.used == before.turns else before.used
        turns = min(max(1, wanted), most)
        wait = self._desk.book(host, delay_s, turns)
        if len(self._leases) >= _FORGET_AT:
            self._leases.clear()
        self._leases[host] = lease = _Lease(self._clock() + wait, delay_s, turns)
        return lease


@functools.cache
def _own_desk() -> Desk:
    return Desk()


def _common_desk() -> Any:
    """The cluster's desk where this process belongs to one, else this process's own."""
    import sys

    ray = sys.modules.get("ray")
    return _RayDesk(ray) if ray is not None and ray.is_initialized() else _own_desk()


class _RayDesk:
    """The desk as an actor, seen from a worker."""

    def __init__(self, ray: Any) -> None:
        self._ray = ray
        self._actor = self._find()

    def _find(self) -> Any:
        options = {"name": _NAME, "namespace": _NAMESPACE, "get_if_exists": True, "lifetime": "detached"}
        return self._ray.remote(Desk).options(num_cpus=0, max_restarts=-1, max_task_retries=-1, **options).remote()

    def book(self, host: str, delay_s: float, turns: int) -> float:
        return float(self._ask("book", host, delay_s, turns))

    def hold(self, host: str, seconds: float) -> None:
        self._ask("hold", host, seconds)

    def _ask(self, method: str, *args: Any) -> Any:
        try:
            return self._ray.get(getattr(self._actor, method).remote(*args))
        except self._ray.exceptions.RayActorError:  # somebody has killed it for good
            self._actor = self._find()
            return self._ray.get(getattr(self._actor, method).remote(*args))
