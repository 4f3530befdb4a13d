"""Observability of a running build, beside its tables: log lines with their context, and metrics.

Log: the logger `wenlan` writes to stderr, as plain lines or, with WENLAN_LOG=json, as one JSON object per line for a
log store. `about` states the context once (build, stage, partition); every line written within it carries that, in
Ray's workers too.

Metrics: `count` adds to a counter of METRICS through `ray.util.metrics`, which every node of a cluster exports for
Prometheus under the name that `exported` returns; `dags/deploy/grafana.json` draws them. Where no Ray runs, and nobody
could read them, they cost nothing.

What is counted by host goes into the running partition's pulse too (`pipeline.pulse`).

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

from pipeline import pulse
from pipeline.urls import shown

FORM = "WENLAN_LOG"
"""Environment variable: `json`, or `text` (default)."""

log = logging.getLogger("wenlan")


@dataclass(frozen=True, slots=True)
class Metric:
    """A counter's description, and the tags that each of its counts has."""

    description: str
    tags: tuple[str, ...]


METRICS: dict[str, Metric] = {
    "wenlan_rows": Metric("captures and candidates that a stage decided, by fate: kept or dropped", ("fate",)),
    "wenlan_partitions": Metric("partitions committed", ()),
    "wenlan_partition_seconds": Metric("time that committed partitions took, summed over workers", ()),
    "wenlan_cpu_seconds": Metric("CPU time of committed partitions", ()),
    "wenlan_requests": Metric("pages and images asked for, by host and fate: kept or a reason", ("host", "fate")),
    "wenlan_received_bytes": Metric("bytes of pages and images received, by host", ("host",)),
    "wenlan_written_bytes": Metric("bytes of the files that partitions committed", ()),
}
"""All counters. Each has the tags `build` and `stage` as well."""


def exported(name: str) -> str:
    """The name under which Prometheus sees a counter of METRICS."""
    return f"ray_{name}_total"


_about: contextvars.ContextVar[dict[str, str]] = contextvars.ContextVar("about", default={})  # noqa: B039 (never changed)
_counters: dict[str, Any] = {}


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
    ray = sys.modules.get("ray")
    if value <= 0 or ray is None or not ray.is_initialized():
        return
    if name not in _counters:
        metric = METRICS[name]
        from ray.util.metrics import Counter

        _counters[name] = Counter(name, metric.description, ("build", "stage", *metric.tags))
    context = _about.get()
    _counters[name].inc(value, {"build": context.get("build_id", ""), "stage": context.get("stage", ""), **tags})


def form() -> str:
    """The form of log lines that the environment asks for: "json" or "text"."""
    return "json" if os.environ.get(FORM, "").strip().lower() == "json" else "text"


def log_as(form: str) -> None:
    """Log to stderr in one of the forms; with "json", our own lines from INFO on.

    A process whose logging is set up already keeps its own handlers.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(_Json() if form == "json" else logging.Formatter("%(levelname)s %(name)s: %(message)s"))
    handler.addFilter(_add_context)
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    log.setLevel(logging.INFO if form == "json" else logging.NOTSET)


def _add_context(record: logging.LogRecord) -> bool:
    record.about = _about.get()
    line = record.getMessage()
    if (clean := shown(line)) != line:
        record.msg, record.args = clean, None
    return True


_STANDARD = set(vars(logging.makeLogRecord({}))) | {"message", "asctime", "about", "taskName"}


class _Json(logging.Formatter):
    """One JSON object per line: time, level, message, the context of `about`, and the call's `extra`."""

    def format(self, record: logging.LogRecord) -> str:
        moment = datetime.datetime.fromtimestamp(record.created, datetime.timezone.utc)
        line: dict[str, Any] = {
            "time": moment.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
            **getattr(record, "about", {}),
            **{name: value for name, value in vars(record).items() if name not in _STANDARD},
        }
        if record.exc_info:
            line["error"] = shown(self.formatException(record.exc_info))
        return json.dumps(line, ensure_ascii=False, default=str)
