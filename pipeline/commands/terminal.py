"""What people see of a command: tables and bars on a terminal, plain lines elsewhere; all of it on stderr."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from rich.box import HEAVY_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

if TYPE_CHECKING:
    from pipeline.store.build_json import StageResult

Commands = Any
"""argparse's action that holds the subcommands; its type has no public name."""

console = Console(stderr=True, highlight=False)


def command(
    commands: Commands, name: str, run: Callable[[argparse.Namespace], dict[str, Any]], help: str
) -> argparse.ArgumentParser:
    """A subcommand that `run` carries out: what `run` gives is printed with --json, and its "ok" is the exit code."""
    found: argparse.ArgumentParser = commands.add_parser(name, help=help, description=help)
    found.set_defaults(run=run)
    found.add_argument("--json", action="store_true", help="print one JSON object as the last line of stdout")
    return found


class Bars:
    """Progress: bars on a terminal; elsewhere one line a stage, and one now and then within a long one."""

    EVERY_S = 30.0

    def __init__(self) -> None:
        self._bars: Progress | None = None
        self._tasks: dict[str, Any] = {}
        self._said = time.monotonic()

    def __enter__(self) -> Bars:
        if console.is_terminal:
            columns = (TextColumn("{task.description:8}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
            self._bars = Progress(*columns, console=console)
            self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bars:
            self._bars.stop()

    def update(self, stage: str, done: int, total: int) -> None:
        if not self._bars:
            if time.monotonic() - self._said >= self.EVERY_S:
                self._said = time.monotonic()
                console.print(f"{stage:8} {done} of {total} partitions", soft_wrap=True)
            return
        if stage not in self._tasks:
            self._tasks[stage] = self._bars.add_task(stage, total=total)
        self._bars.update(self._tasks[stage], completed=done, total=total)

    def done(self, result: StageResult) -> None:
        if self._bars and not result.skipped:
            return
        ran = "already done" if result.skipped else f"{result.ran} of {result.partitions} partitions"
        console.print(f"{result.name:8} {ran}, {result.seconds:.1f} s", soft_wrap=True)


def table_of(title: str, *columns: str) -> Table:
    """An empty table, drawn with lines on a terminal only; every column but the first is of figures."""
    drawn = HEAVY_HEAD if console.is_terminal else None
    table = Table(title=title, title_justify="left", box=drawn, pad_edge=drawn is not None)
    for i, column in enumerate(columns):
        table.add_column(column, justify="right" if i else "left")
    return table


def show(table: Table) -> None:
    console.print(table, soft_wrap=not console.is_terminal)
