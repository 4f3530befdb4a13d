"""Progress of work over many samples, on stderr: a bar on a terminal, elsewhere a line in the log every EVERY_S.

Both say how many are done, how many per second of late, and how long the rest takes at that rate.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from typing import Any

LOG = logging.getLogger(__name__)

EVERY_S = 30.0
"""Seconds between two lines where stderr is not a terminal."""

_WINDOW_S = 60.0
"""Seconds back over which the rate is taken."""


class Progress:
    """Counts `total` things, named by a plural such as "pictures". Use it in a `with` block."""

    def __init__(self, total: int, what: str) -> None:
        self._total, self._what = total, what
        self._done = 0
        self._seen = deque([(time.monotonic(), 0)])
        self._said = time.monotonic()
        self._bar: Any = None

    def __enter__(self) -> Progress:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
        from rich.progress import Progress as Bar

        console = Console(stderr=True)
        if console.is_terminal and self._total:
            self._bar = Bar(
                TextColumn(self._what),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[said]}"),
                console=console,
            )
            self._bar.add_task(self._what, total=self._total, said="")
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def add(self, count: int) -> None:
        """So many more are done."""
        now = time.monotonic()
        self._done += count
        self._seen.append((now, self._done))
        while len(self._seen) > 2 and now - self._seen[1][0] > _WINDOW_S:
            self._seen.popleft()
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=self._done, said=self.said())
        elif now - self._said >= EVERY_S:
            self._said = now
            share = self._done / max(1, self._total)
            LOG.info("%s of %s %s (%.0f%%), %s", *self._counts(), self._what, 100 * share, self.said())

    def said(self) -> str:
        """`412 pictures/s, 1:23 left`."""
        (began, before), (now, done) = self._seen[0], self._seen[-1]
        rate = (done - before) / (now - began) if now > began else 0.0
        if not rate:
            return ""
        shown = f"{rate:,.0f}" if rate >= 10 else f"{rate:.2g}"
        return f"{shown} {self._what}/s, {_clock((self._total - self._done) / rate)} left"

    def _counts(self) -> tuple[str, str]:
        return f"{self._done:,}", f"{self._total:,}"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
