"""Verify names every kind of damage inside the files of a shard whose digests hold."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_specs.shard import read_manifest
from pipeline.pictures import decode as pictures
from pipeline.publish.verify import verify


def _regions(folder: Path) -> Path:
    return next((folder / "regions").glob("*/train-000000.parquet"))


def _outside(rows: list[dict[str, Any]]) -> None:
    rows[0]["boxes"] = [0.0, 0.0, 10_000.0, 5.0, *rows[0]["boxes"][4:]]


def _inverted(rows: list[dict[str, Any]]) -> None:
    rows[0]["boxes"] = [9.0, 0.0, 3.0, 5.0, *rows[0]["boxes"][4:]]


def _swapped(rows: list[dict[str, Any]]) -> None:
    rows[0], rows[1] = rows[1], rows[0]


def _unsorted(rows: list[dict[str, Any]]) -> None:
    next(row for row in rows if len(row["scores"]) == 2)["scores"] = [0.1, 0.7]


def _short(rows: list[dict[str, Any]]) -> None:
    rows[0]["boxes"] = rows[0]["boxes"][:-1]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_outside, "does not lie in an image of"),
        (_inverted, "does not lie in an image of"),
        (_swapped, "the files are not in the same order"),
        (_unsorted, "scores are not finite and descending"),
        (_short, "do not fit"),
    ],
)
def test_bad_regions_are_named_with_their_key(
    shards_of: Path, edit: Any, reseal: Any, change: Callable[[list[dict[str, Any]]], None], said: str
) -> None:
    path = _regions(shards_of)
    edit(path, change)
    reseal(shards_of)
    faults = verify(shards_of, quick=True)
    assert faults
    assert all(fault.startswith(f"regions/{path.parent.name}/train-000000.parquet: ") for fault in faults)
    assert all(said in fault for fault in faults)


def test_a_tar_whose_content_is_wrong_though_its_digest_holds(shards_of: Path, reseal: Any) -> None:
    tar = shards_of / "train-000000.tar"
    rows = pq.read_table(tar.with_suffix(".parquet")).to_pylist()
    data = bytearray(tar.read_bytes())
    first, second = rows[0], rows[1]
    data[first["image_offset"] + 2 : first["image_offset"] + first["image_size"]] = bytes(first["image_size"] - 2)
    data[second["text_offset"]] ^= 1
    tar.write_bytes(data)
    reseal(shards_of)
    assert verify(shards_of, quick=True) == []
    faults = verify(shards_of)
    assert len(faults) == 2
    assert faults[0].startswith(f"train-000000.tar: {first['key']}.jpg: does not decode (")
    assert faults[1] == f"train-000000.tar: {second['key']}.txt: is not the first text of the index"


def test_a_truncated_tar_whose_digest_holds(shards_of: Path, reseal: Any) -> None:
    tar = shards_of / "train-000000.tar"
    rows = pq.read_table(tar.with_suffix(".parquet")).to_pylist()
    tar.write_bytes(tar.read_bytes()[: rows[3]["image_offset"] - 512])
    reseal(shards_of)
    assert verify(shards_of) == ["train-000000.tar: ends after 9 members, the index has 24"]


def test_a_wrong_column_type_is_named(shards_of: Path, reseal: Any) -> None:
    path = shards_of / "dev-000000.parquet"
    table = pq.read_table(path)
    at = table.schema.get_field_index("width")
    pq.write_table(table.set_column(at, "width", table["width"].cast(pa.int64())), path)
    reseal(shards_of)
    assert verify(shards_of, quick=True) == ["dev-000000.parquet: column width is int64, not int32"]


def test_images_as_large_as_the_spec_let_in_are_sound(shards_of: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "MAX_PIXELS", 10)
    monkeypatch.setattr(pictures.decode, "__defaults__", (10, 0))
    assert verify(shards_of) == []


def test_more_columns_are_allowed(shards_of: Path, reseal: Any) -> None:
    path = shards_of / "dev-000000.parquet"
    table = pq.read_table(path)
    pq.write_table(table.append_column("later", pa.array([1] * table.num_rows)), path)
    reseal(shards_of)
    assert verify(shards_of) == []
    assert read_manifest(shards_of).samples["dev"] == table.num_rows
