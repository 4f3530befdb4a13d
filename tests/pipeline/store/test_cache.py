"""The cache is a dictionary on disk: the last commit wins, nothing is lost by merging, and little is opened."""

from __future__ import annotations

import multiprocessing
import resource
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import StoreError
from pipeline.files.folder import Folder
from pipeline.rows.records import sha256_hex
from pipeline.store import cache
from pipeline.store.cache import Cache


class Named(Cache):
    """A cache whose keys are sha256 of short names."""

    def get(self, keys: Iterable[str]) -> pa.Table | None:
        return super().get(sha256_hex(key) for key in keys)


def rows(*names: str, value: int = 0) -> pa.Table:
    return pa.table({"sha256": [sha256_hex(n) for n in names], "name": list(names), "value": [value] * len(names)})


def values(rows: pa.Table | None) -> dict[str, int]:
    """By name."""
    if rows is None:
        return {}
    got = dict(zip(rows["name"].to_pylist(), rows["value"].to_pylist(), strict=True))
    assert rows.num_rows == len(got)
    return got


def in_folder(path: Any) -> Cache:
    return Named(Folder(str(path)), "sha256")


@pytest.mark.slow
@settings(max_examples=20)
@given(
    commits=st.lists(st.lists(st.sampled_from("abcdefgh"), unique=True, min_size=1, max_size=4), max_size=12),
    fan_in=st.sampled_from([2, 3, 16]),
)
def test_it_is_a_dictionary_in_which_the_last_commit_wins(
    tmp_path_factory: pytest.TempPathFactory, commits: list[list[str]], fan_in: int
) -> None:
    made, expected = in_folder(tmp_path_factory.mktemp("cache")), dict[str, int]()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cache, "FAN_IN", fan_in)
        for i, keys in enumerate(commits):
            made.put(rows(*keys, value=i))
            expected.update(dict.fromkeys(keys, i))
        for wanted in ([], ["a", "b"], list("abcdefghij")):
            assert values(made.get(wanted)) == {k: v for k, v in expected.items() if k in wanted}


def test_the_last_commit_wins_whatever_the_clock_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock of a machine was ahead for a day: what is put when it is right again must not lose for a day."""
    made, now = in_folder(tmp_path), time.time_ns()
    for value, at in enumerate((now, now + 10**14, now + 1, now + 2, now - 10**14)):
        monkeypatch.setattr(time, "time_ns", lambda at=at: at)
        made.put(rows("a", value=value))
        assert values(made.get(["a"])) == {"a": value}


@pytest.mark.slow
def test_index_files_stay_few_and_the_commits_all_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "FAN_IN", 4)
    made = in_folder(tmp_path)
    for i in range(64):
        made.put(rows(f"k{i}", value=i))
    assert len(list((tmp_path / "_index").iterdir())) <= 3 * 3
    assert values(made.get(f"k{i}" for i in range(64))) == {f"k{i}": i for i in range(64)}


def test_only_commits_that_hold_something_are_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = in_folder(tmp_path)
    for i in range(20):
        made.put(rows(f"a{i}", f"b{i}", value=i))
    opened, read = list[str](), pq.read_table
    monkeypatch.setattr(cache.pq, "read_table", lambda path, **more: opened.append(str(path)) or read(path, **more))
    assert values(made.get(["a3", "b3", "nowhere"])) == {"a3": 3, "b3": 3}
    assert len(opened) == 1
    assert made.get(["nowhere"]) is None
    assert len(opened) == 1


def test_keys_that_begin_alike_give_no_wrong_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "_heads", lambda keys: np.full(len(keys), 7, np.uint64))
    made = in_folder(tmp_path)
    made.put(rows("aa", value=1))
    assert made.get(["bb"]) is None
    assert values(made.get(["aa", "bb"])) == {"aa": 1}


@pytest.mark.parametrize("kind", ["disk", "memory"])
def test_a_pruned_commit_is_forgotten(tmp_path: Path, kind: str) -> None:
    made = in_folder(tmp_path if kind == "disk" else f"memory://{tmp_path.name}/cache")
    made.put(rows("a"))
    made.put(rows("b"))
    made.folder.delete(made.commits()[0])
    assert values(made.get(["a", "b"])) == {"b": 0}


@pytest.mark.slow
def test_two_that_remove_rows_at_once_bring_nothing_back(tmp_path: Path) -> None:
    """A takedown while `gc` runs: what one has read before the other wrote would come back with what it writes."""
    made = in_folder(tmp_path)
    made.put(rows("a", "b", "c"))
    read, other_done = threading.Event(), threading.Event()

    def slowly(table: pa.Table) -> pa.Array:
        read.set()
        other_done.wait(1.0)  # as long as the other one is let through meanwhile
        return pc.equal(table["name"], "a")

    def other() -> None:
        read.wait(60)
        in_folder(tmp_path).forget(lambda table: pc.equal(table["name"], "b"))
        other_done.set()

    thread = threading.Thread(target=other)
    thread.start()
    assert made.forget(slowly) == 1
    thread.join()
    assert values(made.get("abc")) == {"c": 0}


def test_behind_a_url_it_works_like_on_a_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "FAN_IN", 2)
    made = in_folder(f"memory://{tmp_path.name}/cache")
    for i in range(5):
        made.put(rows("a", f"k{i}", value=i))
    assert values(made.get(["a", "k0", "k3"])) == {"a": 4, "k0": 0, "k3": 3}


def _put(folder: str, writer: int) -> None:
    cache.FAN_IN = 3
    for i in range(15):
        in_folder(folder).put(rows(f"{writer}-{i}", value=i))


@pytest.mark.drill(5)
def test_writers_at_once_lose_nothing_and_readers_never_fail(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=_put, args=(str(tmp_path), writer)) for writer in range(3)]
    for process in writers:
        process.start()
    while any(process.is_alive() for process in writers):
        in_folder(tmp_path).get(["0-0", "1-3"])
    assert [process.exitcode for process in writers] == [0, 0, 0]
    wanted = [f"{writer}-{i}" for writer in range(3) for i in range(15)]
    assert sorted(values(in_folder(tmp_path).get(wanted))) == sorted(wanted)


def test_a_full_disk_is_named_and_leaves_nothing_half_written(tmp_path: Path) -> None:
    in_folder(tmp_path).put(rows("a", "b"))
    before = sorted(path.name for path in tmp_path.rglob("*"))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4_096, hard))
    try:
        with pytest.raises(StoreError, match=rf"{tmp_path}/\d+-\w+\.parquet: cannot be written \(File"):
            in_folder(tmp_path).put(rows(*(f"big {i}" for i in range(2_000))))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert sorted(path.name for path in tmp_path.rglob("*")) == before
    assert values(in_folder(tmp_path).get(["a", "b"])) == {"a": 0, "b": 0}
