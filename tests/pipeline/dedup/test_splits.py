"""Splits by images, by texts as well, across builds and generations; what that costs is counted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.rows.records import split_of
from pipeline.store.build import Build, Earlier
from pipeline.store.identities import Identities
from tests.stages import run_stage

pytestmark = pytest.mark.slow

SHARES = {"dev_share": 0.25, "val_share": 0.25}
APART = {**SHARES, "apart": "texts"}
SPLITS = ("train", "dev", "val")

Kept = dict[str, dict[str, Any]]


def after(build: Build) -> Kept:
    """Kept rows of a build by the name of their picture."""
    run_stage(build, "dedup")
    stage, kept = build.stage("dedup"), Kept()
    for record in stage.records():
        kept |= {row["image_url"].rpartition("/")[2]: row for row in stage.table(record).to_pylist()}
    return kept


def counts(build: Build) -> dict[str, int]:
    return build.stage("dedup.leaders").record("all").counts


def publish(build: Build) -> None:
    with build.store.lock():
        Identities(build.store).publish(build)


def straddling(kept: Kept) -> dict[str, set[str]]:
    """Text leaders with pairs in several splits."""
    splits: dict[str, set[str]] = {}
    for row in kept.values():
        for leader in row["text_leaders"]:
            splits.setdefault(leader, set()).add(row["split"])
    return {leader: own for leader, own in splits.items() if len(own) > 1}


def hashed(row: dict[str, Any]) -> str:
    return split_of(row["sha256"], 0, 0.25, 0.25)


def shared(filtered: Any, first: int = 0, side: int = 400) -> list[Any]:
    """Forty pictures under eight texts, five each."""
    return [filtered.Shown(f"p{i}", i, (f"第{i % 8}种菜的做法",), side - i) for i in range(first, first + 40)]


def test_texts_straddle_unless_they_are_held_apart(tmp_path: Path, filtered: Any) -> None:
    by_images = after(filtered.make(tmp_path, shared(filtered), shards=SHARES))
    assert straddling(by_images)
    assert all(row["split"] == hashed(row) for row in by_images.values())
    build = filtered.make(tmp_path, shared(filtered), shards=APART)
    kept = after(build)
    assert kept.keys() == by_images.keys(), "a shared text drops no pair"
    assert not straddling(kept)
    assert {row["split"] for row in kept.values()} == set(SPLITS)
    moved = [(hashed(row), row["split"]) for row in kept.values() if hashed(row) != row["split"]]
    counted = {name: n for name, n in counts(build).items() if name.startswith("moved_") and n}
    assert counted == {f"moved_{a}_to_{b}": moved.count((a, b)) for a, b in moved}
    assert (counts(build)["texts_left_out"], counts(build)["other_split"]) == (0, 0)


def one_of_each(filtered: Any, most: int = 200) -> dict[str, Any]:
    """A picture of each split, by the hash of its bytes."""
    shown_of: dict[str, Any] = {}
    for i in range(most):
        shown = filtered.Shown(f"p{i}", i, (f"只有第{i}张图片有的文字",), 900 - i)
        shown_of.setdefault(split_of(shown.sha256, 0, 0.25, 0.25), shown)
    return shown_of


def test_a_second_text_of_another_split_is_left_out_and_the_pair_stays(tmp_path: Path, filtered: Any) -> None:
    each = one_of_each(filtered)
    train, val = each["train"], each["val"]
    both = filtered.Shown("both", 999, (val.texts[0], train.texts[0], "自己的文字"), 100)
    build = filtered.make(tmp_path, [train, val, both], shards=APART)
    kept = after(build)
    assert kept["both"]["split"] == "val", "the first of its texts that has a split decides"
    assert [text["text"] for text in kept["both"]["texts"]] == [val.texts[0], "自己的文字"]
    assert len(kept["both"]["text_leaders"]) == 2
    assert counts(build)["texts_left_out"] == 1
    assert not straddling(kept)


def test_texts_of_duplicates_come_only_from_clusters_of_the_same_split(tmp_path: Path, filtered: Any) -> None:
    each = one_of_each(filtered)
    train, val = each["train"], each["val"]
    copies = [
        filtered.Shown("copy-1", train.picture, (val.texts[0],), 50),
        filtered.Shown("copy-2", train.picture, ("没有别的图片有这句话",), 49),
    ]
    other = filtered.Shown("other", 998, (train.texts[0], "另一张图片也有"), 80)
    copies.append(filtered.Shown("copy-3", train.picture, ("另一张图片也有",), 48))
    build = filtered.make(tmp_path, [train, val, other, *copies], shards=APART)
    kept = after(build)
    assert [text["text"] for text in kept[train.name]["texts"]] == [train.texts[0], "另一张图片也有"]
    assert counts(build)["texts_left_out"] == 2
    assert counts(build)["merged_texts"] == 1


def test_the_splits_of_earlier_builds_decide_first(tmp_path: Path, filtered: Any) -> None:
    each = one_of_each(filtered)
    first = filtered.make(tmp_path, list(each.values()), shards=APART)
    before = after(first)
    publish(first)
    later = [filtered.Shown(f"new-{s}", 500 + n, (own.texts[0],)) for n, (s, own) in enumerate(each.items())]
    kept = after(filtered.make(tmp_path, later, snapshot="2026-02-02", shards=APART))
    assert {name: row["split"] for name, row in kept.items()} == {f"new-{split}": split for split in each}
    assert not straddling({**before, **kept})


def publish_after(build: Build) -> Kept:
    kept = after(build)
    publish(build)
    return kept


def test_a_new_generation_keeps_splits_and_drops_what_straddles(tmp_path: Path, filtered: Any) -> None:
    each = one_of_each(filtered)
    train, val = each["train"], replace(each["val"], texts=each["train"].texts)
    first = filtered.make(tmp_path, [train, val], shards=SHARES)
    kept = publish_after(first)
    assert {row["split"] for row in kept.values()} == {"train", "val"}
    anew = filtered.make(tmp_path, [train, val], snapshot="2026-02-02", shards=APART)
    commit = Identities(anew.store).of(first.build_id)
    made_from = (Earlier(first.build_id, first.snapshot, first.out, commit),)
    anew = replace(anew, generation=2, identities=(), made_from=made_from)
    run_stage(anew, "dedup")
    stage = anew.stage("dedup")
    remaining = [row for r in stage.records() for row in stage.table(r).to_pylist()]
    decided = [row for r in stage.records() for row in stage.table(r, "decisions.parquet").to_pylist()]
    assert [row["split"] for row in remaining] == [
        kept[row["image_url"].rpartition("/")[2]]["split"] for row in remaining
    ]
    assert [row["reasons"] for row in decided] == [["other_split"]]
    assert "are in another split" in decided[0]["evidence"]
    assert counts(anew)["other_split"] == 1


@st.composite
def increments(draw: st.DrawFn) -> tuple[list[list[tuple[int, list[str]]]], dict[str, Any], int]:
    """Builds of (picture, texts); rules; partitions."""
    words = ["红烧肉", "红烧鱼", "清蒸鱼", "今天天气很好我们去公园散步吧", "今天天气很好我们去公园散步啦", "故宫雪景"]
    pair = st.tuples(st.integers(0, 20), st.lists(st.sampled_from(words), min_size=1, max_size=3))
    rules = {
        "max_pairs_per_text": draw(st.integers(1, 4)),
        "merge_texts": draw(st.booleans()),
        "placeholder_texts": 0,
    }
    builds = draw(st.lists(st.lists(pair, max_size=10), min_size=1, max_size=3))
    return builds, rules, draw(st.integers(1, 3))


@settings(max_examples=10, deadline=None)
@given(increments())
@pytest.mark.drill(6)
def test_no_text_straddles_and_increments_place_pairs_as_one_build_would(
    tmp_path_factory: Any, filtered: Any, drawn: tuple[Any, dict[str, Any], int]
) -> None:
    """Each build shows smaller pictures than the one before, so that one build over all has the same ranks."""
    builds, rules, parts = drawn
    folder = tmp_path_factory.mktemp("splits")
    shown = [
        [
            filtered.Shown(f"{step}-{i}", picture, tuple(own), 900 - 100 * step - i)
            for i, (picture, own) in enumerate(of)
        ]
        for step, of in enumerate(builds)
    ]
    apart: Kept = {}
    for step, of in enumerate(shown):
        build = filtered.make(folder, of, parts, snapshot=f"2026-0{step + 1}-01", dedup=rules, shards=APART)
        apart |= publish_after(build)
        assert not straddling(apart)
    everything = [one for of in shown for one in of]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.dedup.signatures.RUN", 4)
        together = filtered.make(folder, everything, 4, store=str(folder / "other"), dedup=rules, shards=APART)
        at_once = after(together)
    assert not straddling(at_once)
    assert placed(at_once, everything) == placed(apart, everything)


def placed(kept: Kept, shown: Sequence[Any]) -> dict[str, Any]:
    """The split of each kept pair, and the own texts that it still has: merged ones come later in increments."""
    own = {one.name: set(one.texts) for one in shown}
    return {
        name: (row["split"], [t["text"] for t in row["texts"] if t["text"] in own[name]]) for name, row in kept.items()
    }
