"""deal and meet: who is alone is nobody's copy, in any runs and parts; and with them `lead` decides as without."""

from __future__ import annotations

import pickle
import signal
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.dedup import deal, dealt_earlier, handed_on, meet
from pipeline.dedup.ranked_runs import pairs_of
from pipeline.matching.sketches import bands
from pipeline.opening import _fingerprint
from pipeline.store.identities import DETAILS, Identities
from tests.dealt import deal_out_all, handed, published, shown_of
from tests.deduped import after
from tests.places import ROOT
from tests.sketched import LETTERS, likeness
from tests.stages import run_stage


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    deal_out_all(monkeypatch)


def test_what_is_like_another_one_is_found_and_nothing_else(tmp_path: Path, filtered: Any) -> None:
    shown = shown_of(filtered, 40)
    build = filtered.make(tmp_path, shown, parts=4)
    run_stage(build, "dedup.rank", "dedup.deal", "dedup.meet")
    files, starts, name = ExitStack(), 0, {one.url: one for one in shown}
    alone = handed_on.Alone(build, files)
    pictures, every = [one.picture for one in shown], [text for one in shown for text in one.texts]
    for number, record in enumerate(build.stage("dedup.rank").records()):
        rows = build.stage("dedup.rank").table(record)
        flags = alone.images(alone.numbers(np.full(rows.num_rows, number, np.int32)))
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
    met = [r for r in build.stage("dedup.meet").records() if handed_on.Part.named(r.partition).what == handed_on.BYTES]
    assert sum(r.counts["found"] for r in met) == sum(bytes_of.count(own) > 1 for own in bytes_of) > 0
    parts = meet.partitions(build)
    assert len(parts) > len(handed_on.keys_of(build)) + 1, "keys are cut into parts"


def test_verdicts_are_those_of_a_pass_that_compares_all(tmp_path: Path, filtered: Any) -> None:
    shown = shown_of(filtered, 40)
    build = filtered.make(tmp_path / "with", shown, parts=4)
    run_stage(build, "dedup.rank", "dedup.deal", "dedup.meet")
    expected = filtered.make(tmp_path / "without", shown, parts=4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(handed_on, "FEWEST", 1_000)
        run_stage(expected, "dedup.rank", "dedup.deal", "dedup.meet")
        assert expected.stage("dedup.meet").partitions() == []
        all_compared = after(expected)
    assert after(build) == all_compared
    assert build.stage("dedup.lead").record("all").counts["alone"] == 22
    assert build.stage("dedup.lead").record("all").counts["alone_texts"] == 10
    assert expected.stage("dedup.lead").record("all").counts["alone"] == 0


def test_pictures_are_found_by_their_details_in_runs_with_and_without_them(tmp_path: Path, filtered: Any) -> None:
    places = {3: 1, 9: 2, 17: 1, 22: 3, 30: 2, 35: 1}
    fine = [places.get(i, 0) for i in range(40)]
    # four pairs share a text, so that pictures which are compared stand between others which are not
    shown = [filtered.Shown(f"p{i}", i, (f"说明{i // 4}",), 300 - i, fine=fine[i]) for i in range(40)]
    build, expected = (filtered.make(tmp_path / name, shown, parts=8) for name in ("with", "without"))
    run_stage(build, "dedup.rank", "dedup.deal", "dedup.meet")
    with_details = {bool(record.counts["detailed"]) for record in build.stage("dedup.deal").records()}
    assert with_details == {True, False}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(handed_on, "FEWEST", 1_000)
        run_stage(expected, "dedup.rank", "dedup.deal", "dedup.meet")
        all_compared = after(expected)
    kept, decided = after(build)
    assert (kept, decided) == all_compared
    assert {ref.sha256 for ref in handed(build)} == {ref.sha256 for ref in handed(expected)}
    first = {number: fine.index(number) for number in (1, 2, 3)}
    assert set(decided) == {f"p{i}" for i in range(40) if fine[i] and first[fine[i]] != i}
    assert build.stage("dedup.lead").record("all").counts["alone"] == 40 - 5
    assert DETAILS in build.stage("dedup.lead").record("all").files


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
            patch.setattr(handed_on, "FEWEST", fewest)
            run_stage(build, "dedup.rank", "dedup.deal", "dedup.meet")
            kept, dropped = after(build)
        decided.append((kept, dropped, [ref.sha256 for ref in handed(build)]))
        free = build.stage("dedup.lead").record("all").counts["free"]
        assert free == (13 if fewest == 1 and not cap else 0)
    assert decided[0] == decided[1]
    assert len(decided[0][0]) == (cap or 20)


def test_a_part_is_done_again_alone_after_a_kill(tmp_path: Path, filtered: Any) -> None:
    build = filtered.make(tmp_path, shown_of(filtered, 40), parts=4)
    run_stage(build, "dedup.rank", "dedup.deal", "dedup.meet")
    found = {record.partition: record.files["found.bin"].sha256 for record in build.stage("dedup.meet").records()}
    stage = build.stage("dedup.meet")
    stage.unfinish()
    for partition in meet.partitions(build)[::2]:
        stage.delete_record(partition)
    with ExitStack() as files:
        assert not handed_on.Alone(build, files).known
    assert run_stage(build, "dedup.meet") == meet.partitions(build)[::2]
    assert {record.partition: record.files["found.bin"].sha256 for record in stage.records()} == found


KILLED = """
import os, pickle, signal, sys
from pipeline.files.arrays import ArrayWriter
from pipeline.dedup import dealt_earlier, handed_on
from pipeline.dedup import meet, rank
from pipeline.store.partitions import Attempt
from tests.places import ROOT
from tests.stages import run_stage

build, stage, files = pickle.loads(sys.stdin.buffer.read())
handed_on.FEWEST, handed_on.FEWEST_KEPT, rank.RUN, meet.ENTRIES, dealt_earlier.PIECE = 1, 1, 8, 100, 6
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
run_stage(build, "dedup.rank", "dedup.deal", "dedup.meet", "dedup.lead")
"""


@pytest.mark.slow
@pytest.mark.parametrize("earlier", [False, True])
def test_a_worker_that_is_killed_leaves_what_it_has_done_and_the_build_ends_with_the_same_bytes(
    tmp_path: Path, filtered: Any, earlier: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dealt_earlier, "PIECE", 6)
    shown = shown_of(filtered, 40)
    if earlier:  # twenty of the pictures were kept before, of other pages
        for folder in ("killed", "whole"):
            published(filtered, tmp_path / folder, [replace(one, name=f"e{one.name}") for one in shown[:20]])
    build = filtered.make(tmp_path / "killed", shown, parts=4, snapshot="2026-02-02")
    stages, kept = ("dedup.rank", "dedup.deal", "dedup.meet", "dedup.lead"), dict[tuple[str, str], str]()
    kills = [("dedup.deal", 30), ("dedup.meet", 7), ("dedup.lead", 3)]  # before it writes the file with this number
    if earlier:
        kills.insert(1, ("store", 100))  # or the array, the first piece being done
    for stage, files in kills:
        done = subprocess.run(
            [sys.executable, "-c", KILLED], input=pickle.dumps((build, stage, files)), cwd=ROOT, check=False
        )
        assert done.returncode == -signal.SIGKILL
        now = {(name, r.partition): r.attempt for name in stages for r in build.stage(name).records()}
        assert kept.items() <= now.items(), "what was committed before is not done again"
        assert stage in ("dedup.lead", "store") or any(name == stage for name, _ in now), (
            "it was killed within the stage"
        )
        assert stage != "store" or 0 < len(list((tmp_path / "killed/store/dealt").glob("*/images*"))) < 3
        assert build.stage("dedup.lead").partitions() == []
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
    assert (build.stage("dedup.lead").record("all").counts.get("met", 0) > 0) == earlier


def test_a_finished_build_asks_for_no_commit_that_is_gone(tmp_path: Path, filtered: Any) -> None:
    first = published(filtered, tmp_path, shown_of(filtered, 6))
    build = filtered.make(tmp_path, shown_of(filtered, 6), snapshot="2026-02-02")
    run_stage(build, "dedup.rank", "dedup.lead")
    Identities(build.store).withdraw(first.build_id)
    handed_on._kept_earlier.cache_clear()
    assert deal.partitions(build) == meet.partitions(build) == []


def test_texts_are_met_anew_at_another_similarity(tmp_path: Path, filtered: Any) -> None:
    """Sketches are the same for both, and two texts are one at the lower one only."""
    shown = [filtered.Shown("one", 1, (LETTERS[0] + "".join(LETTERS[1:9]),), 300)]
    shown.append(filtered.Shown("two", 2, ("".join(LETTERS[1:9]) + LETTERS[20],), 290))
    low = likeness(shown[0].texts[0], shown[1].texts[0])
    high = low + 0.001
    assert bands(low) == bands(high)
    build, leaders = filtered.make(tmp_path, shown), list[int]()
    for similarity in (high, low):
        rules = build.spec.dedup.model_copy(update={"text_similarity": similarity})
        build = replace(build, spec=build.spec.model_copy(update={"dedup": rules}))
        for name in ("dedup.rank", "dedup.deal", "dedup.meet", "dedup.lead", "dedup"):
            build = replace(build, fingerprints={**build.fingerprints, name: _fingerprint(name, build)[0]})
        for name in ("dedup.rank", "dedup.deal", "dedup.meet"):
            if not build.stage(name).finished():
                run_stage(build, name)
        leaders.append(len({row["text_leaders"][0] for row in after(build)[0].values()}))
    assert leaders == [2, 1]
