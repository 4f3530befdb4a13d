"""watermark: what carries the mark of its host goes, and nothing else; the same however the pairs are cut."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from data_specs.build import BuildSpec, Watermark
from pipeline import run
from pipeline.report.explain import explain
from pipeline.report.funnel import faults, read_funnels
from pipeline.stages.watermark import judge
from pipeline.store.build import Build
from pipeline.store.host_marks import CORRELATIONS, Group
from tests.fetched import Got
from tests.marked import FEW, MARKED, PLAIN, STAGES, images

GRID = {"detectors": [{"name": "grid", "n": 2}]}
DROPPED = {f"marked-{number}.jpg" for number in range(MARKED)}


@pytest.fixture
def unmarked(fetched_build: Callable[..., Build], run_stage: Any) -> Callable[..., Build]:
    def make(parts: int = 2, stages: tuple[str, ...] = STAGES, **more: Any) -> Build:
        got = [Got(url, data, (text,)) for url, data, text in images()]
        build = fetched_build(got, parts=parts, watermark=more, filters=[], regions=GRID, name=f"of-{parts}")
        run_stage(build, *stages)
        return build

    return make


def rows(build: Build, stage: str, suffix: str) -> list[dict[str, Any]]:
    directory = build.stage(stage)
    return [row for record in directory.records() for row in directory.table(record, suffix).to_pylist()]


def ends(rows: list[dict[str, Any]], column: str = "image_url") -> set[str]:
    return {row[column].rpartition("/")[2] for row in rows}


def test_marked_pictures_of_the_host_go_and_all_others_stay(unmarked: Callable[..., Build]) -> None:
    build = unmarked(parts=3, stages=(*STAGES, "detect", "shard"))
    [found] = [row for row in rows(build, "marks", "parquet") if row["verdict"] == "mark"]
    assert (found["host"], found["pictures"], found["sampled"]) == ("img.test", MARKED + PLAIN, MARKED + PLAIN)
    assert {row["host"]: row["verdict"] for row in rows(build, "marks", "parquet")} == {
        "img.test": "mark",
        "plain.test": "none",
    }, "few.test has too few"
    decisions = rows(build, "watermark", "decisions.parquet")
    assert ends(decisions, "url") == DROPPED
    assert {row["reason"] for row in decisions} == {"watermark"}
    assert all("with the mark of img.test at 320 x 240; at most 0.3" in row["evidence"] for row in decisions)
    kept = [row for split in ("train", "dev", "val") for row in rows(build, "watermark", f"{split}.parquet")]
    assert len(kept) == 2 * PLAIN + MARKED + FEW
    compared = {
        row["image_url"].rpartition("/")[2]: row["correlation"] for row in rows(build, "watermark", CORRELATIONS)
    }
    assert len(compared) == MARKED + PLAIN, "pictures of other hosts are not decoded"
    for row in (decisions[0], *[r for r in kept if r["image_url"].rpartition("/")[2] in compared][:1]):
        url = row.get("url") or row["image_url"]
        [said] = explain(build, url)
        assert said["saw"]["watermark"]["correlation"] == compared[url.rpartition("/")[2]]
    candidates, _ = read_funnels(build)
    own = {row.stage: row for row in candidates.stages(["dedup", "watermark", "shard"])}
    assert (own["watermark"].seen, own["watermark"].dropped) == (own["dedup"].kept, MARKED)
    assert own["shard"].kept == len(kept)
    assert [line for line in faults(build, candidates) if line.startswith(("watermark", "shard"))] == []


def test_it_is_the_same_however_the_pairs_and_the_hosts_are_cut(
    unmarked: Callable[..., Build], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = unmarked(parts=1, sample=20)
    monkeypatch.setattr("pipeline.stages.marks.PAIRS", 8)
    three = unmarked(parts=3, sample=20)
    assert len(three.stage("marks").partitions()) == 3 > len(one.stage("marks").partitions())
    key = json.dumps
    assert sorted(map(key, rows(one, "marks", "parquet"))) == sorted(map(key, rows(three, "marks", "parquet")))
    by_id = [{row["candidate_id"]: row for row in rows(b, "watermark", CORRELATIONS)} for b in (one, three)]
    assert by_id[0] == by_id[1]
    assert {row["sampled"] for row in rows(one, "marks", "parquet")} == {20}


def test_a_spec_that_does_not_ask_has_the_fingerprints_that_it_had(tmp_path: Path) -> None:
    source = {"kind": "site", "name": "s", "source_kind": "news", "start": ["https://a.example/"]}
    spec = {"name": "n", "contact": "a@b.example", "sources": [source], "balance": {"threshold": 5}}
    plain = BuildSpec.model_validate(spec)
    assert "watermark" not in plain.model_dump(mode="json")
    build = run.open_build(plain, str(tmp_path / "out"), str(tmp_path / "store"), "1")
    older = {name: stage for name, stage in build.stages.items() if name not in ("marks", "watermark")}
    before = run.open_build(plain, str(tmp_path / "out"), str(tmp_path / "store"), "1", stages=older)
    same = {name for name, own in build.fingerprints.items() if before.fingerprints.get(name) == own}
    assert set(build.fingerprints) - same == {"marks", "watermark"}
    asked = run.open_build(
        BuildSpec.model_validate({**spec, "watermark": {}}), str(tmp_path / "b"), str(tmp_path / "s"), "1"
    )
    differ = {name for name, own in build.fingerprints.items() if asked.fingerprints[name] != own}
    assert differ == {"marks", "watermark", "concepts", "balance", "detect", "shard", "report"}


def test_the_limit_is_judged_alone_and_options_are_bounded() -> None:
    own = Watermark(max_correlation=0.3)
    assert judge(own, Group("h", 2, 1), 0.3) is None
    assert judge(own, Group("h", 2, 1), 0.3001) is not None
    with pytest.raises(ValidationError, match="fewer than min_pictures"):
        Watermark(min_pictures=60, sample=50)
