"""The shard stage: what a tar holds, that it is the same every time, and what happens around kills and new specs."""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pipeline.detectors import detector_ids
from pipeline.errors import StageError
from pipeline.files import tars
from pipeline.pictures import decode as pictures
from pipeline.pictures import encode
from pipeline.publish import release, verify
from pipeline.stages import shard
from pipeline.store.build import Build

Run = Callable[[Build, str], None]


def _tars(build: Build) -> dict[str, str]:
    folder = Path(build.out) / "shards"
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.glob("*.tar"))}


@pytest.mark.slow
def test_every_kept_sample_is_in_one_shard_in_order(synthetic_build: Build, synthetic: Any, run_stage: Run) -> None:
    run_stage(synthetic_build, "shard")
    folder = Path(synthetic_build.out) / "shards"
    names = [path.stem for path in sorted(folder.glob("*.tar"))]
    assert names == ["dev-000000", "train-000000", "train-000001", "train-000002", "val-000000"]
    keys = []
    for split in ("train", "dev", "val"):
        rows = [row for path in sorted(folder.glob(f"{split}-*.parquet")) for row in pq.read_table(path).to_pylist()]
        dedup = synthetic_build.stage("dedup")
        tables = [dedup.table(record) for record in dedup.records()]
        expected = [row["candidate_id"] for table in tables for row in table.to_pylist() if row["split"] == split]
        assert [row["candidate_id"] for row in rows] == expected
        keys += [row["key"] for row in rows]
    assert len(set(keys)) == synthetic.KEPT


@pytest.mark.slow
def test_members_are_where_the_index_says(synthetic_build: Build, synthetic: Any, run_stage: Run) -> None:
    run_stage(synthetic_build, "shard")
    images = {item.candidate.candidate_id: item for item in synthetic.items() if item.stage == "shard"}
    for tar in (Path(synthetic_build.out) / "shards").glob("*.tar"):
        data = tar.read_bytes()
        with tarfile.open(tar) as file:
            members = {m.name: data[m.offset_data : m.offset_data + m.size] for m in file}
            assert {(m.mode, m.uid, m.gid, m.mtime, m.uname) for m in file} == {(0o644, 0, 0, 0, "")}
        for row in pq.read_table(tar.with_suffix(".parquet")).to_pylist():
            for what, suffix in (("image", "jpg"), ("text", "txt"), ("json", "json")):
                at, size = row[f"{what}_offset"], row[f"{what}_size"]
                assert members[f"{row['key']}.{suffix}"] == data[at : at + size]
            image, item = members[f"{row['key']}.jpg"], images[row["candidate_id"]]
            header = pictures.header(image)
            assert (header.format, header.width, header.height) == ("jpeg", row["width"], row["height"])
            with Image.open(io.BytesIO(item.data)) as fetched, Image.open(io.BytesIO(image)) as stored:
                assert stored.mode == "RGB"
                upright = fetched.getexif().get(274, 1) == 1
                as_fetched = fetched.format == "JPEG" and fetched.mode == "RGB" and upright
            assert (image == item.data) == as_fetched


@pytest.mark.slow
def test_a_killed_stage_does_only_what_is_missing(synthetic_build: Build, run_stage: Run) -> None:
    run_stage(synthetic_build, "shard.plan")
    for partition in shard.partitions(synthetic_build)[:2]:
        shard.run_partition(synthetic_build, partition)
    before = _tars(synthetic_build)
    # what a kill leaves: a file without its record, and a half-written scratch folder
    folder = Path(synthetic_build.out) / "shards"
    (folder / "train-000002.tar").write_bytes(b"half")
    (folder / ".tmp-train-000002-x").mkdir()
    assert run_stage(synthetic_build, "shard") == ["train-000002", "dev-000000", "val-000000"]
    assert not list(folder.glob(".tmp-*"))
    assert before.items() <= _tars(synthetic_build).items()


@pytest.mark.slow
def test_another_spec_clears_the_manifest_and_stale_shards_first(
    tmp_path: Path, synthetic: Any, shards_of: Path, run_stage: Run
) -> None:
    assert (shards_of / "manifest.json").exists()
    old = {path.name for path in shards_of.glob("*.tar")}
    build, _ = synthetic.make(tmp_path, shards={"samples_per_shard": 20})
    run_stage(build, "shard.plan")
    names = shard.partitions(build)
    assert names == ["train-000000", "dev-000000", "val-000000"]
    shard.begin(build)
    assert not (shards_of / "manifest.json").exists()
    assert not list(shards_of.glob("*.tar")), old
    assert {path.name for path in shards_of.rglob("*.parquet")} <= {"records.parquet"}
    run_stage(build, "shard")
    assert {path.stem for path in shards_of.glob("*.tar")} == set(names)


@pytest.mark.drill(1)
def test_going_back_to_an_earlier_spec_trusts_no_old_record(
    tmp_path: Path, synthetic: Any, synthetic_build: Build, run_stage: Run
) -> None:
    run_stage(synthetic_build, "shard")
    first = _tars(synthetic_build)
    other, _ = synthetic.make(tmp_path, shards={"samples_per_shard": 4})
    run_stage(other, "shard")
    assert not synthetic_build.stage("shard").finished()
    again, _ = synthetic.make(tmp_path)
    run_stage(again, "shard")
    assert _tars(again) == first


@pytest.mark.slow
def test_regions_are_in_the_order_of_the_shard(synthetic_build: Build, run_stage: Run) -> None:
    run_stage(synthetic_build, "shard")
    folder = Path(synthetic_build.out) / "shards"
    [detector] = detector_ids(synthetic_build.spec)
    for path in folder.glob("*.tar"):
        index = pq.read_table(path.with_suffix(".parquet"), columns=["key", "sha256"])
        regions = pq.read_table(folder / "regions" / detector / f"{path.stem}.parquet")
        assert regions.select(["key", "sha256"]).equals(index)
        assert set(regions["boxes"].combine_chunks().value_lengths().to_pylist()) <= {4, 8}


def test_changed_image_bytes_stop_the_stage_and_name_the_url(synthetic_build: Build, run_stage: Run) -> None:
    fetch = synthetic_build.stage("fetch")
    for record in fetch.records():
        path = Path(fetch.folder.at(record.files["tar"].name))
        data = bytearray(path.read_bytes())
        for at in range(512, len(data), 64):
            data[at] ^= 0xFF
        path.write_bytes(data)
    with pytest.raises(StageError, match=r"https://img\d\.example/\d+: its bytes in the fetch stage no longer match"):
        run_stage(synthetic_build, "shard")


def test_a_missing_image_tar_is_named(synthetic_build: Build, run_stage: Run) -> None:
    fetch = synthetic_build.stage("fetch")
    for record in fetch.records():
        Path(fetch.folder.at(record.files["tar"].name)).unlink()
    with pytest.raises(Exception, match=r"images/.*\.tar: missing"):
        run_stage(synthetic_build, "shard")


@pytest.mark.parametrize(("mode", "components"), [("L", 1), ("RGB", 3), ("CMYK", 4)])
@pytest.mark.parametrize("progressive", [False, True])
def test_components_are_read_from_the_frame_header(mode: str, components: int, progressive: bool) -> None:
    out = io.BytesIO()
    exif = Image.Exif()
    exif[270] = "a description that puts a segment before the frame header"
    Image.new(mode, (9, 5)).save(out, "JPEG", progressive=progressive, exif=exif.tobytes())
    assert encode.components_of(out.getvalue()) == components
    assert encode.components_of(out.getvalue()[:40]) == 0


@pytest.mark.drill(2)
def test_another_detector_adds_a_folder_and_rewrites_no_image(tmp_path: Path, synthetic: Any, run_stage: Run) -> None:
    build, items = synthetic.make(tmp_path)
    run_stage(build, "shard")
    release.publish(build)
    shards = Path(build.out) / "shards"
    before = {path.name: path.stat() for path in [*shards.glob("*.tar"), *shards.glob("*.parquet")]}
    assert before
    more = synthetic.spec(regions={"detectors": [{"name": "grid", "n": 3}, {"name": "grid"}]})
    fingerprints = {**build.fingerprints, "detect": "d" * 64, "shard": "5" * 64, "report": "e" * 64}
    other = replace(build, spec=more, fingerprints=fingerprints)
    for partition in synthetic._ranges():
        here = [item for item in items if item.stage == "shard" and synthetic._within(item, partition)]
        synthetic._write(other, "detect", partition, here)
    run_stage(other, "shard")
    manifest = release.publish(other)
    assert {n: (s.st_ino, s.st_mtime_ns) for n, s in before.items()} == {
        n: ((shards / n).stat().st_ino, (shards / n).stat().st_mtime_ns) for n in before
    }
    assert sorted(path.name for path in (shards / "regions").iterdir()) == sorted(manifest.detectors)
    assert manifest.detectors == tuple(detector_ids(more)), "the spec's first one is a training's default"
    assert verify.verify(shards) == []
    assert [path.name for path in (shards / "_records").iterdir() if list(path.iterdir())] == ["5" * 16]


@pytest.mark.slow
def test_a_shard_of_which_no_picture_can_be_stored_has_decisions_and_no_tar(
    synthetic_build: Build, synthetic: Any, run_stage: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    dedup = synthetic_build.stage("dedup")
    odd = {row["sha256"] for r in dedup.records() for row in dedup.table(r).to_pylist() if row["split"] == "val"}
    real = shard.as_stored

    def failing(data: Any, *options: Any) -> Any:
        if hashlib.sha256(data).hexdigest() in odd:
            raise pictures.PictureError("no JPEG")
        return real(data, *options)

    assert odd
    monkeypatch.setattr(shard, "as_stored", failing)
    run_stage(synthetic_build, "shard")
    stage, folder = synthetic_build.stage("shard"), Path(synthetic_build.out) / "shards"
    record = stage.record("val-000000")
    assert list(record.files) == ["decisions.parquet"]
    assert (record.counts["seen"], record.counts["kept"], record.counts["dropped"]) == (len(odd), 0, len(odd))
    decisions = stage.table(record, "decisions.parquet").to_pylist()
    assert [row["reason"] for row in decisions] == ["unreadable"] * len(odd)
    assert not list(folder.rglob("val-000000.tar"))
    manifest = release.publish(synthetic_build)
    assert manifest.samples == {**manifest.samples, "val": 0}
    assert sum(manifest.samples.values()) == synthetic.KEPT - len(odd)
    assert verify.verify(folder) == []


@given(st.text("0123456789abcdef.jpgtxson", min_size=1, max_size=100), st.integers(0, (8 << 30) - 1))
def test_a_header_is_the_one_that_tarfile_writes(name: str, size: int) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.mode = size, 0o644
    theirs, mine = info.tobuf(tarfile.USTAR_FORMAT), tars.ustar_header(name, size)
    assert mine == theirs
    read = tarfile.TarInfo.frombuf(mine, "ascii", "strict")
    assert (read.name, read.size, read.mode, read.isreg()) == (name.rstrip("/"), size, 0o644, True)


def test_a_jpeg_is_plain_only_where_pillow_would_leave_it_as_it_is(synthetic: Any) -> None:
    exif, plain = Image.Exif(), 0
    exif[270] = "a description"
    image = Image.new("RGB", (9, 5), (200, 10, 10))
    made = [item.data for item in synthetic.items() if item.data]
    for options in ({"progressive": True}, {"exif": exif.tobytes()}, {"icc_profile": b"x" * 300}, {"comment": b"c"}):
        out = io.BytesIO()
        image.save(out, "JPEG", **options)
        made.append(out.getvalue())
    for data in made:
        if encode.is_plain_jpeg(data):
            plain += 1
            assert pictures.to_jpeg(data, 92) == data
            assert encode.components_of(data) == 3
    assert plain >= 3
    assert not any(
        encode.is_plain_jpeg(item.data) for item in synthetic.items() if not item.data.startswith(b"\xff\xd8")
    )
    assert not encode.is_plain_jpeg(made[0][:100])
