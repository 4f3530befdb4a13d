"""deal and meet: who is alone is nobody's copy, in any runs and parts; and with them `lead` decides as without."""

from __future__ import annotations

import json
import pickle
import random
import shutil
import signal
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_specs.folding import normals, text_id
from pipeline.features import LATER, feature_id
from pipeline.files.arrays import Arrays
from pipeline.files.folder import Folder
from pipeline.matching import earlier_meetings
from pipeline.matching.holders import Holders
from pipeline.pictures.hashing import CONTENT
from pipeline.pictures.signatures import GRIDS, SIZE
from pipeline.records import split_of
from pipeline.stages import _dealt_earlier, _decided, _meetings, deal, lead, meet
from pipeline.stages._runs import pairs_of
from pipeline.store.identities import DETAILS, PARTS, SIGNATURES, Identities, Published, build_of
from pipeline.store.partitions import FileRef
from tests.deduped import after, publish
from tests.places import ROOT
from tests.stages import run_stage


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Builds of any size are dealt out, in runs of a few pairs, and parts of a few entries."""
    monkeypatch.setattr(_meetings, "FEWEST", 1)
    monkeypatch.setattr(_meetings, "FEWEST_KEPT", 1)
    monkeypatch.setattr("pipeline.stages.rank.RUN", 8)
    monkeypatch.setattr(meet, "ENTRIES", 100)
    monkeypatch.setattr(lead, "READ", 5)
    monkeypatch.setattr(_decided, "BLOCK", 2)


def texts_of(number: int) -> tuple[str, ...]:
    """Of every fourth pair one text more, which no other pair has."""
    return (f"说明{number % 7}", *([f"只有这里有的一句话{number}"] if number % 4 == 0 else []))


def shown_of(filtered: Any, count: int) -> list[Any]:
    """Every third picture is another one's, alike or to the byte."""
    return [
        filtered.Shown(f"p{i}", i if i % 3 else i // 6, texts_of(i), 300 - i, "same" if i % 2 else "")
        for i in range(count)
    ]


def test_what_is_like_another_one_is_found_and_nothing_else(tmp_path: Path, filtered: Any) -> None:
    shown = shown_of(filtered, 40)
    build = filtered.make(tmp_path, shown, parts=4)
    run_stage(build, "rank", "deal", "meet")
    files, starts, name = ExitStack(), 0, {one.url: one for one in shown}
    alone = _meetings.Alone(build, files)
    pictures, every = [one.picture for one in shown], [text for one in shown for text in one.texts]
    for number, record in enumerate(build.stage("rank").records()):
        rows = build.stage("rank").table(record)
        flags = alone.images(alone.numbers(rows, np.full(rows.num_rows, number, np.int32)))
        by_position = pairs_of(build, record.partition, ["image_url"])["image_url"].to_pylist()
        for position, flag in zip(rows["position"].to_pylist(), flags.tolist(), strict=True):
            assert flag == (pictures.count(name[by_position[position]].picture) == 1)
        starts += rows.num_rows
        lists = rows["sketches"].combine_chunks()
        counts, of_run = lists.value_lengths().to_numpy(), np.full(rows.num_rows, number, np.int32)
        texts = np.concatenate(
            [alone.texts(counts[at : at + 3], of_run[at : at + 3]) for at in range(0, len(counts), 3)]
        )
        own = [text for at in rows["position"].to_pylist() for text in name[by_position[at]].texts]
        assert texts.tolist() == [every.count(text) == 1 for text in own]
    assert starts == 40
    files.close()
    bytes_of = [one.sha256 for one in shown]
    met = [r for r in build.stage("meet").records() if _meetings.Part.named(r.partition).what == _meetings.BYTES]
    assert sum(r.counts["found"] for r in met) == sum(bytes_of.count(own) > 1 for own in bytes_of) > 0
    parts = meet.partitions(build)
    assert len(parts) > len(_meetings.keys_of(build)) + 1, "keys are cut into parts"


def test_verdicts_are_those_of_a_pass_that_compares_all(tmp_path: Path, filtered: Any) -> None:
    shown = shown_of(filtered, 40)
    build = filtered.make(tmp_path / "with", shown, parts=4)
    run_stage(build, "rank", "deal", "meet")
    expected = filtered.make(tmp_path / "without", shown, parts=4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_meetings, "FEWEST", 1_000)
        run_stage(expected, "rank", "deal", "meet")
        assert expected.stage("meet").partitions() == []
    assert after(build) == after(expected)
    assert build.stage("lead").record("all").counts["alone"] == 22
    assert build.stage("lead").record("all").counts["alone_texts"] == 10
    assert expected.stage("lead").record("all").counts["alone"] == 0


def test_pictures_are_found_by_their_details_in_runs_with_and_without_them(tmp_path: Path, filtered: Any) -> None:
    places = {3: 1, 9: 2, 17: 1, 22: 3, 30: 2, 35: 1}
    fine = [places.get(i, 0) for i in range(40)]
    shown = [filtered.Shown(f"p{i}", i, (f"说明{i}",), 300 - i, fine=fine[i]) for i in range(40)]
    build, expected = (filtered.make(tmp_path / name, shown, parts=8) for name in ("with", "without"))
    run_stage(build, "rank", "deal", "meet")
    with_details = {bool(record.counts["detailed"]) for record in build.stage("deal").records()}
    assert with_details == {True, False}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_meetings, "FEWEST", 1_000)
        run_stage(expected, "rank", "deal", "meet")
    kept, decided = after(build)
    assert (kept, decided) == after(expected)
    assert {ref.sha256 for ref in handed(build)} == {ref.sha256 for ref in handed(expected)}
    first = {number: fine.index(number) for number in (1, 2, 3)}
    assert set(decided) == {f"p{i}" for i in range(40) if fine[i] and first[fine[i]] != i}
    assert build.stage("lead").record("all").counts["alone"] == 40 - 5
    assert DETAILS in build.stage("lead").record("all").files


@pytest.mark.parametrize("older", [False, True])
def test_kept_pictures_are_met_by_their_details_where_they_have_some(
    tmp_path: Path, filtered: Any, older: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twelve pictures were kept, four with details, in pieces of five; of six new ones two look like one of them."""
    monkeypatch.setattr(_dealt_earlier, "PIECE", 5)
    kept_fine, fine = {1: 1, 2: 2, 6: 3, 11: 4}, {0: 4, 3: 1, 4: 5}
    decided = []
    for fewest in (1, 1_000):
        monkeypatch.setattr(_meetings, "FEWEST", fewest)
        monkeypatch.setattr(_meetings, "FEWEST_KEPT", fewest)
        folder = tmp_path / str(fewest)
        first = [filtered.Shown(f"a{i}", i, (f"旧{i}",), 300 - i, fine=kept_fine.get(i, 0)) for i in range(12)]
        kept = published(filtered, folder, first)
        if older:
            aged(kept)
        shown = [filtered.Shown(f"b{i}", 50 + i, (f"新{i}",), 100 - i, fine=fine.get(i, 0)) for i in range(6)]
        build = filtered.make(folder, shown, 2, snapshot="2026-02-02")
        run_stage(build, "rank", "deal", "meet", "lead")
        counts = build.stage("lead").record("all").counts
        assert counts.get("met", 0) == (2 if fewest == 1 and not older else 0)
        dealt = [path.name for path in Path(build.store.url).glob("dealt/*/details.*")]
        assert len(dealt) == (3 if fewest == 1 and not older else 0)
        decided.append((after(build), {ref.sha256 for ref in handed(build)}))
    assert decided[0] == decided[1]
    dropped = {name: row["reason"] for name, row in decided[0][0][1].items()}
    assert dropped == ({} if older else {"b0": "known", "b3": "known"})


def test_keys_and_pieces_of_all_images_do_not_follow_from_how_many_have_details(tmp_path: Path, filtered: Any) -> None:
    published(filtered, tmp_path, [filtered.Shown(f"a{i}", i, (f"旧{i}",), fine=i % 2) for i in range(2)])
    names, keys = [], []
    for step, fine in ((2, 0), (3, 7)):
        shown = [filtered.Shown(f"{step}-{i}", 10 * step + i, (f"{step}{i}",), fine=fine) for i in range(2)]
        build = filtered.make(tmp_path, shown, 1, snapshot=f"2026-0{step}-02")
        run_stage(build, "rank", "deal")
        keys.append(_meetings.keys_of(build))
        names.append({path.name for path in Path(build.store.url).glob("dealt/*/*")})
    coarse = [[key for key in own if not key.family.fine] for own in keys]
    assert coarse[0] == coarse[1] == list(keys[0]), "a build of photographs only has no fine key"
    assert len(keys[1]) > len(keys[0])
    assert [name.split(".")[0] for name in names[1] - names[0]] == ["details"]


def aged(build: Any) -> None:
    """What a build has published, as an older wenlan without details would have."""
    measured(build, feature_id(LATER), details=False)


def measured(build: Any, features: str, *, details: bool = True) -> None:
    """What a build has published, as of other features. Called before anybody reads it."""
    identities = Identities(build.store)
    path = Path(identities._folder.at(identities.of(build.build_id)))
    known = json.loads(path.read_text())
    if not details:
        del known["files"][DETAILS]
    path.write_text(json.dumps(known | {"features": features}))


CAPTION = "今天天气很好我们一家人去公园散步吧"
WORDS = [CAPTION, CAPTION + "啦", CAPTION[:-1], "红烧肉", "红烧鱼", "故宫雪景", "第一次看见的说明", ""]

Pairs = list[tuple[int, bool, int, list[str], int]]


@st.composite
def builds(draw: st.DrawFn) -> tuple[list[Pairs], dict[str, Any], dict[str, Any], int, int]:
    """Builds of (picture, same bytes, site, texts, number of its details); rules of dedup, and of shards; entries of a
    part; how many of the first builds are of a wenlan without details."""
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
    return steps, rules, shards, entries, draw(st.integers(0, 2))


@settings(max_examples=10, deadline=None)
@given(builds(), st.sampled_from([5, 1_000]), st.sampled_from([0, 1_000]), st.integers(0, 2**10))
def test_increments_decide_with_it_as_without(
    tmp_path_factory: Any,
    filtered: Any,
    drawn: tuple[list[Pairs], dict[str, Any], dict[str, Any], int, int],
    rows: int,
    long: int,
    chance: int,
) -> None:
    """Pair by pair, and what STORE is handed byte by byte: in pieces of so many rows, that are lost at any time, over
    builds of other features, of which some can be compared, with and without details, and of another dataset.
    """
    steps, rules, shards, entries, older = drawn
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
            features = chosen.choice([feature_id(), feature_id(), "features-old", "features-odd"])
            build = filtered.make(folder, pictures, 2, snapshot=f"2026-0{step + 1}-01", **own)
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(_meetings, "FEWEST", fewest)
                patch.setattr(_meetings, "FEWEST_KEPT", fewest)
                patch.setattr(meet, "ENTRIES", entries)
                patch.setattr(_dealt_earlier, "PIECE", rows)
                patch.setattr(earlier_meetings, "LONG", long)
                patch.setattr("pipeline.features.EARLIER_IDS", {"features-old", feature_id(LATER)})
                run_stage(build, "rank", "deal")
                lose(build, happens)
                run_stage(build, "meet")
                lose(build, happens)
                assert bool(meet.partitions(build)) == (fewest == 1 and bool(shown))
                decided.append((after(build), {ref.sha256 for ref in handed(build)}))
                counts = build.stage("lead").record("all").counts
                assert ("met" in counts) == (fewest == 1 and bool(shown) and bool(build.identities))
                assert counts.get("met", 0) <= counts["earlier"]
            publish(build)
            if step < older:
                aged(build)
            else:
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
    monkeypatch.setattr(_dealt_earlier, "PIECE", 6)
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
    run_stage(build, "rank", "deal", "meet", "lead")
    counts = build.stage("lead").record("all").counts
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
    run_stage(build, "rank", "deal", "meet")
    kept, dropped = after(build)
    assert build.stage("lead").record("all").counts["met"] == 1
    assert set(kept) == {"b1"}
    assert "placeholder" in dropped["b0"]["reasons"]


def test_of_two_kept_leaders_the_one_that_can_be_compared_by_less_comes_first(
    tmp_path: Path, filtered: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A picture that two datasets kept, measured by an older wenlan and by this one."""
    monkeypatch.setattr("pipeline.features.EARLIER_IDS", {"features-old"})
    leaders = []
    for fewest in (1, 1_000):
        monkeypatch.setattr(_meetings, "FEWEST", fewest)
        monkeypatch.setattr(_meetings, "FEWEST_KEPT", fewest)
        folder = tmp_path / str(fewest)
        published(filtered, folder, [filtered.Shown("now", 5, ("这张照片里的话",), 300)])
        old = published(filtered, folder, [filtered.Shown("old", 5, ("那张照片里的话",), 200)], name="other")
        measured(old, "features-old")
        shown = [filtered.Shown("new", 5, ("新照片里的话",), 100)]
        build = filtered.make(folder, shown, 2, snapshot="2026-02-02", dedup={"across": "all"})
        run_stage(build, "rank", "deal", "meet")
        _, dropped = after(build)
        leaders.append((dropped["new"]["duplicate_of"], dropped["new"]["reason"]))
        assert build.stage("lead").record("all").counts["earlier"] == 2
    assert leaders[0] == leaders[1]
    assert leaders[0][1] == "near_image", "what leads is another dataset's"


def test_kept_pictures_that_cannot_be_compared_are_met_by_their_bytes(tmp_path: Path, filtered: Any) -> None:
    first = published(filtered, tmp_path, [filtered.Shown(f"a{i}", i, (f"第{i}句话",), 300, "x") for i in range(4)])
    measured(first, "features-odd")
    shown = [filtered.Shown("same", 1, ("新的第一句话",), 100, "x"), filtered.Shown("alike", 2, ("新的第二句话",), 90)]
    build = filtered.make(tmp_path, shown, 2, snapshot="2026-02-02")
    run_stage(build, "rank", "deal", "meet")
    kept, dropped = after(build)
    assert build.stage("lead").record("all").counts["met"] == 1
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
    run_stage(build, "rank", "deal", "meet")
    second, _ = after(build)
    assert build.stage("lead").record("all").counts["met_texts"] == 20
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
        run_stage(build, "rank", "deal")
        stored = [r for r in build.stage("deal").records() if r.partition.startswith(_meetings.STORED)]
        assert sum(r.counts["pieces"] for r in stored) == 2 * (step - 1)
        assert sum(r.counts["made"] for r in stored) == 2, "those of the last commit alone"
        now = {str(path): path.stat().st_mtime_ns for path in Path(first.store.url).glob("dealt/*/*.bin")}
        assert files.items() <= now.items()
        assert len(now) == 2 * (step - 1)
        files = now
        run_stage(build, "meet", "lead")
        publish(build)


def test_a_store_behind_a_url_is_met_like_a_disk(tmp_path: Path, filtered: Any) -> None:
    decided = []
    for store in (str(tmp_path / "store"), f"memory://{tmp_path.name}/store"):
        folder = tmp_path / str(len(decided))
        kept = [replace(one, fine=int(one.name == "p19")) for one in shown_of(filtered, 20)]
        published(filtered, folder, kept, store=store)
        shown = [filtered.Shown(f"b{i}", i, (f"说明{i % 9}",), 100 - i, fine=int(i == 29)) for i in range(14, 30)]
        build = filtered.make(folder, shown, 2, snapshot="2026-02-02", store=store)
        run_stage(build, "rank", "deal", "meet")
        decided.append((after(build), build.stage("lead").record("all").counts))
    assert decided[0] == decided[1]
    assert 0 < decided[0][1]["met"] < 14
    assert decided[0][0][1]["b29"]["reason"] == "known", "by its details"


def test_what_an_older_wenlan_kept_is_met_by_the_hashes_and_grids_that_it_has(
    tmp_path: Path, filtered: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nine hashes and seven grids, halves cut otherwise; beside a build of now, whose leaders come after."""
    monkeypatch.setattr("pipeline.features.EARLIER_IDS", {"features-old"})
    decided = []
    for fewest in (1, 1_000):
        monkeypatch.setattr(_meetings, "FEWEST", fewest)
        monkeypatch.setattr(_meetings, "FEWEST_KEPT", fewest)
        folder = tmp_path / str(fewest)
        first = published(filtered, folder, shown_of(filtered, 12))
        second = filtered.make(folder, shown_of(filtered, 24)[12:], 2, snapshot="2026-01-02")
        run_stage(second, "rank", "deal", "meet", "lead")
        publish(second)
        age(Path(first.store.url) / "identity", first.build_id)
        shown = [filtered.Shown(f"b{i}", i, (f"说明{i}",), 100 - i, "same" if i % 2 else "") for i in range(30)]
        build = filtered.make(folder, shown, 2, snapshot="2026-02-02")
        run_stage(build, "rank", "deal", "meet", "lead")
        assert ("met" in build.stage("lead").record("all").counts) == (fewest == 1)
        dealt = Path(build.store.url) / "dealt"
        for path in dealt.glob(f"{first.build_id}.*/images.*"):
            with Arrays(Folder(str(path.parent)), path.name) as arrays:
                assert arrays["phash"][:, :CONTENT].all()
                assert not arrays["phash"][:, CONTENT:].any(), "halves were cut otherwise, and the rest is not there"
        assert any(dealt.glob("*/images.*")) == (fewest == 1)
        decided.append((after(build), [ref.sha256 for ref in handed(build)]))
    assert decided[0] == decided[1]
    assert {row["reason"] for row in decided[0][0][1].values()} == {"known"}
    assert len(decided[0][0][1]) >= 10


def age(folder: Path, build_id: str) -> None:
    """Make a commit one of an older wenlan."""
    (name,) = (path for path in folder.glob("*.json") if build_of(path.name) == build_id)
    known = Published.model_validate_json(name.read_bytes())
    images, signatures = (folder / known.files[part].name for part in ("images.parquet", SIGNATURES))
    table = pq.read_table(images)
    hashes = [[*own[:CONTENT], *own[CONTENT + 1 :]] for own in table["phash"].to_pylist()]
    at = table.schema.get_field_index("phash")
    pq.write_table(table.set_column(at, "phash", pa.array(hashes, table.schema.field("phash").type)), images)
    grids = np.fromfile(signatures, np.uint8).reshape(table.num_rows, GRIDS, SIZE)[:, : GRIDS - 1]
    signatures.write_bytes(grids.tobytes())
    files = {
        part: FileRef(name=ref.name, bytes=(folder / ref.name).stat().st_size, sha256=ref.sha256)
        for part, ref in known.files.items()
    }
    shutil.rmtree(folder.parent / "dealt", ignore_errors=True)
    name.write_text(known.model_copy(update={"features": "features-old", "files": files}).model_dump_json())


def published(filtered: Any, folder: Path, shown: list[Any], **more: Any) -> Any:
    """A build whose identities are published."""
    build = filtered.make(folder, shown, 2, snapshot="2026-01-01", **more)
    run_stage(build, "rank", "deal", "meet", "lead")
    publish(build)
    return build


@pytest.mark.parametrize("cap", [0, 4])
def test_pairs_that_are_alone_stand_in_order_among_the_others_and_under_the_cap_of_their_domain(
    tmp_path: Path, filtered: Any, cap: int
) -> None:
    """Every third pair shares its text; nothing else is shared."""
    texts = [("说过的话",) if i % 3 == 0 else (f"第{i}句", f"又一句{i}") for i in range(20)]
    shown = [filtered.Shown(f"p{i}", i, own, 300 - i) for i, own in enumerate(texts)]
    decided = []
    for fewest in (1, 1_000):
        build = filtered.make(tmp_path / str(fewest), shown, parts=3, dedup={"max_pairs_per_domain": cap})
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(_meetings, "FEWEST", fewest)
            run_stage(build, "rank", "deal", "meet")
            kept, dropped = after(build)
        decided.append((kept, dropped, [ref.sha256 for ref in handed(build)]))
        free = build.stage("lead").record("all").counts["free"]
        assert free == (13 if fewest == 1 and not cap else 0)
    assert decided[0] == decided[1]
    assert len(decided[0][0]) == (cap or 20)


def handed(build: Any) -> list[Any]:
    """The files that a build hands to STORE."""
    return [ref for name, ref in build.stage("lead").record("all").files.items() if name in (*PARTS, DETAILS)]


def test_what_lead_has_read_is_not_made_again_and_a_takedown_leaves_nothing(tmp_path: Path, filtered: Any) -> None:
    """A build of an older wenlan has no `deal`: it is not begun anew for it. Files that `lead` has read may go."""
    build = filtered.make(tmp_path, shown_of(filtered, 12), parts=2)
    run_stage(build, "rank", "lead")
    assert deal.partitions(build) == meet.partitions(build) == []
    other = filtered.make(tmp_path / "other", shown_of(filtered, 12), parts=2)
    run_stage(other, "rank", "deal", "meet")
    for stage in (other.stage("deal"), other.stage("meet")):
        record = stage.records()[0]
        _meetings.without(type("Rewrite", (), {"stage": stage, "record": record})())
        stage.sweep()
        assert (stage.partitions(), stage.committable(), stage.finished()) == ([], [], True)
    assert after(other)[0] == after(filtered.make(tmp_path / "third", shown_of(filtered, 12), parts=2))[0]
    assert other.stage("lead").record("all").counts["alone"] == 0


def test_a_part_is_done_again_alone_after_a_kill(tmp_path: Path, filtered: Any) -> None:
    build = filtered.make(tmp_path, shown_of(filtered, 40), parts=4)
    run_stage(build, "rank", "deal", "meet")
    found = {record.partition: record.files["found.bin"].sha256 for record in build.stage("meet").records()}
    stage = build.stage("meet")
    stage.unfinish()
    for partition in meet.partitions(build)[::2]:
        stage.delete_record(partition)
    with ExitStack() as files:
        assert not _meetings.Alone(build, files).known
    assert run_stage(build, "meet") == meet.partitions(build)[::2]
    assert {record.partition: record.files["found.bin"].sha256 for record in stage.records()} == found


KILLED = """
import os, pickle, signal, sys
from pipeline.files.arrays import ArrayWriter
from pipeline.stages import _dealt_earlier, _meetings, meet, rank
from pipeline.store.partitions import Attempt
from tests.places import ROOT
from tests.stages import run_stage

build, stage, files = pickle.loads(sys.stdin.buffer.read())
_meetings.FEWEST, _meetings.FEWEST_KEPT, rank.RUN, meet.ENTRIES, _dealt_earlier.PIECE = 1, 1, 8, 100, 6
path = Attempt.path

def killing(attempt, suffix, final=""):
    global files
    files -= attempt._stage == stage
    if files < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return path(attempt, suffix, final)

add = ArrayWriter.add

def killing_in_store(writer, *array):
    global files
    files -= stage == "store"
    if files < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return add(writer, *array)

Attempt.path, ArrayWriter.add = killing, killing_in_store
run_stage(build, "rank", "deal", "meet", "lead")
"""


@pytest.mark.slow
@pytest.mark.parametrize("earlier", [False, True])
def test_a_worker_that_is_killed_leaves_what_it_has_done_and_the_build_ends_with_the_same_bytes(
    tmp_path: Path, filtered: Any, earlier: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_dealt_earlier, "PIECE", 6)
    shown = shown_of(filtered, 40)
    if earlier:  # twenty of the pictures were kept before, of other pages
        for folder in ("killed", "whole"):
            published(filtered, tmp_path / folder, [replace(one, name=f"e{one.name}") for one in shown[:20]])
    build = filtered.make(tmp_path / "killed", shown, parts=4, snapshot="2026-02-02")
    stages, kept = ("rank", "deal", "meet", "lead"), dict[tuple[str, str], str]()
    kills = [("deal", 30), ("meet", 7), ("lead", 3)]  # before it writes the file with this number
    if earlier:
        kills.insert(1, ("store", 100))  # or the array, the first piece being done
    for stage, files in kills:
        done = subprocess.run(
            [sys.executable, "-c", KILLED], input=pickle.dumps((build, stage, files)), cwd=ROOT, check=False
        )
        assert done.returncode == -signal.SIGKILL
        now = {(name, r.partition): r.attempt for name in stages for r in build.stage(name).records()}
        assert kept.items() <= now.items(), "what was committed before is not done again"
        assert stage in ("lead", "store") or any(name == stage for name, _ in now), "it was killed within the stage"
        assert stage != "store" or 0 < len(list((tmp_path / "killed/store/dealt").glob("*/images*"))) < 3
        assert build.stage("lead").partitions() == []
        kept = now
    expected = filtered.make(tmp_path / "whole", shown, parts=4, snapshot="2026-02-02")
    run_stage(build, *stages)
    run_stage(expected, *stages)
    for name in stages:
        own, other = (
            {(r.partition, suffix): ref.sha256 for r in made.stage(name).records() for suffix, ref in r.files.items()}
            for made in (build, expected)
        )
        assert own == other
    assert after(build) == after(expected)
    assert (build.stage("lead").record("all").counts.get("met", 0) > 0) == earlier
