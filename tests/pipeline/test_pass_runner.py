"""Records of a pass in one file: what readers see of them, whatever happens to the driver or to a record."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline import pass_runner, run
from pipeline.errors import StoreError
from pipeline.files.folder import Folder
from pipeline.pass_runner import Committed
from pipeline.store.commits import Record
from pipeline.store.partitions import StageDir

NAMES = [f"{number:03d}" for number in range(7)]


@pytest.fixture(params=["disk", "url"])
def stage(request: pytest.FixtureRequest, tmp_path: Path) -> StageDir:
    url = str(tmp_path) if request.param == "disk" else f"memory://{tmp_path.name}"
    return StageDir(Folder(url), "fetch", "f" * 64)


def commit(stage: StageDir, name: str) -> Record:
    with stage.attempt(name) as attempt:
        attempt.path("tar").write_bytes(name.encode())
        return attempt.commit({"seen": int(name)})


def finished(stage: StageDir) -> StageDir:
    for name in NAMES:
        commit(stage, name)
    Committed(stage).compact()
    stage.finish(NAMES, 1)
    return stage


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the records that are read one by one, and "" for each listing."""
    names, of_read, of_names = list[str](), Folder.read, Folder.names
    monkeypatch.setattr(Folder, "read", lambda self, name: names.append(name) or of_read(self, name))
    monkeypatch.setattr(Folder, "names", lambda self: names.append("") or of_names(self))
    return names


def test_the_records_of_a_finished_stage_are_read_from_one_file(stage: StageDir, read: list[str]) -> None:
    before = [commit(stage, name) for name in reversed(NAMES)]
    Committed(stage).compact()
    read.clear()
    assert list(stage.records()) == before[::-1]
    assert stage.partitions() == NAMES
    assert read == []
    assert stage.record(NAMES[0]) == before[-1]
    assert stage.at("e" * 64).partitions() == []


def test_a_driver_that_is_killed_leaves_few_records_to_be_read_one_by_one(
    stage: StageDir, read: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pass_runner, "EVERY", 3)
    driver = Committed(stage)
    records = [driver.add(commit(stage, name).model_dump_json()) for name in NAMES]
    assert sorted(stage.partitions()) == NAMES
    read.clear()
    again = Committed(stage)
    assert [name for name in read if name] == [f"{NAMES[-1]}.json"]
    assert list(again.records()) == records
    assert all(name in again for name in NAMES)


@pytest.mark.parametrize("step", ["change", "delete", "adopt"])
def test_a_record_that_changes_is_never_read_from_the_file(stage: StageDir, tmp_path: Path, step: str) -> None:
    """Also where whoever changes it is killed right after that."""
    finished(stage)
    if step == "change":
        (tmp_path / "other").write_bytes(b"other")
        before = stage.record("003")
        amended = stage.amend(before, {"tar": tmp_path / "other"}, {"seen": 30})
        assert [record for record in stage.records() if record.partition == "003"] == [amended]
        assert stage.sweep() == [before.files["tar"].name]
    elif step == "delete":
        stage.uncommit("003")
        assert stage.partitions() == [name for name in NAMES if name != "003"]
        assert not stage.finished()
    else:
        stage.write_record(stage.record("003").model_copy(update={"info": {"input": "x"}}))
        assert stage.at("e" * 64).adopt("003", input="x") is not None
        assert stage.at("e" * 64).partitions() == ["003"]
    stage.compact_again()
    assert [record.partition for record in stage.records()] == stage.partitions()


@pytest.mark.drill(2)
@pytest.mark.parametrize("step", ["compact", "finish"])
def test_a_build_that_is_killed_at_the_end_of_a_pass_repeats_nothing(
    weeks: Any, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    build, whole = weeks.open("2026-01-01", range(3)), getattr(StageDir, step)

    def killed(self: StageDir, *given: Any, **options: Any) -> None:
        if self.name == "fetch":
            raise InterruptedError
        whole(self, *given, **options)

    with monkeypatch.context() as patch:
        patch.setattr(StageDir, step, killed)
        with pytest.raises(InterruptedError):
            list(run.run(build, here=True))
    records = list(build.stage("fetch").records())
    assert len(records) == 1
    results = {result.name: result for result in run.run(build, here=True)}
    assert results["fetch"].ran == 0
    assert list(build.stage("fetch").records()) == records
    assert build.stage("fetch").finished()


def test_a_damaged_file_is_named_and_costs_nothing_once_it_is_deleted(stage: StageDir) -> None:
    before = list(finished(stage).records())
    place = stage.folder / stage.records_name
    for damaged in (b"PAR1", place.read("records.parquet")[:-40]):
        place.write("records.parquet", damaged)
        for reading in (stage.partitions, lambda: list(stage.records())):
            with pytest.raises(StoreError, match=r"records\.parquet: cannot be read \(.*\); delete it"):
                reading()
    place.delete("records.parquet")
    assert list(stage.records()) == before
