"""balance: frequent concepts are kept with the probability that MetaCLIP states, by the pair's id and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from data_specs.build import Balance
from pipeline.curate.balance import draw, threshold_of
from pipeline.report.funnel import faults, read_funnels
from pipeline.report.sections import balance as section
from pipeline.store.build import Build
from pipeline.store.concept_counts import CONCEPTS, Probabilities, summed
from pipeline.store.sql import Tables
from pipeline.texts.concepts import concepts
from tests import curated
from tests.drawn import blobs, encoded

STAGES = ("measure", "filter", "dedup", "curate", "detect", "shard")
MANY, FEW = 36, 4
WORDS = "故宫\n雪景\n黄山\n"


@pytest.fixture
def balanced(fetched_build: Callable[..., Build], got: Any, run_stage: Any, tmp_path: Path) -> Callable[..., Build]:
    """A build of MANY pictures of 故宫, FEW of them with 雪景, and one of 黄山 and of no word of the list."""
    (tmp_path / "words.txt").write_text(WORDS, encoding="utf-8")
    texts = [f"故宫{'雪景' if i < FEW else '的一角'}，第{i}幅" for i in range(MANY)] + ["黄山的云", "海边的人"]

    def make(parts: int = 2, **balance: Any) -> Build:
        images = [got(f"i{i}", encoded(Image.fromarray(blobs(i, (320, 240)))), text) for i, text in enumerate(texts)]
        options = {"entries": "words.txt", "threshold": 9, **balance}
        more = {"regions": {"detectors": [{"name": "grid", "n": 2}]}, "base": str(tmp_path), "seed": 3}
        build = fetched_build(images, parts=parts, balance=options, name=f"of-{parts}", **more)
        run_stage(build, *STAGES)
        return build

    return make


def texts_of(build: Build) -> list[str]:
    return sorted(row["texts"][0]["text"] for row in curated.kept(build))


@pytest.mark.slow
def test_rare_concepts_stay_and_of_frequent_ones_the_share_that_their_ids_draw(balanced: Callable[..., Build]) -> None:
    build = balanced()
    packed = sorted(row["texts"][0]["text"] for row in curated.table_of(build, "shard"))
    assert packed == texts_of(build)
    assert sum("雪景" in text for text in packed) == FEW
    assert {"黄山的云", "海边的人"} <= set(packed)
    frequent = curated.dropped(build)
    assert {row["reason"] for row in frequent} == {"over_represented"}
    assert {row["evidence"] for row in frequent} == {f"kept with probability 0.250; rarest: 故宫 in {MANY} texts"}
    assert all(draw(row["id"], 3) >= 9 / MANY for row in frequent)
    assert len(packed) + len(frequent) == MANY + 2
    assert 0 < len(packed) - FEW - 2 < MANY - FEW
    candidates, _ = read_funnels(build)
    own = {row.stage: row for row in candidates.stages(["dedup", "curate", "shard"])}
    assert (own["curate"].seen, own["curate"].dropped, own["shard"].kept) == (MANY + 2, len(frequent), len(packed))
    assert [line for line in faults(build, candidates) if line.startswith(("curate", "shard"))] == []


@pytest.mark.slow
def test_the_build_is_the_same_however_it_is_cut_and_a_larger_threshold_keeps_more(balanced: Any) -> None:
    one, three, more = balanced(1), balanced(3), balanced(2, threshold=18)
    assert texts_of(one) == texts_of(three)
    assert set(texts_of(one)) < set(texts_of(more))


@pytest.mark.slow
def test_pairs_without_a_concept_are_dropped_where_the_spec_says_so(balanced: Callable[..., Build]) -> None:
    build = balanced(unmatched="drop")
    assert "海边的人" not in texts_of(build)
    assert [row["evidence"] for row in curated.dropped(build) if row["reason"] == "no_concept"] == [
        "its text contains none of the entries"
    ]


@pytest.mark.slow
@pytest.mark.parametrize("parts", [1, 3])
def test_counts_add_up_to_those_of_all_texts(balanced: Callable[..., Build], parts: int) -> None:
    build = balanced(parts)
    known = concepts(build.spec.balance, build.spec.base)
    assert len(list(build.stage(CONCEPTS).records())) == parts
    texts = [row["texts"][0]["text"] for row in curated.reached(build, "balance")]
    expected = {word: n for word in known.entries if (n := sum(word in text for text in texts))}
    counts = dict(zip(known.entries, summed(build).tolist(), strict=False))
    assert {word: n for word, n in counts.items() if n} == expected
    with Tables.of(build) as tables:
        assert section.balance(build, tables)["frequent"][0]["before"] == MANY


@given(st.lists(st.integers(0, 30), max_size=30), st.floats(0.01, 0.99))
def test_the_threshold_of_a_tail_share_is_the_largest_that_has_it(counts, share):
    t = threshold_of(np.array(counts, np.int64), Balance(tail_share=share))

    def tail(t: int) -> int:
        return sum(n for n in counts if n <= t)

    assert t >= 1
    assert t == 1 or tail(t) <= share * sum(counts)
    assert all(tail(larger) > share * sum(counts) or tail(larger) == tail(t) for larger in range(t + 1, 32))


@given(st.integers(1, 50), st.lists(st.integers(1, 500), min_size=1, max_size=8))
def test_a_pair_is_kept_as_often_as_one_coin_per_concept_would(t, counts):
    known = Probabilities(t, {entry: n for entry, n in enumerate(counts) if n > t})
    assert known.of(list(range(len(counts)))) == pytest.approx(1 - np.prod([1 - min(1, t / n) for n in counts]))


def test_draws_are_spread_evenly_and_follow_from_id_and_seed() -> None:
    draws = np.array([draw(f"{i:064x}", 1) for i in range(4_000)])
    counts, _ = np.histogram(draws, bins=10, range=(0, 1))
    assert ((counts - 400) ** 2 / 400).sum() < 27.9, "chi-squared of 9 degrees, one in a thousand"
    assert draw("a" * 64, 1) == draw("a" * 64, 1) != draw("a" * 64, 2)
