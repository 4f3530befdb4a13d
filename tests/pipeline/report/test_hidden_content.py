"""Faces that are blurred are blurred wherever the dataset shows them: in shards, in the report, in the studio."""

from __future__ import annotations

import base64
import re
import shutil
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from data_specs.build import BuildSpec, PluginRef, load
from data_specs.shard import Manifest, content_digest
from data_specs.storage.whole_files import sha256_of
from pipeline import opening, run
from pipeline.detectors import face_detector
from pipeline.detectors.faces import Faces
from pipeline.files.tars import TarWriter
from pipeline.pictures.decode import decode
from pipeline.pictures.faces import Finder
from pipeline.publish import release
from pipeline.publish.verify import verify
from pipeline.report.hidden_content import faces_hider
from pipeline.report.trial import show_pictures
from pipeline.stages import STAGES, detect, shard
from pipeline.store.build import Build
from pipeline.store.frames import Frames
from pipeline.store.region_cache import prune, stats
from pipeline.store.takedowns import Takedowns
from pipeline.studio.catalog import Catalog
from pipeline.studio.images import Pictures
from tests.candidates import put
from tests.drawn import encoded, with_faces

WITH, WITHOUT = 4, 3
"""Pictures with faces, and without any."""

SPEC = """
name: faces
contact: owner@example.org
sources: [{kind: folder, name: s, source_kind: library, path: photos}]
filters: [{name: text_length, min_chars: 2}]
regions: {detectors: [{name: grid, n: 2}, {name: faces}], max_boxes: 1}
shards: {faces: blur, max_side: 360, dev_share: 0, val_share: 0}
"""


def _keeping(spec: BuildSpec) -> BuildSpec:
    return spec.model_copy(update={"shards": spec.shards.model_copy(update={"faces": "keep"})})


def _photo(number: int, faces: bool) -> Image.Image:
    """A picture unlike the others, with two faces or none."""
    ground = np.random.default_rng(number).integers(60, 200, (6, 8, 3), dtype=np.uint8)
    picture = np.asarray(Image.fromarray(ground).resize((420, 300), Image.Resampling.BICUBIC)).copy()
    for x, y, side in ((30 + 10 * number, 60, 120), (230, 100, 140)) if faces else ():
        drawn = with_faces((0, 0, side), size=(side, side))
        picture[y : y + side, x : x + side] = drawn
    return Image.fromarray(picture)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Build:
    """A published build over a folder of photos, some of which carry a thumbnail of themselves in their EXIF."""
    folder = tmp_path_factory.mktemp("faces")
    exif = Image.Exif()
    exif[270] = "taken at home"
    for number in range(WITH + WITHOUT):
        image = _photo(number, faces=number < WITH).resize((210, 150) if number == 1 else (420, 300))
        if number == 3:
            put(folder, {"photos/3.png": encoded(image, "PNG")})
        else:
            put(folder, {f"photos/{number}.jpg": encoded(image, exif=exif, quality=92)})
        put(folder, {f"photos/{number}.txt": f"第{number}幅"})
    (folder / "spec.yaml").write_text(SPEC, encoding="utf-8")
    build = opening.open_build(load(folder / "spec.yaml"), str(folder / "build"), snapshot="2026-01-01")
    for _ in run.run(build, here=True):
        pass
    release.publish(build)
    return build


def _stored(build: Build) -> dict[str, tuple[bytes, dict[str, Any]]]:
    """Each sample's image and index row, by its text."""
    found = {}
    for path in sorted((Path(build.out) / "shards").glob("*.tar")):
        data = path.read_bytes()
        for row in pq.read_table(path.with_suffix(".parquet")).to_pylist():
            image = data[row["image_offset"] : row["image_offset"] + row["image_size"]]
            found[row["texts"][0]["text"]] = image, row
    return found


def _faces(pixels: Any) -> int:
    finder = Finder()
    return len(finder.find(finder.load(), pixels)[0])


@pytest.mark.slow
def test_no_byte_of_a_face_is_stored_and_pictures_without_faces_are_as_they_were(built: Build) -> None:
    photos, stored = Path(built.spec.base) / "photos", _stored(built)
    assert len(stored) == WITH + WITHOUT
    for text, (image, row) in stored.items():
        number = int(text[1])
        fetched = next(photos.glob(f"{number}.[jp]*")).read_bytes()
        assert _faces(decode(fetched).pixels) == (2 if number < WITH else 0)
        assert _faces(decode(image).pixels) == 0
        if number < WITH:
            assert b"Exif" not in image
            assert max(row["width"], row["height"]) <= 360
    assert verify(built.out) == []
    manifest = Manifest.model_validate_json((Path(built.out) / "shards/manifest.json").read_bytes())
    detector = face_detector(built.spec)
    assert detector is not None
    assert manifest.images is not None
    assert manifest.images.faces_blurred == detector.detector_id == manifest.detectors[1]


@pytest.mark.slow
def test_regions_of_faces_are_scaled_with_what_is_stored_and_none_is_left_out(built: Build) -> None:
    [path] = (Path(built.out) / "shards/regions").glob("faces-*/train-000000.parquet")
    stored = {row["key"]: row for _, row in _stored(built).values()}
    boxes = {row["key"]: row["boxes"] for row in pq.read_table(path).to_pylist()}
    counts = {stored[key]["texts"][0]["text"]: len(own) // 4 for key, own in boxes.items()}
    assert counts == {f"第{n}幅": 2 if n < WITH else 0 for n in range(WITH + WITHOUT)}
    for key, own in boxes.items():
        assert max(own[0::2], default=0) <= stored[key]["width"]


@pytest.mark.slow
def test_verify_tells_a_face_that_was_put_back(built: Build, tmp_path: Path) -> None:
    for name, what, expected in (
        ("clear", lambda old, new: new, "has faces that are not blurred"),
        (
            "more",
            lambda old, new: old[:2] + b"\xff\xfe" + (len(new) + 2).to_bytes(2, "big") + new + old[2:],
            "other than its pixels",
        ),
        ("after", lambda old, new: old + new, "other than its pixels"),
    ):
        shards = tmp_path / name
        shutil.copytree(Path(built.out) / "shards", shards)
        _exchange(built, shards, what)
        [fault] = verify(shards)
        assert expected in fault, name
        assert re.match(r"train-000000\.tar: [0-9a-f]{32}\.jpg: ", fault)
        assert verify(shards, quick=True) == []


def _exchange(build: Build, shards: Path, what: Any) -> None:
    """Put another image in the place of one with faces, with digests that hold."""
    path = shards / "train-000000.tar"
    with tarfile.open(path) as tar:
        members = [(m.name, tar.extractfile(m).read()) for m in tar]  # type: ignore[union-attr]
    rows = {row["key"]: row for _, row in _stored(build).values()}
    victim = next(
        name for name, _ in members if name.endswith(".jpg") and rows[name[:32]]["texts"][0]["text"] == "第2幅"
    )
    row = rows[victim[:32]]
    clear = encoded(_photo(2, faces=True).resize((row["width"], row["height"])), quality=75)[:60_000]
    table = pq.read_table(path.with_suffix(".parquet")).to_pylist()
    with path.open("wb") as file:
        writer = TarWriter(file)
        for name, data in members:
            data = what(data, clear) if name == victim else data
            kind = {"jpg": "image", "txt": "text", "json": "json"}[name[33:]]
            entry = next(r for r in table if r["key"] == name[:32])
            entry[f"{kind}_offset"], entry[f"{kind}_size"] = writer.add(name, data), len(data)
        writer.close()
    schema = pq.read_schema(path.with_suffix(".parquet"))
    pq.write_table(pa.Table.from_pylist(table, schema=schema), path.with_suffix(".parquet"))
    _reseal(shards)


def _reseal(shards: Path) -> None:
    manifest = Manifest.model_validate_json((shards / "manifest.json").read_bytes())
    sealed = []
    for own in manifest.shards:
        files = {
            name: getattr(own, name).model_copy(
                update={"bytes": (at := shards / getattr(own, name).path).stat().st_size, "sha256": sha256_of(at)}
            )
            for name in ("tar", "parquet")
        }
        sealed.append(own.model_copy(update=files))
    update = {"shards": tuple(sealed), "content_digest": content_digest(sealed)}
    (shards / "manifest.json").write_text(manifest.model_copy(update=update).model_dump_json(), encoding="utf-8")


@pytest.mark.slow
def test_the_studio_shows_none_neither_of_samples_nor_of_what_was_fetched(built: Build, tmp_path: Path) -> None:
    catalog = Catalog(Frames.open(built.out, STAGES), tmp_path)
    pictures = Pictures(catalog, Takedowns())
    source = next(source for source in catalog.sources if source.shard is not None)
    photos = sorted((Path(built.spec.base) / "photos").glob("*.[jp][pn]g"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pictures, "_source", lambda row: source)
        for pos, photo in enumerate(photos):  # as of pictures that were dropped: the bytes as fetched
            patch.setattr(pictures, "bytes_of", lambda row, photo=photo: (photo.read_bytes(), "0" * 64))
            assert _faces(decode(pictures.thumb({"pos": pos}, 960).jpeg).pixels) == 0


@pytest.mark.slow
def test_the_report_shows_none(built: Build) -> None:
    html = (Path(built.out) / "report/index.html").read_text(encoding="utf-8")
    shown = [base64.b64decode(data) for data in re.findall(r"data:image/jpeg;base64,([A-Za-z0-9+/=]+)", html)]
    assert len(shown) >= WITH + WITHOUT
    assert [_faces(decode(data).pixels) for data in shown] == [0] * len(shown)
    assert faces_hider(_keeping(built.spec)) is None
    hide = faces_hider(built.spec)
    assert hide is not None
    two = with_faces((40, 60, 120), (230, 100, 140))
    assert (_faces(two), _faces(hide(two))) == (2, 0)


@pytest.mark.slow
def test_a_trial_that_keeps_faces_shows_none_of_a_build_that_blurs_them(built: Build) -> None:
    paths = sorted((Path(built.out) / "shards/_decisions").glob("*.parquet"))
    rows = [row for path in paths for row in pq.read_table(path).to_pylist()]
    figures = {"came_in": {"rows": []}, "went_out": {"rows": rows}, "not_stored": {"rows": []}}
    show_pictures(figures, built, replace(built, spec=_keeping(built.spec)))
    shown = [base64.b64decode(row["picture"].partition(",")[2]) for row in rows]
    assert len(shown) == WITH + WITHOUT
    assert [_faces(decode(data).pixels) for data in shown] == [0] * len(shown)


@pytest.mark.slow
def test_another_detector_leaves_a_tar_the_boxes_by_which_it_was_blurred(
    built: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where STORE's cache was pruned, and faces would be found elsewhere today."""

    def packed(spec: BuildSpec) -> tuple[Build, dict[str, bytes]]:
        build = opening.open_build(spec, str(tmp_path / "build"), str(tmp_path / "store"), snapshot="2026-01-01")
        for _ in run.run(build, here=True, until="shard"):
            pass
        release.publish(build)
        shards = Path(build.out) / "shards"
        files = [*shards.glob("*.tar"), *shards.glob("regions/faces-*/*.parquet")]
        return build, {str(path.relative_to(shards)): path.read_bytes() for path in files}

    build, before = packed(built.spec)
    assert len(before) == 2
    prune(build.store, [entry["detector"] for entry in stats(build.store)])
    monkeypatch.setattr(Finder, "find", lambda *_: (np.array([[4, 4, 90, 90]], np.float32), np.ones(1, np.float32)))
    more = [*built.spec.regions.detectors, PluginRef.model_validate({"name": "grid", "n": 3})]
    regions = built.spec.regions.model_copy(update={"detectors": tuple(more)})
    build, after = packed(built.spec.model_copy(update={"regions": regions}))
    assert after == before
    assert len(list((Path(build.out) / "shards/regions").iterdir())) == 3
    assert verify(build.out) == []


def test_verify_tells_of_a_shard_that_nobody_can_check_for_faces(built: Build, tmp_path: Path) -> None:
    shards = tmp_path / "shards"
    shutil.copytree(Path(built.out) / "shards", shards)
    manifest = Manifest.model_validate_json((shards / "manifest.json").read_bytes())
    grid, faces = manifest.detectors
    files = tuple(s.model_copy(update={"regions": {grid: s.regions[grid]}}) for s in manifest.shards)
    changed = manifest.model_copy(update={"detectors": (grid,), "shards": files})
    (shards / "manifest.json").write_text(changed.model_dump_json(), encoding="utf-8")
    assert verify(shards) == [f"train-000000.tar: no regions of {faces}"]


@pytest.mark.slow
def test_a_picture_at_which_nobody_could_look_is_not_stored(
    built: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(self: Any, state: Any, pictures: Any) -> Any:
        if any(picture.shape[:2] == (150, 210) for picture in pictures):
            raise ValueError("no idea")
        return [(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int32)) for _ in pictures]

    monkeypatch.setattr(Faces, "detect", fails)
    spec = built.spec.model_copy(update={"report": built.spec.report.model_copy(update={"pictures": 0})})
    build = opening.open_build(spec, str(tmp_path / "build"), str(tmp_path / "store"), snapshot="2026-01-01")
    for _ in run.run(build, here=True, until="shard"):
        pass
    dropped = [
        row
        for path in (tmp_path / "build/shards/_decisions").glob("*.parquet")
        for row in pq.read_table(path).to_pylist()
        if not row["kept"]
    ]
    assert [(row["reason"], row["text"]) for row in dropped] == [("unreadable", "第1幅")]
    assert "faces could not be detected" in dropped[0]["evidence"]
    assert len(_stored(build)) == WITH + WITHOUT - 1


def test_what_is_kept_and_what_is_blurred_are_other_shards(built: Build) -> None:
    keep = _keeping(built.spec)
    kept = replace(built, spec=keep)
    assert shard.token(kept) != shard.token(built)
    assert detect.token(kept) != detect.token(built)
    assert keep.digest != built.spec.digest


@pytest.mark.slow
def test_blurring_needs_the_detector() -> None:
    raw = {"name": "a", "contact": "a@b.example", "shards": {"faces": "blur"}}
    raw["sources"] = [{"kind": "folder", "name": "s", "source_kind": "library", "path": "x"}]  # type: ignore[assignment]
    with pytest.raises(ValueError, match="blur needs the detector `faces`"):
        BuildSpec.model_validate(raw)
    twice = {"detectors": [{"name": "faces"}, {"name": "faces", "side": 640}]}
    with pytest.raises(ValueError, match="once, not 2 times"):
        BuildSpec.model_validate({**raw, "regions": twice})
