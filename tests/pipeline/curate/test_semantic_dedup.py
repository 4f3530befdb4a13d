"""semantic_dedup: one of the pictures that show the same is kept; off by default; explained, counted, taken down."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from data_specs.build import SpecError, load
from pipeline.report.explain import explain
from pipeline.report.funnel import faults, read_funnels
from tests import alike, curated
from tests.stages import run_stage

pytestmark = pytest.mark.slow

RED, GREEN = (0.8, 0.1, 0.1), (0.1, 0.8, 0.1)
SHOWN = [
    ("red-large", RED, 400, "红色的图一"),
    ("red-small", (0.8, 0.13, 0.1), 300, "红色的图二"),
    ("green", GREEN, 300, "绿色的图"),
    ("red-least", RED, 280, "红色的图三"),
    ("yellow", (0.5, 0.5, 0.1), 300, "黄色的图"),
]


@pytest.fixture
def build(fetched_build: Any, got: Any, tmp_path: Path) -> Any:
    def make(shown: Any = SHOWN, **more: Any) -> Any:
        return alike.made(fetched_build, got, tmp_path, shown, **more)

    return make


@pytest.mark.parametrize("parts", [3])
def test_one_of_what_shows_the_same_is_kept_and_the_others_name_it(build: Any, parts: int) -> None:
    made = build(parts=parts)
    assert alike.kept(made) == {"red-large", "green", "yellow"}
    decided, id_of = alike.dropped(made), alike.ids(made)
    assert {name: row["duplicate_of"] for name, row in decided.items()} == {
        "red-small": id_of["red-large"], "red-least": id_of["red-large"],
    }  # fmt: skip
    row = decided["red-small"]
    assert (row["stage"], row["reason"], row["reasons"]) == ("curate", "semantic_duplicate", ["semantic_duplicate"])
    start, _, end = row["evidence"].partition(" from the picture ")
    assert start.startswith("cosine distance 0.0")
    assert end == id_of["red-large"][:12]
    near = curated.said(made, "semantic_dedup")["red-small"]
    assert near["leader"] == id_of["red-large"]
    assert 0 < near["millionths"] < 20_000


def test_the_funnel_adds_up_and_shards_hold_what_was_kept(build: Any) -> None:
    made = build()
    run_stage(made, "detect", "shard")
    candidates, _ = read_funnels(made)
    own = {row.stage: row for row in candidates.stages(["dedup", "curate", "shard"])}
    assert (own["curate"].seen, own["curate"].dropped, own["shard"].kept) == (5, 2, 3)
    assert [line for line in faults(made, candidates) if line.startswith(("curate", "shard"))] == []
    shard = made.stage("shard")
    packed = [row for r in shard.records() for row in shard.table(r, "parquet").to_pylist()]
    assert {row["image_url"].rpartition("/")[2] for row in packed} == alike.kept(made)
    assert all(row["pair_score"] is not None for row in packed)


def test_explain_tells_of_the_leader(build: Any) -> None:
    made = build()
    run_stage(made, "detect", "shard")
    [row] = explain(made, alike.ids(made)["red-small"])
    assert row["leader"]["url"].endswith("red-large")


def test_a_larger_distance_runs_no_tower_and_merges_more(build: Any) -> None:
    first = build(name="one")
    second = build(name="two", options={"distance": 0.4})
    assert alike.kept(second) < alike.kept(first)
    assert sum(record.counts["computed"] for record in second.stage("curate.score").records()) == 0


def test_a_spec_without_a_tower_is_told_so(tmp_path: Path) -> None:
    spec = "name: t\ncontact: mailto:a@b.c\nsources: [{kind: folder, name: f, source_kind: library, path: .}]\n"
    (tmp_path / "spec.yaml").write_text(f"{spec}semantic_dedup: {{}}\n", encoding="utf-8")
    with pytest.raises(SpecError, match="semantic_dedup: needs the section pair_score"):
        load(tmp_path / "spec.yaml")
