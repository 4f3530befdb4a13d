"""What a larger build would cost follows from what an earlier one took."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline import cli
from pipeline.commands import plan
from pipeline.report.estimate import Machines, estimate, estimated
from pipeline.report.growth import PEAK, Growth
from pipeline.stages import STAGES
from pipeline.store import build_json
from pipeline.store.build import Build

SITE = {"kind": "site", "name": "s", "source_kind": "library", "start": ["http://a.test/"]}


@pytest.fixture
def published(make_build: Callable[..., Build]) -> Callable[..., Build]:
    """A build that STORE knows, of which `admit` saw 1,000 candidates and `fetch` 400."""

    def publish(name: str, snapshot: str, cpu: float) -> Build:
        build = make_build(sources=[SITE], out=f"{name}-{snapshot}")
        spec = build.spec.model_copy(update={"name": name})
        build = replace(build, spec=spec, build_id=f"{name}-{snapshot}", snapshot=snapshot)
        build = replace(build, fingerprints=dict.fromkeys(STAGES, "f" * 64))
        Path(build.out).mkdir()
        for stage, seen, parts in (("admit", 1_000, 2), ("fetch", 400, 2), ("edges", 0, 0), ("leaders", 0, 1)):
            cost = build_json.Cost(2 * cpu, cpu, 0.0, 10 * seen) if parts else build_json.Cost()
            bounds = build_json.Bounds(0.5, 2.0, 700_000_000)
            result = build_json.StageResult(stage, False, parts, parts, 1.0, {"seen": seen}, cost, bounds)
            build_json.note(build, result)
        build.store.register(build, 0)
        return build

    return publish


EVEN = Growth((1_000, 10_000), {})
"""Nothing was measured: all that a stage costs grows with the candidates."""


def _told(build: Build, candidates: int, workers: int = 1, growth: Growth = EVEN, **machines: float) -> dict[str, Any]:
    return estimated(build_json.read(build.folder), candidates, build.stages, Machines(workers, **machines), growth)


def test_cost_and_rows_grow_with_the_candidates(published):
    told = _told(published("a", "2026-01-01", cpu=3.0), 50_000)
    assert [told["stages"][name]["seen"] for name in ("admit", "fetch")] == [50_000, 20_000]
    assert told["stages"]["fetch"]["bytes"] == 50 * 4_000
    assert told["total"]["cpu_seconds"] == 50 * 9.0
    assert told["total"]["seconds"] == 50 * 18.0


def test_a_stage_that_was_measured_to_grow_faster_does(published):
    growth = Growth((1_000, 10_000), {"leaders": {"cpu_seconds": (2.0, 200.0), "seconds": (2.0, 200.0)}})
    told = _told(published("a", "2026-01-01", cpu=3.0), 100_000, growth=growth)
    assert told["stages"]["leaders"]["cpu_seconds"] == pytest.approx(3.0 * 10_000)
    assert told["stages"]["fetch"]["cpu_seconds"] == pytest.approx(3.0 * 100)


def test_workers_share_partitions_and_wait_for_the_longest_and_for_one_worker_steps(published):
    """1,000 candidates: 3 stages of 6 worker seconds, the longest partition 2, the driver 0.5; `leaders` has one."""
    build = published("a", "2026-01-01", cpu=3.0)
    one, many = _told(build, 100_000), _told(build, 100_000, workers=1_000)
    assert one["stages"]["fetch"]["wall_seconds"] == 100 * (6 + 0.5)
    assert many["stages"]["fetch"]["wall_seconds"] == 100 * 0.5 + 100 * 6 / 200  # it had 2 partitions, now 200
    assert many["stages"]["leaders"]["wall_seconds"] == one["stages"]["leaders"]["wall_seconds"] == 100 * (6 + 0.5)
    assert one["serial_share"] == many["serial_share"] == pytest.approx((6 + 3 * 0.5) / (3 * 6.5))
    few = _told(build, 1_000, workers=1_000)
    assert few["stages"]["fetch"]["wall_seconds"] == 0.5 + 6 / 2


def test_memory_is_the_most_that_any_stage_needs_and_money_what_the_workers_cost(published):
    build = published("a", "2026-01-01", cpu=3.0)
    growth = Growth((1_000, 10_000), {"leaders": {PEAK: (1e9, 2e9)}})
    told = _told(build, 10_000, workers=2, growth=growth, price=0.5)
    assert told["total"]["peak_bytes"] == 2e9
    assert _told(build, 10_000)["total"]["peak_bytes"] == 7e8
    assert told["price"] == pytest.approx(0.5 * 2 * told["total"]["wall_seconds"] / 3600)
    assert _told(build, 10_000)["price"] is None


def test_a_stage_that_only_large_builds_have_is_as_slow_as_this_machine_was_in_the_others(published):
    stages = {"fetch": {"cpu_seconds": (1.5, 15.0)}, "edges": {"cpu_seconds": (0, 8.0), "seconds": (0, 8.0)}}
    build = published("a", "2026-01-01", cpu=3.0)
    assert "edges" not in _told(build, 9_999, growth=Growth((1_000, 10_000), stages))["stages"]
    told = _told(build, 10_000, growth=Growth((1_000, 10_000), stages))
    assert told["stages"]["edges"]["cpu_seconds"] == pytest.approx(2 * 8.0)


def test_a_build_of_an_older_wenlan_is_a_measure_too(published):
    build = published("a", "2026-01-01", cpu=3.0)
    known = build_json.read(build.folder)
    for stage in known["stages"].values():
        del stage["bounds"]
    told = estimated(known, 2_000, build.stages, Machines(), EVEN)
    assert told["stages"]["fetch"]["wall_seconds"] == 2 * 6.0
    assert told["total"]["peak_bytes"] == 0


def test_the_newest_build_of_the_same_name_is_the_measure_and_else_the_newest(published):
    build = published("a", "2026-01-01", cpu=1.0)
    published("a", "2026-02-01", cpu=2.0)
    published("b", "2026-03-01", cpu=5.0)
    by = {n: estimate(build.store, n, 10, build.stages, Machines())["by"]["build_id"] for n in ("a", "b", "c")}
    assert by == {"a": "a-2026-02-01", "b": "b-2026-03-01", "c": "b-2026-03-01"}


def test_plan_says_the_estimate_or_that_there_is_nothing_to_estimate_by(published, tmp_path, capsys, monkeypatch):
    spec = tmp_path / "s.yaml"
    spec.write_text(f"name: a\ncontact: a@b.example\nsources: [{json.dumps(SITE)}]\n")
    command = ["plan", str(spec), "--store", str(tmp_path / "store"), "--offline", "--json"]
    assert cli.main([*command, "--estimate", "1000"]) == 0
    said = capsys.readouterr()
    assert "has no published build to measure by" in said.err
    assert json.loads(said.out)["estimate"] is None
    published("a", "2026-01-01", cpu=3600.0)
    assert cli.main([*command, "--estimate", "1000", "--workers", "2", "--price", "0.25"]) == 0
    said = capsys.readouterr()
    row = [line.split() for line in said.err.splitlines() if line.lstrip().startswith("fetch ")][-1]
    assert row[1:] == ["400", "1.00", "0.00", "0.00", "0.70", "1.00"]
    told = json.loads(said.out)["estimate"]
    assert told["total"]["cpu_seconds"] == pytest.approx(3 * 3600.0)
    line = next(line for line in said.err.splitlines() if " on 2 CPUs; " in line)
    assert line.endswith(
        "33.3% of the work is steps that one worker or the driver does alone; a worker needs 700 MB of memory"
    )
    assert f"at 0.25 for a CPU and hour: about {told['price']:.2f}" in said.err
    assert told["price"] == pytest.approx(0.25 * 2 * 4, rel=1e-3)
    assert "warning" not in said.err
    monkeypatch.setattr(plan, "FEW", told["by"]["candidates"] + 1)
    assert cli.main([*command, "--estimate", "1000"]) == 0
    few = "warning: measured on 1,000 candidates, whose cost is mostly that of any build; publish one of some thousands"
    assert few in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--estimate", "0"], "--estimate 0: 1 to 1,000,000,000,000,000 candidates"),
        (["--estimate", "9" * 400], f"--estimate {'9' * 400}: 1 to 1,000,000,000,000,000 candidates"),
        (["--estimate", "9", "--workers", "0"], "--workers 0: must be at least 1 CPU"),
        (["--estimate", "9", "--price", "-1"], "--price -1: must be 0 or more"),
        (["--estimate", "9", "--price", "nan"], "--price nan: must be 0 or more"),
        (["--workers", "4"], "--workers and --price say what --estimate N is for; give it, too"),
    ],
)
def test_options_that_make_no_sense_are_one_line(options, said, tmp_path, capsys):
    assert cli.main(["plan", str(tmp_path / "s.yaml"), *options]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == f"wenlan-data: {said}"
