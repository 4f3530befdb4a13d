"""Journal of a run: the records in its folder, and a progress bar or plain lines on the terminal.

    OUT/config.json         the resolved config
    OUT/environment.json    versions, device and machine of the latest start
    OUT/log.txt             log lines with times, over all starts
    OUT/metrics.jsonl       the record: one object per logged step
    OUT/curves.html         the same as curves, made again with every checkpoint and at the end
    OUT/tensorboard         the same again (run.tracker)

A run that goes on from a checkpoint first drops the lines after it: the record reads as if nothing had happened.

Limits: rank 0 only; the others hold a silent journal. Nothing of the process's environment variables is written.
"""

from __future__ import annotations

import json
import logging
import math
import os
import platform
import sys
import time
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from data_specs.command.printable import printable
from training.config import Config, to_dict
from training.outputs.curves import write_curves
from training.outputs.trackers import Tracker, open_tracker
from training.outputs.whole import whole_file

LOG = logging.getLogger(__name__)

METRICS = "metrics.jsonl"
_LINE_EVERY = 5.0
"""Seconds between plain lines without a terminal."""

_PACKAGES = ("wenlan", "torch", "torchvision", "timm", "transformers", "safetensors", "numpy", "pyarrow", "ray")


class Journal:
    """Records of one run in its folder. Use as a context: `write` after a logged step, `advance` after every step."""

    def __init__(
        self,
        out: Path,
        step: int,
        total: int,
        config: Config,
        *,
        about: Mapping[str, Any],
        silent: bool = False,
        tracker: Tracker | None = None,
    ) -> None:
        """`about`: facts of the machine (device, processes) that go into environment.json. `tracker`: receives the
        metrics beside the one that the config names."""
        self._silent = silent
        self._total = total
        self._out = out
        self._last_line = 0.0
        self._shown = ""
        self._bar: Any = None
        self._trackers: list[Tracker] = []
        if not silent:
            self._log = _log_file(out / "log.txt")
            _write_json(out / "config.json", to_dict(config))
            _write_json(out / "environment.json", _environment() | dict(about))
            self._file = _cut(out / METRICS, step).open("a", encoding="utf-8")
            named = open_tracker(config.run.tracker, out, step, to_dict(config))
            self._trackers = [one for one in (named, tracker) if one is not None]
            self._bar = _bar(step, total)

    def __enter__(self) -> Journal:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if self._silent:
            return
        if self._bar is not None:
            self._bar.stop()
        if error is not None:
            said = " ".join(str(error).split())
            LOG.info("ended by %s%s", type(error).__name__, f": {said}" if said else "")
        for tracker in self._trackers:
            tracker.close()
        self._file.close()
        self.draw()
        logging.getLogger("training").removeHandler(self._log)
        self._log.close()

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record the metrics of a step."""
        if self._silent:
            return
        finite = {name: value if math.isfinite(value) else None for name, value in metrics.items()}  # JSON has no NaN
        self._file.write(json.dumps({"step": step, **finite}) + "\n")
        self._file.flush()
        for tracker in self._trackers:
            tracker.write(step, metrics)
        self._shown = _summary(metrics) or self._shown

    def advance(self, step: int) -> None:
        """Show that `step` steps are done."""
        if self._silent:
            return
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=step, shown=self._shown)
        elif self._shown and (step == self._total or time.monotonic() - self._last_line > _LINE_EVERY):
            self._last_line = time.monotonic()
            LOG.info("step %d of %d, %s", step, self._total, self._shown)
            self._shown = ""  # until there are other figures

    def draw(self) -> None:
        """Write curves.html from the records."""
        if not self._silent:
            write_curves(self._out, read_metrics(self._out))

    def say(self, text: str) -> None:
        """Log one line, on the first rank only."""
        if not self._silent:
            LOG.info("%s", text)


def _summary(metrics: Mapping[str, float]) -> str:
    """The few numbers that are shown while a run goes on; empty for metrics of another kind."""
    if "loss" not in metrics:
        return ""
    shown = [f"loss {metrics['loss']:.4f}", f"{metrics['samples_per_second']:.3g} samples/s"]
    shown.append(f"waiting for data {metrics['waiting_for_data']:.0%}")
    if "mfu" in metrics:
        shown.append(f"MFU {metrics['mfu']:.1%}")
    return ", ".join([*shown, f"{metrics['memory_gib']:.2f} GiB"])


def read_metrics(out: Path) -> list[dict[str, Any]]:
    """Lines of a run's metrics.jsonl, without a last line that a kill has truncated."""
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
    with whole_file(path) as temporary:
        temporary.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
    return path


class _Lines(logging.Formatter):
    """A record's further lines are indented: the author of a member's name cannot add a record to the log."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record)).replace("\n", "\n  ")


def _log_file(path: Path) -> logging.Handler:
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(_Lines("%(asctime)s %(levelname)s %(message)s"))
    logging.getLogger("training").addHandler(handler)
    return handler


def _environment() -> dict[str, Any]:
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return {
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "packages": versions,
    }


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    with whole_file(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _bar(step: int, total: int) -> Any:
    """A progress bar on stderr, or None where stderr is not a terminal."""
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
