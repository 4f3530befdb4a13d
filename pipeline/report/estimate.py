"""Estimates the yield and cost of a build from the newest published build of its dataset (`wenlan-data plan`).

Seconds, CPU and GPU seconds, bytes and pairs of that build are multiplied by the candidates of the new build over its
own; the memory of a worker stays that of its largest partition. If STORE lacks a build of this name, the newest of any
name is used; without one, nothing is estimated. What politeness costs follows from the spec alone: a host gets one
request per `delay_s`, whatever the machine.

Limits: most of what a build of a few hundred candidates costs is start-up, and stages that compare pairs with each
other grow faster than the candidates. Waiting for slow hosts is in `seconds`, not in CPU seconds. Start-up of Ray and
of its workers is in neither.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.errors import StoreError
from pipeline.files.folder import Folder
from pipeline.store import build_json
from pipeline.store.build_json import Cost
from pipeline.store.store import Store

UNIT = "admit"
"""The stage whose `seen` is the number of candidates."""


@dataclass(frozen=True, slots=True)
class Reference:
    """A published build to measure by. name: of its dataset. per_page: candidates of a page, 0 if it read no pages.

    costs: by stage. peaks: the most memory of a worker, by pass.
    """

    name: str
    build_id: str
    snapshot: str
    candidates: int
    pairs: int
    per_page: float
    costs: Mapping[str, Cost]
    peaks: Mapping[str, int]

    @staticmethod
    def newest(store: Store, name: str) -> Reference | None:
        """The newest published build of this name that STORE knows, else the newest of any; None without one."""
        builds = sorted(store.registered(), key=lambda entry: entry["name"] == name)  # stable: the newest is last
        for entry in reversed(builds):
            try:
                build = build_json.read(Folder(entry["out"]))
            except StoreError:  # of another version, or damaged: another one will do
                continue
            funnels = {stage: noted["funnel"] for stage, noted in build.get("stages", {}).items()}
            if candidates := funnels.get(UNIT, {}).get("seen"):
                extracted, pairs = funnels.get("extract", {}), funnels.get("shard", {}).get("kept", 0)
                per_page = extracted["kept"] / extracted["pages"] if extracted.get("pages") else 0.0
                costs = {stage: Cost(**noted["cost"]) for stage, noted in build["stages"].items()}
                peaks = {name: noted["cost"]["peak_bytes"] for name, noted in build["passes"].items()}
                known = entry["name"], build["build_id"], build["snapshot"]
                return Reference(*known, candidates, pairs, per_page, costs, peaks)
        return None

    def estimate(self, candidates: int) -> dict[str, Any]:
        """Pairs, the cost of each stage and their sum for so many candidates, and the build they are scaled from."""
        factor = candidates / self.candidates
        costs = {name: _times(cost, factor) for name, cost in self.costs.items()}
        return {
            "by": {"build_id": self.build_id, "snapshot": self.snapshot, "candidates": self.candidates},
            "candidates": candidates,
            "pairs": round(self.pairs * factor),
            "stages": {name: dataclasses.asdict(cost) for name, cost in costs.items()},
            "total": dataclasses.asdict(sum(costs.values(), Cost())),
        }


def _times(cost: Cost, factor: float) -> Cost:
    """The cost of `factor` times as many partitions of the same size."""
    seconds, cpu_seconds, gpu_seconds = (
        round(value * factor, 3) for value in (cost.seconds, cost.cpu_seconds, cost.gpu_seconds)
    )
    return Cost(seconds, cpu_seconds, gpu_seconds, round(cost.bytes * factor), cost.peak_bytes)


@dataclass(frozen=True, slots=True)
class Pace:
    """Requests that a source costs: `candidates` to fetch, and its `pages` where it crawls them.

    candidates: None if they are yet to be found on the pages. share: of the pages and images that the slowest host has,
    0 for images that lie in the source. delay_s: between two requests to it. host: its name, "" if unknown.
    """

    candidates: int | None
    pages: int
    share: float
    delay_s: float
    host: str = ""
    crawls: bool = False

    def expected_candidates(self, reference: Reference | None) -> int | None:
        """Candidates, those on pages as in the reference; None if nothing tells."""
        if self.candidates is not None:
            return self.candidates
        return round(self.pages * reference.per_page) if reference and reference.per_page else None

    def crawl_seconds(self) -> float:
        """Least time for its pages."""
        return self.pages * self.share * self.delay_s if self.crawls else 0.0

    def fetch_seconds(self, reference: Reference | None) -> float:
        """Least time for the images of its slowest host."""
        return (self.expected_candidates(reference) or 0) * self.share * self.delay_s


def forecast(sources: Sequence[Pace], reference: Reference | None) -> dict[str, Any]:
    """Candidates and pages of all sources, and the least seconds for politeness.

    candidates: None if a source has only pages, without a reference. Sites are crawled at the same time, and hosts
    are asked for images at the same time. slowest_host: one for which a build waits longest, "" if it waits for none
    that is known.
    """
    waits = [(own.crawl_seconds() + own.fetch_seconds(reference), own.host) for own in sources]
    expected = [source.expected_candidates(reference) for source in sources]
    return {
        "candidates": None if None in expected else sum(number or 0 for number in expected),
        "pages": sum(source.pages for source in sources if source.candidates is None),
        "crawl_seconds": max((source.crawl_seconds() for source in sources), default=0.0),
        "fetch_seconds": max((source.fetch_seconds(reference) for source in sources), default=0.0),
        "slowest_host": max(waits)[1] if waits and max(waits)[0] else "",
    }
