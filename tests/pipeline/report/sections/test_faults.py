"""Section `faults`: first on the page where a decision is lost, and otherwise no part of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from pipeline.report.sections import faults
from pipeline.stages import STAGES, report
from pipeline.store.build import Build
from pipeline.store.partitions import DECISIONS

Run = Callable[[Build, str], None]


def test_a_lost_decision_is_the_first_thing_on_the_page(synthetic_build: Build, run_stage: Run) -> None:
    stage = synthetic_build.stage("filter")
    record = next(record for record in stage.records() if record.counts["dropped"])
    with stage.attempt(record.partition) as attempt:  # the same counts, but no decisions
        attempt.commit(record.counts)
    run_stage(synthetic_build, "shard")
    made = report.make(synthetic_build)
    assert any(fault.startswith("filter: its records count 3 dropped") for fault in made["faults"])
    main = report.render(made, STAGES).partition("<main")[2]
    assert main.partition("\n\n")[2].startswith('<section class="alert" role="alert">')
    assert main.count("<li>filter: its records count 3 dropped") == 1


def test_a_decision_that_is_lost_after_its_record_counted_it_is_a_fault_too(
    synthetic_build: Build, run_stage: Run, counted: Any
) -> None:
    """The funnel is made of what records count, so nothing was said of a file that lost a row since."""
    run_stage(synthetic_build, "shard")
    stage = synthetic_build.stage("filter")
    record = next(record for record in stage.records() if record.counts["dropped"])
    path = Path(stage.folder.at(record.files[DECISIONS].name))
    pq.write_table(pq.read_table(path).slice(1), path)
    files = record.files | {DECISIONS: record.files[DECISIONS].model_copy(update={"bytes": path.stat().st_size})}
    stage.write_record(record.model_copy(update={"files": files}))
    expected = ["filter: its files have 1 decisions more or fewer than its records count"]
    assert report.make(synthetic_build)["faults"] == expected
    assert faults.figures(counted(synthetic_build), {})["faults"] == expected, "of summaries, too"


def test_a_sound_build_has_no_alert(written: tuple[str, dict[str, Any]]) -> None:
    html, made = written
    assert made["faults"] == []
    assert 'class="alert"' not in html
