"""Drift and diff: what moved between two builds, and the gates that hold a build to it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import cli
from pipeline.errors import GateError, StoreError
from pipeline.report import drift, gates
from pipeline.report.funnel import read_funnels
from pipeline.stages import STAGES, report
from pipeline.store import build_json
from pipeline.store.build import Build

Run = Callable[[Build, str], None]
COUNTS = st.lists(st.integers(0, 10_000), min_size=3, max_size=12)


@given(st.data())
def test_the_index_is_that_of_its_definition(data: st.DataObject) -> None:
    before = data.draw(COUNTS)
    now = data.draw(st.lists(st.integers(0, 10_000), min_size=len(before), max_size=len(before)))
    index = drift.psi(before, now)
    if not sum(before) or not sum(now):
        assert index == 0
        return
    assert index >= 0
    assert drift.psi(now, before) == pytest.approx(index)
    assert drift.psi(before, before) == 0
    if min(*before, *now) > 0:
        p, q = (np.array(counts) / sum(counts) for counts in (now, before))
        assert index == pytest.approx(((p - q) * np.log(p / q)).sum())


def test_another_order_of_bins_changes_nothing_and_other_bins_are_refused() -> None:
    assert drift.psi([1, 2, 3], [3, 5, 8]) == pytest.approx(drift.psi([3, 2, 1], [8, 5, 3]))
    with pytest.raises(ValueError, match="different bins"):
        drift.psi([1, 2], [1, 2, 3])


@pytest.mark.slow
def test_a_report_is_compared_with_the_last_published_build_of_its_dataset(two: list[Build]) -> None:
    first, second = (json.loads((Path(b.out) / "report/report.json").read_bytes()) for b in two)
    assert first["drift"] is None
    assert second["drift"]["baseline"] == "synthetic-0"
    assert {row["psi"] for row in second["drift"]["distributions"]} == {0}, "the same samples"
    page = (Path(two[1].out) / "report/index.html").read_text("utf-8")
    assert 'id="drift"' in page
    assert 'class="was"' in page


@pytest.mark.slow
def test_what_moved_is_named_and_a_gate_holds_it_back(two: list[Build], run_stage: Run) -> None:
    build = two[1]
    before = drift.read(two[0].out)
    assert before is not None
    for histogram in before["histograms"]:
        histogram["bins"][0]["count"] += 40
        histogram["total"] += 40
    before["totals"]["kept"] = 5_000
    made = report.write(build, before)
    assert made["drift"]["distributions"][0]["level"] == "moved"
    strict = build.spec.publish.model_copy(update={"max_drift": 0.2, "max_domain_share": 0.4, "min_regions": 5.0})
    strict_build = replace(build, spec=build.spec.model_copy(update={"publish": strict}))
    gate_of = {
        g.name: g
        for g in gates.judge(
            strict_build.spec,
            STAGES,
            *read_funnels(build),
            {**made, "drift": {**made["drift"], "samples": [5000, 5000]}},
        )
    }
    assert not gate_of["max_drift"].holds
    assert "has moved by" in gate_of["max_drift"].faults[0]
    assert gate_of["max_domain_share"].faults == ("50.0% of the samples come from img0.example, the spec allows 40.0%",)
    assert not gate_of["min_regions"].holds
    assert "max_drift" not in {g.name for g in gates.judge(strict_build.spec, STAGES, *read_funnels(build), made)}, (
        "30 samples are few"
    )
    with pytest.raises(GateError, match=r"gate max_domain_share: 50\.0%") as caught:
        gates.check(strict_build, *read_funnels(build))
    assert "gate min_regions" in str(caught.value)
    gates.check(strict_build, *read_funnels(build), accept=["max_domain_share", "min_regions"])
    shutil.rmtree(Path(build.out) / "report")
    with pytest.raises(GateError, match="the report of this build is missing"):
        gates.check(strict_build, *read_funnels(build))


@pytest.mark.slow
def test_a_report_of_another_tool_is_no_baseline(two: list[Build], tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "ci/report").mkdir(parents=True)
    build_json.note(two[0])
    for foreign in ('{"tests": 3}', "[1]", '{"build": {"number": 7}}'):
        (tmp_path / "ci/report/report.json").write_text(foreign, encoding="utf-8")
        assert cli.main(["report", two[0].out, "--baseline", str(tmp_path / "ci")]) == 1
        assert capsys.readouterr().err.endswith("/ci: no report/report.json to compare with\n")


@pytest.mark.drill(2)
def test_a_damaged_report_says_how_it_is_made_anew_and_is(two: list[Build], run_stage: Run) -> None:
    """A later build is compared with it, so it holds that one up until somebody does as it says."""
    build, folder = two[0], Path(two[0].out) / "report"
    whole = (folder / "report.json").read_bytes()
    (folder / "report.json").write_bytes(whole[:-100])
    with pytest.raises(
        StoreError, match=r"invalid JSON .*; delete the folder (.*/report) and run wenlan-data build"
    ) as e:
        drift.read(build.out)
    assert f"delete the folder {folder} " in str(e.value)
    shutil.rmtree(folder)
    assert not build.stage("report").finished()
    run_stage(build, "report")
    assert (drift.read(build.out) or {})["totals"] == json.loads(whole)["totals"]
