"""The funnel: what happened to every candidate, and that no row was lost."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

from pipeline.report.funnel import faults, read_funnels
from pipeline.store.build import Build

Run = Callable[[Build, str], None]


def test_the_funnel_adds_up_by_stage_source_and_reason(synthetic_build: Build, synthetic: Any, run_stage: Run) -> None:
    run_stage(synthetic_build, "shard")
    candidates, captures = read_funnels(synthetic_build)
    expected = synthetic.expected_funnel()
    assert candidates.total == sum(expected.values())
    by_stage = {(s.stage, reason): n for s in candidates.stages(list(synthetic.FATES)) for reason, n in s.reasons}
    assert {**by_stage, ("shard", ""): candidates.kept} == expected
    stages = candidates.stages(list(synthetic.FATES))
    for row, following in itertools.pairwise(stages):
        assert row.seen == row.kept + row.dropped
        assert row.kept == following.seen
    parts = [candidates.of_source(name) for name in candidates.sources()]
    assert sum(part.total for part in parts) == candidates.total
    assert sum(part.kept for part in parts) == candidates.kept
    assert (captures.total, captures.kept, captures.reasons()) == (12, 10, [("http_status", 2)])
    assert faults(synthetic_build, candidates, captures) == []


def test_a_lost_decision_is_a_fault_of_the_funnel(synthetic_build: Build, run_stage: Run) -> None:
    stage = synthetic_build.stage("filter")
    record = next(record for record in stage.records() if record.counts["dropped"])
    with stage.attempt(record.partition) as attempt:  # the same counts, but no decisions
        attempt.commit(record.counts)
    run_stage(synthetic_build, "shard")
    candidates, _ = read_funnels(synthetic_build)
    lost = record.counts["dropped"]
    assert f"filter: its records count 3 dropped, the decisions say {3 - lost}" in faults(synthetic_build, candidates)
