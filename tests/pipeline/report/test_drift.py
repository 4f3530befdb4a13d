"""Drift and diff: what moved between two builds, and the gates that hold a build to it."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_specs.shard import ContractError
from pipeline.errors import GateError, SourceError
from pipeline.publish import release
from pipeline.records import DropReason
from pipeline.report import drift, gates
from pipeline.report import index as report_index
from pipeline.report.diff import changes, diff
from pipeline.report.funnel import read_funnels
from pipeline.report.translations import REASONS
from pipeline.stages import STAGES, report
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


def test_every_stage_and_reason_has_a_chinese_name() -> None:
    assert all(re.search(r"[\u4e00-\u9fff]", stage.zh) for stage in STAGES.values())
    assert {reason.value for reason in DropReason} <= set(REASONS)


@pytest.fixture
def two(tmp_path: Path, synthetic: Any, run_stage: Run) -> list[Build]:
    """Two published builds of one dataset; the second has other shards and loses what the first was asked to forget."""
    builds = []
    for at, options in enumerate(({}, {"shards": {"samples_per_shard": 20, "dev_share": 0.1, "val_share": 0.1}})):
        build, _ = synthetic.make(tmp_path / f"{at}", **options)
        build = replace(build, snapshot=f"2024-0{at + 1}-01", build_id=f"synthetic-{at}")
        build = replace(build, store=builds[0].store if builds else build.store)
        if builds:
            names = [path.name for path in (Path(build.store.url) / "identity").glob("*.json")]
            build = replace(build, identities=tuple(names))
        for stage in ("shard", "report"):
            run_stage(build, stage)
        release.publish(build)
        spec = {"spec": build.spec.model_dump(mode="json"), "stages": {}}
        (Path(build.out) / "build.json").write_text(json.dumps(spec), encoding="utf-8")
        builds.append(build)
    return builds


def test_a_report_is_compared_with_the_last_published_build_of_its_dataset(two: list[Build]) -> None:
    first, second = (json.loads((Path(b.out) / "report/report.json").read_bytes()) for b in two)
    assert first["drift"] is None
    assert second["drift"]["baseline"] == "synthetic-0"
    assert {row["psi"] for row in second["drift"]["distributions"]} == {0}, "the same samples"
    page = (Path(two[1].out) / "report/index.html").read_text("utf-8")
    assert 'id="drift"' in page
    assert 'class="was"' in page


def test_what_moved_is_named_and_a_gate_holds_it_back(two: list[Build], run_stage: Run) -> None:
    build = two[1]
    before = drift.read(two[0].out)
    assert before is not None
    for histogram in before["histograms"]:
        histogram["bins"][0]["count"] += 40
        histogram["total"] += 40
    before["image_domains"] = [{"name": "gone.example", "count": 30}]
    before["totals"]["kept"] = 5_000
    made = report.write(build, before)
    assert made["drift"]["distributions"][0]["level"] == "moved"
    assert [row["name"] for row in made["drift"]["domains"]["new"]] == ["img0.example", "img1.example"]
    assert [row["name"] for row in made["drift"]["domains"]["lost"]] == ["gone.example"]
    strict = build.spec.publish.model_copy(update={"max_drift": 0.2, "max_domain_share": 0.4, "min_regions": 5.0})
    held = replace(build, spec=build.spec.model_copy(update={"publish": strict}))
    found = {
        g.name: g
        for g in gates.judge(
            held.spec, STAGES, *read_funnels(build), {**made, "drift": {**made["drift"], "samples": [5000, 5000]}}
        )
    }
    assert not found["max_drift"].holds
    assert "has moved by" in found["max_drift"].faults[0]
    assert found["max_domain_share"].faults == ("50.0% of the samples come from img0.example, the spec allows 40.0%",)
    assert not found["min_regions"].holds
    assert "max_drift" not in {g.name for g in gates.judge(held.spec, STAGES, *read_funnels(build), made)}, (
        "30 samples are few"
    )
    with pytest.raises(GateError, match=r"gate max_domain_share: 50\.0%") as caught:
        gates.hold(held, *read_funnels(build))
    assert "gate min_regions" in str(caught.value)
    gates.hold(held, *read_funnels(build), accept=["max_domain_share", "min_regions"])
    shutil.rmtree(Path(build.out) / "report")
    with pytest.raises(GateError, match="no report of this build to judge by"):
        gates.hold(held, *read_funnels(build))


def test_diff_of_a_build_with_itself_is_empty_and_of_another_packing_says_so(two: list[Build]) -> None:
    same = diff(two[0].out, two[0].out)
    assert same["same"]
    assert same["added"]["count"] == same["removed"]["count"] == len(same["spec"]) == 0
    other = diff(two[0].out, two[1].out)
    assert not other["same"]
    assert (other["added"]["count"], other["removed"]["count"]) == (0, 0)
    assert {aspect: keys["count"] for aspect, keys in other["changed"].items()} == {"image": 0, "texts": 0, "split": 0}
    assert other["spec"] == [{"path": "shards.samples_per_shard", "before": 8, "now": 20}]
    assert other["shards"]["removed"] == ["train-000001.tar", "train-000002.tar"]
    with pytest.raises(ContractError, match="a build without a manifest is not a dataset"):
        diff(two[0].out, two[0].store.url)


def test_diff_names_what_a_takedown_removed(two: list[Build], synthetic: Any) -> None:
    from pipeline.takedown.forget import Request, forget

    item = next(i for i in synthetic.items() if i.stage == "shard" and i.candidate.page_url)
    copy = Path(two[0].out).with_name("copy")
    shutil.copytree(two[0].out, copy)
    forget(two[0].store, [two[0]], Request(urls=[item.candidate.image_url]))
    found = diff(str(copy), two[0].out)
    assert found["removed"] == {"count": 1, "keys": [item.candidate.candidate_id[:32]]}
    assert found["b"]["revision"] == 1
    assert {row["name"] for row in found["reasons"]} >= {"forgotten", "kept"}


def test_changes_of_nested_values() -> None:
    a, b = (
        {"base": "x", "f": [{"n": 1}, {"n": 2}], "s": {"k": 1}},
        {"base": "y", "f": [{"n": 1}, {"n": 3}], "s": {"k": 1}},
    )
    assert changes(a, b) == [{"path": "f[1].n", "before": 2, "now": 3}]
    assert changes({"l": [1]}, {"l": [1, 2]}) == [{"path": "l", "before": [1], "now": [1, 2]}]


def test_an_index_over_many_builds_links_to_each_and_shows_trends(two: list[Build], tmp_path: Path) -> None:
    folder = tmp_path / "all"
    for build in two:
        shutil.copytree(build.out, folder / build.build_id)
    path, count = report_index.write(str(folder))
    page = Path(path).read_text("utf-8")
    assert count == 2
    for build in two:
        assert f'href="{build.build_id}/report/index.html"' in page
    assert page.count("<circle") == 2 * 5
    assert "default-src 'none'" in page
    with pytest.raises(SourceError, match="contains no build with a report"):
        report_index.write(str(tmp_path / "nothing"))
