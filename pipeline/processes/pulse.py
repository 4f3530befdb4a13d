"""The pulse of a running partition: its progress, in a small file next to the records of its stage.

    FOLDER/<stage>/_pulse/<partition>.json

Workers may be on other nodes, and so may `wenlan-data status`: what all of them share is the build's
folder. A partition that takes longer than PULSE_S writes its figures there every PULSE_S seconds, from a thread of its
own, and deletes the file when it ends; short ones write nothing. Who reads the files is `pipeline.store.progress`.

Stages count with `expect`, `advance` and `tell`, which do nothing outside of a running partition and cost less than a
microsecond: they may stand in a loop over rows. Counters per host come from `pipeline.processes.observe.count`.

Limits: these are figures for people; numbers that must add up are in the records. The file of a worker that was killed
stays until the stage is run again, and is disregarded when it is LOST_S old.
"""

from __future__ import annotations

import contextlib
import contextvars
import json
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pipeline.errors import StoreError

if TYPE_CHECKING:
    from pipeline.files.folder import Folder

PULSE, PULSE_S, LOST_S = "_pulse", 2.0, 30.0
"""The folder of pulses; seconds between two writes of one; and age in seconds at which its worker counts as dead."""

WINDOW_S = 30.0
"""Seconds back over which rates are taken."""

MOST_HOSTS = 100
"""Hosts that a pulse names, the busiest ones."""


@dataclass(frozen=True, slots=True)
class Beat:
    """Last progress report of a running partition.

    seconds: since it began. done, total: rows (pages, images) of the partition; total is None where unknown.
    counts: kept, failed, bytes, and others of its stage. rates: done and bytes per second of late.
    hosts: asked, kept, failed and bytes by host. pauses: of hosts, [reason, Unix time of its end].
    """

    partition: str
    seconds: float
    done: int
    total: int | None
    counts: dict[str, int]
    rates: dict[str, float]
    hosts: dict[str, dict[str, int]]
    pauses: dict[str, tuple[str, float]] = field(default_factory=dict)

    @property
    def share(self) -> float:
        """Share of the partition that is done, 0 to 1."""
        return min(1.0, self.done / self.total) if self.total else 0.0

    @property
    def left_seconds(self) -> float | None:
        """Seconds left at the present rate; None where unknown."""
        if self.total is None or self.rates.get("done", 0.0) <= 0:
            return None
        return max(0, self.total - self.done) / self.rates["done"]


class _Pulse:
    """The figures of this process's running partition. Counted by its thread, written by another one."""

    def __init__(self, folder: Folder, partition: str) -> None:
        self._folder, self._name = folder, f"{partition}.json"
        self.done = 0
        self.total: int | None = None
        self.counts: dict[str, int] = {}
        self._hosts: dict[str, Counter[str]] = {}
        self._pauses: dict[str, tuple[str, float]] = {}
        self._lock = threading.Lock()  # of what the writing thread reads and this one replaces
        self._began = time.monotonic()
        self._before = deque([(self._began, 0, 0)])  # (when, done, bytes) of the last WINDOW_S
        self._expected = False
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._write_now_and_then, name="wenlan-pulse", daemon=True)
        self._thread.start()

    def expect(self, total: int | None, done: int) -> None:
        """Set how far it is. What is done already when it says so first was done by an earlier run: no rate of ours."""
        with self._lock:
            self.total, self.done = total, done
            if not self._expected:
                self._before = deque([(time.monotonic(), done, self.counts.get("bytes", 0))])
                self._expected = True

    def add(self, host: str, what: str, value: int) -> None:
        with self._lock:
            self._hosts.setdefault(host, Counter())[what] += value

    def pause(self, host: str, reason: str, until: float) -> None:
        """Note a pause of a host; pauses that are over are forgotten."""
        with self._lock:
            now = time.time()
            self._pauses = {name: said for name, said in self._pauses.items() if said[1] > now}
            self._pauses[host] = (reason, until)

    def end(self) -> None:
        """Stop writing, and take back what was written."""
        self._ended.set()
        self._thread.join()

    def _write_now_and_then(self) -> None:
        written = False
        while not self._ended.wait(PULSE_S):
            with contextlib.suppress(StoreError, OSError):  # a disk that fails here fails the partition's own files too
                written = True
                self._folder.write(self._name, json.dumps(self._as_json()).encode())
        if written:
            with contextlib.suppress(StoreError, OSError):
                self._folder.delete(self._name)

    def _as_json(self) -> dict[str, Any]:
        with self._lock:
            hosts = {host: dict(counts) for host, counts in self._hosts.items()}
            counts, pauses = self.counts.copy(), list(self._pauses.items())
            now, done, received = time.monotonic(), self.done, counts.get("bytes", 0)
            self._before.append((now, done, received))
            while len(self._before) > 2 and now - self._before[1][0] > WINDOW_S:
                self._before.popleft()
            then, done_then, received_then = self._before[0]
        passed = max(now - then, 0.001)
        busiest = sorted(hosts, key=lambda host: -max(hosts[host].get(n, 0) for n in ("asked", "kept", "failed")))
        return {
            "at": time.time(),
            "seconds": round(now - self._began, 1),
            "done": done,
            "total": self.total,
            "counts": counts,
            "rates": {
                "done": round((done - done_then) / passed, 3),
                "bytes": round((received - received_then) / passed, 1),
            },
            "hosts": {host: hosts[host] for host in busiest[:MOST_HOSTS]},
            "pauses": dict(sorted(pauses, key=lambda entry: -entry[1][1])[:MOST_HOSTS]),
        }


_pulse: contextvars.ContextVar[_Pulse | None] = contextvars.ContextVar("pulse", default=None)


@contextlib.contextmanager
def pulse(folder: Folder, partition: str) -> Iterator[None]:
    """Within the block, what the partition counts is shown in a stage's folder."""
    running = _Pulse(folder / PULSE, partition)
    token = _pulse.set(running)
    try:
        yield
    finally:
        _pulse.reset(token)
        running.end()


def expect(total: int | None, done: int = 0) -> None:
    """Say how many rows the running partition has in all, None if unknown, and how many are done already."""
    running = _pulse.get()
    if running is not None:
        running.expect(total, done)


def advance(rows: int = 1, **counts: int) -> None:
    """Count rows of the running partition that are done, and add to its figures, e.g. kept, failed, bytes."""
    running = _pulse.get()
    if running is not None:
        running.done += rows
        for name, more in counts.items():
            running.counts[name] = running.counts.get(name, 0) + more


def tell(**counts: int) -> None:
    """Set figures of the running partition, e.g. kept, failed, bytes, images, queue."""
    running = _pulse.get()
    if running is not None:
        running.counts.update(counts)


def of_host(host: str, what: str, value: int) -> None:
    """Add to what the running partition counts of a host: kept, failed or bytes."""
    running = _pulse.get()
    if running is not None:
        running.add(host, what, value)


def pause(host: str, reason: str, until: float) -> None:
    """Say that a host is paused. until: Unix time of its end."""
    running = _pulse.get()
    if running is not None:
        running.pause(host, reason, until)


def beats(folder: Folder) -> list[Beat]:
    """The partitions that are running in a stage's folder, as far as they have said something of late."""
    running, names = [], list[str]()
    with contextlib.suppress(StoreError, OSError):  # figures for people: a store that is busy hides them for a while
        names = (folder / PULSE).names()
    for name in names:
        with contextlib.suppress(StoreError, OSError, KeyError, TypeError):  # it may have ended meanwhile, or be old
            said: Mapping[str, Any] = (folder / PULSE).read_json(name)
            if not name.startswith(".") and time.time() - said["at"] <= LOST_S:
                values = {key: said[key] for key in ("seconds", "done", "total", "counts", "rates", "hosts", "pauses")}
                running.append(Beat(name.removesuffix(".json"), **values))
    return running


def clear(folder: Folder) -> None:
    """Delete the pulses of a stage's folder: those of workers that were killed."""
    with contextlib.suppress(StoreError, OSError):
        folder.delete(PULSE)
