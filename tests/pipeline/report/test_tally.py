"""tally: what is counted is the same however a build is cut into groups, and whoever counts them."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.files.folder import Folder
from pipeline.report import tally
from pipeline.report.tally import Group, Tally
from pipeline.store.build import Build
from pipeline.store.partitions import StageDir
from pipeline.store.takedowns import NO_TAKEDOWNS

Run = Any
FILTERS = [{"name": "text_length", "min_chars": 4}, {"name": "han_share"}, {"name": "image_sides", "min_side": 100}]


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory, synthetic: Any, run_stage: Run) -> Build:
    build: Build = synthetic.make(tmp_path_factory.mktemp("packed"), filters=FILTERS, report={"pictures": 12})[0]
    run_stage(build, "shard")
    return build


def passed_on(states: dict[str, Any]) -> dict[str, Any]:
    """States as they come back from a disk: JSON, but for tables."""
    tables = {name: {k: v for k, v in own.items() if isinstance(v, pa.Table)} for name, own in states.items()}
    values = {name: {k: v for k, v in own.items() if k not in tables[name]} for name, own in states.items()}
    return {name: own | tables[name] for name, own in json.loads(json.dumps(values)).items()}


def content(counted: Tally) -> dict[str, Any]:
    """All that the passes know, tables in an order of their own, counters in that of their entries."""
    states = {name: own.state() for name, own in counted.passes().items()}
    for state in states.values():
        for key, value in state.items():
            if isinstance(value, pa.Table):
                state[key] = sorted(map(str, value.to_pylist()))
    return {**json.loads(json.dumps(states)), "kinds": counted.kept.primary_kinds.most_common()}


@settings(max_examples=15)
@given(cuts=st.sets(st.integers(0, 40)))
def test_random_groups_merged_in_order_are_the_whole(packed: Build, cuts: set[int]) -> None:
    whole, merged = (Tally.of(packed, NO_TAKEDOWNS, len(packed.packed())) for _ in range(2))
    number = itertools.count()
    for stage in packed.fingerprints:
        records = packed.stage(stage).records()
        first = 0
        for at, record in enumerate(records):
            for own in whole.passes().values():
                own.add(packed, record)
            if at + 1 == len(records) or next(number) in cuts:
                group = Group(stage, first, at, len(packed.packed()), "")
                merged.merge(passed_on(tally.summary(packed, group, NO_TAKEDOWNS)))
                first = at + 1
    assert content(merged) == content(whole)
    assert whole.fates.groups.sizes().total() > 0
    assert whole.fates.smallest
    assert whole.kept.word_samples > 0


def test_groups_have_as_many_rows_as_may_be_or_one_partition_and_are_named_by_what_they_hold(
    packed: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = tally.groups(packed)
    assert [group.stage for group in few] == list(dict.fromkeys(group.stage for group in few)), "small: one of a stage"
    monkeypatch.setattr(tally, "GROUP", 1)
    many = tally.groups(packed)
    assert len(many) > len(few)
    for name in {group.stage for group in many}:
        own = [group for group in many if group.stage == name]
        borders = [(group.first, group.last + 1) for group in own]
        assert [start for start, _ in borders] == [0, *(end for _, end in borders[:-1])]
        assert borders[-1][1] == len(packed.stage(name).partitions())
    assert [Group.named(str(group)) for group in many] == many
    assert len({group.mark for group in many}) == len(many)
    stage = packed.stage("filter")
    record = next(record for record in stage.records() if record.counts["dropped"])
    names = {str(group) for group in many}
    with monkeypatch.context() as patch:  # as a takedown leaves them
        files = {s: ref.model_copy(update={"sha256": "0" * 64}) for s, ref in record.files.items()}
        others = [r if r != record else replace_files(r, files) for r in stage.records()]
        patch.setattr(type(stage), "records", lambda self: others if self.name == "filter" else records_of(self))
        changed = {str(group) for group in tally.groups(packed)} - names
    assert len(changed) == 1


def replace_files(record: Any, files: Any) -> Any:
    return record.model_copy(update={"files": files})


def records_of(stage: Any) -> Any:
    return [stage.record(name) for name in stage.partitions()]


def test_a_build_without_shards_is_counted_as_far_as_it_is(packed: Build) -> None:
    before = replace(packed, fingerprints={n: f for n, f in packed.fingerprints.items() if n in ("extract", "admit")})
    counted = tally.tallied(before, NO_TAKEDOWNS)
    assert set(counted.fates.smallest) == {"data_uri", "no_text", "text_too_short", "boilerplate"}
    assert counted.kept.word_samples == 0


@pytest.mark.parametrize("where", ["disk", "bucket"])
def test_a_summary_is_read_as_it_was_written(
    packed: Build, where: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    place = str(tmp_path) if where == "disk" else f"{request.getfixturevalue('bucket')}/tally"
    stage = StageDir(Folder(place), "tally", "f" * 64)
    for number, group in enumerate(tally.groups(packed)):
        states = tally.summary(packed, group, NO_TAKEDOWNS)
        with stage.attempt(f"{number}") as attempt:
            tally.write(attempt, states)
            record = attempt.commit({})
        again, counted = (Tally.of(packed, NO_TAKEDOWNS, group.shards) for _ in range(2))
        again.merge(tally.read(stage, record))
        counted.merge(states)
        assert content(again) == content(counted)
