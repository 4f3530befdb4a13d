"""build: whose folder a stage is read from, in a build, in a trial, and over all specs that a folder has seen."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.store.build import Build, shard_files
from tests.fetched import begun


@pytest.fixture
def build(tmp_path: Path) -> Build:
    return begun(tmp_path)


def commit(build: Build, name: str, *rows: int) -> None:
    with build.stage(name).attempt("00000-of-00001") as attempt:
        attempt.write_table("parquet", pa.table({"row": list(rows), "twice": [2 * row for row in rows]}))
        attempt.commit({"kept": len(rows)})


def rows_of(build: Build, name: str) -> list[int]:
    stage = build.stage(name)
    return [row for record in stage.records() for row in stage.table(record)["row"].to_pylist()]


def test_tables_are_those_of_every_spec_that_the_folder_has_seen(build: Build) -> None:
    changed = replace(build, fingerprints={**build.fingerprints, "measure": "e" * 64})
    commit(build, "measure", 1, 2)
    commit(changed, "measure", 3)
    assert [len(list(own.stage("measure").records())) for own in (build, changed)] == [1, 1]
    for own in (build, changed):
        tables = list(own.tables("measure", "parquet", ["row"]))
        assert {name for table in tables for name in table.column_names} == {"row"}
        assert sorted(row for table in tables for row in table["row"].to_pylist()) == [1, 2, 3]
        assert len(own.history("measure")) == 2
    assert list(build.tables("measure", "tar")) == []
    assert build.history("filter") == []


def test_a_trial_reads_what_it_has_not_changed_from_its_build_and_writes_the_rest_elsewhere(
    build: Build, tmp_path: Path
) -> None:
    commit(build, "measure", 1)
    commit(build, "filter", 1)
    prints = {**build.fingerprints, "filter": "e" * 64}
    trial = replace(build, out=str(tmp_path / "trial"), on=build, fingerprints=prints)
    commit(trial, "filter", 5)
    assert rows_of(trial, "measure") == [1]
    assert rows_of(trial, "filter") == [5]
    assert rows_of(build, "filter") == [1]
    assert {path.name for path in Path(trial.out).iterdir()} == {build.stages["filter"].folder}
    assert (build.asks, trial.asks) == (True, False)
    assert (build.images_build, trial.images_build) == (None, None), "it has the images of its build"
    fetching = replace(trial, fingerprints={**prints, "fetch": "e" * 64})
    assert fetching.images_build == build


@pytest.mark.slow
def test_files_of_the_shards_are_those_that_lie_there(synthetic_build: Build, shards_of: Path) -> None:
    shards = [shard_files(record) for record in synthetic_build.packed()]
    assert sorted(shard.tar.path for shard in shards) == sorted(path.name for path in shards_of.glob("*.tar"))
    for shard in shards:
        assert shard.parquet.path.startswith(f"{shard.split}-")
        assert shard.samples == pq.read_metadata(shards_of / shard.parquet.path).num_rows
        for file in (shard.tar, shard.parquet, *shard.regions.values()):
            data = (shards_of / file.path).read_bytes()
            assert (file.bytes, file.sha256) == (len(data), hashlib.sha256(data).hexdigest())
    assert {name for shard in shards for name in shard.regions} == {p.name for p in (shards_of / "regions").iterdir()}
