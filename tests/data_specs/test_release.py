"""latest.json: which release it names before, at and after the write that makes one visible, and what is refused."""

from __future__ import annotations

import contextlib
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_specs.release import LATEST, Latest, Pending, ReleaseName, open_manifest, parse_latest
from data_specs.shard import SCHEMA_VERSION, ContractError, Manifest, pretty_manifest


def read(path: str) -> bytes:
    return Path(path).read_bytes()


def prepared(folder: Path, number: int) -> ReleaseName:
    """A release without samples, written into a folder."""
    manifest = Manifest(
        schema_version=SCHEMA_VERSION,
        build_id=f"d@{number}",
        spec_digest="",
        content_digest="",
        created_at="",
        samples={},
        detectors=(),
        shards=(),
        dataset="d",
        release=number,
    )
    data, name = pretty_manifest(manifest), f"{number:06d}.json"
    (folder / name).write_bytes(data)
    sha256 = hashlib.sha256(data).hexdigest()
    return ReleaseName(release=number, manifest=name, sha256=sha256, generation=1, builds=(), samples={})


def write(folder: Path, **fields: Any) -> None:
    (folder / LATEST).write_text(Latest(dataset="d", **fields).model_dump_json(), encoding="utf-8")


def test_a_pending_release_counts_from_the_moment_its_build_has_the_manifest(tmp_path: Path) -> None:
    commit, data = tmp_path / "manifest-of-the-build.json", b"the manifest"
    pending = Pending(release=prepared(tmp_path, 2), commit=str(commit), commit_sha256=hashlib.sha256(data).hexdigest())
    write(tmp_path, current=prepared(tmp_path, 1), pending=pending)
    assert open_manifest(str(tmp_path), read)[1].release == 1
    commit.write_bytes(b"of an earlier revision")
    assert open_manifest(str(tmp_path), read)[1].release == 1
    commit.write_bytes(data)
    path, manifest = open_manifest(str(tmp_path / LATEST), read)
    assert (path, manifest.release) == (str(tmp_path / "000002.json"), 2)
    settled = parse_latest((tmp_path / LATEST).read_bytes(), "latest").without_pending(read)
    assert (settled.current, settled.pending) == (pending.release, None)


def test_before_the_first_release_and_during_a_withdrawal_there_is_none(tmp_path: Path) -> None:
    write(tmp_path)
    with pytest.raises(ContractError, match="dataset d is not released yet"):
        open_manifest(str(tmp_path), read)
    write(tmp_path, current=prepared(tmp_path, 1), withdrawn="a takedown")
    with pytest.raises(ContractError, match="dataset d is withdrawn: a takedown"):
        open_manifest(str(tmp_path), read)


def test_a_release_that_was_changed_is_refused(tmp_path: Path) -> None:
    write(tmp_path, current=prepared(tmp_path, 1))
    path = tmp_path / "000001.json"
    path.write_bytes(path.read_bytes() + b"\n")
    with pytest.raises(ContractError, match=r"000001.json: its sha256 differs from the one in .*latest.json"):
        open_manifest(str(tmp_path), read)


@pytest.mark.parametrize("name", ["../000001.json", "/etc/passwd.json", "s3://bucket/000001.json", "latest.json", ""])
def test_a_release_lies_beside_its_latest_json(tmp_path: Path, name: str) -> None:
    release = prepared(tmp_path, 1).model_dump()
    text = json.dumps({"schema_version": 1, "dataset": "d", "current": {**release, "manifest": name}})
    with pytest.raises(ContractError, match=r"not a valid latest\.json"):
        parse_latest(text, "latest.json")


def test_a_newer_version_says_how_to_upgrade() -> None:
    with pytest.raises(ContractError, match=r"schema version 9 is newer.*; upgrade wenlan"):
        parse_latest('{"schema_version": 9}', "latest.json")


def test_a_manifest_is_preferred_to_a_latest_json_and_a_folder_without_either_is_missing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        open_manifest(str(tmp_path), read)
    write(tmp_path, current=prepared(tmp_path, 1))
    (tmp_path / "manifest.json").write_bytes((tmp_path / "000001.json").read_bytes())
    assert open_manifest(str(tmp_path), read)[0] == str(tmp_path / "manifest.json")


def test_a_build_is_opened_by_its_own_folder(tmp_path: Path) -> None:
    (tmp_path / "shards").mkdir()
    name = prepared(tmp_path / "shards", 3)
    (tmp_path / "shards" / name.manifest).rename(tmp_path / "shards" / "manifest.json")
    path, manifest = open_manifest(str(tmp_path), read)
    assert (path, manifest.release) == (str(tmp_path / "shards" / "manifest.json"), 3)


@pytest.mark.slow
@given(st.binary(max_size=200) | st.recursive(st.none() | st.integers() | st.text(), st.lists).map(json.dumps))
def test_any_bytes_are_a_latest_json_or_a_contract_error(data: bytes | str) -> None:
    with contextlib.suppress(ContractError):
        assert isinstance(parse_latest(data, "latest.json"), Latest)
