"""Energon's index beside the shards: against tarfile and sqlite3, and against Energon itself where it is installed."""

from __future__ import annotations

import json
import sqlite3
import struct
import tarfile
import uuid
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from data_specs.shard import read_manifest
from pipeline.errors import StoreError
from pipeline.files.folder import Folder
from pipeline.publish import dataset, release, verify
from pipeline.stages import shard
from pipeline.store import build_json
from pipeline.store.build import Build
from pipeline.store.identities import Identities
from pipeline.takedown.forget import Request, forget

Run = Callable[[Build, str], None]


@pytest.fixture
def build(tmp_path: Path, synthetic: Any, run_stage: Run) -> Build:
    made: Build = synthetic.make(tmp_path, shards={"samples_per_shard": 8, "energon": True})[0]
    run_stage(made, "shard")
    release.publish(made)
    return made


def place(build: Build) -> Path:
    return Path(build.out) / "shards"


def walked(path: Path) -> tuple[list[tuple[str, int, int]], list[tuple[int, str, int, int]], list[int]]:
    """Samples (key, offset, size), parts (sample, suffix, offset, size) and starts of a tar, by tarfile."""
    samples, parts, starts = [], list[tuple[int, str, int, int]](), list[int]()
    keys: list[str] = []
    with tarfile.open(path) as tar:
        for member in tar:
            key, suffix = member.name.split(".", 1)
            if not keys or keys[-1] != key:
                keys.append(key)
                starts.append(member.offset)
            parts.append((len(keys) - 1, suffix, member.offset_data, member.size))
        starts.append(tar.offset)
    samples = [(key, starts[i], starts[i + 1] - starts[i]) for i, key in enumerate(keys)]
    return samples, parts, starts


def check(build: Build) -> None:
    """The whole index is what a walk through every tar gives."""
    folder, manifest = place(build), read_manifest(place(build))
    meta, tars = folder / ".nv-meta", [shard.tar.path for shard in manifest.shards]
    counts = {shard.tar.path: shard.samples for shard in manifest.shards}
    assert json.loads((meta / ".info.json").read_bytes()) == {"shard_counts": counts}
    assert yaml.safe_load((meta / ".info.yaml").read_bytes()) == {"shard_counts": counts}
    splits = yaml.safe_load((meta / "split.yaml").read_bytes())
    assert splits == {
        "split_parts": {
            s: [t for t in tars if t.startswith(s)] for s in ("train", "dev", "val") if manifest.samples[s]
        },
        "exclude": [],
    }
    assert uuid.UUID((meta / "index.uuid").read_text()).version == 5
    samples, parts = [], []
    for number, name in enumerate(tars):
        rows, pieces, starts = walked(folder / name)
        raw = (folder / f"{name}.idx").read_bytes()
        assert list(struct.unpack(f"<{len(raw) // 8}Q", raw)) == starts
        samples += [(number, key, i, at, size) for i, (key, at, size) in enumerate(rows)]
        parts += [(number, *piece) for piece in pieces]
    assert sorted(p.name for p in folder.glob("*.idx")) == sorted(f"{name}.idx" for name in tars)
    with closing(sqlite3.connect(f"file:{meta / 'index.sqlite'}?mode=ro&immutable=1", uri=True)) as db:
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert db.execute("SELECT * FROM samples ORDER BY 1, 3").fetchall() == samples
        assert db.execute("SELECT * FROM sample_parts ORDER BY 1, 2, 4").fetchall() == parts
        made = {name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'index' AND sql NOT NULL")}
        assert made == {"idx_samples_by_tar_and_idx", "idx_sample_parts_seq", "idx_sample_parts_full"}
        plan = db.execute("EXPLAIN QUERY PLAN SELECT * FROM samples WHERE sample_key = 'x'").fetchall()
        assert "USING INDEX" in plan[0][-1]


def test_the_index_is_what_a_walk_through_the_tars_gives(build: Build) -> None:
    check(build)
    assert verify.verify(place(build)) == []


def test_the_same_dataset_has_the_same_index(build: Build, tmp_path: Path, synthetic: Any, run_stage: Run) -> None:
    other = synthetic.make(tmp_path / "other", shards={"samples_per_shard": 8, "energon": True})[0]
    run_stage(other, "shard")
    release.publish(other)
    names = [
        p.relative_to(place(build)) for p in place(build).rglob("*") if ".nv-meta" in p.parts or p.suffix == ".idx"
    ]
    files = [name for name in names if (place(build) / name).is_file()]
    assert len(files) == 6 + 5
    assert all((place(build) / name).read_bytes() == (place(other) / name).read_bytes() for name in files)


def test_a_takedown_writes_it_anew(build: Build, synthetic: Any) -> None:
    before = (place(build) / ".nv-meta/index.uuid").read_bytes()
    dev = [i for i in synthetic.items() if i.stage == "shard" and synthetic.split_of(i) == "dev"]
    forget(build.store, [build], Request(urls=[item.candidate.image_url for item in dev], exact=True))
    assert not (place(build) / "dev-000000.tar").exists()
    assert not (place(build) / "dev-000000.tar.idx").exists()
    check(build)
    assert (place(build) / ".nv-meta/index.uuid").read_bytes() != before


def test_it_goes_with_the_manifest_and_stays_away_where_it_is_not_asked_for(
    build: Build, tmp_path: Path, synthetic: Any, run_stage: Run
) -> None:
    other = replace(build, spec=synthetic.spec(shards={"samples_per_shard": 8}))
    release.publish(other)
    assert not (place(build) / ".nv-meta").exists()
    assert not list(place(build).glob("*.idx"))
    release.publish(build)
    check(build)
    again = synthetic.make(tmp_path, shards={"samples_per_shard": 20, "energon": True})[0]
    shard.partitions(again)
    assert not (place(build) / ".nv-meta").exists()
    assert not list(place(build).glob("*.idx"))


def test_energon_sees_no_dataset_before_there_is_one(
    tmp_path: Path, synthetic: Any, run_stage: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: Build = synthetic.make(tmp_path, shards={"samples_per_shard": 8, "energon": True})[0]
    run_stage(made, "shard")
    forgotten = next(item for item in synthetic.items() if item.stage == "shard").candidate.fetch_id
    made.store.folder.write_json("forgotten/x.json", {"version": 1, "hashes": [forgotten], "looks": []})
    with pytest.raises(StoreError, match="taken down since"):
        release.publish(made)
    assert not (place(made) / ".nv-meta/.info.json").exists()
    made.store.folder.delete("forgotten")
    order: list[str] = []
    write = Folder.write
    monkeypatch.setattr(Folder, "write", lambda self, name, data: (order.append(name), write(self, name, data))[1])
    release.publish(made)
    mine = [name for name in order if name.startswith((".nv-meta", "manifest"))]
    assert mine[-3:] == [".nv-meta/.info.json", ".nv-meta/.info.yaml", "manifest.json"]


@pytest.fixture
def released(tmp_path: Path, synthetic: Any, run_stage: Run) -> tuple[Path, Path]:
    """A release of three builds, and a copy of it: the folders in which energon.yaml lies."""
    for i in range(3):
        options: dict[str, Any] = {"out": f"build{i}", "snapshot": f"2024-01-0{i + 1}", "part": (i, 3)}
        made = synthetic.make(tmp_path, **options, shards={"samples_per_shard": 8, "energon": True})[0]
        made = replace(made, identities=Identities(made.store).before(made))
        build_json.note(made)
        run_stage(made, "shard")
        release.publish(made)
    dataset.copy(made.store, "synthetic", str(tmp_path / "copied"))
    return tmp_path / "store/datasets/synthetic/000003", tmp_path / "copied"


def test_a_release_names_the_folders_of_its_builds_and_a_copy_has_them(released: tuple[Path, Path]) -> None:
    manifest = read_manifest(released[1])
    for folder in released:
        splits = yaml.safe_load((folder / "energon.yaml").read_bytes())["splits"]
        assert set(splits) == {"train", "dev", "val"}
        for split, blend in splits.items():
            parts = {(folder / part["path"]).resolve() for part in blend["blend_epochized"]}
            assert len(parts) == sum(build.samples[split] > 0 for build in manifest.builds)
            assert all({"split_part": split, "repetitions": 1}.items() <= p.items() for p in blend["blend_epochized"])
            for part in parts:
                counts = json.loads((part / ".nv-meta/.info.json").read_bytes())["shard_counts"]
                assert all((part / f"{tar}.idx").stat().st_size == 8 * (n + 1) for tar, n in counts.items())
    for build in manifest.builds:
        info = f"{build.build_id}/.nv-meta/index.sqlite"
        out = released[0].parents[3] / f"build{int(build.snapshot[-1]) - 1}/shards/.nv-meta/index.sqlite"
        assert (released[1] / info).read_bytes() == out.read_bytes(), "a copy's index is that of the build"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_energon_itself_opens_a_release_of_three_builds(released: tuple[Path, Path], synthetic: Any) -> None:
    package = pytest.importorskip("megatron.energon", reason="megatron-energon is not installed")
    worker = package.WorkerConfig(rank=0, world_size=1, num_workers=0)
    kept = {i.candidate.candidate_id[:32]: i for i in synthetic.items() if i.stage == "shard"}
    for folder in released:
        for split in ("dev", "val"):
            path = str(folder / "energon.yaml")
            opened = package.get_val_dataset(path, split_part=split, worker_config=worker, batch_size=1)
            batches = list(package.get_loader(opened))
            captions = {batch.__key__[0].rpartition("/")[2]: batch.caption[0] for batch in batches}
            assert len(batches) == len(captions)
            assert captions == {k: i.candidate.texts[0].text for k, i in kept.items() if synthetic.split_of(i) == split}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_energon_itself_opens_it_without_preparing_anything(build: Build, synthetic: Any) -> None:
    package = pytest.importorskip("megatron.energon", reason="megatron-energon is not installed")
    worker = package.WorkerConfig(rank=0, world_size=1, num_workers=0)
    kept = {i.candidate.candidate_id[:32]: i for i in synthetic.items() if i.stage == "shard"}
    for split in ("dev", "val"):
        opened = package.get_val_dataset(str(place(build)), split_part=split, worker_config=worker, batch_size=1)
        batches = list(package.get_loader(opened))
        captions = {batch.__key__[0].rpartition("/")[2]: batch.caption[0] for batch in batches}
        expected = {k: i.candidate.texts[0].text for k, i in kept.items() if synthetic.split_of(i) == split}
        assert captions == expected
        assert all(batch.image.shape[1] == 3 for batch in batches)
