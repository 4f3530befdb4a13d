"""detect: boxes as the contract asks, from a cache that all builds share; grid and YOLOX."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline.detectors import Detector, detector_of
from pipeline.detectors._yolox import letterbox, nms
from pipeline.detectors.grid import Grid
from pipeline.detectors.onnx import Onnx
from pipeline.errors import DetectorError
from pipeline.pictures.decode import decode
from pipeline.stages import _model_runner, detect
from tests.places import CORPUS, needs_corpus
from tests.stages import run_stage

MODEL = CORPUS / "models" / "yolox_nano.onnx"


def picture(seed: int, size: tuple[int, int], orientation: int = 1) -> bytes:
    exif = Image.Exif()
    exif[274] = orientation
    small = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(small).resize(size, Image.Resampling.BICUBIC).save(out, "JPEG", exif=exif)
    return out.getvalue()


def run(build: Any) -> tuple[dict[str, dict[str, Any]], dict[str, int]]:
    """(rows of the first detector by sha256, counts) after all stages up to detect."""
    run_stage(build, "measure", "filter", "rank", "lead", "dedup", "detect")
    rows, counts, stage = {}, dict[str, int](), build.stage("detect")
    for record in stage.records():
        (suffix, *_) = [name for name in record.files if name.endswith(".parquet")]
        for row in stage.table(record, suffix).to_pylist():
            assert row["sha256"] not in rows
            rows[row["sha256"]] = row
        counts = {k: counts.get(k, 0) + v for k, v in record.counts.items()}
    return rows, counts


def test_every_survivor_has_its_boxes_in_its_partition(fetched_build: Any, got: Any) -> None:
    images = [got(f"{i}", picture(i, (120 + i, 90), 6 if i % 2 else 1), f"第{i}张") for i in range(8)]
    images.append(got("again", images[3].data, "又一张"))
    build = fetched_build(
        images, parts=3, filters=[], regions={"max_boxes": 5, "detectors": [{"name": "grid", "n": 3}]}
    )
    rows, counts = run(build)
    assert (counts["seen"], counts["kept"], counts["dropped"]) == (8, 8, 0)
    assert counts["regions"] == 8 * 5
    for record in build.stage("dedup").records():
        for split in ("train", "dev", "val"):
            for row in build.stage("dedup").table(record, f"{split}.parquet").to_pylist():
                boxes = np.array(rows.pop(row["sha256"])["boxes"]).reshape(-1, 4)
                assert (boxes[:, 2].max(), boxes[:, 3].max()) == (row["width"], np.float32(row["height"] / 3 * 2))
    assert rows == {}


def test_the_cache_serves_other_builds_and_other_caps(
    fetched_build: Any, got: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = [got(f"{i}", picture(i, (100, 90)), f"第{i}张") for i in range(3)]
    _, counts = run(fetched_build(images, filters=[]))
    assert counts["cached"] == 0
    monkeypatch.setattr(Grid, "detect", lambda *_: pytest.fail("detected again"))
    rows, counts = run(fetched_build(images, name="other", filters=[], regions={"max_boxes": 2}))
    assert counts["cached"] == 3
    assert [len(row["scores"]) for row in rows.values()] == [2, 2, 2]


def test_a_detector_of_the_wrong_shape_is_named(fetched_build: Any, got: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Grid, "detect", lambda self, state, pictures: [(np.zeros((2, 3)), np.ones(2), np.ones(2))])
    with pytest.raises(DetectorError, match=r"grid-[0-9a-f]{12}: returned boxes, scores, labels of shapes \(2, 3\)"):
        run(fetched_build([got("a", picture(0, (100, 90)))], filters=[]))


def test_the_grid_tiles_the_picture() -> None:
    boxes, scores, labels = Grid(n=4).detect(None, [np.zeros((70, 101, 3), np.uint8)])[0]
    area = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    assert area.sum() == pytest.approx(70 * 101)
    assert boxes[0].tolist() == [0, 0, 25.25, 17.5]
    assert len(boxes) == 16
    assert set(scores) == {1}
    assert set(labels) == {0}


@given(st.integers(0, 2**32 - 1), st.sampled_from([0.2, 0.45, 0.7]))
@settings(max_examples=40, deadline=None)
def test_suppression_agrees_with_torchvision(seed: int, overlap: float) -> None:
    import torch
    from torchvision.ops import batched_nms

    rng = np.random.default_rng(seed)
    start = rng.uniform(0, 60, (40, 2))
    boxes = np.concatenate([start, start + rng.uniform(5, 50, (40, 2))], axis=1).astype(np.float32)
    scores = rng.permutation(40).astype(np.float32) / 40
    labels = rng.integers(0, 3, 40)
    theirs = batched_nms(torch.from_numpy(boxes), torch.from_numpy(scores), torch.from_numpy(labels), overlap)
    assert nms(boxes, scores, labels, overlap).tolist() == theirs.tolist()


def test_the_letterbox_is_top_left_on_grey() -> None:
    red = np.full((50, 100, 3), (255, 0, 0), np.uint8)
    square, scale = letterbox(red, 64, 64)
    assert scale == 0.64
    assert square.shape == (64, 64, 3)
    assert square[10, 10].tolist() == [255, 0, 0]
    assert square[40, 10].tolist() == [114, 114, 114]


@needs_corpus("models", "yolox_nano.onnx")
def test_yolox_finds_what_the_model_is_known_to_find() -> None:
    detector = Onnx(weights=str(MODEL), classes=str(MODEL.with_name("coco80.txt")))
    names = MODEL.with_name("coco80.txt").read_text().split("\n")
    shown = decode((CORPUS / "howtocook-site/images/7a10d81a0c750a44.jpg").read_bytes()).pixels
    boxes, scores, labels = detector.detect(detector.load(), [shown])[0]
    best = {names[label]: round(float(score), 2) for score, label in reversed(list(zip(scores, labels, strict=True)))}
    assert best == pytest.approx({"dining table": 0.81, "knife": 0.70, "sandwich": 0.52, "fork": 0.45}, abs=0.015)
    table = boxes[labels.tolist().index(names.index("dining table"))]
    height, width = shown.shape[:2]
    assert (table[2] - table[0]) * (table[3] - table[1]) > 0.5 * height * width


@needs_corpus("models", "yolox_nano.onnx")
def test_a_yolox_build_fills_the_cache(fetched_build: Any, got: Any) -> None:
    data = (CORPUS / "howtocook-site/images/7a10d81a0c750a44.jpg").read_bytes()
    detectors = [{"name": "onnx", "weights": str(MODEL)}, {"name": "grid"}]
    build = fetched_build([got("a", data)], filters=[], regions={"detectors": detectors})
    rows, counts = run(build)
    (row,) = rows.values()
    assert 4 <= len(row["scores"]) <= 36
    assert row["scores"] == sorted(row["scores"], reverse=True)
    assert counts["cached"] == 0
    _, counts = run(fetched_build([got("a", data)], name="other", filters=[], regions={"detectors": detectors}))
    assert counts["cached"] == 2


@needs_corpus("models", "yolox_nano.onnx")
def test_weights_are_in_the_id_and_paths_and_threads_are_not(tmp_path: Path) -> None:
    copy = tmp_path / "copy.onnx"
    copy.write_bytes(MODEL.read_bytes())
    one, two = Onnx(weights=str(MODEL)), Onnx(weights="copy.onnx", base=str(tmp_path), threads=2)
    assert one.detector_id == two.detector_id
    assert one.detector_id != Onnx(weights=str(MODEL), score=0.5).detector_id
    copy.write_bytes(MODEL.read_bytes() + b"\0")
    assert one.detector_id != two.detector_id


def _load(detector: Detector) -> None:
    assert detector.weights_digest()
    detector.load()


def test_unusable_weights_are_named(fetched_build: Any, tmp_path: Path) -> None:
    bad = tmp_path / "bad.onnx"
    bad.write_bytes(b"not a model")
    with pytest.raises(DetectorError, match=r"bad\.onnx: is not an ONNX model"):
        _load(Onnx(weights=str(bad)))
    with pytest.raises(DetectorError, match=r"none\.onnx: cannot be read \(No such file or directory\)"):
        _load(Onnx(weights="none.onnx", base=str(tmp_path)))
    refs = [{"name": "onnx", "weights": "none.onnx"}]
    build = fetched_build([], base=str(tmp_path), regions={"detectors": refs})
    with pytest.raises(DetectorError, match=r"none\.onnx"):
        detect.token(build)
    assert isinstance(detector_of(build.spec, build.spec.regions.detectors[0]), Onnx)


@needs_corpus("models", "yolox_nano.onnx")
def test_a_model_of_another_shape_is_named(tmp_path: Path) -> None:
    with pytest.raises(DetectorError, match=r"yolox_nano\.onnx: takes .*416"):
        _load(Onnx(weights=str(MODEL), side=640))
    few = tmp_path / "few.txt"
    few.write_text("cat\ndog\n")
    with pytest.raises(DetectorError, match=r"few\.txt: names 2 classes, .* has 80"):
        _load(Onnx(weights=str(MODEL), classes=str(few)))


@needs_corpus("models", "yolox_nano.onnx")
def test_the_same_boxes_from_any_batch_and_partition(
    fetched_build: Any, got: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = [got(f"{i}", picture(i, (120 + 8 * i, 90 + i)), f"第{i}张") for i in range(9)]
    rows_of_build = []
    for name, parts, batch in (("one", 1, 16), ("two", 3, 1)):
        monkeypatch.setattr(_model_runner, "BATCH", batch)
        options = {"detectors": [{"name": "onnx", "weights": str(MODEL), "score": 0.01}]}
        store = str(tmp_path / f"{name}-store")
        rows, counts = run(fetched_build(images, parts, name=name, store=store, filters=[], regions=options))
        assert counts["detected"] == 9
        rows_of_build.append(rows)
    assert sum(len(row["scores"]) for row in rows_of_build[0].values()) > 20
    for sha256, row in rows_of_build[0].items():
        assert row["boxes"] == pytest.approx(rows_of_build[1][sha256]["boxes"], abs=1e-3)
