"""How every benchmark here measures and reports.

Interleaved runs (ours, peer, ours, peer ...), medians, ratios: what else the machine does hits both sides alike.
Progress and a table go to stderr; the last line of stdout is one JSON object
`{"figures": {NAME: {"value", "unit", "bar", "holds"}}}`; the exit code is 1 if a figure does not hold.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

MAIN, LARGE = "brivl_b5_base", "brivl2_b7_large"
"""The main recipes: rehearsed in CI, and those whose figures GPU benchmarks report."""


@dataclass(frozen=True)
class Figure:
    """One measured figure and the bar it is held to."""

    value: float
    unit: str
    bar: float
    holds: bool


def at_least(value: float, bar: float, unit: str = "x") -> Figure:
    return Figure(round(value, 3), unit, bar, value >= bar)


def at_most(value: float, bar: float, unit: str = "x") -> Figure:
    return Figure(round(value, 3), unit, bar, value <= bar)


def interleaved(
    ours: Callable[[], object], peer: Callable[[], object], rounds: int, warm: bool = True
) -> tuple[float, float]:
    """Median seconds of each side over `rounds` turns; after one of each that does not count, if `warm`."""
    times: tuple[list[float], list[float]] = ([], [])
    for turn in range(0 if warm else 1, rounds + 1):
        for side, work in enumerate((ours, peer)):
            start = time.perf_counter()
            work()
            if turn:
                times[side].append(time.perf_counter() - start)
        print(f"round {turn} of {rounds}", file=sys.stderr)
    return statistics.median(times[0]), statistics.median(times[1])


def quick(description: str) -> bool:
    """Whether --quick was asked for: smaller input, under 60 seconds."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="smaller input, under 60 seconds")
    return bool(parser.parse_args().quick)


def report(figures: dict[str, Figure], **more: object) -> int:
    """Print the table and the JSON line, with what else belongs there by name; the exit code."""
    for name, figure in figures.items():
        verdict = "holds" if figure.holds else "DOES NOT HOLD"
        print(f"{name:40} {figure.value:>10} {figure.unit:8} bar {figure.bar:<8} {verdict}", file=sys.stderr)
    print(json.dumps({"figures": {name: asdict(figure) for name, figure in figures.items()}, **more}))
    return 0 if all(figure.holds for figure in figures.values()) else 1
