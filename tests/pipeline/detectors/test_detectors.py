"""Detectors that are files: named outputs, preprocessing, batches, and boxes that follow the picture as shown."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline.detectors.onnx import Onnx
from pipeline.detectors.torchvision import TorchVision, _on_threads
from pipeline.errors import DetectorError


def named_model(path: Path, size: tuple[int | str, int | str], rank: int = 4, **outputs: str) -> Path:
    """A detector that returns three fixed boxes in pixels of its input, and the means of the channels as scores."""
    from onnx import TensorProto, helper

    boxes = [[0, 0, 32, 32], [10, 20, 42, 52], [64, 0, 96, 32]]
    values = [v for box in boxes for v in box]
    axes = [0, 2, 3] if rank == 4 else [1, 2]
    nodes = [
        helper.make_node("Constant", [], ["boxes"], value=helper.make_tensor("b", TensorProto.FLOAT, [3, 4], values)),
        helper.make_node("Constant", [], ["labels"], value=helper.make_tensor("l", TensorProto.INT64, [3], [7, 8, 9])),
        helper.make_node("ReduceMean", ["fed"], ["scores"], axes=axes, keepdims=0),
    ]
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


@pytest.mark.slow
def test_torchvision_takes_a_local_file_and_names_a_wrong_one(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file
    from torchvision.models.detection import fasterrcnn_resnet50_fpn_v2

    wrong = tmp_path / "wrong.safetensors"
    save_file({"other.weight": torch.zeros(2)}, wrong)
    with pytest.raises(DetectorError, match=r"wrong\.safetensors: holds no weights of this model .*Missing key"):
        TorchVision(weights=str(wrong)).load()
    (tmp_path / "code.pth").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    with pytest.raises(DetectorError, match=r"code\.pth: holds no weights of this model"):
        TorchVision(weights=str(tmp_path / "code.pth")).load()
    torch.manual_seed(0)
    model = fasterrcnn_resnet50_fpn_v2(weights=None, weights_backbone=None, num_classes=2, min_size=64, max_size=96)
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    detector = TorchVision(weights=str(tmp_path / "w.safetensors"), labels=2, side=64, longest=96)
    state = detector.load()
    rng = np.random.default_rng(0)
    shown = [rng.integers(0, 256, (h, w, 3), dtype=np.uint8) for h, w in ((60, 90), (90, 60))]
    together = detector.detect(state, shown)
    model.eval()
    with torch.inference_mode(), _on_threads(1):
        theirs = model([torch.from_numpy(shown[1]).permute(2, 0, 1).float() / 255])[0]
    assert len(together[1][0]) > 0
    assert together[1][0] == pytest.approx(theirs["boxes"].numpy(), abs=1e-3)
    assert detector.detect(state, shown[1:])[0][0] == pytest.approx(together[1][0], abs=1e-3)
    assert detector.detector_id != TorchVision().detector_id
