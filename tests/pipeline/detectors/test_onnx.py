"""onnx: models with named outputs, preprocessing by options, and a message for a file that is no detector."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.detectors import Detector, detector_of
from pipeline.detectors.onnx import Onnx
from pipeline.errors import DetectorError
from pipeline.pictures.decode import decode
from pipeline.stages import detect
from tests.drawn import picture
from tests.places import CORPUS, needs_corpus


def named_model(path: Path, size: tuple[int | str, int | str], rank: int = 4, divisor: int = 1, **outputs: str) -> Path:
    """A detector that returns three fixed boxes in pixels of its input, and the means of the channels as scores.

    divisor: of the number of pixels that it takes; it fails on others.
    """
    from onnx import TensorProto, helper

    boxes = [[0, 0, 32, 32], [10, 20, 42, 52], [64, 0, 96, 32]]
    values = [v for box in boxes for v in box]
    axes = [0, 2, 3] if rank == 4 else [1, 2]
    nodes = [
        helper.make_node("Constant", [], ["boxes"], value=helper.make_tensor("b", TensorProto.FLOAT, [3, 4], values)),
        helper.make_node("Constant", [], ["labels"], value=helper.make_tensor("l", TensorProto.INT64, [3], [7, 8, 9])),
        helper.make_node("ReduceMean", ["cut" if divisor > 1 else "fed"], ["scores"], axes=axes, keepdims=0),
    ]
    if divisor > 1:
        parts = helper.make_tensor("p", TensorProto.INT64, [4], [1, 3, -1, divisor])
        cut = helper.make_node("Reshape", ["fed", "parts"], ["cut"])
        nodes = [helper.make_node("Constant", [], ["parts"], value=parts), cut, *nodes]
    kinds = {"boxes": TensorProto.FLOAT, "scores": TensorProto.FLOAT, "labels": TensorProto.INT64}
    shape: list[int | str] = [1, 3, *size] if rank == 4 else [3, *size]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("fed", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(name, kind, None) for name, kind in kinds.items() if name not in outputs],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    path.write_bytes(model.SerializeToString())
    return path


@pytest.mark.slow
def test_a_picture_on_which_the_model_fails_has_no_regions_and_ends_no_build(
    fetched_build: Any, got: Any, run_stage: Any, tmp_path: Path
) -> None:
    """One whose pixels, at the size that the model is shown, are no multiple of 1,024."""
    path = named_model(tmp_path / "picky.onnx", ("height", "width"), divisor=1_024)
    shown = [got(f"{width}.jpg", picture(width, (width, 100)), f"宽{width}") for width in (100, 130, 200)]
    regions = {"detectors": [{"name": "onnx", "weights": str(path), "side": 32, "score": 0}]}
    build = fetched_build(shown, filters=[], regions=regions)
    run_stage(build, "measure", "filter", "dedup", "curate", "detect")
    stage = build.stage("detect")
    [record] = stage.records()
    [suffix] = record.files
    rows = stage.table(record, suffix).to_pylist()
    assert sorted(len(row["scores"]) for row in rows) == [0, 1, 2], "of three those that lie in it"
    assert (record.counts["kept"], record.counts["undecodable"]) == (3, 1)


@pytest.mark.parametrize("rank", [3, 4])
def test_a_model_with_named_outputs_is_fed_as_the_options_say(tmp_path: Path, rank: int) -> None:
    path = named_model(tmp_path / "named.onnx", ("height", "width"), rank)
    shown = np.full((100, 200, 3), (255, 102, 0), np.uint8)
    options = {"weights": str(path), "side": 32, "colours": "rgb", "unit": 1, "score": 0.01}
    detector = Onnx.model_validate(options)
    boxes, scores, labels = detector.detect(detector.load(), [shown])[0]
    assert scores == pytest.approx([1, 0.4], abs=1e-5)  # red and green; blue is below the lowest score
    assert labels.tolist() == [7, 8]
    assert boxes == pytest.approx(np.array([[0, 0, 100, 100], [31.25, 62.5, 131.25, 162.5]]))  # 100 -> 32 pixels
    detector = Onnx.model_validate({**options, "colours": "bgr", "unit": 255, "mean": (1, 2, 5), "std": (1, 4, 500)})
    _, scores, labels = detector.detect(detector.load(), [shown])[0]
    assert scores == pytest.approx([25, 0.5], abs=1e-5)
    assert labels.tolist() == [8, 9]


def test_a_model_of_a_fixed_size_sees_the_whole_picture_on_grey(tmp_path: Path) -> None:
    detector = Onnx(weights=str(named_model(tmp_path / "fixed.onnx", (64, 96))), score=0, colours="rgb")
    white = np.full((128, 128, 3), 255, np.uint8)
    boxes, scores, _ = detector.detect(detector.load(), [white])[0]
    assert scores[0] == pytest.approx((64 * 64 * 255 + 64 * 32 * 114) / (64 * 96), abs=1e-2)
    assert boxes[0].tolist() == [0, 0, 64, 64]


def test_a_model_without_boxes_is_named_with_what_it_returns(tmp_path: Path) -> None:
    path = named_model(tmp_path / "blind.onnx", (416, 416), boxes="")
    with pytest.raises(
        DetectorError, match=r"blind\.onnx: returns \{'scores'.*any other detector boxes, scores, labels"
    ):
        Onnx(weights=str(path)).load()


MODEL = CORPUS / "models" / "yolox_nano.onnx"


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
    with pytest.raises(DetectorError, match=r"bad\.onnx: not an ONNX model"):
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
    with pytest.raises(DetectorError, match=r"few\.txt: lists 2 classes, but .* has 80"):
        _load(Onnx(weights=str(MODEL), classes=str(few)))
