"""Records, attempts, caches and the store: what is visible, and when."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pyarrow as pa
import pytest

from pipeline.errors import StoreError
from pipeline.files.folder import Folder
from pipeline.records import Decision
from pipeline.store.partitions import DECISIONS, StageDir
from pipeline.store.store import Store


def stage(folder: Path, fingerprint: str = "f" * 64) -> StageDir:
    return StageDir(Folder(str(folder)), "fetch", fingerprint)


def rows(*keys: str, value: int = 0) -> pa.Table:
    return pa.table({"sha256": list(keys), "value": [value] * len(keys)})


def test_an_attempt_without_commit_leaves_nothing_that_a_reader_sees(tmp_path):
    with contextlib.suppress(InterruptedError), stage(tmp_path).attempt("00000") as attempt:
        attempt.write_table("parquet", rows("a"))
        raise InterruptedError
    assert stage(tmp_path).records() == []
    assert list(tmp_path.iterdir()) == []


def test_a_committed_partition_is_read_back_with_its_counts(tmp_path):
    with stage(tmp_path).attempt("00000") as attempt:
        attempt.write_table("parquet", rows("a", "b"))
        attempt.commit({"seen": 3, "kept": 2, "dropped": 1})
    [record] = stage(tmp_path).records()
    assert record.counts == {"seen": 3, "kept": 2, "dropped": 1}
    assert stage(tmp_path).table(record).equals(rows("a", "b"))


def test_the_second_of_two_attempts_wins_whole(tmp_path):
    first, second = stage(tmp_path).attempt("00000"), stage(tmp_path).attempt("00000")
    with first, second:
        first.write_table("parquet", rows("a"))
        second.write_table("parquet", rows("b"))
        first.commit({})
        second.commit({})
    [record] = stage(tmp_path).records()
    assert stage(tmp_path).table(record)["sha256"].to_pylist() == ["b"]


def test_another_fingerprint_sees_none_of_it(tmp_path):
    with stage(tmp_path).attempt("00000") as attempt:
        attempt.write_table("parquet", rows("a"))
        attempt.commit({})
    stage(tmp_path).finish(["00000"], 1)
    assert stage(tmp_path).finished()
    assert not stage(tmp_path, "e" * 64).finished()
    assert stage(tmp_path, "e" * 64).records() == []


def test_a_file_that_lost_its_tail_is_named(tmp_path):
    with stage(tmp_path).attempt("00000") as attempt:
        attempt.path("tar").write_bytes(b"x" * 100)
        record = attempt.commit({})
    path = tmp_path / record.files["tar"].name
    path.write_bytes(b"x" * 99)
    with (
        pytest.raises(StoreError, match=rf"{path}: has 99 bytes, its record says 100"),
        stage(tmp_path).file(record, "tar"),
    ):
        pass


def test_decisions_of_an_attempt_are_committed_with_it(tmp_path):
    decision = Decision("candidate", "c", "f", "s", "", "http://a/b.jpg", "fetch", False, "timeout", ("timeout",))
    with stage(tmp_path).attempt("00000") as attempt:
        attempt.decide([decision])
        record = attempt.commit({"dropped": 1})
    assert stage(tmp_path).table(record, DECISIONS)["reason"].to_pylist() == ["timeout"]


def test_a_folder_behind_a_url_works_like_a_disk(tmp_path):
    remote = StageDir(Folder(f"memory://{tmp_path.name}/x"), "fetch", "f" * 64)
    with remote.attempt("00000") as attempt:
        attempt.write_table("parquet", rows("a"))
        attempt.commit({"seen": 1})
    [record] = remote.records()
    assert remote.table(record).equals(rows("a"))
    assert [n for n in remote.folder.names() if n.startswith(".tmp")] == []


def test_a_store_of_a_newer_version_is_refused(tmp_path):
    (tmp_path / "store.json").write_text('{"version": 99}')
    with pytest.raises(StoreError, match="is of version 99, this wenlan knows 2; upgrade"):
        Store(str(tmp_path)).check()
