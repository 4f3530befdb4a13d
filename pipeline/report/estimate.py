"""Estimates the cost of a build of N candidates from an earlier build: `wenlan-data plan SPEC --estimate N`.

The reference is the newest published build of the same name that STORE knows, or else the newest of any name. Rows and
cost of every stage are scaled by N over the candidates that `admit` saw there.

Limits: the estimate is linear, from one measurement. `lead` grows a little faster than that (README, Limits). A stage
whose caches were warm then, or will be now, costs less or more. Waiting for slow hosts is in `seconds`, not in CPU
seconds.
"""

from __future__ import annotations

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
