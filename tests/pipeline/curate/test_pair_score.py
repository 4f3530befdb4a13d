"""pair_score: a band of scores, and the best share of each source, on any number of workers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pipeline.curate import pair_score
from pipeline.curate.pair_score import judge
from pipeline.filters.pair_score import PairScore
from pipeline.report.funnel import faults, read_funnels
from pipeline.store import pair_scores
from pipeline.store.build import Build
from pipeline.store.pair_scores import Cut
from pipeline.store.takedowns import NO_TAKEDOWNS
from pipeline.takedown.rewrite import Removal
from pipeline.takedown.rewrite_partitions import remove
from tests import curated, towered
from tests.towered import coloured

pytestmark = pytest.mark.slow

STAGES = ("measure", "filter", "dedup", "curate")
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


def scores(build: Build) -> dict[str, float]:
    """Score by candidate_id of all pairs that were scored."""
    return {row["candidate_id"]: round(row["pair_score"], 4) for row in curated.reached(build, "pair_score")}


def kept(build: Build) -> dict[str, float]:
    """Score by candidate_id of the pairs that go on."""
    return {row["candidate_id"]: round(row["pair_score"], 4) for row in curated.kept(build)}


def test_a_band_keeps_what_is_within_both_ends(scored: Callable[..., Build]) -> None:
    build = scored(min_score=0.3, max_score=0.9)
    before, after = scores(build), kept(build)
    assert after == {name: score for name, score in before.items() if 0.3 <= score <= 0.9}
    assert 0 < len(after) < len(before) == 10
    dropped = curated.dropped(build)
    reasons = Counter(row["reason"] for row in dropped)
    assert reasons == {
        "pair_score_low": sum(score < 0.3 for score in before.values()),
        "pair_score_high": sum(score > 0.9 for score in before.values()),
    }
    assert {row["evidence"] for row in dropped if row["reason"] == "pair_score_low"} == {
        f"pair score {score:.4f}; at least 0.3" for score in before.values() if score < 0.3
    }


def test_the_end_of_a_band_is_within_it(scored: Callable[..., Build]) -> None:
    ends = sorted(scores(scored()).values())
    build = scored(min_score=ends[2], max_score=ends[-3])
    assert sorted(kept(build).values()) == ends[2:-2]


@pytest.mark.parametrize(("parts", "share", "count"), [(3, 0.3, 3), (2, 0.01, 1)])
def test_a_share_keeps_the_best_however_the_build_is_cut(
    scored: Callable[..., Build], parts: int, share: float, count: int
) -> None:
    build = scored(parts, top_share=share)
    before = scores(build)
    best = sorted(before, key=lambda name: (-before[name], name))[:count]
    assert sorted(kept(build)) == sorted(best)
    assert [row["reason"] for row in curated.dropped(build)] == ["below_top_share"] * (10 - count)


def test_a_share_is_one_of_what_the_band_keeps(scored: Callable[..., Build]) -> None:
    ends = sorted(scores(scored()).values())
    build = scored(max_score=ends[-3], top_share=0.5)
    assert sorted(kept(build).values()) == ends[4:8]
    evidence = {row["evidence"] for row in curated.dropped(build) if row["reason"] == "below_top_share"}
    assert f"pair score {ends[3]:.4f}; the best 0.5 of table have at least {ends[4]:.4f}" in evidence


def test_of_equal_scores_the_smaller_ids_are_kept(
    scored: Callable[..., Build], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pair_score, "cosines", lambda images, *_: pa.array([0.25] * len(images), pa.float32()))
    build = scored(3, top_share=0.4)
    assert sorted(kept(build)) == sorted(scores(build))[:4]


@pytest.mark.drill(1)
def test_after_a_takedown_a_share_is_one_of_what_remains(scored: Callable[..., Build], run_stage: Any) -> None:
    """Of the very pair with which the share ended, too."""
    build = scored(top_share=0.5)
    before = scores(build)
    best = sorted(before, key=lambda name: (-before[name], name))
    remove(build, Removal({best[4]}, NO_TAKEDOWNS), ["curate", "curate.pair_score", "curate.score", "dedup"])
    assert pair_scores.summed(build)["table"].total() == 9
    assert sorted(kept(build)) == sorted(best[:4])
    judged = ("curate.cuts", "curate.pair_score", "curate")
    again = replace(build, fingerprints={**build.fingerprints, **{name: f"{i}" * 64 for i, name in enumerate(judged)}})
    run_stage(again, *judged)
    assert sorted(kept(again)) == sorted(best[:4]), "half of nine, to even"


@pytest.mark.drill(1)
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
    chosen = kept(build)
    candidates, _ = read_funnels(build)
    own = {row.stage: row for row in candidates.stages(["dedup", "curate", "shard"])}
    assert (own["curate"].seen, own["curate"].dropped, own["shard"].kept) == (10, 10 - len(chosen), len(chosen))
    assert [line for line in faults(build, candidates) if line.startswith(("curate", "shard"))] == []
    assert sum(record.counts["pairs"] for record in build.stage("curate.concepts").records()) == len(chosen)
    packed = curated.table_of(build, "shard")
    assert {row["candidate_id"]: round(row["pair_score"], 4) for row in packed} == chosen


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
