"""Section `cost`: what the records say of a stage, and what the run noted of it if it was this one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from pipeline.report.sections.cost import stage_costs
from pipeline.store.build import Build

Run = Callable[[Build, str], None]


def test_what_a_run_noted_counts_only_for_the_results_that_it_made(synthetic_build: Build, run_stage: Run) -> None:
    run_stage(synthetic_build, "shard")
    rows = {row["stage"]: row for row in stage_costs(synthetic_build)}
    assert rows["shard"]["partitions"] == len(synthetic_build.stage("shard").records())
    assert (rows["shard"]["wall_seconds"], rows["shard"]["gpu_seconds"]) == (None, None)
    assert "report" not in rows, "it has no record yet"

    noted = {"seconds": 12.5, "cost": {"gpu_seconds": 3.0}}
    stages = {
        "shard": {**noted, "fingerprint": synthetic_build.fingerprints["shard"]},
        "filter": {**noted, "fingerprint": "of another run"},
    }
    (Path(synthetic_build.out) / "build.json").write_text(json.dumps({"stages": stages}), encoding="utf-8")
    rows = {row["stage"]: row for row in stage_costs(synthetic_build)}
    assert (rows["shard"]["wall_seconds"], rows["shard"]["gpu_seconds"]) == (12.5, 3.0)
    assert (rows["filter"]["wall_seconds"], rows["filter"]["gpu_seconds"]) == (None, None)
