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

from data_specs.build import Balance, BuildSpec
from pipeline import run
from pipeline.errors import SourceError
from pipeline.report.funnel import faults, read_funnels
from pipeline.report.sections import balance as section
from pipeline.stages.balance import draw, threshold_of
from pipeline.store.build import Build
from pipeline.store.concept_counts import Probabilities
from tests.drawn import blobs, encoded

STAGES = (
    "measure",
    "filter",
    "signatures",
    "copies",
    "edges",
    "leaders",
    "dedup",
    "screen",
    "concepts",
    "balance",
    "detect",
    "shard",
)
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


def texts_of(build: Build, stage: str, suffix: str) -> list[str]:
    directory = build.stage(stage)
    tables = [directory.table(record, suffix) for record in directory.records() if suffix in record.files]
    return sorted(row["texts"][0]["text"] for table in tables for row in table.to_pylist())


def dropped(build: Build) -> list[dict[str, Any]]:
    stage = build.stage("balance")
    return [row for record in stage.records() for row in stage.table(record, "decisions.parquet").to_pylist()]


def test_rare_concepts_stay_and_of_frequent_ones_the_share_that_their_ids_draw(balanced: Callable[..., Build]) -> None:
    build = balanced()
    packed = texts_of(build, "shard", "parquet")
    assert sum("雪景" in text for text in packed) == FEW
    assert {"黄山的云", "海边的人"} <= set(packed)
    frequent = dropped(build)
    assert {row["reason"] for row in frequent} == {"over_represented"}
    assert {row["evidence"] for row in frequent} == {f"kept with probability 0.250; rarest: 故宫 in {MANY} texts"}
    assert all(draw(row["id"], 3) >= 9 / MANY for row in frequent)
    assert len(packed) + len(frequent) == MANY + 2
    assert 0 < len(packed) - FEW - 2 < MANY - FEW
    candidates, _ = read_funnels(build)
    own = {row.stage: row for row in candidates.stages(["screen", "balance", "shard"])}
    assert (own["balance"].seen, own["balance"].dropped, own["shard"].kept) == (MANY + 2, len(frequent), len(packed))
    assert [line for line in faults(build, candidates) if line.startswith(("balance", "shard"))] == []


def test_the_build_is_the_same_however_it_is_cut_and_a_larger_threshold_keeps_more(balanced: Any) -> None:
    one, three, more = balanced(1), balanced(3), balanced(2, threshold=18)
    assert texts_of(one, "shard", "parquet") == texts_of(three, "shard", "parquet")
    assert set(texts_of(one, "shard", "parquet")) < set(texts_of(more, "shard", "parquet"))


def test_pairs_without_a_concept_are_dropped_where_the_spec_says_so(balanced: Callable[..., Build]) -> None:
    build = balanced(unmatched="drop")
    assert "海边的人" not in texts_of(build, "shard", "parquet")
    assert [row["evidence"] for row in dropped(build) if row["reason"] == "no_concept"] == [
        "none of the entries occurs in its text"
    ]


def test_without_the_plan_of_the_driver_a_task_makes_it_again(balanced: Callable[..., Build]) -> None:
    build = balanced()
    before = texts_of(build, "balance", "train.parquet")
    stage = build.stage("balance")
    partition = stage.partitions()[0]
    kept = stage.table(stage.record(partition), "train.parquet")
    (Path(stage.folder.url) / "_probabilities.json").unlink()
    build.stages["balance"].run(build, partition)
    assert stage.table(stage.record(partition), "train.parquet").equals(kept)
    assert texts_of(build, "balance", "train.parquet") == before


def test_a_word_list_that_changes_amidst_a_build_stops_it(
    balanced: Callable[..., Build], run_stage: Any, tmp_path: Path
) -> None:
    """Entries go by their numbers in the list: with a word before them, another word's count decided."""
    build = balanced()
    words = tmp_path / "words.txt"
    before = section.balance(build)
    assert before is not None
    assert before["frequent"][0]["entry"] == "故宫"
    words.write_text("黄山\n故宫\n雪景\n", encoding="utf-8")
    after = section.balance(build)
    assert after is not None
    assert (after["frequent"][0]["entry"], after["frequent"][0]["before"]) == ("#0", MANY)
    stage = build.stage("balance")
    with pytest.raises(SourceError, match=r"words.txt: has changed since its entries were counted; run the same"):
        build.stages["balance"].run(build, stage.partitions()[0])
    build.stages["concepts"].run(build, build.stage("concepts").partitions()[0])  # as where a worker was late
    with pytest.raises(SourceError, match=r"words.txt: has changed since its entries were counted"):
        build.stages["balance"].partitions(build)
    for partition in build.stage("concepts").partitions():  # what the same command does: the list has another token
        build.stages["concepts"].run(build, partition)
    run_stage(build, "balance")
    assert {row["evidence"].partition("; ")[2] for row in dropped(build)} == {f"rarest: 故宫 in {MANY} texts"}


def test_a_spec_without_balance_has_the_fingerprints_that_it_had(tmp_path: Path) -> None:
    """A build that an older wenlan began goes on without doing a stage again, and a spec keeps its digest."""
    source = {"kind": "site", "name": "s", "source_kind": "news", "start": ["https://a.example/"]}
    spec = {"name": "n", "contact": "a@b.example", "sources": [source]}
    plain = BuildSpec.model_validate(spec)
    assert "balance" not in plain.model_dump(mode="json")
    build = run.open_build(plain, str(tmp_path / "out"), str(tmp_path / "store"), "1")
    older = {name: stage for name, stage in build.stages.items() if name not in ("concepts", "balance")}
    before = run.open_build(plain, str(tmp_path / "out"), str(tmp_path / "store"), "1", stages=older)
    assert before.fingerprints.items() <= build.fingerprints.items()
    with_balance = run.open_build(
        BuildSpec.model_validate({**spec, "balance": {"threshold": 5}}), str(tmp_path / "b"), str(tmp_path / "s"), "1"
    )
    same = {name for name, own in build.fingerprints.items() if with_balance.fingerprints[name] == own}
    assert set(build.fingerprints) - same == {"concepts", "balance", "detect", "shard", "tally", "report"}


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
