"""Terminal output: tables and progress bars on a TTY, plain lines otherwise. Everything goes to stderr."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import logging
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from rich.box import HEAVY_HEAD
from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Column, Table
from rich.text import Text

from data_specs.command.command_line import completed_by, files_like
from data_specs.command.printable import printable_line
from pipeline.processes import observe
from pipeline.urls import shown

if TYPE_CHECKING:
    from pipeline.store.build_json import Result
    from pipeline.store.progress import Figures

log = logging.getLogger("wenlan")

MAX_CELL = 200
"""Characters of a cell of a table: a longer one loses its middle. --json has all of it."""

Commands = Any
"""argparse's action that holds the subcommands; its type is private."""


class _Stderr(Console):
    """Writes to stderr. The work goes on where the reader is gone, such as a studio that has ended."""

    def on_broken_pipe(self) -> None:
        self.quiet = True


console = _Stderr(stderr=True, highlight=False)
_unfolded = _Stderr(stderr=True, highlight=False, width=10_000)
"""For tables without a terminal: a row is one line, however long; rich would fold it at 80 columns."""


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
    spec = parser.add_argument("spec", metavar="SPEC", help="spec of the dataset: a YAML file or its URL")
    completed_by(spec, lambda prefix, **_: files_like(prefix, (".yaml", ".yml")))


def say(line: str, style: str = "") -> None:
    """Print one line as it is: unwrapped, and with square brackets taken for text, as paths and pages hold them.

    What a terminal would obey in it is escaped.
    """
    console.print(printable_line(shown(line)), style=style or None, soft_wrap=True, markup=False)


class Bars:
    """Progress of the stages: bars on a terminal, otherwise a line per stage and every EVERY_S within a long one.

    Its events are those of `pipeline.store.progress.Progress`. Log lines for machines carry the same figures.
    """

    EVERY_S = 30.0

    def __init__(self) -> None:
        self._bars: Progress | None = None
        self._tasks: dict[str, Any] = {}
        self._printed_at = time.monotonic()
        self._lock = threading.Lock()  # it is called from several threads

    def __enter__(self) -> Bars:
        if console.is_terminal:
            columns = (
                TextColumn("{task.description:8}"),
                BarColumn(bar_width=20 if console.width >= 110 else 8),
                TaskProgressColumn(),
                TextColumn("{task.fields[said]}", table_column=Column(ratio=1)),  # of two lines if it must be
                TimeElapsedColumn(),
            )
            self._bars = Progress(*columns, console=console, expand=True, refresh_per_second=4)
            self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bars:
            self._bars.stop()

    def update(self, figures: Figures) -> None:
        """Shows how far a pass is, in the bar of its stage; nothing of a pass without partitions."""
        if not figures.partitions:
            return
        stage, _, step = figures.name.partition(".")
        line = f"{step}: {figures.line()}" if step else figures.line()
        with self._lock:
            if self._bars:
                if stage not in self._tasks:
                    self._tasks[stage] = self._bars.add_task(stage, total=1.0, said="")
                total = None if figures.share is None else 1.0  # None: a bar that moves and tells no share
                self._bars.update(self._tasks[stage], completed=figures.share or 0.0, total=total, said=line)
            elif time.monotonic() - self._printed_at >= self.EVERY_S:
                self._printed_at = time.monotonic()
                share = "" if figures.share is None else f"{figures.share:.0%}, "
                if observe.form() == "json":
                    fields = dataclasses.asdict(figures) | {"hosts": len(figures.hosts)}
                    fields["pass"] = fields.pop("name")  # a record's `name` is its logger's
                    log.info("progress", extra=fields)
                else:
                    say(f"{stage:8} {share}{line}")

    @contextlib.contextmanager
    def starting(self, what: str) -> Iterator[None]:
        """Show within the block that something starts, and for how long."""
        began, task = time.monotonic(), None
        if self._bars:
            task = self._bars.add_task(what, total=None, said="starting")
        yield
        if self._bars and task is not None:
            self._bars.update(task, total=1.0, completed=1.0, said="started")
        else:
            say(f"{what:8} started, {time.monotonic() - began:.1f} s")

    def done(self, result: Result) -> None:
        """Shows the result of a stage; nothing of one without partitions."""
        if not result.partitions:
            return
        ran = "already done" if result.skipped else f"{result.ran} of {result.partitions} partitions"
        if not self._bars or result.skipped:
            say(f"{result.name:8} {ran}, {result.seconds:.1f} s")
            return
        counts = [f"{result.funnel[fate]:,} {fate}" for fate in ("kept", "dropped", "known") if result.funnel.get(fate)]
        with self._lock:
            if result.name in self._tasks:
                said = ", ".join(counts) or ran
                self._bars.update(self._tasks[result.name], total=1.0, completed=1.0, said=said)


class _Table(Table):
    """A table whose cells are text as it is: pages and paths have square brackets, and worse."""

    def add_row(self, *cells: RenderableType | None, **options: Any) -> None:
        texts = [Text(_shortened(printable_line(shown(cell)))) if isinstance(cell, str) else cell for cell in cells]
        super().add_row(*texts, **options)


def _shortened(text: str) -> str:
    """A text of at most MAX_CELL characters: a URL is told by its beginning and its end."""
    if len(text) <= MAX_CELL:
        return text
    end = MAX_CELL // 4
    return f"{text[: MAX_CELL - end - 1]}…{text[-end:]}"


def table_of(title: str, *columns: str) -> Table:
    """An empty table: its first column is text, the others are right-aligned figures. Ruled on a terminal only."""
    drawn = HEAVY_HEAD if console.is_terminal else None
    table = _Table(title=title, title_justify="left", box=drawn, pad_edge=drawn is not None)
    for i, column in enumerate(columns):
        table.add_column(column, justify="right" if i else "left")
    return table


def show(table: Table) -> None:
    (console if console.is_terminal else _unfolded).print(table, soft_wrap=not console.is_terminal)
