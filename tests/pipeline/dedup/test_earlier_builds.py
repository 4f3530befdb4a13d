"""earlier_builds: what other builds kept counts for a new one, loaded or met, as far as its spec and features go."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_specs.text.folding import normals, text_id
from pipeline.dedup import dealt_earlier, handed_on, meet
from pipeline.features import feature_id
from pipeline.matching import earlier_meetings
from pipeline.matching.holders import Holders
from pipeline.records import split_of
from pipeline.store.identities import Identities
from pipeline.store.partitions import StageDir
from tests.dealt import deal_out_all, handed, measured, published, shown_of
from tests.deduped import after, publish, run
from tests.drawn import picture
from tests.stages import run_stage


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    deal_out_all(monkeypatch)


def test_what_another_dataset_kept_is_a_duplicate_only_if_the_spec_says_so(fetched_build: Any, got: Any) -> None:
    first = fetched_build([got("a", picture(1), "一")], filters=[])
    run(first)
    publish(first)
    later = [got("again", picture(1), "二"), got("b", picture(2), "三")]
    options: dict[str, Any] = {"snapshot": "2026-02-02", "name": "photos", "filters": []}
    kept, _, _ = run(fetched_build(later, **options))
    assert set(kept) == {"again", "b"}
    for across in ("all", [first.spec.name]):
        kept, decided, counts = run(fetched_build(later, dedup={"across": across}, **options))
        assert (set(kept), decided["again"]["reason"], counts["known"]) == ({"b"}, "same_image", 0)
        assert "which an earlier build kept" in decided["again"]["evidence"]


def test_a_text_of_an_earlier_build_stays_the_leader(fetched_build: Any, got: Any) -> None:
    caption = "这家餐厅的红烧肉味道非常好值得推荐给大家来尝试"
    first = fetched_build([got("a", picture(1), caption)], filters=[])
    kept, _, _ = run(first)
    publish(first)
    again, _, _ = run(fetched_build([got("b", picture(2), caption + "哦")], snapshot="2026-02-02", filters=[]))
    assert again["b"]["text_leaders"] == kept["a"]["text_leaders"]


def test_hashes_of_other_features_are_matched_by_bytes_only(
    fetched_build: Any, got: Any, caplog: pytest.LogCaptureFixture
) -> None:
    first = fetched_build([got("a", picture(1), "一")], filters=[])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.dedup.lead.feature_id", lambda: "features-old")
        run(first)
    publish(first)
    later = [got("same", picture(1), "二"), got("near", picture(1, (320, 240)), "三")]
    kept, decided, _ = run(fetched_build(later, snapshot="2026-02-02", filters=[]))
    assert "matched by bytes only" in caplog.text
    assert (set(kept), set(decided)) == ({"near"}, {"same"})


def test_kept_pictures_are_met_by_their_details_where_they_have_some(
    tmp_path: Path, filtered: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twelve pictures were kept, four with details, in pieces of five; of six new ones two look like one of them."""
    monkeypatch.setattr(dealt_earlier, "PIECE", 5)
    kept_fine, fine = {1: 1, 2: 2, 6: 3, 11: 4}, {0: 4, 3: 1, 4: 5}
    decided = []
    for fewest in (1, 1_000):
        monkeypatch.setattr(handed_on, "FEWEST", fewest)
        monkeypatch.setattr(handed_on, "FEWEST_KEPT", fewest)
        folder = tmp_path / str(fewest)
        first = [filtered.Shown(f"a{i}", i, (f"旧{i}",), 300 - i, fine=kept_fine.get(i, 0)) for i in range(12)]
        published(filtered, folder, first)
        shown = [filtered.Shown(f"b{i}", 50 + i, (f"新{i}",), 100 - i, fine=fine.get(i, 0)) for i in range(6)]
        build = filtered.make(folder, shown, 2, snapshot="2026-02-02")
        run_stage(build, "dedup.rank", "dedup.deal", "dedup.meet", "dedup.lead")
        counts = build.stage("dedup.lead").record("all").counts
        assert counts.get("met", 0) == (2 if fewest == 1 else 0)
        dealt = [path.name for path in Path(build.store.url).glob("dealt/*/details.*")]
        assert len(dealt) == (3 if fewest == 1 else 0)
        decided.append((after(build), {ref.sha256 for ref in handed(build)}))
    assert decided[0] == decided[1]
    dropped = {name: row["reason"] for name, row in decided[0][0][1].items()}
    assert dropped == {"b0": "known", "b3": "known"}


def test_keys_and_pieces_of_all_images_do_not_follow_from_how_many_have_details(tmp_path: Path, filtered: Any) -> None:
    published(filtered, tmp_path, [filtered.Shown(f"a{i}", i, (f"旧{i}",), fine=i % 2) for i in range(2)])
    names, keys = [], []
    for step, fine in ((2, 0), (3, 7)):
        shown = [filtered.Shown(f"{step}-{i}", 10 * step + i, (f"{step}{i}",), fine=fine) for i in range(2)]
        build = filtered.make(tmp_path, shown, 1, snapshot=f"2026-0{step}-02")
        run_stage(build, "dedup.rank", "dedup.deal")
        keys.append(handed_on.keys_of(build))
        names.append({path.name for path in Path(build.store.url).glob("dealt/*/*")})
    coarse = [[key for key in own if not key.family.fine] for own in keys]
    assert coarse[0] == coarse[1] == list(keys[0]), "a build of photographs only has no fine key"
    assert len(keys[1]) > len(keys[0])
    assert [name.split(".")[0] for name in names[1] - names[0]] == ["details"]


CAPTION = "今天天气很好我们一家人去公园散步吧"
WORDS = [CAPTION, CAPTION + "啦", CAPTION[:-1], "红烧肉", "红烧鱼", "故宫雪景", "第一次看见的说明", ""]

Pairs = list[tuple[int, bool, int, list[str], int]]


@st.composite
def builds(draw: st.DrawFn) -> tuple[list[Pairs], dict[str, Any], dict[str, Any], int]:
    """Builds of (picture, same bytes, site, texts, number of its details); rules of dedup, and of shards; entries of a
    part."""
    own = st.one_of(st.just([WORDS[-2]]), st.lists(st.sampled_from(WORDS), min_size=1, max_size=3))
    fine = st.sampled_from([0, 0, 1, 2])
    pair = st.tuples(st.integers(0, 6) | st.integers(7, 60), st.booleans(), st.integers(0, 2), own, fine)
    rules = {
        "max_pairs_per_text": draw(st.integers(1, 3)),
        "max_pairs_per_domain": draw(st.sampled_from([0, 3])),
        "placeholder_texts": draw(st.sampled_from([0, 1])),
        "max_texts": draw(st.sampled_from([1, 2, 32])),
    }
    shards = {"apart": draw(st.sampled_from(["images", "texts"])), "dev_share": 0.3, "val_share": 0.3}
    entries = draw(st.sampled_from([60, 1_000]))
    steps = draw(st.lists(st.lists(pair, max_size=14), min_size=1, max_size=3))
    return steps, rules, shards, entries


@settings(max_examples=10, deadline=None)
@given(builds(), st.sampled_from([5, 1_000]), st.sampled_from([0, 1_000]), st.integers(0, 2**10))
def test_increments_decide_with_it_as_without(
    tmp_path_factory: Any,
    filtered: Any,
    drawn: tuple[list[Pairs], dict[str, Any], dict[str, Any], int],
    rows: int,
    long: int,
    chance: int,
) -> None:
    """Pair by pair, and what STORE is handed byte by byte: in pieces of so many rows, that are lost at any time, over
    builds of other features, of which some can be compared, with and without details, and of another dataset.
    """
    steps, rules, shards, entries = drawn
    results = []
    for fewest in (1, 1_000):
        folder, decided = tmp_path_factory.mktemp("builds"), []
        chosen, happens = random.Random(chance), random.Random(chance)  # what is lost must not change what is chosen
        for step, shown in enumerate(steps):
            pictures = [
                filtered.Shown(
                    f"{step}-{i}",
                    picture,
                    tuple(f"{text}{i}" if text.startswith("第") else text for text in texts),  # some texts are alone
                    900 - i,
                    "b" if same else "",
                    f"http://s{site}.cn/",
                    (0, 0, 1, 2)[picture % 4] if same else fine,  # what has the same bytes looks the same
                )
                for i, (picture, same, site, texts, fine) in enumerate(shown)
            ]
            name = chosen.choice(["test", "test", "other"])
            own = {"name": name, "dedup": {**rules, "across": "all"}, "shards": shards}
            features = chosen.choice([feature_id(), feature_id(), "features-odd"])
            build = filtered.make(folder, pictures, 2, snapshot=f"2026-0{step + 1}-01", **own)
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(handed_on, "FEWEST", fewest)
                patch.setattr(handed_on, "FEWEST_KEPT", fewest)
                patch.setattr(meet, "ENTRIES", entries)
                patch.setattr(dealt_earlier, "PIECE", rows)
                patch.setattr(earlier_meetings, "LONG", long)
                run_stage(build, "dedup.rank", "dedup.deal")
                lose(build, happens)
                run_stage(build, "dedup.meet")
                lose(build, happens)
                assert bool(meet.partitions(build)) == (fewest == 1 and bool(shown))
                decided.append((after(build), {ref.sha256 for ref in handed(build)}))
                counts = build.stage("dedup.lead").record("all").counts
                assert ("met" in counts) == (fewest == 1 and bool(shown) and bool(build.identities))
                assert counts.get("met", 0) <= counts["earlier"]
            publish(build)
            measured(build, features)
        results.append(decided)
    assert results[0] == results[1]


def lose(build: Any, happens: random.Random) -> None:
    """Delete one or the other file of STORE/dealt, which may be made again."""
    for path in sorted(Path(build.store.url).glob("dealt/*/*.bin")):
        if happens.random() < 0.3:
            path.unlink()


def test_of_earlier_builds_what_a_new_one_can_match_is_remembered_and_the_rest_decided_in_bulk(
    tmp_path: Path, filtered: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twenty pictures were kept; of eight new ones two look like one of them, one has its text."""
    monkeypatch.setattr(dealt_earlier, "PIECE", 6)
    first = [filtered.Shown(f"a{i}", i, (f"第{i}句话说的是别的",), 300 - i) for i in range(20)]
    published(filtered, tmp_path, first)
    texts = [f"新的第{i}张照片里有什么" for i in range(8)]
    texts[5] = "第7句话说的是别的"
    pictures = [3, 17, *range(100, 106)]
    shown = [filtered.Shown(f"b{i}", pictures[i], (texts[i],), 200 - i) for i in range(8)]
    build = filtered.make(tmp_path, shown, 2, snapshot="2026-02-02")
    learnt = list[int]()
    remember = Holders.learn_images
    monkeypatch.setattr(Holders, "learn_images", lambda *of: learnt.append(len(of[1])) or remember(*of))
    run_stage(build, "dedup.rank", "dedup.deal", "dedup.meet", "dedup.lead")
    counts = build.stage("dedup.lead").record("all").counts
    assert (counts["earlier"], counts["met"], counts["met_texts"]) == (20, 2, 1)
    assert (counts["alone"], counts["alone_texts"], counts["free"]) == (6, 7, 5)
    assert sum(learnt) == 2, "what is alone is not remembered"
    kept, dropped = after(build)
    assert {name: row["reason"] for name, row in dropped.items()} == {"b0": "known", "b1": "known"}
    assert kept["b5"]["text_leaders"][0] == text_id(normals([texts[5]])[0])


def test_a_kept_placeholder_is_one_at_sight(tmp_path: Path, filtered: Any) -> None:
    """Six pages show one picture under six texts; a later page shows it again, beside a picture of its own."""
    many = [filtered.Shown(f"a{i}", 1, (f"第{i}道菜的做法是这样的",), 300 - i) for i in range(6)]
    rules = {"placeholder_texts": 3}
    published(filtered, tmp_path, many, dedup=rules)
    shown = [filtered.Shown("b0", 1, ("又一页说的是别的",)), filtered.Shown("b1", 9, ("只有这里有的话",))]
    build = filtered.make(tmp_path, shown, 2, snapshot="2026-02-02", dedup=rules)
    run_stage(build, "dedup.rank", "dedup.deal", "dedup.meet")
    kept, dropped = after(build)
    assert build.stage("dedup.lead").record("all").counts["met"] == 1
    assert set(kept) == {"b1"}
    assert "placeholder" in dropped["b0"]["reasons"]


def test_kept_pictures_that_cannot_be_compared_are_met_by_their_bytes(tmp_path: Path, filtered: Any) -> None:
    first = published(filtered, tmp_path, [filtered.Shown(f"a{i}", i, (f"第{i}句话",), 300, "x") for i in range(4)])
    measured(first, "features-odd")
    shown = [filtered.Shown("same", 1, ("新的第一句话",), 100, "x"), filtered.Shown("alike", 2, ("新的第二句话",), 90)]
    build = filtered.make(tmp_path, shown, 2, snapshot="2026-02-02")
    run_stage(build, "dedup.rank", "dedup.deal", "dedup.meet")
    kept, dropped = after(build)
    assert build.stage("dedup.lead").record("all").counts["met"] == 1
    assert set(kept) == {"alike"}
    assert "same_image" in dropped["same"]["reasons"]


def test_a_new_pair_is_in_the_split_of_its_kept_text(tmp_path: Path, filtered: Any) -> None:
    """Of twenty texts some are in each split; twenty pictures of other bytes come under the same texts."""
    apart = {"apart": "texts", "dev_share": 0.3, "val_share": 0.3}
    texts = [f"第{i}句话说的是别的东西" for i in range(20)]
    kept = [filtered.Shown(f"a{i}", i, (texts[i],), 300 - i) for i in range(20)]
    first, _ = after(published(filtered, tmp_path, kept, shards=apart))
    shown = [filtered.Shown(f"b{i}", 100 + i, (texts[i],), 200 - i) for i in range(20)]
    build = filtered.make(tmp_path, shown, 2, snapshot="2026-02-02", shards=apart)
    run_stage(build, "dedup.rank", "dedup.deal", "dedup.meet")
    second, _ = after(build)
    assert build.stage("dedup.lead").record("all").counts["met_texts"] == 20
    assert [second[f"b{i}"]["split"] for i in range(20)] == [first[f"a{i}"]["split"] for i in range(20)]
    assert len({row["split"] for row in first.values()}) == 3
    own = [split_of(one.sha256, 0, 0.3, 0.3) for one in shown]
    assert own != [second[f"b{i}"]["split"] for i in range(20)], "by their own bytes they would be elsewhere"


def test_what_was_dealt_out_of_store_is_made_once_and_then_read(tmp_path: Path, filtered: Any) -> None:
    first = published(filtered, tmp_path, shown_of(filtered, 20))
    files = dict[str, int]()
    for step in (2, 3):
        shown = [filtered.Shown(f"{step}-{i}", 40 * step + i % 5, (f"{step}{i}号照片",), 200 - i) for i in range(10)]
        build = filtered.make(tmp_path, shown, 2, snapshot=f"2026-0{step}-02")
        run_stage(build, "dedup.rank", "dedup.deal")
        stored = [r for r in build.stage("dedup.deal").records() if r.partition.startswith(handed_on.STORED)]
        assert sum(r.counts["pieces"] for r in stored) == 2 * (step - 1)
        assert sum(r.counts["made"] for r in stored) == 2, "those of the last commit alone"
        now = {str(path): path.stat().st_mtime_ns for path in Path(first.store.url).glob("dealt/*/*.bin")}
        assert files.items() <= now.items()
        assert len(now) == 2 * (step - 1)
        files = now
        run_stage(build, "dedup.meet", "dedup.lead")
        publish(build)


def test_a_store_behind_a_url_is_met_like_a_disk(tmp_path: Path, filtered: Any) -> None:
    decided = []
    for store in (str(tmp_path / "store"), f"memory://{tmp_path.name}/store"):
        folder = tmp_path / str(len(decided))
        kept = [replace(one, fine=int(one.name == "p19")) for one in shown_of(filtered, 20)]
        published(filtered, folder, kept, store=store)
        shown = [filtered.Shown(f"b{i}", i, (f"说明{i % 9}",), 100 - i, fine=int(i == 29)) for i in range(14, 30)]
        build = filtered.make(folder, shown, 2, snapshot="2026-02-02", store=store)
        run_stage(build, "dedup.rank", "dedup.deal", "dedup.meet")
        decided.append((after(build), build.stage("dedup.lead").record("all").counts))
    assert decided[0] == decided[1]
    assert 0 < decided[0][1]["met"] < 14
    assert decided[0][0][1]["b29"]["reason"] == "known", "by its details"


def test_what_is_met_is_read_piece_by_piece_and_nothing_else_again_for_each(
    tmp_path: Path, filtered: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten pieces of images and ten of texts: records are read as often as for two, and splits once."""
    apart, records, read = {"apart": "texts", "dev_share": 0.3, "val_share": 0.3}, list[int](), list[int]()
    every, rows = StageDir.records, Identities.rows
    for piece in (2, 10):
        monkeypatch.setattr(dealt_earlier, "PIECE", piece)
        folder = tmp_path / str(piece)
        kept = [filtered.Shown(f"a{i}", i, (f"第{i}句话说的是别的",), 300 - i) for i in range(20)]
        published(filtered, folder, kept, shards=apart)
        build = filtered.make(
            folder, [replace(one, name=f"b{one.name}") for one in kept], 2, snapshot="b", shards=apart
        )
        run_stage(build, "dedup.rank", "dedup.deal", "dedup.meet")
        asked, splits = list[str](), list[int]()
        with monkeypatch.context() as patch:
            patch.setattr(StageDir, "records", lambda self, asked=asked: asked.append(self.name) or every(self))
            patch.setattr(Identities, "batches", None)
            patch.setattr(Identities, "rows", lambda *of, splits=splits: splits.append(of[4] - of[3]) or rows(*of))
            run_stage(build, "dedup.lead")
        assert build.stage("dedup.lead").record("all").counts["met_texts"] == 20
        records.append(len(asked))
        read.append(sum(splits))
    assert records[0] == records[1]
    assert read == [20, 20]


def test_splits_of_met_texts_of_a_build_that_noted_none_are_those_of_their_first_pairs(
    tmp_path: Path, filtered: Any
) -> None:
    shares = {"dev_share": 0.3, "val_share": 0.3}
    kept = [filtered.Shown(f"a{i}", i, (f"第{i}句话说的是别的",), 300 - i) for i in range(12)]
    first, _ = after(published(filtered, tmp_path, kept, shards=shares))
    shown = [replace(one, name=f"b{one.name}", picture=50 + one.picture) for one in kept]
    build = filtered.make(tmp_path, shown, 2, snapshot="2026-02-02", shards={"apart": "texts", **shares})
    run_stage(build, "dedup.rank", "dedup.deal", "dedup.meet")
    second, _ = after(build)
    assert build.stage("dedup.lead").record("all").counts["met_texts"] == 12
    assert [second[f"b{name}"]["split"] for name in first] == [row["split"] for row in first.values()]
    assert len({row["split"] for row in first.values()}) == 3
