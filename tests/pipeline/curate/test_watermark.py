"""watermark: what carries the mark of its host goes, and nothing else; the same however the pairs are cut."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from pydantic import ValidationError

from data_specs.build import Watermark
from pipeline.curate.watermark import judge
from pipeline.report.funnel import faults, read_funnels
from pipeline.store.build import Build
from pipeline.store.host_marks import Group
from tests import curated
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


@pytest.mark.slow
def test_marked_pictures_of_the_host_go_and_all_others_stay(unmarked: Callable[..., Build]) -> None:
    build = unmarked(parts=3, stages=(*STAGES, "detect", "shard"))
    marks = curated.table_of(build, "curate.marks")
    [found] = [row for row in marks if row["verdict"] == "mark"]
    assert (found["host"], found["pictures"], found["sampled"]) == ("img.test", MARKED + PLAIN, MARKED + PLAIN)
    assert {row["host"]: row["verdict"] for row in marks} == {"img.test": "mark", "plain.test": "none"}, "too few"
    decisions = curated.dropped(build)
    assert {curated.name_of(row["url"]) for row in decisions} == DROPPED
    assert {row["reason"] for row in decisions} == {"watermark"}
    assert all("with the mark of img.test at 320 x 240; at most 0.3" in row["evidence"] for row in decisions)
    kept = curated.kept(build)
    assert len(kept) == 2 * PLAIN + MARKED + FEW
    compared = {name for name, own in curated.said(build, "watermark").items() if own["correlation"] is not None}
    assert len(compared) == MARKED + PLAIN, "pictures of other hosts are not decoded"
    candidates, _ = read_funnels(build)
    own = {row.stage: row for row in candidates.stages(["dedup", "curate", "shard"])}
    assert (own["curate"].seen, own["curate"].dropped) == (own["dedup"].kept, MARKED)
    assert own["shard"].kept == len(kept)
    assert [line for line in faults(build, candidates) if line.startswith(("curate", "shard"))] == []


@pytest.mark.drill(2)
def test_it_is_the_same_however_the_pairs_and_the_hosts_are_cut(
    unmarked: Callable[..., Build], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = unmarked(parts=1, sample=20)
    monkeypatch.setattr("pipeline.curate.watermark.PAIRS_PER_PART", 8)
    three = unmarked(parts=3, sample=20)
    assert len(three.stage("curate.marks").partitions()) == 3 > len(one.stage("curate.marks").partitions())
    marks = [sorted(map(json.dumps, curated.table_of(build, "curate.marks"))) for build in (one, three)]
    assert marks[0] == marks[1]
    assert curated.said(one, "watermark") == curated.said(three, "watermark")
    assert {row["sampled"] for row in curated.table_of(one, "curate.marks")} == {20}


def test_the_limit_is_judged_alone_and_options_are_bounded() -> None:
    own = Watermark(max_correlation=0.3)
    assert judge(own, Group("h", 2, 1), 0.3) is None
    assert judge(own, Group("h", 2, 1), 0.3001) is not None
    with pytest.raises(ValidationError, match="fewer than min_pictures"):
        Watermark(min_pictures=60, sample=50)
