"""What a larger build would cost follows from what an earlier one took."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline import cli
from pipeline.report.estimate import estimate
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
        Path(build.out).mkdir()
        for stage, seen in (("admit", 1_000), ("fetch", 400)):
            cost = build_json.Cost(seconds=2 * cpu, cpu_seconds=cpu, bytes=10 * seen)
            build_json.note(build, build_json.StageResult(stage, False, 1, 1, 1.0, {"seen": seen}, cost))
        build.store.register(build, 0)
        return build

    return publish


def test_cost_and_rows_grow_with_the_candidates(published):
    build = published("a", "2026-01-01", cpu=3.0)
    estimated = estimate(build.store, "a", 50_000)
    assert estimated is not None
    assert [estimated["stages"][name]["seen"] for name in ("admit", "fetch")] == [50_000, 20_000]
    assert estimated["stages"]["fetch"]["bytes"] == 50 * 4_000
    assert estimated["total"]["cpu_seconds"] == 50 * 6.0
    assert estimated["total"]["seconds"] == 50 * 12.0


def test_the_newest_build_of_the_same_name_is_the_measure_and_else_the_newest(published):
    build = published("a", "2026-01-01", cpu=1.0)
    published("a", "2026-02-01", cpu=2.0)
    published("b", "2026-03-01", cpu=5.0)
    by = {name: estimate(build.store, name, 10)["by"]["build_id"] for name in ("a", "b", "c")}
    assert by == {"a": "a-2026-02-01", "b": "b-2026-03-01", "c": "b-2026-03-01"}


def test_plan_says_the_estimate_or_that_there_is_nothing_to_estimate_by(published, tmp_path, capsys):
    spec = tmp_path / "s.yaml"
    spec.write_text(f"name: a\ncontact: a@b.example\nsources: [{json.dumps(SITE)}]\n")
    command = ["plan", str(spec), "--store", str(tmp_path / "store"), "--offline", "--estimate", "2000", "--json"]
    assert cli.main(command) == 0
    said = capsys.readouterr()
    assert "has no published build to measure by" in said.err
    assert json.loads(said.out)["estimate"] is None
    published("a", "2026-01-01", cpu=3600.0)
    assert cli.main(command) == 0
    said = capsys.readouterr()
    assert [line.split() for line in said.err.splitlines() if line.lstrip().startswith("fetch ")][-1][1:3] == [
        "800",
        "2.00",
    ]
    assert json.loads(said.out)["estimate"]["total"]["cpu_seconds"] == 2 * 7200.0
    assert cli.main([*command[:-2], "0"]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == "wenlan-data: --estimate 0: must be at least 1 candidate"
