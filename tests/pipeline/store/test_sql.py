"""SQL over a build: views are the rows of its files, memory is bounded, nothing is downloaded, faults name the file."""

from __future__ import annotations

import contextlib
import functools
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import duckdb
import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import StoreError
from pipeline.files.folder import Folder
from pipeline.store import recorded_files
from pipeline.store.build import Build
from pipeline.store.frames import Frames
from pipeline.store.sql import VIEWS, Tables, _hosts, head, host, in_order, parquet, quoted, settings, threads

Run = Callable[..., list[str]]


@pytest.mark.slow
def test_views_have_the_rows_and_columns_of_the_files(synthetic_build: Build, run_stage: Run) -> None:
    run_stage(synthetic_build, "shard")
    frames = Frames.of(synthetic_build)
    with Tables.of(synthetic_build, other=synthetic_build) as tables:
        for name in ("decisions", "measures"):
            expected = [row for table in frames.tables(name) for row in table.to_pylist()]
            assert tables.rows(f"SELECT * FROM {name}") == expected
            assert tables.rows(f"SELECT * FROM other.{name}") == expected
        samples = [row for table in frames.tables("samples") for row in table.to_pylist()]
        found = tables.rows("SELECT key, text, kind, position FROM samples")
        assert [row["key"] for row in found] == [row["key"] for row in samples]
        assert [row["text"] for row in found] == [row["texts"][0]["text"] for row in samples]
        each = [range(table.num_rows) for table in frames.tables("samples")]
        assert [row["position"] for row in found] == [at for rows in each for at in rows], "numbers within a shard"
        [detector] = frames.detectors
        regions = [row for table in frames.tables(f"regions/{detector}") for row in table.to_pylist()]
        assert tables.rows("SELECT * EXCLUDE (detector) FROM regions") == regions
        assert tables.column("SELECT DISTINCT detector FROM regions") == [detector]


@pytest.mark.parametrize("name", ["week*", "week[1]", "week?", "第一周"])
def test_a_folder_is_read_by_its_name_though_that_is_a_pattern(name: str, tmp_path: Path) -> None:
    for folder, rows in ((name, 1), ("week1", 2), ("weekly", 3)):
        (tmp_path / folder).mkdir()
        pq.write_table(pa.table({"x": range(rows)}), tmp_path / folder / "train-000000.parquet")
    place = str(tmp_path / name / "train-000000.parquet")
    found = duckdb.sql(f"SELECT filename, count(*) FROM {parquet([place])} GROUP BY 1").fetchall()
    assert found == [(place, 1)]


def test_what_a_build_does_not_have_is_empty(make_build: Callable[..., Build]) -> None:
    build = make_build(sources=[{"kind": "site", "name": "s", "source_kind": "news", "start": ["http://a.cn/"]}])
    with Tables.of(build) as tables:
        for name in VIEWS:
            assert tables.rows(f"SELECT * FROM {name}") == [], name
        assert (build.records("shard"), build.counted("crawl", "kept")) == ([], 0)


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (lambda path: path.unlink(), "missing; delete the stage's folder to rebuild it"),
        (lambda path: path.write_bytes(path.read_bytes()[:-9]), "in its record"),
    ],
)
def test_a_file_that_is_gone_or_cut_off_is_named(
    synthetic_build: Build, harm: Callable[[Path], Any], says: str
) -> None:
    part = next(Frames.of(synthetic_build).parts("decisions"))
    harm(Path(part.url))
    with Tables.of(synthetic_build) as tables, pytest.raises(StoreError, match=says) as caught:
        tables.rows("SELECT count(*) FROM decisions")
    assert caught.value.subject == part.url


@pytest.mark.slow
def test_files_of_an_object_store_are_read_without_asking_for_their_size(
    bucket: str, tmp_path: Path, synthetic: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    build, _ = synthetic.make(tmp_path)
    part = next(Frames.of(build).parts("decisions"))
    rows = part.table().num_rows
    there = replace(part, folder=Folder(f"{bucket}/sql"), name="it's.parquet")
    with fsspec.open(there.url, "wb") as file:
        file.write(Path(part.url).read_bytes())
    below = type(fsspec.filesystem(bucket.partition("://")[0]))
    for name in ("info", "_info", "modified", "exists", "ls", "_ls"):
        monkeypatch.setattr(below, name, None, raising=False)
    asked, fs = list[str](), fsspec.filesystem(bucket.partition("://")[0])
    read = fs.cat_file
    monkeypatch.setattr(fs, "cat_file", lambda path, **of: asked.append(path) or read(path, **of))
    for whole in (1 << 20, 100):  # in one piece, and by ranges
        monkeypatch.setattr(recorded_files, "SMALL", whole)
        with contextlib.closing(duckdb.connect(config=settings(tmp_path))) as db:
            files = recorded_files.RecordedFiles(db)
            files.add([there, there])
            files.add([there])
            for _ in range(2):
                assert db.sql(f"SELECT count(DISTINCT id) FROM {parquet([there.url])}").fetchall() == [(rows,)]
        if whole > part.bytes:
            assert len(asked) == 1, "a small file is read once for all queries"


_URL = st.text(
    st.sampled_from("aB.中:/?#@[] \t\n1-") | st.characters(codec="utf-8", exclude_characters="\0"), max_size=30
)


@functools.cache
def _knows_hosts() -> duckdb.DuckDBPyConnection:
    db = duckdb.connect()
    db.create_function("host_of_any", _hosts, ["VARCHAR"], "VARCHAR", type="arrow", null_handling="special")
    return db


@pytest.mark.slow
@given(st.lists(_URL | _URL.map("http://".__add__), min_size=1, max_size=20))
def test_hosts_are_those_that_urllib_finds(urls: list[str]) -> None:
    def expected(url: str) -> str:
        try:
            return urlsplit(url).hostname or ""
        except ValueError:
            return ""

    found = _knows_hosts().execute(f"SELECT {host('u')} FROM (SELECT unnest(?::VARCHAR[]) AS u)", [urls]).fetchall()
    assert [row[0] for row in found] == list(map(expected, urls))


def test_threads_are_the_cpus_of_the_task(monkeypatch: pytest.MonkeyPatch) -> None:
    for said, expected in (("1", 1), ("3", 3), ("64", 4)):
        monkeypatch.setenv("OMP_NUM_THREADS", said)
        assert threads() == expected
    monkeypatch.setenv("OMP_NUM_THREADS", "")
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1})
    assert threads() == 2


def test_an_id_is_its_first_64_bits_and_nothing_where_it_is_none() -> None:
    rows = duckdb.sql(f"SELECT {head('id')} FROM (VALUES ('{'0f' * 32}'), ('')) v(id)").fetchall()
    assert rows == [(0x0F0F0F0F0F0F0F0F,), (None,)]


def test_a_path_with_a_quote_is_one_path(tmp_path: Path) -> None:
    folder = tmp_path / "it's"
    folder.mkdir()
    (folder / "a.csv").write_text("x\n1\n")
    assert duckdb.sql(f"SELECT * FROM read_csv('{quoted(str(folder / 'a.csv'))}')").fetchall() == [(1,)]


def test_the_database_loads_nothing_from_the_network_and_keeps_within_its_memory(tmp_path: Path) -> None:
    with duckdb.connect(config=settings(tmp_path)) as db:
        names = ("memory_limit", "autoinstall_known_extensions", "autoload_known_extensions")
        limit, *loads = (db.sql(f"SELECT current_setting('{name}')").fetchall()[0][0] for name in names)
    assert (limit, loads) == ("429.1 MiB", [False, False])


@pytest.mark.parametrize("counts", [(7_000, 1, 0, 900), (0, 0), ()])
def test_rows_of_files_come_in_order_each_once(tmp_path: Path, counts: tuple[int, ...]) -> None:
    dice, schema = random.Random(2), pa.schema([("rank", pa.binary(5)), ("partition", pa.string())])
    names, rows = dice.sample(range(1 << 30), sum(counts)), list[dict[str, Any]]()
    for number, count in enumerate(counts):
        own = [{"rank": names.pop().to_bytes(5), "partition": str(number)} for _ in range(count)]
        pq.write_table(pa.Table.from_pylist(own, schema), tmp_path / f"{number}.parquet")
        rows += own
    blocks = list(in_order(sorted(tmp_path.iterdir()), schema, ["rank"], 2_048, tmp_path / "spill"))
    assert all(block.schema == schema for block in blocks)
    assert all(block.num_rows == 2_048 for block in blocks[:-1])
    assert [row for block in blocks for row in block.to_pylist()] == sorted(rows, key=lambda row: row["rank"])
