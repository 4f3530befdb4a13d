"""Shares of the drills (`make drills SHARE=2/5 MINUTES=20`): what CI has time for of the long stories, in turn.

A drill says by its mark what it takes, `drill(seconds)`, as was seen on two idle cores. Shares are consecutive and take
about as long as each other, so that most drills of a file, which share what they start, are in one.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import pytest


@dataclass(frozen=True)
class Share:
    """Share `number` of `count`: 0 is the first."""

    number: int
    count: int

    @classmethod
    def parse(cls, text: str) -> Share:
        """Of "K/N"; K is any whole number (0x...: a commit's hash) and is taken modulo N."""
        try:
            number, count = (int(part, 0) for part in text.split("/"))
            return cls(number % count, count)
        except (ValueError, ZeroDivisionError):
            raise argparse.ArgumentTypeError(f"{text}: not a share; it reads like 2/5") from None


def seconds_of(item: pytest.Item) -> float:
    """What a test takes by its mark `drill`; 1 without a mark."""
    mark = item.get_closest_marker("drill")
    return float(mark.args[0]) if mark and mark.args else 1.0


def of(items: Sequence[pytest.Item], share: Share) -> list[pytest.Item]:
    """Returns the tests of a share: each test is in the one in which its middle lies."""
    total, before, chosen = math.fsum(map(seconds_of, items)), 0.0, []
    for item in items:
        middle, before = before + seconds_of(item) / 2, before + seconds_of(item)
        if int(middle * share.count / total) == share.number:
            chosen.append(item)
    return chosen


@dataclass(eq=False)  # a plug-in of pytest is in a set
class Budget:
    """Skips each test that would not end in time by its own mark, and says in the end which ones these are."""

    seconds: float
    share: Share | None
    began: float = field(default_factory=time.monotonic)
    missed: list[str] = field(default_factory=list)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        if time.monotonic() - self.began + seconds_of(item) > self.seconds:
            self.missed.append(item.nodeid)
            pytest.skip(f"not reached in {self.seconds / 60:g} minutes")

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        for line in self.lines():
            terminalreporter.write_line(line)

    def lines(self) -> Iterator[str]:
        name = f"share {self.share.number} of {self.share.count}" if self.share else "all"
        yield f"drills: {name}, {(time.monotonic() - self.began) / 60:.1f} of {self.seconds / 60:g} minutes"
        for nodeid in self.missed:
            yield f"drills: not reached: {nodeid}"
