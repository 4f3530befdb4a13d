"""Progress of work over many samples, on stderr: a bar on a terminal or in a notebook, elsewhere log lines.

Both say how many are done, how many per second of late, and how long the rest takes at that rate.
"""

from __future__ import annotations

import logging
import time
from datetime import timedelta

LOG = logging.getLogger(__name__)

EVERY_S = 30.0
"""Seconds between two lines where stderr is not a terminal."""


class Progress:
    """Counts `total` things, named by a plural such as "pictures". Use it in a `with` block."""

    def __init__(self, total: int, what: str) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
        from rich.progress import Progress as Bar

        self._what, console = what, Console(stderr=True)
        drawn = console.is_terminal or console.is_jupyter
        columns = TextColumn(what), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[said]}")
        # disabled it draws nothing, and still counts
        self._bar = Bar(*columns, console=console, speed_estimate_period=60, disable=not (drawn and total))
        self._bar.add_task(what, total=total, said="")
        [self._task] = self._bar.tasks
        self._said = time.monotonic()

    def __enter__(self) -> Progress:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def add(self, count: int) -> None:
        """Count so many more as done."""
        self._bar.update(self._task.id, advance=count)
        self._bar.update(self._task.id, said=self.pace())
        if self._bar.disable and time.monotonic() - self._said >= EVERY_S:
            self._said = time.monotonic()
            counts = (f"{int(count or 0):,}" for count in (self._task.completed, self._task.total))
            LOG.info("%s of %s %s (%.0f%%), %s", *counts, self._what, self._task.percentage, self.pace())

    def pace(self) -> str:
        """Pace and time left: `412 pictures/s, 1:23 left`."""
        rate, left = self._task.speed, self._task.time_remaining
        if not rate or left is None:
            return ""
        shown = f"{rate:,.0f}" if rate >= 10 else f"{rate:.2g}"
        return f"{shown} {self._what}/s, {timedelta(seconds=round(left))} left"
