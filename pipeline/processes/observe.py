"""Observability of a running build, in addition to its tables: log lines with context, and metrics.

Log: the logger `wenlan` writes to stderr, as plain lines or, with WENLAN_LOG=json, as one JSON object per line for a
log store. `about` states the context once (build, stage, partition); every line written within it carries that, in
Ray's workers too.

Metrics: `count` adds to a counter of METRICS, and `show` sets a gauge, through `ray.util.metrics`. Every node of a
cluster exports them for Prometheus under the name that `exported` returns; `dags/deploy/grafana.json` draws them, and
`dags/deploy/alerts.yaml` watches them. Without Ray, where they could not be read, they cost nothing.

What is counted by host, and pauses of hosts, go into the running partition's pulse too (`pipeline.processes.pulse`).

Limits: a counter lives in its process, and Ray exports it every few seconds: what the last seconds before the end of a
build counted may never be seen. Numbers that must add up are in build.json and the records, not here.
"""

from __future__ import annotations

import contextlib
import contextvars
import datetime
import json
import logging
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from data_specs.command.printable import printable, printable_json
from pipeline.processes import pulse
from pipeline.urls import shown

FORM = "WENLAN_LOG"
"""Environment variable: `json`, or `text` (default)."""

log = logging.getLogger("wenlan")


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric's description, the tags that each of its values has, and whether it is a gauge or a counter.

    A node goes on exporting a counter after its process has ended, and drops a gauge within seconds.
    """

    description: str
    tags: tuple[str, ...]
    gauge: bool = False


METRICS: dict[str, Metric] = {
    "wenlan_rows": Metric("captures and candidates decided by a stage, by outcome: kept or dropped", ("fate",)),
    "wenlan_partitions": Metric("partitions committed", ()),
    "wenlan_partition_seconds": Metric("run time of committed partitions, summed over workers", ()),
    "wenlan_cpu_seconds": Metric("CPU time of committed partitions", ()),
    "wenlan_requests": Metric("pages and images requested, by host and outcome: kept or a reason", ("host", "fate")),
    "wenlan_received_bytes": Metric("bytes of pages and images received, by host", ("host",)),
    "wenlan_host_paused_until": Metric(
        "Unix time at which the last pause of a host ends, by why it was paused", ("host", "reason"), gauge=True
    ),
    "wenlan_written_bytes": Metric("bytes of files committed by partitions", ()),
    "wenlan_building": Metric("1 while a build is running", (), gauge=True),
    "wenlan_builds": Metric("finished runs of a build, by outcome: done or failed", ("fate",)),
    "wenlan_gates": Metric(
        "gates checked at a publish, by outcome: held, failed, accepted or waiting for a person", ("gate", "fate")
    ),
    "wenlan_releases": Metric("published releases of a dataset", ("dataset",)),
}
"""All metrics. Each has the tags `build` and `stage` as well."""


def exported(name: str) -> str:
    """The name under which Prometheus sees a metric of METRICS."""
    return f"ray_{name}" if METRICS[name].gauge else f"ray_{name}_total"


_about: contextvars.ContextVar[dict[str, str]] = contextvars.ContextVar("about", default={})  # noqa: B039 (never changed)
_metrics: dict[str, Any] = {}


@contextlib.contextmanager
def about(**what: str) -> Iterator[None]:
    """Context of the log lines and counts within the block, such as build_id, stage and partition."""
    token = _about.set({**_about.get(), **what})
    try:
        yield
    finally:
        _about.reset(token)


def count(name: str, value: float = 1.0, **tags: str) -> None:
    """Add to a counter of METRICS, with the tags that are named there: in Ray, where it runs, and in the pulse."""
    if "host" in tags:
        fate = "kept" if tags.get("fate") == "kept" else "failed"
        pulse.of_host(tags["host"], "bytes" if name == "wenlan_received_bytes" else fate, int(value))
    if value > 0 and (counter := _ray_metric(name)) is not None:
        counter.inc(value, _with_context(tags))


def paused(host: str, reason: str, until: float) -> None:
    """Show that a host is paused, in the metrics and in the pulse. until: Unix time of its end."""
    pulse.pause(host, reason, until)
    show("wenlan_host_paused_until", until, host=host, reason=reason)


def show(name: str, value: float, **tags: str) -> None:
    """Set a gauge of METRICS, in Ray, where it runs; it is exported until this process ends."""
    if (gauge := _ray_metric(name)) is not None:
        gauge.set(value, _with_context(tags))


def _ray_metric(name: str) -> Any:
    """Ray's metric of that name, or None where no Ray runs."""
    ray = sys.modules.get("ray")
    if ray is None or not ray.is_initialized():
        return None
    if name not in _metrics:
        metric = METRICS[name]
        from ray.util.metrics import Counter, Gauge

        _metrics[name] = (Gauge if metric.gauge else Counter)(
            name, metric.description, ("build", "stage", *metric.tags)
        )
    return _metrics[name]


def _with_context(tags: dict[str, str]) -> dict[str, str]:
    context = _about.get()
    return {"build": context.get("build_id", ""), "stage": context.get("stage", ""), **tags}


def form() -> str:
    """The form of log lines that the environment asks for: "json" or "text"."""
    return "json" if os.environ.get(FORM, "").strip().lower() == "json" else "text"


def log_as(form: str) -> None:
    """Log to stderr in one of the forms; with "json", our own lines from INFO on.

    A process whose logging is set up already keeps its own handlers.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(_JsonFormatter() if form == "json" else _TextFormatter("%(levelname)s %(name)s: %(message)s"))
    handler.addFilter(_add_context)
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    log.setLevel(logging.INFO if form == "json" else logging.NOTSET)


def _add_context(record: logging.LogRecord) -> bool:
    record.about = _about.get()
    try:
        line = record.getMessage()
    except Exception:  # a library's own fault; the handler says so, where a filter would raise it into the library
        return True
    if (clean := shown(line)) != line:
        record.msg, record.args = clean, None
    return True


_STANDARD = set(vars(logging.makeLogRecord({}))) | {"message", "asctime", "about", "taskName"}


class _TextFormatter(logging.Formatter):
    """Lines for people. A record's further lines are indented, so that what a page says cannot pass for a record."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(shown(super().format(record))).replace("\n", "\n  ")


class _JsonFormatter(logging.Formatter):
    """One JSON object per line: time, level, message, the context of `about`, and the call's `extra`."""

    def format(self, record: logging.LogRecord) -> str:
        moment = datetime.datetime.fromtimestamp(record.created, datetime.UTC)
        line: dict[str, Any] = {
            "time": moment.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
            **getattr(record, "about", {}),
            **{name: value for name, value in vars(record).items() if name not in _STANDARD},
        }
        if record.exc_info:
            line["error"] = shown(self.formatException(record.exc_info))
        return printable_json(json.dumps(line, ensure_ascii=False, default=str))
