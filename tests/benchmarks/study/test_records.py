"""Records of a study in one file say what its runs say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.benchmarks.study.conftest import plan
from tests.benchmarks.study.records import COMMITTED, add, collect, load, save
from tests.benchmarks.study.results import CLAIMS, judge
from tests.benchmarks.study.runs import PLANS, go_on
from tests.benchmarks.study.test_page import record
from training.errors import InputError


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


def test_runs_are_added_to_records_and_a_run_done_again_replaces_its_own(
    make_study: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "records.json"

    def checkout(name: str, figures: dict[tuple[str, int], float], **changes: Any) -> Any:
        study = make_study("moco", "clip", name=name, seeds=(0, 1, 2), **changes)
        monkeypatch.setitem(PLANS, "test", study.plan)
        for task in (task for arm in study.plan.arms for task in study.reported(arm)):
            if (task.arm.name, task.seed) in figures:
                record(study, task, figures[task.arm.name, task.seed])
        return study

    save(collect(checkout("first", {("moco", 0): 0.1, ("moco", 1): 0.2, ("clip", 0): 0.3})), path)
    add(checkout("second", {("moco", 1): 0.4, ("moco", 2): 0.5}), path)
    kept = {(t.arm, t.seed): t.points[-1].i2t["style"] for runs in load(path).trials.values() for t in runs}
    assert kept == {("moco", 0): 0.1, ("moco", 1): 0.4, ("moco", 2): 0.5, ("clip", 0): 0.3}
    before = path.read_bytes()
    for other, why in (
        ({"styles": plan("moco").styles[1:]}, "have other packages, galleries or sizes"),
        ({"samples": 640}, "its runs of moco have another setting"),
    ):
        with pytest.raises(InputError, match=why):
            add(checkout(f"other {why}", {("moco", 0): 0.1}, **other), path)
    assert path.read_bytes() == before


def test_the_repositorys_records_are_small_and_hold_the_decisive_arms() -> None:
    records = load(COMMITTED)
    assert COMMITTED.stat().st_size < 150_000
    assert {"moco", "clip", "moco-k0", "clip-learned", "clip-b64"} <= {a for a, runs in records.trials.items() if runs}
    assert all(figures.samples == records.plan.samples for figures in records.figures().values())
