"""What a run tells: metrics.jsonl, TensorBoard, and a bar or plain lines for the person who watches.

metrics.jsonl is the record: one object a logged step. A run that goes on from a checkpoint first drops the lines after
it, so that the file reads as if nothing had happened. TensorBoard shows the same numbers.

Limits: rank 0 only; the others hold a silent journal.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

LOG = logging.getLogger(__name__)

METRICS = "metrics.jsonl"
_LINE_EVERY = 5.0
"""Seconds between plain lines where there is no terminal."""


class Journal:
    """Records of one run in its folder. Use as a context: `write` after a logged step, `advance` after every step."""

    def __init__(self, out: Path, step: int, total: int, *, silent: bool = False) -> None:
        self._silent = silent
        self._total = total
        self._last_line = 0.0
        self._bar: Any = None
        self._board: Any = None
        if not silent:
            self._file = _cut(out / METRICS, step).open("a", encoding="utf-8")
            self._board = _tensorboard(out / "tensorboard", step)
            self._bar = _bar(step, total)

    def __enter__(self) -> Journal:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._silent:
            return
        if self._bar is not None:
            self._bar.stop()
        if self._board is not None:
            self._board.close()
        self._file.close()

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record the metrics of a step."""
        if self._silent:
            return
        finite = {name: value if math.isfinite(value) else None for name, value in metrics.items()}  # JSON has no NaN
        self._file.write(json.dumps({"step": step, **finite}) + "\n")
        self._file.flush()
        if self._board is not None:
            for name, value in metrics.items():
                self._board.add_scalar(name, value, step)

    def advance(self, step: int, loss: float | None) -> None:
        """Show that `step` steps are done; `loss` where it is known."""
        if self._silent:
            return
        shown = "" if loss is None else f"loss {loss:.4f}"
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=step, **({"shown": shown} if shown else {}))
        elif shown and (step == self._total or time.monotonic() - self._last_line > _LINE_EVERY):
            self._last_line = time.monotonic()
            LOG.info("step %d of %d, %s", step, self._total, shown)

    def say(self, text: str) -> None:
        """One line for the person who watches."""
        if not self._silent:
            LOG.info("%s", text)


def read_metrics(out: Path) -> list[dict[str, Any]]:
    """Lines of a run's metrics.jsonl, without a last one that a kill has cut."""
    path = out / METRICS
    if not path.exists():
        return []
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return lines


def _cut(path: Path, step: int) -> Path:
    """Keep the lines up to `step`; by rename, so that a kill here loses none of them."""
    kept = [line for line in read_metrics(path.parent) if line["step"] <= step]
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
    return temporary.replace(path)


def _tensorboard(folder: Path, step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        LOG.info("tensorboard is not installed: metrics go to %s only", METRICS)
        return None
    return SummaryWriter(str(folder), purge_step=step + 1)


def _bar(step: int, total: int) -> Any:
    """A progress bar on stderr, or None where stderr is no terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    if not console.is_terminal:
        return None
    columns = (
        TextColumn("step"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[shown]}"),
    )
    bar = Progress(*columns, console=console)
    bar.add_task("step", total=total, completed=step, shown="")
    return bar
