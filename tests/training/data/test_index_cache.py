"""Indexes of shards: what does not match its manifest is named in one line, and so is a damaged index."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_specs.shard import ContractError
from training.data.index import open_dataset

MakeShards = Callable[..., Path]


def test_a_cut_tar_is_named_at_the_start(make_shards: MakeShards) -> None:
    manifest = make_shards()
    tar = manifest.parent / "train-000001.tar"
    tar.write_bytes(tar.read_bytes()[:-2000])
    with pytest.raises(ContractError, match=r"train-000001.tar: \d+ bytes, the manifest says \d+") as e:
        open_dataset([str(manifest)], "train")
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("name", ["train-000000.tar", "train-000000.parquet"])
def test_a_missing_file_is_named(make_shards: MakeShards, name: str) -> None:
    manifest = make_shards()
    (manifest.parent / name).unlink()
    with pytest.raises(ContractError, match=f"{name}: missing"):
        open_dataset([str(manifest)], "train")


def test_a_changed_parquet_is_named(make_shards: MakeShards) -> None:
    manifest = make_shards()
    shutil.copy(manifest.parent / "train-000001.parquet", manifest.parent / "train-000000.parquet")
    with pytest.raises(ContractError, match=r"train-000000.parquet: its sha256 is not"):
        open_dataset([str(manifest)], "train")


def test_a_manifest_cannot_point_outside(make_shards: MakeShards) -> None:
    manifest = make_shards()
    manifest.write_text(manifest.read_text().replace('"train-000000.tar"', '"../train-000000.tar"'))
    with pytest.raises(ContractError, match="leaves the shard folder"):
        open_dataset([str(manifest)], "train")


def _replace_regions(manifest: Path, table: pa.Table) -> None:
    """Put other regions into the folder, with a manifest that vouches for them."""
    import hashlib

    path = manifest.parent / "regions/yolo/train-000000.parquet"
    pq.write_table(table, path)
    content = json.loads(manifest.read_text())
    digest = {"bytes": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    content["shards"][0]["regions"]["yolo"] |= digest
    manifest.write_text(json.dumps(content))


@pytest.mark.parametrize("column", ["key", "sha256"])
def test_regions_of_other_samples_stop_the_run(make_shards: MakeShards, column: str) -> None:
    manifest = make_shards(detector="yolo")
    table = pq.read_table(manifest.parent / "regions/yolo/train-000000.parquet")
    values = table[column].to_pylist()
    values[2] = "f" * len(values[2])
    changed = table.set_column(table.schema.get_field_index(column), column, pa.array(values))
    _replace_regions(manifest, changed)
    with pytest.raises(ContractError, match=f"regions/yolo/train-000000.parquet: row 2 has {column} ffff"):
        open_dataset([str(manifest)], "train")


def test_regions_of_fewer_rows_stop_the_run(make_shards: MakeShards) -> None:
    manifest = make_shards(detector="yolo")
    table = pq.read_table(manifest.parent / "regions/yolo/train-000000.parquet")
    _replace_regions(manifest, table.slice(1))
    with pytest.raises(ContractError, match="6 rows for a shard of 7 samples"):
        open_dataset([str(manifest)], "train")


@pytest.mark.parametrize("damage", [b"", b"ARROW1", b"x" * 500])
def test_a_damaged_index_in_the_cache_is_one_line(make_shards: MakeShards, tmp_path: Path, damage: bytes) -> None:
    manifest = make_shards(detector="tiles")
    for pattern, detector in (("*-*.arrow", "tiles"), ("[!-]" * 64 + ".v1.arrow", "grid")):
        data = open_dataset([str(manifest)], "train", detector=detector, cache=tmp_path / "index")
        data.row(0)
        broken = sorted((tmp_path / "index").glob(pattern))
        assert broken
        for path in broken:
            path.write_bytes(damage)
        with pytest.raises(ContractError, match=r"\.arrow: damaged index in the cache .*; remove it") as caught:
            open_dataset([str(manifest)], "train", detector=detector, cache=tmp_path / "index").row(0)
        assert "\n" not in str(caught.value)
        for path in broken:
            path.unlink()
        open_dataset([str(manifest)], "train", detector=detector, cache=tmp_path / "index").row(0)
