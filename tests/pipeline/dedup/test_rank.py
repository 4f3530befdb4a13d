"""rank: runs of the build's pairs, each by rank, with what the leader pass compares."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest

from data_specs.text.folding import normals
from pipeline.dedup import rank
from pipeline.dedup.ranked_runs import RUN_SCHEMA, partitions_of
from pipeline.matching import text_rows
from pipeline.store.build import Build
from pipeline.store.takedowns import NO_TAKEDOWNS
from pipeline.takedown.rewrite import Removal
from pipeline.takedown.rewrite_partitions import remove
from pipeline.urls import domain_key
from tests.stages import run_stage


def made(folder: Path, filtered: Any, parts: int, without: frozenset[str] = frozenset()) -> Build:
    """24 pairs of six sizes with a text or two, in so many partitions of filter."""
    shown = [
        filtered.Shown(f"p{i}", i, (f"第{i % 5}张图片", "说明")[: 1 + i % 2], 100 + i % 6, page=f"http://s{i % 3}.cn/")
        for i in range(24)
        if f"p{i}" not in without
    ]
    return filtered.make(folder, shown, parts)


def pairs_of(build: Build, partitions: list[str]) -> list[dict[str, Any]]:
    stage = build.stage("filter")
    return [row for name in partitions for row in stage.table(stage.record(name)).to_pylist()]


def test_a_run_has_its_pairs_by_size_and_id_with_a_sketch_for_each_text(tmp_path: Path, filtered: Any) -> None:
    build = made(tmp_path, filtered, 3)
    run_stage(build, "dedup.rank")
    [record] = build.stage("dedup.rank").records()
    table = build.stage("dedup.rank").table(record)
    assert table.schema.equals(RUN_SCHEMA)
    pairs = pairs_of(build, partitions_of(record.partition))
    expected = sorted(range(24), key=lambda at: (-pairs[at]["width"] * pairs[at]["height"], pairs[at]["candidate_id"]))
    rows = table.to_pylist()
    assert [row["position"] for row in rows] == expected
    for row in rows:
        pair = pairs[row["position"]]
        for name in ("candidate_id", "fetch_id", "sha256"):
            assert row[name].hex() == pair[name]
        for name in ("width", "height", "phash", "signature", "texts"):
            assert row[name] == pair[name]
        assert row["domain"] == domain_key(pair["page_url"])
        own = normals([text["text"] for text in pair["texts"]])
        assert row["sketches"] == text_rows.made(own, build.spec.dedup.text_similarity).columns().to_pylist()
    assert (record.counts["pairs"], record.counts["texts"]) == (24, 36)


@pytest.mark.parametrize("most", [1, 7, 100])
def test_runs_are_neighbouring_partitions_within_the_bound(
    tmp_path: Path, filtered: Any, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    monkeypatch.setattr(rank, "LEAST", most)
    build = made(tmp_path, filtered, 8)
    runs = [partitions_of(run) for run in rank.partitions(build)]
    assert [name for run in runs for name in run] == [record.partition for record in build.stage("filter").records()]
    assert all(len(pairs_of(build, run)) <= most for run in runs if len(run) > 1)
    for run, following in itertools.pairwise(runs):
        assert len(pairs_of(build, [*run, following[0]])) > most, "a run takes as many as fit"


def test_a_build_has_some_runs_for_its_workers_and_a_small_one_has_one(
    tmp_path: Path, filtered: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = made(tmp_path, filtered, 8)
    assert len(rank.partitions(build)) == 1
    monkeypatch.setattr(rank, "LEAST", 1)
    monkeypatch.setattr(rank, "RUNS", 3)
    assert 3 <= len(rank.partitions(build)) <= 6  # 24 pairs, runs of up to 8


def test_runs_that_an_older_wenlan_began_are_gone_on_with(
    tmp_path: Path, filtered: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = made(tmp_path, filtered, 8)
    monkeypatch.setattr(rank, "LEAST", 1)
    monkeypatch.setattr(rank, "RUN", 13)
    monkeypatch.setattr(rank, "RUNS", 1)
    older = rank.partitions(build)
    monkeypatch.setattr(rank, "RUNS", 3)
    own = rank.partitions(build)
    [begun, *_] = set(older) - set(own)
    rank.run_partition(build, begun)
    assert rank.partitions(build) == older


def test_after_a_takedown_a_run_is_that_of_a_build_without_what_was_removed(tmp_path: Path, filtered: Any) -> None:
    """Else the texts of copies go to other pairs, where the next spec of the build begins with the leader pass."""
    build = made(tmp_path / "all", filtered, 3)
    run_stage(build, "dedup.rank")
    pairs = pairs_of(build, build.stage("filter").partitions())
    gone = {pairs[at]["image_url"].rpartition("/")[2]: pairs[at]["candidate_id"] for at in (0, 7)}
    remove(build, Removal(set(gone.values()), NO_TAKEDOWNS), ["dedup.rank", "filter"])
    assert not build.stage("dedup.rank").finished()
    run_stage(build, "dedup.rank")
    other = made(tmp_path / "others", filtered, 3, frozenset(gone))
    run_stage(other, "dedup.rank")
    [left], [alone] = (
        [own.stage("dedup.rank").table(record) for record in own.stage("dedup.rank").records()]
        for own in (build, other)
    )
    assert left.num_rows == 22
    assert left.equals(alone)
