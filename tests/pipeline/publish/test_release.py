"""Publish: gates, order, idempotence, identities; the card and the lists beside the manifest."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from data_specs.build import SpecError
from data_specs.shard import read_manifest
from pipeline.errors import GateError, StageError, StoreError
from pipeline.files.folder import Folder
from pipeline.publish import release
from pipeline.store import build_json
from pipeline.store.build import Build
from pipeline.store.identities import Identities, Published, commit_name
from pipeline.takedown.forget import Request, forget

Run = Callable[[Build, str], None]


def _publish(build: Build, run_stage: Run, **options: Any) -> Any:
    run_stage(build, "shard")
    return release.publish(build, **options)


@pytest.mark.slow
def test_publish_writes_a_dataset_and_its_identities(
    synthetic_build: Build, synthetic: Any, run_stage: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    write = Folder.write
    monkeypatch.setattr(Folder, "write", lambda self, name, data: (order.append(name), write(self, name, data))[1])
    manifest = _publish(synthetic_build, run_stage)
    folder = Path(synthetic_build.out) / "shards"
    assert read_manifest(folder) == manifest
    assert manifest.samples == {"train": 18, "dev": 6, "val": 6}
    files = [name for name in order if name in {p.name for p in folder.iterdir()}]
    assert files[-1] == "manifest.json"
    assert set(files) >= {"README.md", "croissant.json", "train.json", "dev.json", "val.json"}
    made = [name for name in order if name == "manifest.json" or name.startswith("synthetic-")]
    assert made == [commit_name(synthetic_build), "manifest.json"], "a dataset that no later build knows of is none"
    kept = {item.candidate.candidate_id for item in synthetic.items() if item.stage == "shard"}
    assert _identities(synthetic_build) == kept


def _identities(build: Build) -> set[str]:
    """Candidates that STORE knows this build to have kept."""
    identities = Identities(build.store)
    return {
        row.hex()
        for name in identities.names()
        for table in identities.batches(identities.read(name), "images.parquet")
        for row in table["candidate_id"].to_pylist()
    }


@contextlib.contextmanager
def killed_at(file: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A block that ends where a file of this name would be written."""
    write = Folder.write

    def killed(self: Folder, name: str, data: bytes) -> None:
        if name == file:
            raise KeyboardInterrupt
        write(self, name, data)

    with monkeypatch.context() as patch:
        patch.setattr(Folder, "write", killed)
        with pytest.raises(KeyboardInterrupt):
            yield


@pytest.mark.slow
@pytest.mark.parametrize("at", ["identities", "manifest.json"])
def test_a_publish_killed_anywhere_is_finished_by_the_next(
    synthetic_build: Build, run_stage: Run, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    with killed_at(commit_name(synthetic_build) if at == "identities" else at, monkeypatch):
        _publish(synthetic_build, run_stage)
    assert not (Path(synthetic_build.out) / "shards/manifest.json").exists()
    assert len(_identities(synthetic_build)) == (0 if at == "identities" else 30)
    assert release.publish(synthetic_build).revision == 0
    assert len(_identities(synthetic_build)) == 30
    assert len(Identities(synthetic_build.store).names()) == 1


@pytest.mark.slow
def test_a_build_that_has_not_seen_what_was_published_since_is_held_back_whole(
    synthetic_build: Build, run_stage: Run
) -> None:
    known = Published(
        version=5, build="other-1", dataset=synthetic_build.spec.name, snapshot="1", features="", sketch="", files={}
    )
    (synthetic_build.store.folder / "identity").write("other-1.0.json", known.model_dump_json().encode())
    with pytest.raises(
        StoreError, match=r"other-1 was published after this build started.*run wenlan-data build again"
    ):
        _publish(synthetic_build, run_stage)
    assert not (Path(synthetic_build.out) / "shards/README.md").exists()
    _publish(replace(synthetic_build, identities=("other-1.0.json",)), run_stage)


@pytest.mark.drill(2)
def test_a_changed_build_is_the_next_revision(tmp_path: Path, synthetic: Any, run_stage: Run) -> None:
    build, _ = synthetic.make(tmp_path)
    first = _publish(build, run_stage)
    build, _ = synthetic.make(tmp_path, shards={"samples_per_shard": 20})
    second = _publish(build, run_stage)
    assert (first.revision, second.revision, second.parent) == (0, 1, f"{build.build_id}/0")
    assert first.content_digest != second.content_digest


@pytest.mark.drill(2)
def test_revisions_outlive_a_build_of_another_spec_in_the_same_folder(
    tmp_path: Path, synthetic: Any, run_stage: Run
) -> None:
    build, _ = synthetic.make(tmp_path)
    _publish(build, run_stage)
    other = replace(build, build_id="synthetic-2024-01-01-other")
    assert release.publish(other).revision == 0
    again = release.publish(build)
    assert (again.revision, again.parent) == (1, f"{build.build_id}/0")
    known = json.loads((Path(build.out) / "releases.json").read_bytes())
    assert [release["build_id"] for release in known] == [build.build_id, other.build_id, build.build_id]


def test_unfinished_shards_are_not_published(synthetic_build: Build) -> None:
    with pytest.raises(StageError, match=r"shard: not finished in .*build"):
        release.publish(synthetic_build)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("gates", "line"),
    [
        ({"min_samples": 31}, "gate min_samples: 30 samples were kept, the spec requires 31"),
        ({"max_drop_share": 0.4}, r"24 of 54 candidates were dropped \(44.4%\), the spec allows 40.0%"),
    ],
)
def test_a_gate_holds_back_with_numbers_reasons_and_examples(
    tmp_path: Path, synthetic: Any, run_stage: Run, gates: dict[str, Any], line: str
) -> None:
    build, _ = synthetic.make(tmp_path, publish=gates)
    run_stage(build, "shard")
    with pytest.raises(GateError, match=line) as caught:
        release.publish(build)
    lines = str(caught.value).splitlines()
    examples = [line for line in lines if ", for example http" in line]
    assert examples[0].startswith("  4 x ")
    assert len(examples) == 3
    assert any("https://img" in example for example in examples)
    assert not (Path(build.out) / "shards/manifest.json").exists()
    assert _identities(build) == set()
    accepted = release.publish(build, accept=list(gates), because="a trial")
    assert accepted.accepted == {next(iter(gates)): "a trial"}
    assert "a trial" in (Path(build.out) / "shards/README.md").read_text("utf-8")
    assert release.publish(build) == accepted, "the same build again needs no second word"


def test_acceptance_needs_a_known_gate_and_a_reason(synthetic_build: Build) -> None:
    with pytest.raises(SpecError, match="no such gate; expected one of min_samples, min_new, max_drop_share, "):
        release.publish(synthetic_build, accept=["min_sample"], because="x")
    with pytest.raises(SpecError, match="needs --because"):
        release.publish(synthetic_build, accept=["min_samples"])


@pytest.mark.slow
def test_a_revision_that_was_published_and_not_noted_is_not_given_out_again(
    synthetic_build: Build, run_stage: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kill between the manifest and releases.json, and then a takedown, which withdraws the manifest first."""
    with killed_at("releases.json", monkeypatch):
        _publish(synthetic_build, run_stage)
    first = read_manifest(Path(synthetic_build.out) / "shards")
    build_json.note(synthetic_build)
    forget(synthetic_build.store, [synthetic_build], Request(sha256s=[_sha256_of(first, synthetic_build)]))
    second = read_manifest(Path(synthetic_build.out) / "shards")
    assert second.content_digest != first.content_digest
    assert (first.revision, second.revision, second.parent) == (0, 1, f"{synthetic_build.build_id}/0")


def _sha256_of(manifest: Any, build: Build) -> str:
    path = Path(build.out) / "shards" / manifest.shards[0].parquet.path
    return str(pq.read_table(path)["sha256"][0].as_py())
