"""Records and attempts: what is visible, and when."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import pytest

from pipeline import run
from pipeline.errors import StoreError
from pipeline.files.folder import Folder
from pipeline.rows.decisions import Decision
from pipeline.store import partitions
from pipeline.store.commits import DECISIONS
from pipeline.store.partitions import StageDir, remembering


def stage(folder: Path, fingerprint: str = "f" * 64) -> StageDir:
    return StageDir(Folder(str(folder)), "fetch", fingerprint)


def rows(*keys: str, value: int = 0) -> pa.Table:
    return pa.table({"sha256": list(keys), "value": [value] * len(keys)})


def test_another_fingerprint_sees_none_of_it(tmp_path):
    with stage(tmp_path).attempt("00000") as attempt:
        attempt.write_table("parquet", rows("a"))
        attempt.commit({})
    stage(tmp_path).finish(["00000"], 1)
    assert stage(tmp_path).finished()
    assert not stage(tmp_path, "e" * 64).finished()
    assert list(stage(tmp_path, "e" * 64).records()) == []


def test_a_file_that_lost_its_tail_is_named(tmp_path):
    with stage(tmp_path).attempt("00000") as attempt:
        attempt.path("tar").write_bytes(b"x" * 100)
        record = attempt.commit({})
    path = tmp_path / record.files["tar"].name
    path.write_bytes(b"x" * 99)
    with (
        pytest.raises(StoreError, match=rf"{path}: 99 bytes, but 100 in its record"),
        stage(tmp_path).file(record, "tar"),
    ):
        pass


def decision(name: str = "c") -> Decision:
    return Decision("candidate", name, "f", "s", "", "http://a/b.jpg", "fetch", False, "timeout", ("timeout",))


def test_a_folders_rows_are_one_table_for_other_readers(tmp_path):
    """pandas, pyarrow's datasets and globs of the stage's folder see its rows, and none of its decisions."""
    for number in range(2):
        with stage(tmp_path).attempt(f"0000{number}") as attempt:
            attempt.write_table("parquet", rows("a", "b"))
            attempt.write_table("boxes.parquet", pa.table({"boxes": [1.0]}))
            attempt.decide([decision("c"), decision("d"), decision("e")])
            attempt.commit({"kept": 2, "dropped": 3})
    assert pd.read_parquet(tmp_path).shape == (4, 2)
    assert pads.dataset(tmp_path).count_rows() == 4
    assert sum(pq.read_metadata(path).num_rows for path in tmp_path.glob("*.parquet")) == 4
    assert list(pd.read_parquet(tmp_path / "_decisions")["id"]) == [*"cde"] * 2
    assert len(pd.read_parquet(tmp_path / "_boxes")) == 2


def test_sweep_finds_what_killed_attempts_left_in_every_folder_and_nothing_else(tmp_path):
    with stage(tmp_path).attempt("00000") as attempt:
        attempt.write_table("parquet", rows("a"))
        attempt.decide([decision()])
        attempt.commit({})
    for name in ("00001-dead.parquet", "_decisions/00001-dead.decisions.parquet"):
        (tmp_path / name).write_bytes(b"half")
    (tmp_path / "_frontier").mkdir()
    (tmp_path / "_frontier/state").write_bytes(b"of a crawl")
    assert stage(tmp_path).sweep() == ["00001-dead.parquet", "_decisions/00001-dead.decisions.parquet"]
    assert (tmp_path / "_frontier/state").exists()
    assert stage(tmp_path).stray() == []
    assert stage(tmp_path).has_files(stage(tmp_path).record("00000"), ["parquet", DECISIONS])


@pytest.mark.drill(4)
def test_sweep_asks_an_object_store_once_for_a_thousand_files(remote, monkeypatch):
    """It asked twice for each."""
    own = StageDir(Folder(f"{remote.url}/sweep [1]/stage"), "fetch", "f" * 64)
    for _ in range(2):
        for number in range(3):
            with own.attempt(f"0000{number}") as attempt:
                attempt.write_table("parquet", rows("a"))
                attempt.decide([])
                attempt.commit({})
    named = {ref.name for record in own.records() for ref in record.files.values()}
    assert len(own.stray()) == 6
    remote.proxy.requests.clear()
    swept = own.sweep()
    assert len(swept) == 6
    changes = [request for request in remote.proxy.requests if request.operation not in ("LIST", "GET", "HEAD")]
    assert len(changes) == 1
    assert set(own.committable()) == named
    assert own.sweep() == []


def test_a_folder_behind_a_url_works_like_a_disk(tmp_path):
    remote = StageDir(Folder(f"memory://{tmp_path.name}/x"), "fetch", "f" * 64)
    with remote.attempt("00000") as attempt:
        attempt.write_table("parquet", rows("a"))
        attempt.decide([decision()])
        attempt.commit({"seen": 1})
    [record] = remote.records()
    assert remote.table(record).equals(rows("a"))
    assert remote.table(record, DECISIONS)["id"].to_pylist() == ["c"]
    assert [n for n in remote.folder.names() if n.startswith(".tmp")] == []
    remote.folder.write("_decisions/00001-dead.decisions.parquet", b"half")
    assert remote.sweep() == ["_decisions/00001-dead.decisions.parquet"]


@pytest.mark.parametrize("most", [3, 2])
def test_records_are_read_once_while_they_are_remembered_and_never_more_than_a_limit(tmp_path, monkeypatch, most):
    """As many stages as the limit allows are remembered; others are read each time, and all is read anew afterwards."""
    monkeypatch.setattr(partitions, "REMEMBERED", most)
    read, listed = Folder.read, []

    def counted(self: Folder, name: str) -> bytes:
        listed.append(name)
        return read(self, name)

    monkeypatch.setattr(Folder, "read", counted)

    def commit(place: StageDir, name: str) -> None:
        with place.attempt(name) as attempt:
            attempt.commit({"seen": len(name)})

    first, second = stage(tmp_path / "a"), stage(tmp_path / "b")
    for place, names in ((first, ("0", "1")), (second, ("2",))):
        for name in names:
            commit(place, name)
    with remembering():
        for _ in range(3):
            assert [record.partition for record in first.records()] == ["0", "1"]
            assert [record.partition for record in second.records()] == ["2"]
            assert list(first.at("e" * 64).records()) == []
    assert listed == ["0.json", "1.json", *["2.json"] * (1 if most == 3 else 3)]
    commit(first, "3")
    assert [record.partition for record in first.records()] == ["0", "1", "3"]


def test_of_another_fingerprint_only_what_has_a_place_in_the_new_plan_is_taken_over(tmp_path):
    before = stage(tmp_path)
    for name in ("train-0", "train-1"):
        with before.attempt(name) as attempt:
            attempt.path("tar", final=f"{name}.tar").write_bytes(b"tar")
            attempt.commit({})
    before.at("a" * 64).retire({"train-0"}, lambda record: {"tar"})
    assert sorted(path.name for path in tmp_path.glob("*.tar")) == ["train-0.tar"]
    assert before.partitions() == ["train-0"]


@pytest.mark.slow
@pytest.mark.parametrize("finished", [False, True])
def test_what_is_said_of_a_damaged_record_does_its_partition_again(weeks, finished):
    """Of a finished stage the advice left the partition out, in silence."""
    build = weeks.build("2026-01-01", range(3))
    stage = build.stage("measure")
    [path] = Path(stage.folder.at(stage.records_name)).glob("*.json")
    path.write_text("{")
    if not finished:
        stage.unfinish()
    with pytest.raises(StoreError, match=f"^{path}: not a record; delete ") as e:
        stage.record(path.stem)
    for name in {str(path), *re.findall(r"/\S+\.(?:json|parquet)", e.value.message)}:
        Path(name).unlink()
    list(run.run(weeks.open("2026-01-01", range(3)), here=True))
    assert [record.counts["kept"] for record in stage.records()] == [3]
    assert stage.finished()
