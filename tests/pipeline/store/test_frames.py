"""Tables of builds and datasets: what is in them is what pyarrow reads of the same files, in batches and as a whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_specs.shard import SHARD_SCHEMA, SPLITS
from pipeline.errors import StoreError
from pipeline.files.folder import Folder
from pipeline.stages import STAGES
from pipeline.store.build import Build
from pipeline.store.dataset import Dataset
from pipeline.store.frames import Frames, TableFile
from pipeline.store.samples import Samples, webdataset


@pytest.fixture(scope="module")
def part(tmp_path_factory: pytest.TempPathFactory) -> TableFile:
    """A file of 1,000 rows in row groups of 64."""
    folder = tmp_path_factory.mktemp("part")
    schema = pa.schema([("number", pa.int64()), ("text", pa.string())])
    rows = pa.table({"number": range(1_000), "text": [f"第{i % 7}个" for i in range(1_000)]}, schema)
    pq.write_table(rows, folder / "t.parquet", row_group_size=64)
    return TableFile(Folder(str(folder)), "t.parquet", (folder / "t.parquet").stat().st_size, "b", schema)


@pytest.mark.slow
@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.integers(1, 300), low=st.integers(-10, 1_010), text=st.sampled_from(["第0个", "第6个", "无"]))
def test_batches_are_the_rows_that_a_filter_selects_in_order(part: TableFile, rows: int, low: int, text: str) -> None:
    wanted = (pc.field("number") >= low) & (pc.field("text") == text)
    batches = list(part.batches(["number"], wanted, rows))
    expected = pq.read_table(part.url, columns=["number"], filters=wanted)["number"].to_pylist()
    assert [n for batch in batches for n in batch["number"].to_pylist()] == expected
    assert all(0 < batch.num_rows <= rows for batch in batches)
    assert part.table(["number"], [("number", ">=", low), ("text", "==", text)])["number"].to_pylist() == expected


@pytest.mark.parametrize("columns", [None, ["text"], ["text", "number"], ["number", "build", "text"]])
def test_without_a_filter_every_row_comes_in_order_with_its_columns_as_asked(
    part: TableFile, columns: list[str] | None
) -> None:
    expected = pq.read_table(part.url).append_column("build", pa.array(["b"] * 1_000))
    batches = list(part.batches(columns, rows=150))
    assert all(0 < batch.num_rows <= 150 for batch in batches)
    assert pa.Table.from_batches(batches).equals(expected.select(columns or ["number", "text"]))
    assert part.table(columns).equals(expected.select(columns or ["number", "text"]))


@pytest.mark.slow
def test_memory_is_that_of_a_row_group_not_of_the_file(tmp_path: Path) -> None:
    schema = pa.schema([("bytes", pa.binary())])
    with pq.ParquetWriter(tmp_path / "t.parquet", schema, compression="none", use_dictionary=False) as writer:
        for i in range(40):
            writer.write_table(pa.table({"bytes": [bytes([i]) * 10_000] * 100}, schema))  # 1 MB a row group
    big = TableFile(Folder(str(tmp_path)), "t.parquet", (tmp_path / "t.parquet").stat().st_size, "b", schema)
    pool = pa.default_memory_pool()
    before, most, count = pool.bytes_allocated(), 0, 0
    for batch in big.batches(rows=50):
        count += batch.num_rows
        most = max(most, pool.bytes_allocated() - before)
    assert count == 4_000
    assert most < 15_000_000, "of a file of 40 MB"


def test_a_column_that_an_older_file_lacks_is_empty(tmp_path: Path) -> None:
    pq.write_table(pa.table({"key": ["a"]}), tmp_path / "t.parquet")
    size = (tmp_path / "t.parquet").stat().st_size
    old = TableFile(Folder(str(tmp_path)), "t.parquet", size, "b", SHARD_SCHEMA)
    assert old.table(["key", "width"]).to_pylist() == [{"key": "a", "width": None}]


def test_files_that_are_no_parquet_are_named(tmp_path: Path) -> None:
    (tmp_path / "t.parquet").write_bytes(b"no table")
    broken = TableFile(Folder(str(tmp_path)), "t.parquet", 8, "b", SHARD_SCHEMA)
    with pytest.raises(StoreError, match=r"t\.parquet: cannot be read \("):
        broken.table()
    with pytest.raises(StoreError, match=r"gone\.parquet: missing"):
        TableFile(Folder(str(tmp_path)), "gone.parquet", 8, "b", SHARD_SCHEMA).table()


def test_decisions_are_the_union_of_all_stages(synthetic_build: Build, synthetic: Any) -> None:
    tables = list(Frames.of(synthetic_build).tables("decisions", ["stage", "reason"]))
    counts: dict[tuple[str, str], int] = {}
    for table in tables:
        for row in table.to_pylist():
            counts[row["stage"], row["reason"]] = counts.get((row["stage"], row["reason"]), 0) + 1
    expected = {(stage, reason): n for stage, own in synthetic.FATES.items() for reason, n in own.items()}
    assert counts == {**expected, ("crawl", "http_status"): 2}


def test_before_the_shards_there_are_no_samples(synthetic_build: Build) -> None:
    frames = Frames.of(synthetic_build)
    assert list(frames.parts("samples")) == list(frames.parts("regions/grid-0")) == []
    assert len(frames.frame("samples")) == 0
    assert len(frames.frame("candidates", ["candidate_id"])) > 0


@pytest.mark.slow
def test_records_and_manifest_name_the_same_files(shards_of: Path, synthetic_build: Build) -> None:
    by_records, by_manifest = Frames.of(synthetic_build), Frames.of_dataset(Dataset.open(shards_of))
    assert by_records.detectors == by_manifest.detectors
    for table in ("samples", f"regions/{by_records.detectors[0]}"):
        for split in SPLITS:
            own = [(part.url, part.bytes, part.build) for part in by_manifest.parts(table, split)]
            assert own == [(part.url, part.bytes, part.build) for part in by_records.parts(table, split)]


def test_candidates_have_no_split(synthetic_build: Build) -> None:
    with pytest.raises(StoreError, match="candidates do not have splits"):
        Frames.of(synthetic_build).frame("candidates", split="train")


@pytest.mark.drill(6)
def test_a_dataset_in_a_bucket_is_read_where_it_is(shards_of: Path, bucket: str, tmp_path: Path) -> None:
    """Tables, pictures and tars, by the URL of the manifest alone."""
    fsspec.filesystem("s3").put(str(shards_of), f"{bucket}/frames", recursive=True)
    there = Frames.open(f"{bucket}/frames/manifest.json", STAGES)
    here = Frames.open(str(shards_of / "manifest.json"), STAGES)
    for table in ("samples", "regions/grid"):
        assert there.frame(table).equals(here.frame(table))
        assert list(there.batches(table, ["key"])) == list(here.batches(table, ["key"]))
    assert all(path.startswith("s3://") for path in there.paths("samples"))
    samples = Samples.of(there)
    stored = {own.key: own.image for own in Samples.of(here).read()}
    assert {own.key: own.image for own in samples.read()} == stored
    key = next(iter(stored))
    assert samples.find(key).image == stored[key]
    assert [own.key for own in samples.first(3)] == list(stored)[:3]
    read = [sample for split in SPLITS for sample in webdataset(samples, split)]
    assert {sample["__key__"]: sample["jpg"] for sample in read} == stored
