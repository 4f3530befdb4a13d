"""Verify names every kind of damage, and finds none in a sound dataset."""

from __future__ import annotations

import io
import json
import os
import tarfile
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

import wenlan
from data_specs.shard import ContractError
from pipeline.errors import StoreError
from pipeline.publish import dataset
from pipeline.publish.verify import verify
from pipeline.rows.records import sha256_hex
from pipeline.store import build_json
from pipeline.store.build import Build

pytestmark = pytest.mark.slow  # all begin with a build

WEB = "a release may only refer to disks, object stores .* and the server that it comes from"


def test_a_sound_dataset_has_no_fault(shards_of: Path) -> None:
    assert verify(shards_of) == []
    assert verify(shards_of, quick=True) == []
    assert verify(shards_of.parent) == [], "the build's folder will do"


def test_a_missing_column_is_named(shards_of: Path, reseal: Any) -> None:
    path = shards_of / "train-000000.parquet"
    pq.write_table(pq.read_table(path).drop_columns(["split"]), path)
    reseal(shards_of)
    assert verify(shards_of) == ["train-000000.parquet: missing column split"]


@pytest.mark.parametrize("name", ["train-000001.tar", "train-000001.parquet"])
def test_damaged_missing_and_short_files_are_named(shards_of: Path, name: str) -> None:
    path = shards_of / name
    data = path.read_bytes()
    path.write_bytes(data[:700] + bytes([data[700] ^ 1]) + data[701:])
    [fault] = verify(shards_of, quick=True)
    assert fault.startswith(f"{name}: sha256 is ")
    path.write_bytes(data[:-512])
    assert verify(shards_of, quick=True) == [f"{name}: {len(data) - 512:,} bytes, but {len(data):,} in the manifest"]
    path.unlink()
    assert verify(shards_of, quick=True) == [f"{name}: missing"]


def test_a_stray_shard_is_named(shards_of: Path) -> None:
    (shards_of / "train-000009.tar").write_bytes(b"")
    assert verify(shards_of, quick=True) == ["train-000009.tar: not listed in the manifest"]


def test_counts_that_differ_are_named(shards_of: Path) -> None:
    raw = json.loads((shards_of / "manifest.json").read_bytes())
    raw["shards"][0]["samples"] -= 1
    raw["content_digest"] = "0" * 64
    (shards_of / "manifest.json").write_text(json.dumps(raw), encoding="utf-8")
    assert verify(shards_of, quick=True) == [
        "manifest.json: the train shards have 17 samples, but the total is 18",
        "manifest.json: content_digest does not match the tars",
        "train-000000.parquet: 8 rows, but 7 in the manifest",
    ]


def test_a_path_that_leaves_the_folder_is_not_opened(shards_of: Path) -> None:
    raw = json.loads((shards_of / "manifest.json").read_bytes())
    raw["shards"][0]["parquet"]["path"] = "../../secret.parquet"
    (shards_of / "manifest.json").write_text(json.dumps(raw), encoding="utf-8")
    faults = verify(shards_of, quick=True)
    assert "manifest.json: path '../../secret.parquet' is outside the shard folder" in faults
    assert not any("missing" in fault for fault in faults)


def test_an_image_cluster_in_two_splits_and_a_key_twice_are_found(shards_of: Path, edit: Any, reseal: Any) -> None:
    leader = pq.read_table(shards_of / "val-000000.parquet")["image_leader"][0].as_py()
    edit(shards_of / "train-000000.parquet", lambda rows: rows[2].update(image_leader=leader))
    reseal(shards_of)
    assert verify(shards_of, quick=True) == [f"image_leader {leader[:16]}...: in train and in val"]
    key = pq.read_table(shards_of / "train-000001.parquet").slice(0, 1).to_pylist()[0]
    own = {"key": key["key"], "candidate_id": key["candidate_id"]}
    edit(shards_of / "train-000000.parquet", lambda rows: rows[2].update(own))
    reseal(shards_of)
    assert f"{own['key']}: duplicate key" in verify(shards_of, quick=True)


def test_what_was_taken_down_since_is_named(synthetic_build: Build, shards_of: Path) -> None:
    row = pq.read_table(shards_of / "train-000000.parquet").to_pylist()[0]
    synthetic_build.store.folder.write_json("forgotten/1.json", {"hashes": [sha256_hex(row["image_url"])]})
    store = synthetic_build.store.url
    (shards_of.parent / "build.json").unlink()
    assert verify(shards_of) == [], "nobody said which STORE"
    assert verify(shards_of, store=store) == [f"train-000000.parquet: {row['key']}: taken down, but still present"]
    (shards_of.parent / "build.json").write_text(
        json.dumps({"version": build_json.VERSION, "store": store}), encoding="utf-8"
    )
    assert len(verify(shards_of.parent)) == 1
    assert len(verify(shards_of)) == 1, "the shard folder lies in the build"


@pytest.mark.parametrize("data", ["[" * 100_000, '{"schema_version": ' + "9" * 5000 + "}"], ids=["deep", "digits"])
def test_a_hostile_manifest_or_build_json_is_one_line(shards_of: Path, data: str) -> None:
    (shards_of.parent / "build.json").write_text(data, encoding="utf-8")
    with pytest.raises(StoreError, match=r"build\.json: invalid JSON"):
        verify(shards_of.parent)
    (shards_of.parent / "build.json").write_text("[]", encoding="utf-8")
    with pytest.raises(StoreError, match=r"build\.json: not the record of a build"):
        verify(shards_of.parent)
    (shards_of / "manifest.json").write_text(data, encoding="utf-8")
    with pytest.raises(ContractError, match=r"manifest\.json: not a JSON manifest"):
        verify(shards_of)


@pytest.mark.parametrize("data", [b"[" * 100_000, b'{"schema": ' + b"9" * 5000 + b"}"], ids=["deep", "digits"])
def test_a_hostile_key_json_is_one_line(shards_of: Path, edit: Any, reseal: Any, data: bytes) -> None:
    path = shards_of / "train-000000.tar"
    with tarfile.open(path) as tar:
        members = [(member, tar.extractfile(member).read()) for member in tar]  # type: ignore[union-attr]
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for member, content in members:
            content = data if member is members[-1][0] else content
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    edit(shards_of / "train-000000.parquet", lambda rows: rows[-1].update(json_size=len(data)))
    reseal(shards_of)
    [fault] = verify(shards_of)
    assert fault.startswith(f"train-000000.tar: {members[-1][0].name}: the member: not a wenlan sample (")


def test_what_is_no_plain_file_is_named_and_not_read(shards_of: Path) -> None:
    path = shards_of / "train-000000.tar"
    path.unlink()
    os.mkfifo(path)
    assert verify(shards_of, quick=True) == ["train-000000.tar: not a regular file"]
    path.unlink()
    path.mkdir()
    assert verify(shards_of, quick=True) == ["train-000000.tar: not a regular file"]


def test_a_store_that_is_none_is_no_store_without_takedowns(shards_of: Path, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="mistyped: not a STORE"):
        verify(shards_of, store=str(tmp_path / "mistyped"))


@pytest.mark.parametrize("field", ["folder", "out", "commit"])
@pytest.mark.parametrize("chain", ["", "simplecache::"])
def test_a_release_of_strangers_makes_nobody_ask_servers_of_their_choice(
    shards_of: Path, synthetic_build: Build, serve: Any, field: str, chain: str
) -> None:
    """Whoever opened or verified it sent requests to any address, also to those that only this machine reaches."""
    server = serve()
    folder = Path(synthetic_build.store.url) / "datasets/synthetic"
    release, latest = folder / "000001.json", folder / "latest.json"
    elsewhere = f"{chain}{server.url('/within')}"
    if field == "commit":
        raw = json.loads(latest.read_bytes())
        pending = {"release": raw["current"], "commit": f"{elsewhere}/manifest.json", "commit_sha256": "0" * 64}
        latest.write_text(json.dumps({**raw, "pending": pending}))
        place = latest
    else:
        raw = json.loads(release.read_bytes())
        raw["builds"][0][field] = elsewhere
        release.write_text(json.dumps(raw))
        place = release
    with pytest.raises(ContractError, match=f"^{place}: .*{server.host}/within.*: {WEB}"):
        verify(place)
    with pytest.raises(ContractError):
        wenlan.open(str(place))
    assert server.asked == []


def test_a_copy_of_strangers_leads_nobody_out_of_its_folder(shards_of: Path, synthetic_build: Build) -> None:
    copy = Path(synthetic_build.out).parent / "copy"
    build_json.note(synthetic_build)
    dataset.copy(synthetic_build.store, "synthetic", str(copy))
    assert verify(copy) == []
    path = copy / "manifest.json"
    raw = json.loads(path.read_bytes())
    raw["builds"][0]["folder"] = "../synthetic/shards"
    path.write_text(json.dumps(raw))
    with pytest.raises(ContractError, match=r"manifest\.json: .*'\.\./synthetic/shards'.* which is outside its folder"):
        verify(copy)
