"""Verify names every kind of damage, and finds none in a sound dataset."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_specs.shard import ContractError, Manifest, content_digest, read_manifest
from pipeline.pictures import decode as pictures
from pipeline.publish.verify import verify
from pipeline.records import sha256_hex
from pipeline.store.build import Build


def _reseal(folder: Path) -> None:
    """Make the manifest agree with the files again, so that only their content can be at fault."""
    raw = json.loads((folder / "manifest.json").read_bytes())
    for shard in raw["shards"]:
        for file in (shard["tar"], shard["parquet"], *shard["regions"].values()):
            data = (folder / file["path"]).read_bytes()
            file |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    raw["content_digest"] = content_digest(Manifest.model_validate(raw).shards)
    (folder / "manifest.json").write_text(json.dumps(raw), encoding="utf-8")


def _edit(path: Path, change: Callable[[list[dict[str, Any]]], None]) -> None:
    table = pq.read_table(path)
    rows = table.to_pylist()
    change(rows)
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), path)


def _regions(folder: Path) -> Path:
    return next((folder / "regions").glob("*/train-000000.parquet"))


def test_a_sound_dataset_has_no_fault(shards_of: Path) -> None:
    assert verify(shards_of) == []
    assert verify(shards_of, quick=True) == []
    assert verify(shards_of.parent) == [], "the build's folder will do"


def test_no_manifest_is_no_dataset(shards_of: Path) -> None:
    (shards_of / "manifest.json").unlink()
    with pytest.raises(ContractError, match=r"manifest\.json.*not a dataset"):
        verify(shards_of)


@pytest.mark.parametrize("name", ["train-000001.tar", "train-000001.parquet"])
def test_damaged_missing_and_short_files_are_named(shards_of: Path, name: str) -> None:
    path = shards_of / name
    data = path.read_bytes()
    path.write_bytes(data[:700] + bytes([data[700] ^ 1]) + data[701:])
    [fault] = verify(shards_of, quick=True)
    assert fault.startswith(f"{name}: sha256 is ")
    path.write_bytes(data[:-512])
    assert verify(shards_of, quick=True) == [f"{name}: has {len(data) - 512:,} bytes, the manifest says {len(data):,}"]
    path.unlink()
    assert verify(shards_of, quick=True) == [f"{name}: is missing"]


def test_a_stray_shard_is_named(shards_of: Path) -> None:
    (shards_of / "train-000009.tar").write_bytes(b"")
    assert verify(shards_of, quick=True) == ["train-000009.tar: is in the folder, but the manifest does not name it"]


def test_counts_that_differ_are_named(shards_of: Path) -> None:
    raw = json.loads((shards_of / "manifest.json").read_bytes())
    raw["shards"][0]["samples"] -= 1
    raw["content_digest"] = "0" * 64
    (shards_of / "manifest.json").write_text(json.dumps(raw), encoding="utf-8")
    assert verify(shards_of, quick=True) == [
        "manifest.json: its train shards hold 17 samples, its total is 18",
        "manifest.json: content_digest does not match the tars it names",
        "train-000000.parquet: has 8 rows, the manifest says 7",
    ]


def test_a_path_that_leaves_the_folder_is_not_opened(shards_of: Path) -> None:
    raw = json.loads((shards_of / "manifest.json").read_bytes())
    raw["shards"][0]["parquet"]["path"] = "../../secret.parquet"
    (shards_of / "manifest.json").write_text(json.dumps(raw), encoding="utf-8")
    faults = verify(shards_of, quick=True)
    assert "manifest.json: path '../../secret.parquet' leaves the shard folder" in faults
    assert not any("missing" in fault for fault in faults)


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
    shards_of: Path, change: Callable[[list[dict[str, Any]]], None], said: str
) -> None:
    path = _regions(shards_of)
    _edit(path, change)
    _reseal(shards_of)
    faults = verify(shards_of, quick=True)
    assert faults
    assert all(fault.startswith(f"regions/{path.parent.name}/train-000000.parquet: ") for fault in faults)
    assert all(said in fault for fault in faults)


def test_an_image_cluster_in_two_splits_and_a_key_twice_are_found(shards_of: Path) -> None:
    leader = pq.read_table(shards_of / "val-000000.parquet")["image_leader"][0].as_py()
    _edit(shards_of / "train-000000.parquet", lambda rows: rows[2].update(image_leader=leader))
    _reseal(shards_of)
    assert verify(shards_of, quick=True) == [f"image_leader {leader[:16]}...: is in train and in val"]
    key = pq.read_table(shards_of / "train-000001.parquet").slice(0, 1).to_pylist()[0]
    own = {"key": key["key"], "candidate_id": key["candidate_id"]}
    _edit(shards_of / "train-000000.parquet", lambda rows: rows[2].update(own))
    _reseal(shards_of)
    assert f"{own['key']}: this key occurs more than once" in verify(shards_of, quick=True)


def test_a_tar_whose_content_is_wrong_though_its_digest_holds(shards_of: Path) -> None:
    tar = shards_of / "train-000000.tar"
    rows = pq.read_table(tar.with_suffix(".parquet")).to_pylist()
    data = bytearray(tar.read_bytes())
    first, second = rows[0], rows[1]
    data[first["image_offset"] + 2 : first["image_offset"] + first["image_size"]] = bytes(first["image_size"] - 2)
    data[second["text_offset"]] ^= 1
    tar.write_bytes(data)
    _reseal(shards_of)
    assert verify(shards_of, quick=True) == []
    faults = verify(shards_of)
    assert len(faults) == 2
    assert faults[0].startswith(f"train-000000.tar: {first['key']}.jpg: does not decode (")
    assert faults[1] == f"train-000000.tar: {second['key']}.txt: is not the first text of the index"


def test_a_truncated_tar_whose_digest_holds(shards_of: Path) -> None:
    tar = shards_of / "train-000000.tar"
    rows = pq.read_table(tar.with_suffix(".parquet")).to_pylist()
    tar.write_bytes(tar.read_bytes()[: rows[3]["image_offset"] - 512])
    _reseal(shards_of)
    assert verify(shards_of) == ["train-000000.tar: ends after 9 members, the index has 24"]


def test_a_wrong_column_type_is_named(shards_of: Path) -> None:
    path = shards_of / "dev-000000.parquet"
    table = pq.read_table(path)
    at = table.schema.get_field_index("width")
    pq.write_table(table.set_column(at, "width", table["width"].cast(pa.int64())), path)
    _reseal(shards_of)
    assert verify(shards_of, quick=True) == ["dev-000000.parquet: column width is int64, not int32"]


def test_images_as_large_as_the_spec_let_in_are_sound(shards_of: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "MAX_PIXELS", 10)
    monkeypatch.setattr(pictures.decode, "__defaults__", (10, 0))
    assert verify(shards_of) == []


def test_more_columns_are_allowed(shards_of: Path) -> None:
    path = shards_of / "dev-000000.parquet"
    table = pq.read_table(path)
    pq.write_table(table.append_column("later", pa.array([1] * table.num_rows)), path)
    _reseal(shards_of)
    assert verify(shards_of) == []
    assert read_manifest(shards_of).samples["dev"] == table.num_rows


def test_what_was_taken_down_since_is_named(synthetic_build: Build, shards_of: Path) -> None:
    row = pq.read_table(shards_of / "train-000000.parquet").to_pylist()[0]
    synthetic_build.store.folder.write_json("forgotten/1.json", {"hashes": [sha256_hex(row["image_url"])]})
    store = synthetic_build.store.url
    assert verify(shards_of) == [], "nobody said which STORE"
    assert verify(shards_of, store=store) == [f"train-000000.parquet: {row['key']}: was taken down"]
    (shards_of.parent / "build.json").write_text(json.dumps({"store": store}), encoding="utf-8")
    assert len(verify(shards_of.parent)) == 1
