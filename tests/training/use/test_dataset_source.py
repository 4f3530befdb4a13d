"""Datasets as sources: splits, shards, metadata, licence, regions, plain tars, releases that grow."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from data_specs.shard import ContractError
from training.use.dataset_source import DatasetSource

MakeShards = Callable[..., Path]


def test_rows_are_the_samples_of_all_splits_with_what_their_parquet_says(make_shards: MakeShards) -> None:
    root = make_shards(train=(3, 2), dev=(1,), val=(2,), detector="find-1").parent
    (root / "croissant.json").write_text(json.dumps({"license": "CC BY 4.0"}))
    source = DatasetSource([str(root)], detector="find-1")
    assert (len(source), source.name, source.detector) == (8, "test", "find-1")
    parquet = [
        row
        for name in ("train-000000", "train-000001", "dev-000000", "val-000000")
        for row in pq.read_table(root / f"{name}.parquet").to_pylist()
    ]
    table = source.table(range(8)).to_pylist()
    for row, original in zip(table, parquet, strict=True):
        same = ("source", "page_url", "sha256", "width", "height", "image_leader", "split")
        assert {name: row[name] for name in same} == {name: original[name] for name in same}
        assert (row["id"], row["url"], row["license"]) == (original["key"], original["image_url"], "CC BY 4.0")
        assert row["caption"] == original["texts"][0]["text"]
        assert row["text_leader"] == original["texts"][0]["text_leader"]
        assert len(row["texts"]) == 2
    for row, entry in zip(table, source.entries(range(8)), strict=True):
        where = row["where"]
        with open(where["path"], "rb") as tar:  # noqa: PTH123
            tar.seek(where["offset"])
            assert hashlib.sha256(tar.read(where["size"])).hexdigest() == row["sha256"]
        assert hashlib.sha256(entry.content or b"").hexdigest() == row["sha256"]
        assert (entry.text, entry.sides) == (row["caption"], (40, 30))
        assert [list(box) for box in entry.boxes or ()] == [[0, 0, 20, 15], [10, 6, 40, 30]]


def test_any_rows_in_any_order_can_be_asked_for(make_shards: MakeShards) -> None:
    source = DatasetSource([str(make_shards(train=(3, 2), val=(2,)))])
    every = source.table(range(7))["id"].to_pylist()
    assert source.table([6, 0, 1, 4])["id"].to_pylist() == [every[n] for n in (6, 0, 1, 4)]


def test_plain_tars_whose_samples_would_have_the_same_ids_are_refused_at_once(
    make_shards: MakeShards, tmp_path: Path
) -> None:
    folder = make_shards(train=(3,)).parent
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        shutil.copy(folder / "train-000000.tar", tmp_path / name / "00000.tar")
    both = [str(tmp_path / name) for name in ("a", "b")]
    with pytest.raises(ContractError, match=r"b/00000.tar: has samples of the same keys as .*a/00000.tar.*rename one"):
        DatasetSource(both)
    (tmp_path / "b" / "00000.tar").rename(tmp_path / "b" / "b-00000.tar")
    assert len(set(DatasetSource(both).table(range(6))["id"].to_pylist())) == 6


def test_a_stamp_changes_with_the_sample_and_its_boxes_alone(make_shards: MakeShards) -> None:
    path = make_shards(train=(5, 3), val=(4,), detector="find-1")
    stamps = DatasetSource([str(path)], detector="find-1").stamps(range(12))
    assert len(set(stamps.tolist())) == 12
    grid = DatasetSource([str(path)], detector="grid")
    assert (grid.detector, set(grid.stamps(range(12)).tolist()) & set(stamps.tolist())) == ("", set())
    other = make_shards(train=(5, 4), val=(4,), detector="find-1", name="other")  # another shard has the same samples
    assert set(DatasetSource([str(other)], detector="find-1").stamps(range(13)).tolist()) > set(stamps[:8].tolist())


def test_boxes_are_left_to_a_detector_where_the_manifest_has_none_of_it(make_shards: MakeShards) -> None:
    path = make_shards(train=(2,), detector="find-1")
    assert DatasetSource([str(path)], detector="other-2").entries([0])[0].boxes is None
    assert DatasetSource([str(path)], detector="").detector == "find-1"  # of a checkpoint that was imported


def test_plain_tars_are_rows_too_with_ids_of_their_own(tmp_path: Path) -> None:
    from PIL import Image

    data = io.BytesIO()
    Image.new("RGB", (9, 9)).save(data, "JPEG")
    for name in ("a", "b"):
        with tarfile.open(tmp_path / f"{name}.tar", "w") as tar:
            for member, content in (("000001.jpg", data.getvalue()), ("000001.txt", f"{name}图".encode())):
                info = tarfile.TarInfo(member)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    source = DatasetSource([str(tmp_path / "{a,b}.tar")], detector="find-1")
    table = source.table([0, 1]).to_pylist()
    assert [row["caption"] for row in table] == ["a图", "b图"]
    assert len({row["id"] for row in table}) == 2
    assert table[0]["sha256"] == hashlib.sha256(data.getvalue()).hexdigest()
    assert source.entries([1])[0].content == data.getvalue()
    shutil.copy(tmp_path / "a.tar", tmp_path / "b.tar")
    changed = DatasetSource([str(tmp_path / "{a,b}.tar")]).stamps([0, 1])
    assert (source.stamps([0, 1]) == changed).tolist() == [True, False]


def test_a_licence_that_nobody_states_is_none(make_shards: MakeShards) -> None:
    root = make_shards(train=(1,)).parent
    for content in ("", "[]", '{"license": "not stated"}', '{"license": 3}'):
        (root / "croissant.json").write_text(content)
        assert DatasetSource([str(root)]).table([0])["license"].to_pylist() == [""]


def test_no_sample_at_all_is_one_line(make_shards: MakeShards) -> None:
    path = make_shards(train=(1,))
    with pytest.raises(ContractError, match="no samples in val; there is nothing to embed"):
        DatasetSource([str(path)], ("val",))
