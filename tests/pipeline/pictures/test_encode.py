"""encode: sides and boxes follow the stored picture, sha256 stays that of the fetched bytes."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from data_specs.build import Shards
from data_specs.shard import StoredImages, parse_manifest, read_manifest
from pipeline.detectors import detector_ids
from pipeline.pictures import decode as pictures
from pipeline.pictures.encode import as_stored, holds_more, scaled_boxes, stored_sides
from pipeline.publish import release, verify
from pipeline.stages import shard
from pipeline.store.build import Build
from tests.drawn import encoded

pytestmark = pytest.mark.slow  # all begin with a build

Run = Callable[[Build, str], None]
SIDE = 120


@pytest.fixture(scope="module")
def small(synthetic: Any, run_stage: Run, tmp_path_factory: pytest.TempPathFactory) -> Build:
    """The synthetic build with pictures of at most SIDE pixels a side, published and reported."""
    build: Build = synthetic.make(
        tmp_path_factory.mktemp("small"),
        shards={"samples_per_shard": 8, "max_side": SIDE, "jpeg_quality": 80},
        regions={"detectors": [{"name": "proposals"}]},  # of a build's grid training takes nothing
    )[0]
    for name in ("shard", "report"):
        run_stage(build, name)
    release.publish(build)
    return build


def samples(build: Build) -> dict[str, tuple[dict[str, Any], dict[str, bytes], list[float]]]:
    """candidate_id -> row of the index, members of the tar, boxes of the first detector."""
    place, stored = Path(build.out) / "shards", {}
    [detector, *_] = detector_ids(build.spec)
    for path in place.glob("*.tar"):
        with tarfile.open(path) as tar:
            members = {m.name: tar.extractfile(m).read() for m in tar}  # type: ignore[union-attr]
        rows = pq.read_table(path.with_suffix(".parquet")).to_pylist()
        boxes = pq.read_table(place / "regions" / detector / f"{path.stem}.parquet").to_pylist()
        for row, entry in zip(rows, boxes, strict=True):
            mine = {suffix: members[f"{row['key']}.{suffix}"] for suffix in ("jpg", "txt", "json")}
            stored[row["candidate_id"]] = (row, mine, entry["boxes"])
    return stored


def test_larger_pictures_are_stored_smaller_with_their_sides_and_boxes(small: Build, synthetic: Any) -> None:
    items = {item.candidate.candidate_id: item for item in synthetic.items() if item.stage == "shard"}
    stored, shrunk = samples(small), 0
    assert set(stored) == set(items)
    for name, (row, members, boxes) in stored.items():
        fetched = pictures.header(items[name].data)
        with Image.open(io.BytesIO(members["jpg"])) as image:
            assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (row["width"], row["height"]))
        scale = min(1.0, SIDE / max(fetched.width, fetched.height))
        assert row["width"] == pytest.approx(fetched.width * scale, abs=0.51)
        assert row["height"] == pytest.approx(fetched.height * scale, abs=0.51)
        assert max(row["width"], row["height"]) <= SIDE
        shrunk += scale < 1
        record = json.loads(members["json"])
        assert (record["width"], record["height"]) == (row["width"], row["height"])
        assert record["sha256"] == row["sha256"] == hashlib.sha256(items[name].data).hexdigest()
        # the synthetic detector's boxes: upper left and lower right quarter of the picture as fetched
        wide, high = row["width"], row["height"]
        expected = [0, 0, wide / 2, high / 2, wide / 2, high / 2, wide, high][: len(boxes)]
        assert boxes == pytest.approx(expected, abs=1e-3)
    assert shrunk == 30
    looks = [pictures.decode(items[n].data).pixels.mean() - pictures.decode(m["jpg"]).pixels.mean()
             for n, (_, m, _) in stored.items()]  # fmt: skip
    assert np.abs(looks).max() < 3, "it is the same picture"


def test_the_manifest_says_how_and_verify_holds_it_to_that(small: Build, tmp_path: Path) -> None:
    place = Path(small.out) / "shards"
    manifest = read_manifest(place)
    assert manifest.images == StoredImages(reencode="never", max_side=SIDE, jpeg_quality=80)
    assert verify.verify(place) == []
    raw = json.loads((place / "manifest.json").read_bytes())
    raw["images"]["max_side"] = SIDE - 1
    kept = (place / "manifest.json").read_bytes()
    try:
        (place / "manifest.json").write_text(json.dumps(raw))
        assert any(f"at most {SIDE - 1} in the manifest" in fault for fault in verify.verify(place, quick=True))
    finally:
        (place / "manifest.json").write_bytes(kept)
    del raw["images"]
    assert parse_manifest(json.dumps(raw), "an older one").images is None


def test_training_reads_pictures_sides_and_boxes_that_fit(small: Build, tmp_path: Path) -> None:
    from training.data.index import open_dataset

    stored = samples(small)
    dataset = open_dataset([str(Path(small.out) / "shards/manifest.json")], split="train", cache=tmp_path)
    assert dataset.has_regions
    for number in range(len(dataset)):
        row = dataset.row(number)
        index, members, boxes = stored[row.candidate_id]
        assert (row.width, row.height) == (index["width"], index["height"])
        assert dataset.image(row) == members["jpg"]
        assert row.boxes is not None
        assert list(row.boxes) == boxes
    dataset.close()


def test_the_report_draws_boxes_on_stored_sides(small: Build) -> None:
    report = json.loads((Path(small.out) / "report/report.json").read_bytes())
    rows = [row for row in report["sheet"] if row["kept"] and row["boxes"]]
    assert rows
    for row in rows:
        assert max(row["width"], row["height"]) <= SIDE
        for boxes in row["boxes"].values():
            assert all(box[2] <= row["width"] + 0.05 and box[3] <= row["height"] + 0.05 for box in boxes)


def test_reencode_all_leaves_no_byte_of_a_camera(tmp_path: Path, synthetic: Any, run_stage: Run) -> None:
    build, items = synthetic.make(tmp_path, shards={"samples_per_shard": 8, "reencode": "all", "jpeg_quality": 70})
    run_stage(build, "shard")
    assert release.publish(build).images == StoredImages(reencode="all", jpeg_quality=70)
    fetched = {item.candidate.candidate_id: item.data for item in items}
    stored = samples(build)
    assert all(members["jpg"] != fetched[name] for name, (_, members, _) in stored.items())
    assert sum(r.counts["reencoded"] for r in build.stage("shard").records()) == len(stored) == 30
    assert verify.verify(Path(build.out) / "shards") == []
    exif = Image.Exif()
    exif[270] = "where it was taken"
    out = io.BytesIO()
    Image.new("RGB", (90, 50), (200, 10, 10)).save(out, "JPEG", exif=exif.tobytes())
    data = out.getvalue()
    assert as_stored(data, Shards(), (90, 50), 10_000) == data
    assert b"where it was" not in as_stored(data, Shards(reencode="all"), (90, 50), 10_000)


def test_other_options_are_other_shards(synthetic: Any, tmp_path: Path) -> None:
    def tokens(**options: Any) -> list[Any]:
        build = synthetic.make(tmp_path / repr(sorted(options)), shards=options)[0]
        return [own.token(build) for own in shard.STAGE.passes]

    found = [tokens(), tokens(max_side=64), tokens(reencode="all"), tokens(bytes_per_shard=1_000)]
    assert len({repr(value) for value in found}) == 4


def test_a_box_that_scaling_rounds_to_nothing_keeps_an_extent() -> None:
    least = np.nextafter(np.float32(0), np.float32(1))
    boxes = np.array([[0, 0, least, least]], np.float32)
    [(x1, y1, x2, y2)] = scaled_boxes(boxes, [(400, 300)], [(100, 75)])
    assert 0 <= x1 < x2 <= 100
    assert 0 <= y1 < y2 <= 75


@given(st.integers(1, 65_535), st.integers(1, 65_535), st.integers(1, 4096), st.data())
def test_boxes_stay_inside_and_never_collapse(width: int, height: int, max_side: int, data: st.DataObject) -> None:
    sides = tuple(int(side) for side in stored_sides(width, height, max_side))
    assert max(sides) == min(max_side, max(width, height))
    assert min(sides) >= 1
    if max(width, height) <= max_side:
        assert sides == (width, height)
    x, y = (sorted(data.draw(st.tuples(*[st.floats(0, side, width=32)] * 2))) for side in (width, height))
    if x[0] == x[1] or y[0] == y[1]:
        return
    box = np.array([[x[0], y[0], x[1], y[1]]], np.float32)
    [(x1, y1, x2, y2)] = scaled_boxes(box, [(width, height)], [sides])
    assert 0 <= x1 < x2 <= sides[0]
    assert 0 <= y1 < y2 <= sides[1]
    assert [x1, x2] == pytest.approx([v * sides[0] / width for v in x], rel=1e-5, abs=1e-5)


def test_a_jpeg_holds_more_than_its_pixels_if_anything_stands_beside_them() -> None:
    bare = pictures.encode_jpeg(np.zeros((16, 24, 3), np.uint8), 90)
    assert not holds_more(bare)
    exif = Image.Exif()
    exif[270] = "at home"
    beside = b"\xff\xed\x00\x0614ab"
    for more in (bare + b"\x00", bare + bare, bare[:2] + beside + bare[2:], bare[:-2]):
        assert holds_more(more)
    for options in ({"exif": exif}, {"comment": b"at home"}, {"icc_profile": b"profile"}):
        assert holds_more(encoded(Image.new("RGB", (24, 16)), **options))
