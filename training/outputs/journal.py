"""Journal of a run: the records in its folder, and a progress bar or plain lines on the terminal.

    OUT/config.json         the resolved config
    OUT/environment.json    versions, device and machine of the latest start
    OUT/log.txt             log lines with times, over all starts
    OUT/metrics.jsonl       the record: one object per logged step
    OUT/curves.html         the same as curves, made again with every checkpoint and at the end
    OUT/tensorboard         the same again (run.tracker)

A run that goes on from a checkpoint first drops the lines after it: the record reads as if nothing had happened.

Limits: rank 0 only; the others hold a silent journal. Nothing of the process's environment variables is written. A
curve has at most 400 points, each the mean of what lies between; values that are not finite leave a gap.
"""

from __future__ import annotations

import html
import json
import logging
import math
import os
import platform
import sys
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from data_specs.command.printable import printable
from training.config import Config, to_dict
from training.outputs.atomic_files import atomic_file
from training.outputs.trackers import Tracker, open_tracker

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
            self._file = _truncate_metrics(out / METRICS, step).open("a", encoding="utf-8")
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
        if self._silent:
            return
        finite = {name: value if math.isfinite(value) else None for name, value in metrics.items()}  # JSON has no NaN
        self._file.write(json.dumps({"step": step, **finite}) + "\n")
        self._file.flush()
        for tracker in self._trackers:
            tracker.write(step, metrics)
        self._shown = _summary(metrics) or self._shown

    def advance(self, step: int) -> None:
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


def _truncate_metrics(path: Path, step: int) -> Path:
    """Keep the lines up to `step`; by rename, so that a kill here loses none of them."""
    kept = [line for line in read_metrics(path.parent) if line["step"] <= step]
    with atomic_file(path) as temporary:
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
    with atomic_file(path) as temporary:
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


CURVES = "curves.html"

_GROUPS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("Loss", ("loss", "i2t_loss", "t2i_loss")),
    ("Loss by source kind", ("loss.*",)),
    ("Recall on the dev split", ("dev.i2t.r1", "dev.t2i.r1", "dev.mean_recall")),
    ("Own key nearer than all negatives", ("i2t_accuracy", "t2i_accuracy")),
    ("Similarity to own key and to negatives", ("i2t_positive", "i2t_negative", "t2i_positive", "t2i_negative")),
    ("Spread of features (0: collapsed)", ("image_spread", "text_spread")),
    ("Query and stored key apart", ("image_stale", "text_stale", "image_drift", "text_drift")),
    ("Age of keys, steps", ("text_queue_age", "text_queue_oldest")),
    ("Queue filled; false negatives in it", ("text_queue_fill", "false_negatives")),
    ("Gradient norm", ("gradient_norm",)),
    ("Learning rate", ("lr",)),
    ("Samples a second", ("samples_per_second",)),
    ("Share of time waiting for data; MFU", ("waiting_for_data", "mfu")),
    ("Memory, GiB", ("memory_gib",)),
)
_COLOURS = ("#1f6feb", "#d1242f", "#1a7f37", "#9a6700", "#8250df", "#57606a")
_POINTS = 400
_WIDTH, _HEIGHT, _LEFT, _BOTTOM = 460, 200, 58, 24

_STYLE = """
body { font: 14px/1.45 system-ui, sans-serif; margin: 24px auto; max-width: 1480px; padding: 0 20px; color: #1f2328;
       background: #fff; }
h1 { font-size: 20px; margin: 0 0 2px; } .about { color: #57606a; margin: 0 0 20px; }
main { display: grid; grid-template-columns: repeat(auto-fill, minmax(420px, 1fr)); gap: 20px 28px; }
figure { margin: 0; } figcaption { font-weight: 600; } svg { width: 100%; height: auto; display: block; }
.key { color: #57606a; font-size: 12.5px; min-height: 1.45em; } .key b { font-weight: 600; color: #1f2328; }
.key i { display: inline-block; width: 14px; height: 3px; vertical-align: middle; margin: 0 4px 0 10px; }
text { font: 11px system-ui, sans-serif; fill: #57606a; }
:root { color-scheme: light dark; }
@media (prefers-color-scheme: dark) { body { background: #0d1117; color: #e6edf3; } .key b { color: #e6edf3; }
  .about, .key { color: #9198a1; } text { fill: #9198a1; } }
"""

Series = list[tuple[float, float]]


def write_curves(out: Path, lines: Sequence[Mapping[str, Any]]) -> Path:
    """Write OUT/curves.html from the lines of metrics.jsonl; atomically, so that it can be read at any time."""
    names = {name for line in lines for name in line}
    figures = []
    for title, wanted in _GROUPS:
        matching = [n for w in wanted for n in sorted(names) if n == w or (w.endswith("*") and n.startswith(w[:-1]))]
        curves = {name: _series(lines, name) for name in matching}
        curves = {name: points for name, points in curves.items() if points}
        if curves:
            figures.append(_figure(title, curves))
    last = max((line["step"] for line in lines), default=0)
    name = html.escape(out.resolve().name)
    page = (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{name}: curves</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{_STYLE}</style>'
        f'<h1>{name}</h1><p class="about">to step {last:,}, from metrics.jsonl</p>'
        f"<main>{''.join(figures)}</main></html>"
    )
    with atomic_file(out / CURVES) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return out / CURVES


def _series(lines: Sequence[Mapping[str, Any]], name: str) -> Series:
    points = [(float(line["step"]), float(line[name])) for line in lines if isinstance(line.get(name), (int, float))]
    size = math.ceil(len(points) / _POINTS) or 1
    parts = [points[start : start + size] for start in range(0, len(points), size)]
    return [(part[-1][0], sum(value for _, value in part) / len(part)) for part in parts]


def _figure(title: str, curves: Mapping[str, Series]) -> str:
    every = [point for points in curves.values() for point in points]
    x_low, x_high = min(x for x, _ in every), max(x for x, _ in every)
    low, high = min(y for _, y in every), max(y for _, y in every)
    low = 0.0 if 0 <= low < 0.5 * high else low
    high = high if high > low else low + (abs(low) or 1.0)

    def coordinates(x: float, y: float) -> tuple[float, float]:
        right = (x - x_low) / ((x_high - x_low) or 1)
        up = (y - low) / (high - low)
        return _LEFT + right * (_WIDTH - _LEFT - 8), 8 + (1 - up) * (_HEIGHT - _BOTTOM - 8)

    parts = []
    for share in (0.0, 0.5, 1.0):
        value = low + share * (high - low)
        y = coordinates(x_low, value)[1]
        parts.append(f'<line x1="{_LEFT}" x2="{_WIDTH - 8}" y1="{y:.1f}" y2="{y:.1f}" stroke="#8c959f" opacity=".35"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{value:.4g}</text>')
    for x, anchor in ((x_low, "start"), (x_high, "end")):
        parts.append(f'<text x="{coordinates(x, low)[0]:.1f}" y="{_HEIGHT - 6}" text-anchor="{anchor}">{x:,.0f}</text>')
    keys = []
    for number, (name, points) in enumerate(curves.items()):
        colour = _COLOURS[number % len(_COLOURS)]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (coordinates(*point) for point in points))
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.6"/>')
        if len(points) == 1:
            x, y = coordinates(*points[0])
            parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5" fill="{colour}"/>')
        keys.append(f'<i style="background:{colour}"></i>{html.escape(name)} <b>{points[-1][1]:.4g}</b>')
    return (
        f"<figure><figcaption>{html.escape(title)}</figcaption>"
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{html.escape(title)}">{"".join(parts)}</svg>'
        f'<div class="key">{"".join(keys)}</div></figure>'
    )
