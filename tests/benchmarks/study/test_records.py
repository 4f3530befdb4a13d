"""Records of a study in one file say what its runs say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.benchmarks.study.records import COMMITTED, collect, load, save
from tests.benchmarks.study.results import CLAIMS, judge
from tests.benchmarks.study.runs import PLANS, go_on


@pytest.mark.drill(10)
def test_verdicts_of_the_file_are_those_of_the_runs(
    make_study: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = make_study("moco", "clip", samples=64)
    assert go_on(study, 1, float("inf"))
    monkeypatch.setitem(PLANS, "test", study.plan)
    own = collect(study)
    save(own, tmp_path / "records.json")
    kept = load(tmp_path / "records.json")
    for claim in CLAIMS:
        one, other = (judge(claim, r.figures(), r.families) for r in (own, kept))
        assert one.state == other.state
        if one.gain is not None and other.gain is not None:
            assert (one.gain.low, one.gain.high) == pytest.approx((other.gain.low, other.gain.high), abs=1e-4)
    assert kept.training == own.training
    assert kept.galleries == own.galleries


def test_the_repositorys_records_are_small_and_hold_the_decisive_arms() -> None:
    records = load(COMMITTED)
    assert COMMITTED.stat().st_size < 150_000
    assert {"moco", "clip", "moco-k0", "clip-learned", "clip-b64"} <= {a for a, runs in records.trials.items() if runs}
    assert all(figures.samples == records.plan.samples for figures in records.figures().values())
