"""Estimates what a build yields and costs, from an earlier build: `wenlan-data plan`, with `--estimate N` per stage.

The reference is the newest published build of the same name that STORE knows, or else the newest of any name. What a
stage cost there, at the candidates that `admit` saw, grows to N as measured (`pipeline.report.growth`): in step with
the candidates in most stages, faster in those that compare pairs with each other. A stage that only large builds have
is taken from that measurement, by how fast the reference's machine was in the others.

On M workers a stage takes as long as its partitions are for M of them, or as its longest one, and what the driver does
around it. Steps that one worker does alone, and the driver, are the serial share.

Without such a build, ASSUMED stands in its place. What politeness costs follows from the spec alone: a host is asked
once per `delay_s`, whatever the machine.

Limits: checked up to a million drawn pairs on one machine (README of tests/benchmarks), extrapolated beyond. A stage
whose caches were warm in the reference, or will be in the build, costs less or more. Waiting for slow hosts is in
`seconds`, not in CPU seconds. Start-up of Ray and of its workers is in neither.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.files.folder import Folder
from pipeline.report.growth import PEAK, Growth, measured_growth
from pipeline.store import build_json
from pipeline.store.stage import Stages
from pipeline.store.store import Store

UNIT = "admit"
"""The stage whose `seen` is the number of candidates."""

COSTS = ("seconds", "cpu_seconds", "gpu_seconds", "bytes")
"""What adds up over stages: seconds of workers, of CPUs and of GPUs, and bytes written."""


@dataclass(frozen=True, slots=True)
class Machines:
    """What a build is to run on. price: of one worker for an hour, in any currency."""

    workers: int = 1
    price: float | None = None


def estimate(store: Store, name: str, candidates: int, stages: Stages, machines: Machines) -> dict[str, Any] | None:
    """`estimated` by the build to measure by; None if no build was published."""
    reference = _reference(store, name)
    if reference is None:
        return None
    by = {key: reference[key] for key in ("build_id", "snapshot")}
    by["candidates"] = reference["stages"][UNIT]["funnel"]["seen"]
    return {"by": by, **estimated(reference, candidates, stages, machines)}


def estimated(
    reference: Mapping[str, Any],
    candidates: int,
    stages: Stages,
    machines: Machines,
    growth: Growth | None = None,
) -> dict[str, Any]:
    """What so many candidates cost, by build.json of a build and by how stages grow.

    Per stage rows `seen`, COSTS, partitions, `wall_seconds` on the workers and `peak_bytes` of one; in `total` their
    sums, and the largest memory. serial_share: of the work, what only one worker can do. price: None without one.
    """
    known = _Known(reference, growth or measured_growth(), stages)
    by_stage = {name: own for name in stages if (own := known.stage(name, candidates, machines.workers)) is not None}
    total: dict[str, float] = {key: sum(own[key] for own in by_stage.values()) for key in (*COSTS, "wall_seconds")}
    total["peak_bytes"] = max(own["peak_bytes"] for own in by_stage.values())
    serial = sum(own["serial_seconds"] for own in by_stage.values())
    work = total["seconds"] + sum(own["driver_seconds"] for own in by_stage.values())
    return {
        "candidates": candidates,
        "workers": machines.workers,
        "stages": by_stage,
        "total": total,
        "serial_share": serial / work if work else 0.0,
        "price": machines.price and machines.price * machines.workers * total["wall_seconds"] / 3600,
    }


class _Known:
    """What a reference says of each stage, at any number of candidates."""

    def __init__(self, reference: Mapping[str, Any], growth: Growth, stages: Stages) -> None:
        self._own, self._growth, self._stages = reference["stages"], growth, stages
        self._seen = self._own[UNIT]["funnel"]["seen"]

    def stage(self, name: str, candidates: int, workers: int) -> dict[str, float] | None:
        """The figures of a stage; None for one that such a build does not have."""
        figures = self._from_reference(name, candidates) or self._from_growth(name, candidates)
        if figures is None:
            return None
        parts = max(1, round(figures["partitions"]))
        wall = figures["driver_seconds"] + max(figures["seconds"] / min(workers, parts), figures["longest_seconds"])
        alone = figures["seconds"] if parts == 1 and self._stages[name].fixed_partitions else 0.0
        rounded = {key: round(value, 1) for key, value in figures.items()}
        more = {"wall_seconds": round(wall, 1), "serial_seconds": round(figures["driver_seconds"] + alone, 1)}
        return {**rounded, "partitions": parts, **more}

    def _from_reference(self, name: str, candidates: int) -> dict[str, float] | None:
        own = self._own.get(name)
        if own is None or not own["partitions"]:
            return None
        fixed, factor = self._stages[name].fixed_partitions, candidates / self._seen
        bounds = {**dataclasses.asdict(build_json.Bounds()), **own.get("bounds", {})}  # an older wenlan noted none
        grown = {key: own["cost"][key] * self._ratio(name, key, candidates) for key in COSTS}
        return {
            **grown,
            "seen": own["funnel"].get("seen", 0) * factor,
            "partitions": own["partitions"] * (1 if fixed else max(1.0, factor)),
            "driver_seconds": bounds["driver_seconds"] * self._ratio(name, "driver_seconds", candidates),
            # partitions are of one size, however many; where their number is fixed, they are of another
            "longest_seconds": bounds["longest_seconds"] * (self._ratio(name, "seconds", candidates) if fixed else 1.0),
            "peak_bytes": max(bounds["peak_bytes"], self._growth.at(name, PEAK, candidates)),
        }

    def _from_growth(self, name: str, candidates: int) -> dict[str, float] | None:
        """Of a stage that builds have from some size on, and the reference had not."""
        if name not in self._own or not self._growth.at(name, "seconds", candidates):
            return None
        times = ("seconds", "cpu_seconds", "gpu_seconds", "driver_seconds", "longest_seconds")
        timed = {key: self._growth.at(name, key, candidates) * self._slowness for key in times}
        return {
            **timed,
            **{key: self._growth.at(name, key, candidates) for key in ("seen", "bytes", "partitions", PEAK)},
        }

    def _ratio(self, name: str, figure: str, candidates: int) -> float:
        return self._growth.ratio(name, figure, self._seen, candidates)

    @functools.cached_property
    def _slowness(self) -> float:
        """CPU time of the reference over that of the machine on which growth was measured, at the same size."""
        mine = theirs = 0.0
        for name, own in self._own.items():
            measured = self._growth.at(name, "cpu_seconds", self._seen)
            if own["cost"]["cpu_seconds"] and measured:
                mine, theirs = mine + own["cost"]["cpu_seconds"], theirs + measured
        return mine / theirs if theirs else 1.0


@dataclass(frozen=True, slots=True)
class Pace:
    """Requests that a source costs: `pages` to crawl and `candidates` to fetch, of `hosts` hosts.

    candidates: None where they are to be found on the pages. busiest_host: share of the images that one host has, 0 for
    images that lie in the source. delay_s: between two requests to a host. bytes: of images that lie in the source.
    """

    candidates: int | None
    pages: int
    hosts: int
    busiest_host: float
    delay_s: float
    bytes: int = 0


@dataclass(frozen=True, slots=True)
class Measured:
    """What one page and one candidate came to. bytes: written by all stages together; cpu_seconds likewise."""

    build_id: str
    candidates_per_page: float
    kept: float
    bytes: float
    cpu_seconds: float


ASSUMED = Measured("", candidates_per_page=4.0, kept=0.5, bytes=250_000.0, cpu_seconds=0.02)
"""Where no build was published yet: ordinary web pages, images of 150 kB, one copy in `images` and one in `shards`."""


@dataclass(frozen=True, slots=True)
class Forecast:
    """What a build would yield and cost, about. bytes: on disk. crawl_seconds, fetch_seconds: at least, for politeness
    alone."""

    candidates: int
    pairs: int
    bytes: int
    crawl_seconds: float
    fetch_seconds: float
    cpu_seconds: float
    by: Measured


def forecast(store: Store, name: str, sources: Sequence[Pace]) -> Forecast:
    """The forecast for a dataset of that name. Sites are crawled at the same time, and hosts asked for images too."""
    by = _measured(store, name) or ASSUMED
    candidates = fetch_seconds = size = 0.0
    for source in sources:
        own = source.pages * by.candidates_per_page if source.candidates is None else source.candidates
        share = 1 / max(1, source.hosts) if source.candidates is None else source.busiest_host
        candidates, fetch_seconds = candidates + own, max(fetch_seconds, own * share * source.delay_s)
        size += (1 + by.kept) * source.bytes or own * by.bytes
    return Forecast(
        candidates=round(candidates),
        pairs=round(candidates * by.kept),
        bytes=round(size),
        crawl_seconds=max(
            (s.pages * s.delay_s / max(1, s.hosts) for s in sources if s.candidates is None), default=0.0
        ),
        fetch_seconds=fetch_seconds,
        cpu_seconds=round(candidates * by.cpu_seconds, 1),
        by=by,
    )


def _measured(store: Store, name: str) -> Measured | None:
    """What a page and a candidate came to in the build to measure by."""
    reference = _reference(store, name)
    if reference is None:
        return None
    funnels = {stage: measured["funnel"] for stage, measured in reference["stages"].items()}
    seen, pages = funnels[UNIT]["seen"], funnels.get("extract", {}).get("pages", 0)
    per_page = funnels["extract"]["kept"] / pages if pages else ASSUMED.candidates_per_page
    cost = {key: sum(s["cost"][key] for s in reference["stages"].values()) for key in ("bytes", "cpu_seconds")}
    kept = funnels.get("shard", {}).get("kept", ASSUMED.kept * seen) / seen
    return Measured(reference["build_id"], per_page, kept, cost["bytes"] / seen, cost["cpu_seconds"] / seen)


def _reference(store: Store, name: str) -> dict[str, Any] | None:
    """build.json of the build to measure by: one of this name if there is any, and the newest of those."""
    builds = sorted(store.registered(), key=lambda entry: entry["name"] == name)  # stable: the newest of a name is last
    for entry in reversed(builds):
        build = build_json.read(Folder(entry["out"]))
        stages = build.get("stages", {})
        if all("cost" in s for s in stages.values()) and stages.get(UNIT, {}).get("funnel", {}).get("seen"):
            return build
    return None
