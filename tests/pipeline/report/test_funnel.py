"""The funnel: what happened to every candidate, and that no row was lost."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest

from pipeline.report.funnel import faults, read_funnels, top_reasons
from pipeline.rows.decisions import DropReason, drop_capture
from pipeline.store.build import Build
from pipeline.store.frames import Frames

pytestmark = pytest.mark.slow

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


def test_the_most_frequent_reasons_are_those_of_the_funnel_with_an_example_that_has_it(
    synthetic_build: Build, synthetic: Any, run_stage: Run
) -> None:
    run_stage(synthetic_build, "shard")
    expected = synthetic.expected_funnel()
    assert top_reasons(synthetic_build, "dedup", sources=["nobody"]) == []
    assert sum(reason.count for reason in top_reasons(synthetic_build, "dedup", sources=["table", "pages"])) == 5
    for stage in {name for name, _ in expected} - {"extract", "crawl"}:
        counts = {(r.stage, r.reason): r.count for r in top_reasons(synthetic_build, stage, limit=99)}
        assert counts == {key: n for key, n in expected.items() if key[0] == stage and key[1] not in ("", "known")}
    rows = [row for table in Frames.of(synthetic_build).tables("decisions") for row in table.to_pylist()]
    [first] = top_reasons(synthetic_build, "filter", limit=1)
    assert any(
        (row["reason"], row["url"], row["evidence"]) == (first.reason, first.url, first.evidence) for row in rows
    )


def test_an_owner_who_opted_out_is_counted_and_not_named(make_build: Any) -> None:
    build = make_build(sources=[{"kind": "site", "name": "s", "source_kind": "news", "start": ["http://a.cn/"]}])
    for number in range(8):
        reason = DropReason.OPT_OUT if number % 2 else DropReason.HTTP_STATUS
        with build.stage("crawl").attempt(f"s{number}") as attempt:
            attempt.decide([drop_capture(f"http://a.cn/{number}/{i}", "s", "crawl", reason, "why") for i in range(3)])
            attempt.commit({"dropped": 3})
    status, opt_out = top_reasons(build, "crawl")
    assert (status.reason, status.count, status.url) == ("http_status", 12, "http://a.cn/0/0")
    assert (opt_out.reason, opt_out.count, opt_out.url, opt_out.evidence) == ("opt_out", 12, "", "")


def test_a_lost_decision_is_a_fault_of_the_funnel(synthetic_build: Build, run_stage: Run) -> None:
    stage = synthetic_build.stage("filter")
    record = next(record for record in stage.records() if record.counts["dropped"])
    stage.delete_record(record.partition)
    with stage.attempt(record.partition) as attempt:  # the same counts, but no decisions
        attempt.commit(record.counts)
    run_stage(synthetic_build, "shard")
    candidates, _ = read_funnels(synthetic_build)
    lost = record.counts["dropped"]
    assert f"filter: its records count 3 dropped, but its decisions {3 - lost}" in faults(synthetic_build, candidates)
