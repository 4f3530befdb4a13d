"""deal and meet: who is alone is nobody's copy, in any runs and parts; and with them `lead` decides as without."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.stages import _meetings, deal, meet
from pipeline.stages._runs import pairs_of
from tests.deduped import after, publish
from tests.stages import run_stage


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Builds of any size are dealt out, in runs of a few pairs, and parts of a few entries."""
    monkeypatch.setattr(_meetings, "FEWEST", 1)
    monkeypatch.setattr("pipeline.stages.rank.RUN", 8)
    monkeypatch.setattr(meet, "ENTRIES", 100)


def shown_of(filtered: Any, count: int) -> list[Any]:
    """Every third picture is another one's, alike or to the byte."""
    return [
        filtered.Shown(f"p{i}", i if i % 3 else i // 6, (f"说明{i % 7}",), 300 - i, "same" if i % 2 else "")
        for i in range(count)
    ]


def test_images_that_look_alike_or_have_the_same_bytes_are_found_and_no_others(tmp_path: Path, filtered: Any) -> None:
    shown = shown_of(filtered, 40)
    build = filtered.make(tmp_path, shown, parts=4)
    run_stage(build, "rank", "deal", "meet")
    alone, starts, name = _meetings.Alone(build), 0, {one.url: one for one in shown}
    pictures = [one.picture for one in shown]
    for number, record in enumerate(build.stage("rank").records()):
        rows = build.stage("rank").table(record)
        flags = alone.of(rows, np.full(rows.num_rows, number, np.int32))
        assert flags is not None
        by_position = pairs_of(build, record.partition, ["image_url"])["image_url"].to_pylist()
        for position, flag in zip(rows["position"].to_pylist(), flags.tolist(), strict=True):
            assert flag == (pictures.count(name[by_position[position]].picture) == 1)
        starts += rows.num_rows
    assert starts == 40
    bytes_of = [one.sha256 for one in shown]
    same = build.stage("meet").record(_meetings.SAME_BYTES).counts["found"]
    assert same == sum(bytes_of.count(own) > 1 for own in bytes_of) > 0
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
    assert expected.stage("lead").record("all").counts["alone"] == 0


@st.composite
def builds(draw: st.DrawFn) -> tuple[list[list[tuple[int, bool, int]]], dict[str, Any]]:
    pair = st.tuples(st.integers(0, 12), st.booleans(), st.integers(0, 2))
    rules = {
        "max_pairs_per_text": draw(st.integers(1, 3)),
        "max_pairs_per_domain": draw(st.sampled_from([0, 3])),
        "placeholder_texts": draw(st.sampled_from([0, 1])),
    }
    return draw(st.lists(st.lists(pair, min_size=1, max_size=14), min_size=1, max_size=3)), rules


@settings(max_examples=8, deadline=None)
@given(builds())
def test_increments_decide_with_it_as_without(
    tmp_path_factory: Any, filtered: Any, drawn: tuple[list[list[tuple[int, bool, int]]], dict[str, Any]]
) -> None:
    steps, rules = drawn
    results = []
    for fewest in (1, 1_000):
        folder, decided = tmp_path_factory.mktemp("builds"), []
        for step, shown in enumerate(steps):
            pictures = [
                filtered.Shown(
                    f"{step}-{i}", picture, (f"说明{picture % 3}",), 900 - i, "b" if same else "", f"http://s{site}.cn/"
                )
                for i, (picture, same, site) in enumerate(shown)
            ]
            build = filtered.make(folder, pictures, 2, snapshot=f"2026-0{step + 1}-01", dedup=rules)
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(_meetings, "FEWEST", fewest)
                run_stage(build, "rank", "deal", "meet")
                decided.append(after(build))
            publish(build)
        results.append(decided)
    assert results[0] == results[1]


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
    assert (
        _meetings.Alone(build).of(build.stage("rank").table(build.stage("rank").records()[0]), np.zeros(1, np.int32))
        is None
    )
    assert run_stage(build, "meet") == meet.partitions(build)[::2]
    assert {record.partition: record.files["found.bin"].sha256 for record in stage.records()} == found
