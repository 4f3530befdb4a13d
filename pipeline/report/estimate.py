"""Estimates what a build yields and costs, from an earlier build: `wenlan-data plan`, with `--estimate N` per stage.

The reference is the newest published build of the same name that STORE knows, or else the newest of any name. Rows and
cost of every stage are scaled by N over the candidates that `admit` saw there.

Without such a build, ASSUMED stands in its place. What politeness costs follows from the spec alone: a host is asked
once per `delay_s`, whatever the machine.

Limits: the estimate is linear, from one measurement. `lead` grows a little faster than that (README, Limits). A stage
whose caches were warm then, or will be now, costs less or more. Waiting for slow hosts is in `seconds`, not in CPU
seconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.files.folder import Folder
from pipeline.store import build_json
from pipeline.store.store import Store

UNIT = "admit"
"""The stage whose `seen` is the number of candidates."""


def estimate(store: Store, name: str, candidates: int) -> dict[str, Any] | None:
    """Rows, worker seconds, CPU seconds, GPU seconds and bytes per stage for that many candidates, and their total.

    None if there is no published build to measure by.
    """
    reference = _reference(store, name)
    if reference is None:
        return None
    factor = candidates / reference["stages"][UNIT]["funnel"]["seen"]
    stages = {stage: _scaled(measured, factor) for stage, measured in reference["stages"].items()}
    total = {key: sum(stage[key] for stage in stages.values()) for key in next(iter(stages.values())) if key != "seen"}
    by = {key: reference[key] for key in ("build_id", "snapshot")}
    return {"candidates": candidates, "by": by, "stages": stages, "total": total}


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


def _scaled(stage: dict[str, Any], factor: float) -> dict[str, float]:
    """A stage's rows and cost, multiplied by `factor`."""
    seen = stage["funnel"].get("seen", 0)
    return {"seen": round(seen * factor), **{key: round(value * factor, 1) for key, value in stage["cost"].items()}}
