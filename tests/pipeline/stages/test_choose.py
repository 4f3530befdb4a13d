"""choose: a band of scores, and the best share of each source, on any number of workers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pipeline.filters.pair_score import PairScore
from pipeline.records import SCORED_SCHEMA
from pipeline.report.funnel import faults, read_funnels
from pipeline.stages import choose
from pipeline.stages.choose import judge
from pipeline.store import pair_scores
from pipeline.store.build import Build
from pipeline.store.pair_scores import Cut
from pipeline.store.rewrite import Removal
from pipeline.store.takedowns import NO_TAKEDOWNS
from pipeline.takedown.rewrite_partitions import remove
from tests import towered
from tests.towered import coloured

STAGES = (
    "measure",
    "filter",
    "signatures",
    "copies",
    "edges",
    "leaders",
    "dedup",
    "screen",
    "score",
    "choose",
    "concepts",
    "balance",
)
SHARES = [0.9, 0.75, 0.6, 0.5, 0.45, 0.4, 0.3, 0.25, 0.15, 0.1]
"""Of red in the pictures, whose texts all say red."""


@pytest.fixture
def scored(fetched_build: Callable[..., Build], got: Any, run_stage: Any, tmp_path: Path) -> Callable[..., Build]:
    """A build of ten pictures that fit their texts less and less; the keyword arguments are those of the filter."""

    def make(parts: int = 2, stages: tuple[str, ...] = STAGES, more: Any = None, **options: Any) -> Build:
        images = [
            got(f"i{i}", coloured(i, red, 0.05, 1 - red), f"红色的图{'一二三四五六七八九十'[i]}")
            for i, red in enumerate(SHARES)
        ]
        filters = [{"name": "pair_score", **options}] if options else []
        section = towered.written(tmp_path / "towers")
        name = f"n{abs(hash((parts, *options.items())))}"
        build = fetched_build(images, parts=parts, pair_score=section, filters=filters, name=name, **(more or {}))
        run_stage(build, *stages)
        return build

    return make


def pairs(build: Build, stage: str) -> dict[str, float]:
    """Score by candidate_id of what a stage hands on."""
    directory = build.stage(stage)
    tables = [
        directory.table(record, suffix)
        for record in directory.records()
        for suffix in record.files
        if suffix in ("train.parquet", "dev.parquet", "val.parquet")
    ]
    assert all(table.schema.names == SCORED_SCHEMA.names for table in tables)
    return {row["candidate_id"]: round(row["pair_score"], 4) for table in tables for row in table.to_pylist()}


def dropped(build: Build) -> list[dict[str, Any]]:
    stage = build.stage("choose")
    return [row for record in stage.records() for row in stage.table(record, "decisions.parquet").to_pylist()]


def test_a_band_keeps_what_is_within_both_ends(scored: Callable[..., Build]) -> None:
    build = scored(min_score=0.3, max_score=0.9)
    before, after = pairs(build, "score"), pairs(build, "choose")
    assert after == {name: score for name, score in before.items() if 0.3 <= score <= 0.9}
    assert 0 < len(after) < len(before) == 10
    reasons = Counter(row["reason"] for row in dropped(build))
    assert reasons == {
        "pair_score_low": sum(score < 0.3 for score in before.values()),
        "pair_score_high": sum(score > 0.9 for score in before.values()),
    }
    assert {row["evidence"] for row in dropped(build) if row["reason"] == "pair_score_low"} == {
        f"pair score {score:.4f}; at least 0.3" for score in before.values() if score < 0.3
    }


def test_the_end_of_a_band_is_within_it(scored: Callable[..., Build]) -> None:
    scores = sorted(pairs(scored(), "score").values())
    build = scored(min_score=scores[2], max_score=scores[-3])
    assert sorted(pairs(build, "choose").values()) == scores[2:-2]


@pytest.mark.parametrize(("parts", "share", "kept"), [(1, 0.3, 3), (3, 0.3, 3), (2, 0.01, 1)])
def test_a_share_keeps_the_best_however_the_build_is_cut(
    scored: Callable[..., Build], parts: int, share: float, kept: int
) -> None:
    build = scored(parts, top_share=share)
    before = pairs(build, "score")
    best = sorted(before, key=lambda name: (-before[name], name))[:kept]
    assert sorted(pairs(build, "choose")) == sorted(best)
    assert [row["reason"] for row in dropped(build)] == ["below_top_share"] * (10 - kept)


def test_a_share_is_one_of_what_the_band_keeps(scored: Callable[..., Build]) -> None:
    scores = sorted(pairs(scored(), "score").values())
    build = scored(max_score=scores[-3], top_share=0.5)
    assert sorted(pairs(build, "choose").values()) == scores[4:8]
    evidence = {row["evidence"] for row in dropped(build) if row["reason"] == "below_top_share"}
    assert f"pair score {scores[3]:.4f}; the best 0.5 of table have at least {scores[4]:.4f}" in evidence


def test_of_equal_scores_the_smaller_ids_are_kept(
    scored: Callable[..., Build], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.stages.score.scored", lambda images, *_: pa.array([0.25] * len(images), pa.float32()))
    build = scored(3, top_share=0.4)
    ids = sorted(pairs(build, "score"))
    assert sorted(pairs(build, "choose")) == ids[:4]


def test_without_the_cuts_of_the_driver_a_task_finds_them_again(scored: Callable[..., Build]) -> None:
    build = scored(top_share=0.5)
    after = pairs(build, "choose")
    stage = build.stage("choose")
    (Path(stage.folder.url) / pair_scores.FILE).unlink()
    for partition in stage.partitions():
        choose.run_partition(build, partition)
    assert pairs(build, "choose") == after


def test_after_a_takedown_a_share_is_one_of_what_remains(scored: Callable[..., Build], run_stage: Any) -> None:
    """Of the very pair with which the share ended, too."""
    build = scored(top_share=0.5)
    before = pairs(build, "score")
    best = sorted(before, key=lambda name: (-before[name], name))
    remove(build, Removal({best[4]}, NO_TAKEDOWNS), ["choose", "score"])
    assert pair_scores.summed(build, "score")["table"].total() == 9
    assert pair_scores.summed(build, "choose")["table"].total() == 4
    again = replace(build, fingerprints={**build.fingerprints, "choose": "c" * 64})
    run_stage(again, "choose")
    assert sorted(pairs(again, "choose")) == sorted(best[:4])


def test_balance_counts_and_shards_hold_what_was_chosen(
    scored: Callable[..., Build], run_stage: Any, tmp_path: Path
) -> None:
    (tmp_path / "words.txt").write_text("红色\n", encoding="utf-8")
    more = {
        "balance": {"threshold": 100, "entries": str(tmp_path / "words.txt")},
        "regions": {"detectors": [{"name": "grid", "n": 2}]},
    }
    build = scored(more=more, min_score=0.5)
    run_stage(build, "detect", "shard")
    chosen = pairs(build, "choose")
    candidates, _ = read_funnels(build)
    own = {row.stage: row for row in candidates.stages(["screen", "choose", "balance", "shard"])}
    assert (own["choose"].seen, own["choose"].dropped, own["shard"].kept) == (10, 10 - len(chosen), len(chosen))
    assert [line for line in faults(build, candidates) if line.startswith(("choose", "balance", "shard"))] == []
    assert sum(record.counts["pairs"] for record in build.stage("concepts").records()) == len(chosen)
    assert pairs(build, "balance") == chosen
    shard = build.stage("shard")
    packed = {
        row["candidate_id"]: round(row["pair_score"], 4)
        for record in shard.records()
        for row in shard.table(record, "parquet").to_pylist()
    }
    assert packed == chosen


def test_the_filter_says_why(scored: Callable[..., Build]) -> None:
    plugin = PairScore(min_score=0.2, max_score=0.4, top_share=0.5)
    cut = Cut(3_000, "b")
    said = {
        units: fault.reason.value if (fault := judge(plugin, cut, "s", units, "b")) else ""
        for units in (1_999, 2_000, 2_999, 3_000, 4_000, 4_001)
    }
    assert said == {
        1_999: "pair_score_low", 2_000: "below_top_share", 2_999: "below_top_share", 3_000: "", 4_000: "",
        4_001: "pair_score_high",
    }  # fmt: skip
    assert judge(plugin, cut, "s", 3_000, "c") is not None
    assert judge(plugin, cut, "s", 3_000, "a") is None
