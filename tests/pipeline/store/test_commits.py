"""Commits of partitions: what an attempt leaves, alone and beside another one."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pyarrow as pa

from pipeline.files.folder import Folder
from pipeline.rows.decisions import Decision
from pipeline.store.commits import DECISIONS
from pipeline.store.partitions import StageDir


def stage(folder: Path, fingerprint: str = "f" * 64) -> StageDir:
    return StageDir(Folder(str(folder)), "fetch", fingerprint)


def rows(*keys: str, value: int = 0) -> pa.Table:
    return pa.table({"sha256": list(keys), "value": [value] * len(keys)})


def decision(name: str = "c") -> Decision:
    return Decision("candidate", name, "f", "s", "", "http://a/b.jpg", "fetch", False, "timeout", ("timeout",))


def test_an_attempt_without_commit_leaves_nothing_that_a_reader_sees(tmp_path):
    with contextlib.suppress(InterruptedError), stage(tmp_path).attempt("00000") as attempt:
        attempt.write_table("parquet", rows("a"))
        raise InterruptedError
    assert list(stage(tmp_path).records()) == []
    assert list(tmp_path.iterdir()) == []


def test_a_committed_partition_is_read_back_with_its_counts(tmp_path):
    with stage(tmp_path).attempt("00000") as attempt:
        attempt.write_table("parquet", rows("a", "b"))
        attempt.commit({"seen": 3, "kept": 2, "dropped": 1})
    [record] = stage(tmp_path).records()
    assert record.counts == {"seen": 3, "kept": 2, "dropped": 1}
    assert stage(tmp_path).table(record).equals(rows("a", "b"))


def test_the_first_of_two_attempts_wins_whole(tmp_path):
    first, second = stage(tmp_path).attempt("00000"), stage(tmp_path).attempt("00000")
    with first, second:
        first.write_table("parquet", rows("a"))
        second.write_table("parquet", rows("b"))
        committed = first.commit({})
        assert second.commit({}) == committed
    [record] = stage(tmp_path).records()
    assert stage(tmp_path).table(record)["sha256"].to_pylist() == ["a"]
    assert len(stage(tmp_path).sweep()) == 1
    stage(tmp_path).check(record, "parquet")


def test_the_second_of_two_attempts_wins_where_both_write_the_same_files(tmp_path):
    for size in (1, 2):
        with stage(tmp_path).attempt("00000") as attempt:
            attempt.path("html", final="index.html").write_bytes(b"x" * size)
            attempt.commit({"bytes": size})
    [record] = stage(tmp_path).records()
    stage(tmp_path).check(record, "html")


def test_decisions_of_an_attempt_are_committed_with_it(tmp_path):
    with stage(tmp_path).attempt("00000") as attempt:
        attempt.decide([decision()])
        record = attempt.commit({"dropped": 1})
    assert stage(tmp_path).table(record, DECISIONS)["reason"].to_pylist() == ["timeout"]
