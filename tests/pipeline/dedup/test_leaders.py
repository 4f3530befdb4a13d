"""dedup.leaders: caps, placeholders, texts taken over; increments give what one build gives; crowds; losses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.dedup import leaders
from pipeline.store.takedowns import NO_TAKEDOWNS
from pipeline.takedown import rewrite_partitions
from pipeline.takedown.rewrite import Removal
from tests.dedup_oracle import rows_of
from tests.deduped import after, publish, run, texts
from tests.drawn import picture
from tests.stages import run_stage

pytestmark = pytest.mark.slow

PASSES = ("dedup.signatures", "dedup.copies", "dedup.edges", "dedup.leaders", "dedup")


def test_a_text_feeds_the_cap_and_drops_nothing_by_itself(fetched_build: Any, got: Any) -> None:
    caption = "这家餐厅的红烧肉味道非常好值得推荐给大家来尝试"
    images = [got(f"{i}", picture(i), caption + "。" * i) for i in range(5)]
    kept, decided, counts = run(fetched_build(images, filters=[], dedup={"max_pairs_per_text": 3}))
    assert (len(kept), counts["cap_per_text"], counts["text_clusters"]) == (3, 2, 1)
    assert {d["reason"] for d in decided.values()} == {"cap_per_text"}
    assert len({row["text_leaders"][0] for row in kept.values()}) == 1
    kept, decided, _ = run(fetched_build(images, name="loose", filters=[]))
    assert (len(kept), decided) == (5, {})


def test_what_an_earlier_build_kept_is_not_kept_again(fetched_build: Any, got: Any) -> None:
    caption = "这家餐厅的红烧肉味道非常好值得推荐给大家来尝试"
    cap = {"max_pairs_per_text": 2}
    first = fetched_build([got("a", picture(1), caption), got("b", picture(2), caption + "哦")], filters=[], dedup=cap)
    kept, _, _ = run(first)
    rows = publish(first)
    assert {row["candidate_id"].hex() for row in rows} == {row["candidate_id"] for row in kept.values()}
    everything = [path.read_bytes() for path in Path(first.store.url).rglob("identity/*")]
    assert not any(caption.encode() in data for data in everything)

    later = [
        got("a-again", picture(1), "新的说明"),
        got("a-near", picture(1, (320, 240)), "更大的图"),
        got("c", picture(3), caption + "啊"),
        got("d", picture(4), "没有见过的文字"),
    ]
    second = fetched_build(later, snapshot="2026-02-02", filters=[], dedup=cap)
    again, decided, counts = run(second)
    assert {name: d["reasons"] for name, d in decided.items()} == {
        "a-again": ["known", "same_image"],
        "a-near": ["known", "near_image"],
        "c": ["cap_per_text"],
    }
    assert decided["a-near"]["duplicate_of"] == kept["a"]["candidate_id"]
    assert set(again) == {"d"}
    assert [counts[name] for name in ("earlier", "known", "dropped", "cap_per_text")] == [2, 2, 1, 1]


def test_a_build_never_matches_itself_nor_what_it_replaces(fetched_build: Any, got: Any) -> None:
    images = [got("a", picture(1), "一"), got("b", picture(2), "二")]
    first = fetched_build(images, filters=[])
    before = run(first)
    token = leaders.token(first)
    publish(first)
    assert run(first) == before
    assert leaders.token(first) == token
    changed = fetched_build(images, filters=[], shards={"jpeg_quality": 80})  # same dataset and snapshot
    assert changed.build_id != first.build_id
    assert len(run(changed)[0]) == 2


def test_a_picture_under_many_different_texts_is_a_placeholder_and_all_its_copies_go(
    tmp_path: Path, filtered: Any
) -> None:
    shown = [filtered.Shown(f"p{i}", 1, (f"第{i}道菜的做法",), 200 - i) for i in range(6)]
    shown += [filtered.Shown(f"q{i}", 2, ("同一道菜",), 200 - i) for i in range(6)]
    build = filtered.make(tmp_path, shown, parts=3, dedup={"placeholder_texts": 5})
    kept, decided = after(build)
    assert set(kept) == {"q0"}
    assert set(decided["p0"]["reasons"]) == {"placeholder"}
    assert decided["p5"]["reasons"] == ["placeholder", "near_image"]
    assert "more than 5 different texts" in decided["p5"]["evidence"]
    assert decided["q5"]["reason"] == "near_image"
    publish(build)

    again = [filtered.Shown("p9", 1, ("又一页",)), filtered.Shown("r", 3)]
    kept, decided = after(filtered.make(tmp_path, again, snapshot="2026-02-02", dedup={"placeholder_texts": 5}))
    assert set(kept) == {"r"}
    assert decided["p9"]["reasons"] == ["placeholder", "near_image"], "what was a placeholder once is one at sight"


def test_merged_texts_share_their_ids_wherever_they_came_from(tmp_path: Path, filtered: Any) -> None:
    """Two copies of two pictures bring nearly one caption; it gets one id, though no kept pair had it of its own."""
    caption = "今天天气很好我们一家人去公园散步吧"
    shown = [
        filtered.Shown("a", 1, ("甲",), 300),
        filtered.Shown("b", 2, ("乙",), 290),
        filtered.Shown("a2", 1, (caption,), 200),
        filtered.Shown("b2", 2, (caption + "哦",), 190),
    ]
    kept, _ = after(filtered.make(tmp_path, shown, parts=2))
    assert texts(kept["a"]) == ["甲", caption]
    assert texts(kept["b"]) == ["乙", caption + "哦"]
    assert kept["a"]["text_leaders"][1] == kept["b"]["text_leaders"][1]


@st.composite
def splits(draw: st.DrawFn) -> tuple[list[list[tuple[int, bool, list[str], int]]], dict[str, Any], int]:
    """Builds of (picture, same bytes, texts, site); rules; partitions."""
    words = ["红烧肉", "红烧鱼", "清蒸鱼", "今天天气很好我们去公园散步吧", "今天天气很好我们去公园散步啦", "故宫雪景"]
    pair = st.tuples(
        st.integers(0, 6), st.booleans(), st.lists(st.sampled_from(words), min_size=1, max_size=3), st.integers(0, 2)
    )
    builds = draw(st.lists(st.lists(pair, max_size=10), min_size=1, max_size=4))
    rules = {
        "max_pairs_per_text": draw(st.integers(1, 3)),
        "merge_texts": draw(st.booleans()),
        "placeholder_texts": 0,
    }
    return builds, rules, draw(st.integers(1, 3))


@settings(max_examples=3, deadline=None)
@given(splits())
def test_any_increments_give_what_one_build_would_have_given(
    tmp_path_factory: Any, filtered: Any, drawn: tuple[Any, dict[str, Any], int, int]
) -> None:
    """Each build shows smaller pictures than the one before, so that one build over all has the same ranks."""
    builds, rules, parts = drawn
    folder = tmp_path_factory.mktemp("splits")
    increments = [
        [
            filtered.Shown(
                f"{step}-{i}", picture, tuple(own), 900 - 100 * step - i, "same" if same else "", f"http://s{site}.cn/"
            )
            for i, (picture, same, own, site) in enumerate(shown)
        ]
        for step, shown in enumerate(builds)
    ]
    apart: dict[str, Any] = {}
    for step, shown in enumerate(increments):
        build = filtered.make(folder, shown, parts, snapshot=f"2026-0{step + 1}-01", dedup=rules)
        apart |= after(build)[0]
        publish(build)
    everything = [one for shown in increments for one in shown]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.dedup.signatures.RUN", 4)
        together, _ = after(filtered.make(folder, everything, 4, store=str(folder / "other"), dedup=rules))
    what = ("image_leader", "split", "sha256")
    assert {name: [row[w] for w in what] for name, row in apart.items()} == {
        name: [row[w] for w in what] for name, row in together.items()
    }
    own = {one.name: len(dict.fromkeys(one.texts)) for one in everything}
    assert {name: row["text_leaders"][: own[name]] for name, row in apart.items()} == {
        name: row["text_leaders"][: own[name]] for name, row in together.items()
    }


def test_a_week_without_pairs_compares_nothing(tmp_path: Path, filtered: Any) -> None:
    first = filtered.make(tmp_path, [filtered.Shown("p", 1)], snapshot="2026-01-01")
    after(first)
    publish(first)
    second = filtered.make(tmp_path, [], snapshot="2026-02-01")
    assert after(second) == ({}, {})
    counts = second.stage("dedup.leaders").record("all").counts
    assert (counts["earlier"], counts["pairs"]) == (1, 0)
    assert [second.stage(name).partitions() for name in ("dedup.copies", "dedup.edges")] == [[], []]
    assert not list((tmp_path / "store").glob("dealt/*")), "nothing is made of what was kept"


def test_a_crowd_of_copies_is_bounded_and_its_first_leads(tmp_path: Path, filtered: Any) -> None:
    """1,500 copies of one picture in runs of 400: the largest is kept, and each is compared with few."""
    shown = [filtered.Shown(f"p{i}", 7, (f"第{i}句话说的是别的",), 4_000 - i * 7 % 1_500) for i in range(1_500)]
    build = filtered.make(tmp_path, shown, parts=8, dedup={"placeholder_texts": 0})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.dedup.signatures.LEAST", 400)
        patch.setattr("pipeline.dedup.signatures.RUN", 400)
        kept, dropped = after(build)
    assert set(kept) == {"p0"}
    assert {row["reason"] for row in dropped.values()} == {"near_image"}
    compared = sum(record.counts["images.compared"] for record in build.stage("dedup.edges").records())
    assert compared < 4 * 1_500


@pytest.mark.parametrize("stages", [PASSES, PASSES[:1]])
def test_a_takedown_deletes_what_can_be_made_again(tmp_path: Path, filtered: Any, stages: tuple[str, ...]) -> None:
    shown = [filtered.Shown(f"p{i}", i % 9, (f"说明{i % 4}",), 300 - i) for i in range(20)]
    build = filtered.make(tmp_path, shown, parts=2)
    run_stage(build, *stages)
    gone = {row["candidate_id"] for row in rows_of(build) if row["image_url"] == shown[3].url}
    removal = Removal(gone, NO_TAKEDOWNS)
    rewrite_partitions.remove(build, removal, rewrite_partitions.rewritable(build))
    for name in PASSES[:3]:
        assert (build.stage(name).finished(), build.stage(name).partitions()) == (False, [])
        assert not list(Path(build.stage(name).folder.url).rglob("*.bin"))
    if "dedup.leaders" in stages:  # now by other rules
        build = replace(build, fingerprints={**build.fingerprints, "dedup.leaders": "e" * 64, "dedup": "e" * 64})
    without = [one for one in shown if one.name != "p3"]
    assert after(build)[0] == after(filtered.make(tmp_path / "other", without, parts=2))[0]
