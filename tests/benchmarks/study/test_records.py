"""Records of a study in one file say what its runs say."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
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
    add(collect(checkout("second", {("moco", 1): 0.4, ("moco", 2): 0.5})), path)
    kept = {(t.arm, t.seed): t.points[-1].i2t["style"] for t in load(path).trials}
    assert kept == {("moco", 0): 0.1, ("moco", 1): 0.4, ("moco", 2): 0.5, ("clip", 0): 0.3}
    before = path.read_bytes()
    for other, why in (
        ({"styles": plan("moco").styles[1:]}, "have other packages, galleries, datasets or sizes"),
        ({"samples": 640}, "its runs of moco have another setting"),
    ):
        with pytest.raises(InputError, match=why):
            add(collect(checkout(f"other {why}", {("moco", 0): 0.1}, **other)), path)
    assert path.read_bytes() == before


@pytest.mark.slow
def test_runs_on_pairs_are_added_and_those_of_another_dataset_are_refused(tmp_path: Path) -> None:
    path, known = tmp_path / "records.json", load(COMMITTED)
    save(known, path)
    first = known.pairs[0]
    again, more = replace(first, val=first.dev), replace(first, seed=9)
    own = replace(known, tried=(), trials=(), pairs=(again, more))
    add(own, path)
    kept = load(path)
    assert set(kept.pairs) == {*known.pairs, again, more} - {first}
    assert kept.trials == known.trials
    assert kept.tried == known.tried
    with pytest.raises(InputError, match="other packages, galleries, datasets or sizes"):
        add(replace(own, datasets={first.source: {"content_digest": ""}}), path)
    path.write_text(path.read_text(encoding="utf-8").replace('"version": ', '"version": 1'), encoding="utf-8")
    with pytest.raises(InputError, match="has runs of version 1"):
        add(own, path)


def test_the_repositorys_records_are_small_and_hold_all_runs_of_an_hour() -> None:
    records, plan = load(COMMITTED), PLANS["hour"]
    assert COMMITTED.stat().st_size < 250_000
    runs = Counter(trial.arm for trial in records.trials)
    assert runs == {arm.name: len(plan.seeds_of(arm)) for arm in plan.arms}
    pairs = records.datasets["packages"]
    assert sum(pairs["splits"].values()) > 10_000
    assert pairs["in_two_splits"] == {"image": 0, "text": 0}
    figures = records.figures()
    for claim in CLAIMS:  # without its hits a claim would be judged by the seeds alone
        for arm in {claim.better, claim.other} & figures.keys():
            if claim.gallery in records.families and {claim.better, claim.other} <= figures.keys():
                samples = min(figures[claim.better].samples, figures[claim.other].samples)
                assert figures[arm].hits(claim.gallery, records.families, claim.budget, samples), (claim.says, arm)
