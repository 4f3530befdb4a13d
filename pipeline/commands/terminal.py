"""Terminal output: tables and progress bars on a TTY, plain lines otherwise. Everything goes to stderr."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.box import HEAVY_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from data_specs.command_line import completed_by, files_like
from pipeline.urls import shown

if TYPE_CHECKING:
    from pipeline.store.build_json import StageResult

Commands = Any
"""argparse's action that holds the subcommands; its type has no public name."""

console = Console(stderr=True, highlight=False)


def command(
    commands: Commands, name: str, run: Callable[[argparse.Namespace], dict[str, Any]], help: str, *examples: str
) -> argparse.ArgumentParser:
    """Add a subcommand carried out by `run`, which returns the object for --json; its "ok" decides the exit code.

    examples: whole command lines, with which the help ends.
    """
    parser: argparse.ArgumentParser = commands.add_parser(name, help=help, description=help, examples=examples)
    parser.set_defaults(run=run)
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line of stdout")
    return parser


def add_spec(parser: argparse.ArgumentParser) -> None:
    """Add the argument SPEC, which a shell completes from YAML files and folders."""
    spec = parser.add_argument("spec", type=Path, metavar="SPEC", help="a dataset's specification, a YAML file")
    completed_by(spec, lambda prefix, **_: files_like(prefix, (".yaml", ".yml")))


def say(line: str) -> None:
    """Print one line as it is: unwrapped, and with square brackets taken for text, as paths and pages hold them."""
    console.print(shown(line), soft_wrap=True, markup=False)


class Bars:
    """Progress of the stages: bars on a terminal, otherwise a line per stage and every EVERY_S within a long one."""

    EVERY_S = 30.0

    def __init__(self) -> None:
        self._bars: Progress | None = None
        self._tasks: dict[str, Any] = {}
        self._printed_at = time.monotonic()

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
        """Show that `done` of a stage's `total` partitions are committed."""
        if not self._bars:
            if time.monotonic() - self._printed_at >= self.EVERY_S:
                self._printed_at = time.monotonic()
                say(f"{stage:8} {done} of {total} partitions")
            return
        if stage not in self._tasks:
            self._tasks[stage] = self._bars.add_task(stage, total=total)
        self._bars.update(self._tasks[stage], completed=done, total=total)

    def done(self, result: StageResult) -> None:
        """Show the result of a stage; a finished bar already shows that of a stage that ran."""
        if self._bars and not result.skipped:
            return
        ran = "already done" if result.skipped else f"{result.ran} of {result.partitions} partitions"
        say(f"{result.name:8} {ran}, {result.seconds:.1f} s")


def table_of(title: str, *columns: str) -> Table:
    """An empty table: its first column is text, the others are right-aligned figures. Ruled on a terminal only."""
    drawn = HEAVY_HEAD if console.is_terminal else None
    table = Table(title=title, title_justify="left", box=drawn, pad_edge=drawn is not None)
    for i, column in enumerate(columns):
        table.add_column(column, justify="right" if i else "left")
    return table


def show(table: Table) -> None:
    """Print a table."""
    console.print(table, soft_wrap=not console.is_terminal)
