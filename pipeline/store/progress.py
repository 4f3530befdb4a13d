"""Progress of a running stage: the same figures for the build's own terminal, its log lines and `wenlan-data status`.

They are sums over what partitions have committed (their records) and what running ones say of themselves (their pulses,
`pipeline.processes.pulse`). What is held does not grow with the data: one sum, and one entry per partition that runs.

Limits: an estimate of the time left takes what is to come to be like what was. On an object store the figures are read
every FAR_S seconds only, since each look is a request per running partition.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from pipeline.processes import pulse
from pipeline.processes.pulse import Beat
from pipeline.rows.records import rfc3339
from pipeline.store.build import Build, Pass
from pipeline.store.commits import Record

LONG_S = 3600
"""Seconds from which the wait for a host is shown, with what would shorten it."""

NEAR_S, FAR_S = 1.0, 10.0
"""Seconds between two looks at the figures of a build on a disk, and on an object store."""


@dataclass(frozen=True, slots=True)
class HostPause:
    """A host that is paused. reason: e.g. `status 429`, `connection`. until: RFC 3339, UTC. seconds: until then."""

    host: str
    reason: str
    until: str
    seconds: float

    def line(self) -> str:
        """The pause as people read it."""
        return f"{self.host} paused until {self.until} ({duration(self.seconds)} left): {self.reason}"


@dataclass(frozen=True, slots=True)
class Figures:
    """Progress figures of a pass.

    unit: what it counts, e.g. rows, pages, images. share: of the pass that is done, 0 to 1; None where that is unknown.
    done: rows of committed and running partitions; total: rows in all, once every partition runs or is committed.
    kept, failed: what became of them. rates: done and bytes per second of late. more: other figures of its partitions.
    left_seconds: None if unknown. hosts: kept, failed, bytes, per_second, left_seconds by host, the busiest first.
    pauses: of hosts that are paused now, the longest first.
    """

    name: str
    unit: str
    partitions: int
    committed: int
    running: int = 0
    share: float | None = 0.0
    done: int = 0
    total: int | None = None
    kept: int = 0
    failed: int = 0
    rates: dict[str, float] = field(default_factory=dict)
    more: dict[str, int] = field(default_factory=dict)
    left_seconds: float | None = None
    hosts: dict[str, dict[str, float]] = field(default_factory=dict)
    pauses: tuple[HostPause, ...] = ()

    def line(self) -> str:
        """The figures as people read them, without the name of the pass."""
        of = f" of {self.total:,}" if self.total is not None and self.total >= self.done else ""
        parts = [f"{self.done:,}{of} {self.unit}"] if self.done or of else []
        parts += [f"{self.more['images']:,} images"] if self.more.get("images") and self.unit != "images" else []
        parts += (
            [f"{self.failed:,} {'failed' if self.unit in ('pages', 'images') else 'dropped'}"] if self.failed else []
        )
        parts += [f"{size_of(self.rates['bytes'])}/s"] if self.rates.get("bytes") else []
        parts += [f"{self.more['queue']:,} queued"] if "queue" in self.more else []
        parts += [f"{self.committed:,} of {self.partitions:,} partitions"] if self.partitions > 1 or not parts else []
        parts += [f"{duration(self.left_seconds)} left"] if self.left_seconds is not None else []
        left, host = max(((seen["left_seconds"], host) for host, seen in self.hosts.items()), default=(0.0, ""))
        parts += [f"slowest host {host}: {duration(left)}"] if left >= LONG_S else []
        parts += [self.pauses[0].line()] if self.pauses else []
        parts += [f"{len(self.pauses) - 1:,} more paused"] if len(self.pauses) > 1 else []
        return ", ".join(parts)


class Progress(Protocol):
    """Receives the progress of a build. Called from several threads."""

    def update(self, figures: Figures) -> None:
        """Take the newest figures of the running stage."""

    def starting(self, what: str) -> contextlib.AbstractContextManager[object]:
        """A block within which something starts, such as Ray, and nothing else happens."""


class Silent:
    """Reports nothing."""

    def update(self, figures: Figures) -> None:
        """Nothing."""

    def starting(self, what: str) -> contextlib.AbstractContextManager[object]:
        """A block."""
        return contextlib.nullcontext()


class Watch:
    """Tells how far a stage is while its partitions run. Use as a context manager around them.

    committed: records that were there before. Pulses that are there before are of workers that were killed.
    """

    def __init__(
        self, build: Build, name: str, partitions: int, committed: Iterable[Record], progress: Progress
    ) -> None:
        self._pass, self._folder = build.passes[name], build.stage(name).folder
        self._partitions, self._progress = partitions, progress
        self._counts, self._beats = Counter[str](), list[Beat]()
        self._committed = self._before = 0
        for record in committed:
            self._counts.update(record.counts)
            self._before += 1
        self._committed, self._began = self._before, time.monotonic()
        self._ended, self._lock = threading.Event(), threading.Lock()
        self._thread = threading.Thread(target=self._look_now_and_then, name="wenlan-progress", daemon=True)

    def __enter__(self) -> Watch:
        pulse.clear(self._folder)
        self._report_progress()
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        self._thread.join()
        pulse.clear(self._folder)

    def commit(self, records: Sequence[Record]) -> None:
        """Count partitions that were just committed."""
        done = {record.partition for record in records}
        with self._lock:
            self._counts.update(counts_of(records))
            self._committed += len(records)
            self._beats = [beat for beat in self._beats if beat.partition not in done]
        self._report_progress()

    def _look_now_and_then(self) -> None:
        while not self._ended.wait(NEAR_S if self._folder.is_local else FAR_S):
            beats = pulse.beats(self._folder)
            with self._lock:
                self._beats = beats
            self._report_progress()

    def _report_progress(self) -> None:
        with self._lock:
            ran = Ran(self._committed - self._before, time.monotonic() - self._began)
            now = figures(self._pass, self._partitions, self._committed, self._counts, self._beats, ran)
        self._progress.update(now)


@dataclass(frozen=True, slots=True)
class Ran:
    """Work of this run of a stage: partitions committed, and the seconds since it began."""

    partitions: int
    seconds: float


def counts_of(records: Iterable[Record]) -> Counter[str]:
    """Sums the counts of partitions, by the name of the count."""
    counts = Counter[str]()
    for record in records:
        counts.update(record.counts)
    return counts


def figures(
    own: Pass, partitions: int, committed: int, counts: Mapping[str, int], beats: Sequence[Beat], ran: Ran
) -> Figures:
    """The figures of a pass. counts: of its committed partitions together; beats: of those that run."""
    said = Counter[str]()
    for beat in beats:
        said.update(beat.counts)
    shares = sum(beat.share for beat in beats)
    waiting = max(0, partitions - committed - len(beats))
    done = sum(counts.get(name, 0) for name in own.done) + sum(beat.done for beat in beats)
    unknown = [beat for beat in beats if beat.total is None]
    total = None
    if not waiting and not unknown and beats:
        total = done + sum(max(0, int(beat.total or 0) - beat.done) for beat in beats)
    share = min(1.0, (committed + shares) / partitions) if partitions else 1.0
    return Figures(
        name=own.name,
        unit=own.unit,
        partitions=partitions,
        committed=committed,
        running=len(beats),
        share=None if unknown and partitions == len(unknown) else round(share, 4),
        done=done,
        total=total,
        kept=counts.get("kept", 0) + said["kept"],
        failed=counts.get("failed", counts.get("dropped", 0)) + said["failed"],
        rates={name: round(sum(beat.rates.get(name, 0.0) for beat in beats), 2) for name in ("done", "bytes")},
        more={name: counts.get(name, 0) + said[name] for name in ("images", "bytes", "queue") if name in said},
        left_seconds=_seconds_left(partitions - committed, waiting, shares, beats, ran),
        hosts=_hosts(beats, waiting),
        pauses=_pauses(beats),
    )


def _seconds_left(missing: int, waiting: int, shares: float, beats: Sequence[Beat], ran: Ran) -> float | None:
    """Estimates the seconds that a pass still takes; None if unknown.

    Where partitions wait, as many as were done per second so far; where all of them run, what the last one still takes.
    """
    if not waiting and beats:
        each = [beat.left_seconds for beat in beats]
        known = [seconds for seconds in each if seconds is not None]
        return round(max(known), 1) if len(known) == len(each) else None
    done = ran.partitions + shares
    return round(ran.seconds / done * (missing - shares), 1) if done > 0 and missing else None


def _hosts(beats: Sequence[Beat], waiting: int) -> dict[str, dict[str, float]]:
    """Requests of running partitions by host, the busiest first.

    kept, failed, bytes: sums over these partitions so far; per_second: answers per second since they began;
    left_seconds: at this pace, until it has answered for these partitions and for as many in each that waits; 0 where
    that is unknown. Partitions are hashes of image URLs, so each has a like share of a host.
    """
    totals: dict[str, Counter[str]] = {}
    rates: dict[str, float] = {}
    for beat in beats:
        for host, counts in beat.hosts.items():
            totals.setdefault(host, Counter()).update(counts)
            answers = counts.get("kept", 0) + counts.get("failed", 0)
            rates[host] = rates.get(host, 0.0) + answers / max(beat.seconds, pulse.PULSE_S)
    hosts = {}
    for host, said in totals.items():
        left = max(0, said["asked"] - said["kept"] - said["failed"]) + said["asked"] * waiting / len(beats)
        hosts[host] = {
            **{name: said[name] for name in ("kept", "failed", "bytes")},
            "per_second": round(rates[host], 2),
            "left_seconds": round(left / rates[host], 2) if rates[host] else 0,
        }
    return dict(sorted(hosts.items(), key=lambda entry: (-entry[1]["per_second"], entry[0])))


def _pauses(beats: Sequence[Beat]) -> tuple[HostPause, ...]:
    """Pauses of hosts that are not over, the longest first; of several partitions the last of each host."""
    now, last = time.time(), dict[str, tuple[str, float]]()
    for beat in beats:
        for host, (reason, until) in beat.pauses.items():
            if until > max(now, last.get(host, ("", 0.0))[1]):
                last[host] = (reason, until)
    pauses = (HostPause(host, why, rfc3339(until - now), round(until - now, 1)) for host, (why, until) in last.items())
    return tuple(sorted(pauses, key=lambda pause: (-pause.seconds, pause.host)))


def size_of(size: float) -> str:
    """Bytes as people read them: `1.2 MB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" or size >= 100 else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:,.1f} TB"


def duration(seconds: float) -> str:
    """Seconds as people read them: `40 s`, `12 min`, `3.5 hours`, `2.1 days`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} hours" if seconds < 48 * 3600 else f"{seconds / 86400:.1f} days"
