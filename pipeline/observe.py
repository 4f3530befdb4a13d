"""What a running build tells beside its tables: log lines that name build, stage and partition, and counters.

Log: `wenlan` writes to stderr, as plain lines for people or, with WENLAN_LOG=json, one JSON object a line for a log
store. `about` says once what the work is about; every line written within it carries that, in Ray's workers too.

Counters: `count` adds to a metric of METRICS through `ray.util.metrics`, which every node of a cluster exports for
Prometheus under the name that `exported` gives; `dags/deploy/grafana.json` draws them. Where no Ray runs, and nobody
could read them, they cost nothing.

Pulse: while a partition asks hosts for pages or images, what it counted by host lies in a small file beside its stage's
records, written anew every few seconds and gone when the partition ends; `wenlan-data status` adds them up.

Limits: a counter lives in its process, and Ray exports it every few seconds: what the last seconds before the end of a
build counted may never be seen. What must add up is in build.json and the records, not here.
"""

from __future__ import annotations

import contextlib
import contextvars
import datetime
import json
import logging
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from pipeline.errors import StoreError
from pipeline.files.folder import Folder

FORM = "WENLAN_LOG"
"""Environment variable: `json`, or `text` (default)."""

log = logging.getLogger("wenlan")


@dataclass(frozen=True, slots=True)
class Metric:
    """A counter's description, and the tags that every count of it has."""

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
"""Every counter there is. All of them have the tags `build` and `stage` besides."""


def exported(name: str) -> str:
    """The name under which Prometheus sees a counter of METRICS."""
    return f"ray_{name}_total"


_about: contextvars.ContextVar[dict[str, str]] = contextvars.ContextVar("about", default={})  # noqa: B039 (never changed)
_counters: dict[str, Any] = {}


@contextlib.contextmanager
def about(**what: str) -> Iterator[None]:
    """Say what the lines and counts within are about, such as build_id, stage and partition."""
    token = _about.set({**_about.get(), **what})
    try:
        yield
    finally:
        _about.reset(token)


def count(name: str, value: float = 1.0, **tags: str) -> None:
    """Add to a counter of METRICS, with the tags that it names there: for Ray, where it runs, and for the pulse."""
    pulse = _pulse.get()
    if pulse is not None and "host" in tags:
        pulse.add(name, value, **tags)
    ray = sys.modules.get("ray")
    if value <= 0 or ray is None or not ray.is_initialized():
        return
    if name not in _counters:
        from ray.util.metrics import Counter

        metric = METRICS[name]
        _counters[name] = Counter(name, metric.description, ("build", "stage", *metric.tags))
    known = _about.get()
    _counters[name].inc(value, {"build": known.get("build_id", ""), "stage": known.get("stage", ""), **tags})


PULSE, PULSE_S, LOST_S = "_pulse", 2.0, 60.0
"""The folder of pulses, how often one is written, and after how many seconds one is that of a dead worker."""


@dataclass(slots=True)
class _Pulse:
    """What one partition has asked hosts for so far."""

    folder: Folder
    partition: str
    began: float = field(default_factory=time.time)
    written: float = field(default_factory=time.time)
    hosts: dict[str, Counter[str]] = field(default_factory=dict)

    def add(self, name: str, value: float, host: str, fate: str = "") -> None:
        known = self.hosts.setdefault(host, Counter())
        known["bytes" if name == "wenlan_received_bytes" else "kept" if fate == "kept" else "failed"] += int(value)
        if time.time() - self.written >= PULSE_S:
            self.written = time.time()
            with contextlib.suppress(StoreError, OSError):  # what fails here will fail where it matters, too
                seconds = self.written - self.began
                self.folder.write_json(
                    f"{self.partition}.json", {"at": self.written, "seconds": seconds, "hosts": self.hosts}
                )

    def end(self) -> None:
        if self.hosts:
            with contextlib.suppress(StoreError, OSError):
                self.folder.delete(f"{self.partition}.json")


_pulse: contextvars.ContextVar[_Pulse | None] = contextvars.ContextVar("pulse", default=None)


@contextlib.contextmanager
def pulse(folder: Folder, partition: str) -> Iterator[None]:
    """Within, what `count` hears about hosts is shown in a stage's folder while the partition runs."""
    found = _Pulse(folder / PULSE, partition)
    token = _pulse.set(found)
    try:
        yield
    finally:
        _pulse.reset(token)
        found.end()


def pulses(folder: Folder) -> dict[str, dict[str, float]]:
    """What the partitions at work in a stage's folder have asked for, by host, the busiest first.

    kept, failed, bytes: so far, of the partitions at work; per_second: answers a second since they began.
    """
    found: dict[str, Counter[str]] = {}
    rates: dict[str, float] = {}
    for name in (folder / PULSE).names():
        with contextlib.suppress(StoreError, OSError, FileNotFoundError):  # it may just have ended
            known = (folder / PULSE).read_json(name)
            if not name.startswith(".") and time.time() - known["at"] <= LOST_S:
                for host, counts in known["hosts"].items():
                    found.setdefault(host, Counter()).update(counts)
                    answers = counts.get("kept", 0) + counts.get("failed", 0)
                    rates[host] = rates.get(host, 0.0) + answers / max(known["seconds"], PULSE_S)
    names = ("kept", "failed", "bytes")
    hosts = {h: {**{n: c[n] for n in names}, "per_second": round(rates[h], 2)} for h, c in found.items()}
    return dict(sorted(hosts.items(), key=lambda entry: (-entry[1]["per_second"], entry[0])))


def form() -> str:
    """How this process is asked to log: "json" or "text"."""
    return "json" if os.environ.get(FORM, "").strip().lower() == "json" else "text"


def log_as(form: str) -> None:
    """Log to stderr in one of the forms, ours as JSON from INFO on. Leaves a process that logs somewhere already."""
    handler = logging.StreamHandler()
    handler.setFormatter(_Json() if form == "json" else logging.Formatter("%(levelname)s %(name)s: %(message)s"))
    handler.addFilter(_tell)
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    log.setLevel(logging.INFO if form == "json" else logging.NOTSET)


def _tell(record: logging.LogRecord) -> bool:
    record.about = _about.get()
    return True


_STANDARD = set(vars(logging.makeLogRecord({}))) | {"message", "asctime", "about", "taskName"}


class _Json(logging.Formatter):
    """One object a line: time, level, message, what it is about, and whatever the call gave as `extra`."""

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
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)
