"""What a build of N candidates would cost, from what an earlier one took. `wenlan-data plan SPEC --estimate N`.

The newest published build of the same name that STORE knows is the measure, else the newest of any name. Each stage's
rows grow with the candidates that `admit` saw, and its cost with its rows.

Limits: a straight line through one point. `lead` grows a little faster than that (README, Limits); a stage whose
caches were warm then, or will be now, costs less or more; waiting for slow hosts is in `seconds`, not in CPU seconds.
"""

from __future__ import annotations

from typing import Any

from pipeline.files.folder import Folder
from pipeline.store.store import Store

UNIT = "admit"
"""The stage whose `seen` are the candidates."""


def estimate(store: Store, name: str, candidates: int) -> dict[str, Any] | None:
    """Rows, worker seconds, CPU seconds, GPU seconds and bytes by stage for so many candidates, and their sum.

    None if no published build is there to measure by.
    """
    known = _measure(store, name)
    if known is None:
        return None
    factor = candidates / known["stages"][UNIT]["funnel"]["seen"]
    stages = {stage: _grown(found, factor) for stage, found in known["stages"].items()}
    total = {key: sum(stage[key] for stage in stages.values()) for key in next(iter(stages.values())) if key != "seen"}
    by = {key: known[key] for key in ("build_id", "snapshot")}
    return {"candidates": candidates, "by": by, "stages": stages, "total": total}


def _measure(store: Store, name: str) -> dict[str, Any] | None:
    """build.json of the build to measure by: of this name before any other, and then the newest."""
    builds = sorted(store.registered(), key=lambda entry: entry["name"] == name)  # stable: newest last among equals
    for entry in reversed(builds):
        folder = Folder(entry["out"])
        known: dict[str, Any] = folder.read_json("build.json") if folder.exists("build.json") else {}
        stages = known.get("stages", {})
        if all("cost" in s for s in stages.values()) and stages.get(UNIT, {}).get("funnel", {}).get("seen"):
            return known
    return None


def _grown(stage: dict[str, Any], factor: float) -> dict[str, float]:
    """A stage's rows and cost, so many times over."""
    seen = stage["funnel"].get("seen", 0)
    return {"seen": round(seen * factor), **{key: round(value * factor, 1) for key, value in stage["cost"].items()}}
