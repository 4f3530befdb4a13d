"""deal and meet: who is alone is nobody's copy, in any runs and parts; and with them `lead` decides as without."""

from __future__ import annotations

import json
import pickle
import signal
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.features import LATER, feature_id
from pipeline.stages import _decided, _meetings, deal, lead, meet
from pipeline.stages._runs import pairs_of
from pipeline.store.identities import DETAILS, PARTS, Identities
from tests.deduped import after, publish
from tests.places import ROOT
from tests.stages import run_stage


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Builds of any size are dealt out, in runs of a few pairs, and parts of a few entries."""
    monkeypatch.setattr(_meetings, "FEWEST", 1)
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
    alone, starts, name = _meetings.Alone(build, ExitStack()), 0, {one.url: one for one in shown}
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


def aged(build: Any) -> None:
    """What a build has published, as an older wenlan without details would have."""
    identities = Identities(build.store)
    path = Path(identities._folder.at(identities.of(build.build_id)))
    known = json.loads(path.read_text())
    del known["files"][DETAILS]
    path.write_text(json.dumps(known | {"features": feature_id(LATER)}))


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
    entries = draw(st.sampled_from([30, 1_000]))
    steps = draw(st.lists(st.lists(pair, max_size=14), min_size=1, max_size=3))
    return steps, rules, shards, entries, draw(st.integers(0, 2))


@settings(max_examples=12, deadline=None)
@given(builds())
def test_increments_decide_with_it_as_without(
    tmp_path_factory: Any, filtered: Any, drawn: tuple[list[Pairs], dict[str, Any], dict[str, Any], int, int]
) -> None:
    """Pair by pair, and what STORE is handed byte by byte."""
    steps, rules, shards, entries, older = drawn
    results = []
    for fewest in (1, 1_000):
        folder, decided = tmp_path_factory.mktemp("builds"), []
        for step, shown in enumerate(steps):
            pictures = [
                filtered.Shown(
                    f"{step}-{i}",
                    picture,
                    tuple(f"{text}{i}" if text.startswith("第") else text for text in texts),  # some texts are alone
                    900 - i,
                    "b" if same else "",
                    f"http://s{site}.cn/",
                    fine,
                )
                for i, (picture, same, site, texts, fine) in enumerate(shown)
            ]
            build = filtered.make(folder, pictures, 2, snapshot=f"2026-0{step + 1}-01", dedup=rules, shards=shards)
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(_meetings, "FEWEST", fewest)
                patch.setattr(meet, "ENTRIES", entries)
                run_stage(build, "rank", "deal", "meet")
                assert bool(meet.partitions(build)) == (fewest == 1 and bool(shown))
                decided.append((after(build), {ref.sha256 for ref in handed(build)}))
            publish(build)
            if step < older:
                aged(build)
        results.append(decided)
    assert results[0] == results[1]


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
    assert not _meetings.Alone(build, ExitStack()).known
    assert run_stage(build, "meet") == meet.partitions(build)[::2]
    assert {record.partition: record.files["found.bin"].sha256 for record in stage.records()} == found


KILLED = """
import os, pickle, signal, sys
from pipeline.stages import _meetings, meet, rank
from pipeline.store.partitions import Attempt
from tests.places import ROOT
from tests.stages import run_stage

build, stage, files = pickle.loads(sys.stdin.buffer.read())
_meetings.FEWEST, rank.RUN, meet.ENTRIES = 1, 8, 100
path = Attempt.path

def killing(attempt, suffix, final=""):
    global files
    files -= attempt._stage == stage
    if files < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return path(attempt, suffix, final)

Attempt.path = killing
run_stage(build, "rank", "deal", "meet", "lead")
"""


@pytest.mark.slow
def test_a_worker_that_is_killed_leaves_what_it_has_done_and_the_build_ends_with_the_same_bytes(
    tmp_path: Path, filtered: Any
) -> None:
    shown = shown_of(filtered, 40)
    build = filtered.make(tmp_path / "killed", shown, parts=4)
    stages, kept = ("rank", "deal", "meet", "lead"), dict[tuple[str, str], str]()
    for stage, files in (("deal", 30), ("meet", 7), ("lead", 3)):  # before it writes the file with this number
        done = subprocess.run(
            [sys.executable, "-c", KILLED], input=pickle.dumps((build, stage, files)), cwd=ROOT, check=False
        )
        assert done.returncode == -signal.SIGKILL
        now = {(name, r.partition): r.attempt for name in stages for r in build.stage(name).records()}
        assert kept.items() <= now.items(), "what was committed before is not done again"
        assert stage == "lead" or any(name == stage for name, _ in now), "it was killed within the stage"
        assert build.stage("lead").partitions() == []
        kept = now
    expected = filtered.make(tmp_path / "whole", shown, parts=4)
    run_stage(build, *stages)
    run_stage(expected, *stages)
    for name in stages:
        own, other = (
            {(r.partition, suffix): ref.sha256 for r in made.stage(name).records() for suffix, ref in r.files.items()}
            for made in (build, expected)
        )
        assert own == other
    assert after(build) == after(expected)
