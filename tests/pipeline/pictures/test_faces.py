"""faces: drawn faces are found by OpenCV's cascade and by a network of YuNet's form, and a mosaic leaves nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import ModelError
from pipeline.pictures.decode import encode_jpeg, luma
from pipeline.pictures.faces import CELLS, SMALLEST, Finder, areas, mosaic, unblurred
from tests.drawn import with_faces

NOISE = np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8)


def centres(boxes: Any) -> list[tuple[int, int]]:
    return sorted((round((x1 + x2) / 2), round((y1 + y2) / 2)) for x1, y1, x2, y2 in boxes.tolist())


@pytest.mark.parametrize("side", [192, 320, 640])
def test_the_cascade_finds_faces_where_they_are_at_any_size_of_what_it_looks_at(side: int) -> None:
    finder = Finder(side=side)
    boxes, scores = finder.find(finder.load(), with_faces((40, 60, 120), (230, 100, 140)))
    (ax, ay), (bx, by) = centres(boxes)
    assert abs(ax - 100) < 12
    assert abs(ay - 125) < 20
    assert abs(bx - 300) < 12
    assert abs(by - 175) < 20
    assert ((scores > 0) & (scores <= 1)).all()
    assert not len(finder.find(finder.load(), with_faces())[0])


def test_what_finds_is_in_the_digest(tmp_path: Path) -> None:
    one, two = tmp_path / "1.onnx", tmp_path / "2.onnx"
    one.write_bytes(b"1")
    two.write_bytes(b"2")
    assert len({Finder().digest, Finder(str(one)).digest, Finder(str(two)).digest}) == 3
    with pytest.raises(ModelError, match=r"gone\.onnx: cannot be read"):
        _ = Finder(str(tmp_path / "gone.onnx")).digest
    with pytest.raises(ModelError, match=r"1\.onnx: not a YuNet face detector"):
        Finder(str(one)).load()


def yunet(path: Path, side: int) -> str:
    """A network of YuNet's form for pictures of side x side, that sees a face of 64 pixels around the cell (3, 2) of
    its grid of stride 32, whatever it is shown.
    """
    onnx = pytest.importorskip("onnx")
    from onnx import TensorProto, helper, numpy_helper

    nodes, constants, outputs = [], [], []
    for kind, width in (("cls", 1), ("obj", 1), ("bbox", 4), ("kps", 10)):
        for stride in (8, 16, 32):
            cells = side // stride
            value = np.zeros((1, cells * cells, width), np.float32)
            if stride == 32:
                value[0, 2 * cells + 3] = {"bbox": [0.5, 0.5, np.log(2), np.log(2)]}.get(kind, 1.0)
            name = f"{kind}_{stride}"
            constants.append(numpy_helper.from_array(value, f"{name}_value"))
            # the input takes part, times zero, or the graph would not depend on it
            nodes.append(helper.make_node("Add", [f"{name}_value", "nothing"], [name]))
            outputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, value.shape))
    constants += [numpy_helper.from_array(np.zeros(1, np.float32), "zero")]
    first = [
        helper.make_node("GlobalAveragePool", ["input"], ["mean"]),
        helper.make_node("ReduceMean", ["mean"], ["level"], axes=[1, 2, 3], keepdims=0),
        helper.make_node("Mul", ["level", "zero"], ["nothing"]),
    ]
    taken = helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, 3, side, side])
    graph = helper.make_graph(first + nodes, "yunet", [taken], outputs, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 11)], ir_version=7)
    onnx.save(model, str(path))
    return str(path)


def test_a_network_of_yunets_form_finds_them_in_pixels_of_the_picture(tmp_path: Path) -> None:
    finder = Finder(yunet(tmp_path / "yunet.onnx", 160), side=160)
    boxes, scores = finder.find(finder.load(), np.zeros((320, 320, 3), np.uint8))
    assert scores.tolist() == pytest.approx([1.0], abs=1e-3)
    # cell (3, 2) of stride 32, its middle half a cell on, 64 pixels wide, of a picture of twice the size
    assert boxes.tolist()[0] == pytest.approx([160, 96, 288, 224], abs=2)


Box = st.tuples(*[st.floats(0, 390)] * 2, *[st.floats(2, 300)] * 2)


@pytest.mark.slow
@settings(max_examples=20)
@given(st.lists(Box, min_size=1, max_size=4))
def test_a_mosaic_covers_each_box_in_whole_blocks_and_survives_a_jpeg(places: list[Any]) -> None:
    boxes = np.array([[x, y * 0.75, min(x + w, 399), min(y * 0.75 + h, 299)] for x, y, w, h in places], np.float32)
    made = mosaic(NOISE, boxes)
    for (left, top, right, bottom, cell), size in zip(areas(boxes, 400, 300), sorted(_sizes(boxes)), strict=True):
        assert left % cell == top % cell == 0
        assert right % cell == 0 or right == 400
        assert bottom % cell == 0 or bottom == 300
        assert size <= CELLS * cell
        assert cell == SMALLEST or size > CELLS * cell / 2
    for x1, y1, x2, y2 in boxes.astype(int).tolist():
        assert any(a[0] <= x1 and a[1] <= y1 and a[2] >= x2 and a[3] >= y2 for a in areas(boxes, 400, 300))
    assert unblurred(_grey(made), boxes) == 0
    assert unblurred(luma(encode_jpeg(made, 50)), boxes) == 0
    outside = np.ones((300, 400), bool)
    for left, top, right, bottom, _ in areas(boxes, 400, 300):
        outside[top:bottom, left:right] = False
    assert (made == NOISE)[outside].all()


def _grey(picture: Any) -> Any:
    import cv2

    return cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)


@pytest.mark.slow
def test_a_mosaic_of_the_strongest_colours_is_one_after_a_jpeg_too() -> None:
    colours = np.array([[r, g, b] for r in (0, 255) for g in (0, 255) for b in (0, 255)], np.uint8)
    rng = np.random.default_rng(0)
    for side in range(8, 40, 3):
        picture = colours[rng.integers(0, 8, (300 // side + 1, 400 // side + 1))].repeat(side, 0).repeat(side, 1)
        picture = np.ascontiguousarray(picture[:300, :399])
        x, y, size = rng.integers(0, 300), rng.integers(0, 200), rng.integers(20, 98)
        box = np.array([[x, y, x + size, y + size]], np.float32)
        for quality in (50, 92, 100):
            assert unblurred(luma(encode_jpeg(mosaic(picture, box), quality)), box) == 0


def _sizes(boxes: Any) -> list[float]:
    return [max(x2 - x1, y2 - y1) for x1, y1, x2, y2 in boxes.tolist()]


def test_a_face_that_is_left_is_seen_and_so_is_a_soft_one() -> None:
    import cv2

    picture, box = with_faces((100, 60, 160)), np.array([[130, 80, 240, 200]], np.float32)
    assert unblurred(_grey(picture), box) > 50
    assert unblurred(luma(encode_jpeg(picture, 50)), box) > 50
    assert unblurred(_grey(cv2.GaussianBlur(picture, (0, 0), 6)), box) > 20  # a soft face is still one
    assert unblurred(_grey(mosaic(picture, box)), box) == 0
    moved = box + np.float32(64)  # a mosaic in another place
    assert unblurred(_grey(mosaic(picture, moved)), box) > 10


def test_of_a_face_in_a_mosaic_nobody_is_recognised() -> None:
    finder, picture = Finder(), with_faces((100, 60, 160))
    state = finder.load()
    boxes, _ = finder.find(state, picture)
    hidden = mosaic(picture, boxes)
    assert not len(finder.find(state, hidden)[0])
    (area,) = areas(boxes, 400, 300)
    levels = np.unique(hidden[area[1] : area[3], area[0] : area[2]].reshape(-1, 3), axis=0)
    assert len(levels) <= (2 * CELLS) ** 2
