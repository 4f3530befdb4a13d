"""Section `faults`: first on the page where a decision is lost, and otherwise no part of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pipeline.stages import STAGES, report
from pipeline.store.build import Build

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


def test_a_sound_build_has_no_alert(written: tuple[str, dict[str, Any]]) -> None:
    html, made = written
    assert made["faults"] == []
    assert 'class="alert"' not in html
