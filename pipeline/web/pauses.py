"""Pauses of hosts that refuse to answer: one rule for pages and images.

A broken page is not a broken host: a body that cannot be decoded, a malformed header or a transfer that breaks off
pauses nothing. A host refuses to answer if it takes no connection, says nothing until the time limit, or answers 429 or
5xx:

    429, or Retry-After     paused at once, for the time that it names or else by the backoff
    every other refusal     from the third in a row it is asked for a file that any host answers; it is paused by the
                            backoff if it refuses that too

The backoff doubles with each further refusal in a row. Any answer ends the row. Refusals of requests that were under
way when a pause began are not counted.

Limits: rows are counted per client; two partitions that ask one host each count their own.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from pipeline.processes import observe
from pipeline.rows.decisions import DropReason
from pipeline.web import policy

IN_A_ROW = 3
"""Refusals in a row from which a host may be down."""


@dataclass(frozen=True, slots=True)
class HostRefusal:
    """A request that a host refused. status: 0 without an answer. pause_s: seconds that it named, 0 for none."""

    reason: DropReason
    status: int
    pause_s: float

    def __str__(self) -> str:
        return f"status {self.status}" if self.status else self.reason.value


@dataclass(frozen=True, slots=True)
class Pause:
    """A pause of one host, because of its last refusal. seconds: its length. until: Unix time of its end.

    in_a_row: refusals in a row up to this one.
    """

    host: str
    refusal: HostRefusal
    seconds: float
    until: float
    in_a_row: int

    @property
    def down(self) -> bool:
        """True if the host may be down, rather than busy."""
        return self.in_a_row >= IN_A_ROW


def show(pause: Pause) -> None:
    """Show a pause in the progress of the running partition and in the metrics."""
    observe.paused(pause.host, str(pause.refusal), pause.until)


class Pauses:
    """Refusals in a row by host, and the pauses that follow from them. Used from one event loop.

    outage: asks the host of a URL for a file that any host answers; why it refuses that too, "" if it does not.
    """

    def __init__(self, outage: Callable[[str], Awaitable[str]]) -> None:
        self._outage = outage
        self._rows: dict[str, int] = {}
        self._asking: set[str] = set()
        self._last: dict[str, Pause] = {}

    def on_answer(self, host: str) -> None:
        """Note an answer of a host, which ends its row of refusals and its pause."""
        self._rows.pop(host, None)
        self._last.pop(host, None)

    async def on_refusal(self, host: str, url: str, refusal: HostRefusal) -> Pause | None:
        """Note that a host refused to answer for a URL; returns the pause that begins, if one does: not for a request
        that was under way when the last one began."""
        if self.current(host) is not None:
            return None
        row = self._rows[host] = self._rows.get(host, 0) + 1
        backoff_s = policy.backoff_s(row)
        if refusal.status != 429 and not refusal.pause_s:
            if row < IN_A_ROW or host in self._asking or not await self._is_down(host, url):
                return None
            backoff_s = policy.backoff_s(row - IN_A_ROW + 1)
        seconds = refusal.pause_s or backoff_s
        pause = self._last[host] = Pause(host, refusal, seconds, time.time() + seconds, row)
        return pause

    async def _is_down(self, host: str, url: str) -> bool:
        """Ask a host whether it is down; if not, its row of refusals is over."""
        self._asking.add(host)
        try:
            down = await self._outage(url)
        finally:
            self._asking.discard(host)
        if not down:
            self.on_answer(host)
        return bool(down)

    def current(self, host: str) -> Pause | None:
        pause = self._last.get(host)
        return pause if pause is not None and time.time() < pause.until else None
