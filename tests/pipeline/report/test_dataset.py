"""The release that a build is compared with, and the figures of several builds as one."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.publish import dataset as releases
from pipeline.publish import release
from pipeline.report import dataset, drift
from pipeline.store.build import Build
from tests.kept import Kept
from tests.weeks import Weeks

pytestmark = pytest.mark.slow


def report_of(build: Build) -> dict[str, Any]:
    report = drift.read(build.out)
    assert report is not None
    return report


@pytest.fixture(scope="module")
def _once(tmp_path_factory: pytest.TempPathFactory, synthetic: Any) -> tuple[Kept, Weeks, list[Build]]:
    folder = tmp_path_factory.mktemp("weeks")
    weeks = Weeks(folder, synthetic.encode, "report")
    builds = []
    for snapshot, pictures in (("2026-01-01", 12), ("2026-01-08", 15)):
        builds.append(weeks.build(snapshot, range(pictures)))
        release.publish(builds[-1])
    return Kept(folder), weeks, builds


@pytest.fixture
def weeks(_once: tuple[Kept, Weeks, list[Build]]) -> Weeks:
    kept, own, _ = _once
    kept.restore()
    return own


@pytest.fixture
def second(weeks: Weeks, _once: tuple[Kept, Weeks, list[Build]]) -> tuple[Build, Build]:
    """Two published weeks: twelve pictures, and then three more."""
    first, second = _once[2]
    return replace(first), replace(second)


def test_the_dataset_before_and_after_is_what_the_releases_hold(weeks: Any, second: tuple[Build, Build]) -> None:
    first, build = second
    assert report_of(first)["dataset"] is None
    totals = report_of(build)["dataset"]
    one, two = (build.store.releases("weekly").read(number) for number in (1, 2))
    assert (totals["release"], totals["builds"], totals["missing"]) == (1, [first.build_id], [])
    for part, manifest in (("before", one), ("after", two)):
        assert totals[part] == dataset.totals(manifest.shards), part
        assert totals[part]["samples"] == manifest.samples
    assert totals["own"]["all"] == 3
    assert totals["after"]["all"] == 15
    assert totals["drift"]["samples"] == [12, 15]


@pytest.mark.drill(3)
def test_a_published_build_is_skipped_whatever_is_released_later(weeks: Any, second: tuple[Build, Build]) -> None:
    release.publish(weeks.build("2026-01-15", range(18)))
    for snapshot, count, number in (("2026-01-01", 12, 0), ("2026-01-08", 15, 1), ("2026-01-15", 18, 2)):
        again = weeks.open(snapshot, range(count))
        assert dataset.earlier_number(again) == number
        assert again.stage("report").finished(), snapshot


@pytest.mark.drill(3)
def test_a_report_is_written_anew_when_the_release_before_changed(weeks: Any, second: tuple[Build, Build]) -> None:
    weeks.build("2026-01-15", range(18))
    assert weeks.open("2026-01-15", range(18)).stage("report").finished(), "nothing has changed"
    releases.rollback(second[0].store, "weekly", 1)
    build = weeks.open("2026-01-15", range(18))
    assert not build.stage("report").finished()
    totals = report_of(weeks.finish(build))["dataset"]
    assert (totals["release"], totals["before"]["all"], totals["after"]["all"]) == (3, 12, 18)


@pytest.mark.drill(3)
def test_a_build_whose_report_is_gone_is_named_and_left_out(weeks: Any, second: tuple[Build, Build]) -> None:
    (Path(second[0].out) / "report/report.json").unlink()
    build = weeks.build("2026-01-15", range(18))
    totals = report_of(build)["dataset"]
    assert totals["missing"] == [second[0].build_id]
    assert totals["before"]["all"] == 15, "the release lists its samples all the same"
    assert totals["drift"]["samples"] == [3, 6]
    assert second[0].build_id in (Path(build.out) / "report/index.html").read_text("utf-8")


def test_the_figures_of_builds_add_up(second: tuple[Build, Build]) -> None:
    reports = [report_of(build) for build in second]
    whole = dataset.total_of(reports, "weekly@2")
    assert whole["totals"]["kept"] == 15
    assert {h["name"] for h in whole["histograms"]} == {h["name"] for h in reports[0]["histograms"]}
    for histogram in whole["histograms"]:
        assert histogram["total"] == sum(b["count"] for b in histogram["bins"]) == 15
    twice = dataset.total_of([*reports, *reports], "")
    assert [h["total"] for h in twice["histograms"]] == [30] * len(whole["histograms"])
    assert {row["psi"] for row in drift.sample_drift(whole, whole)["distributions"]} == {0}
    other = copy.deepcopy(reports[1])
    other["histograms"][0]["bins"][0]["label"] = "other"
    first = other["histograms"][0]["name"]
    assert first not in {h["name"] for h in dataset.total_of([reports[0], other], "")["histograms"]}
