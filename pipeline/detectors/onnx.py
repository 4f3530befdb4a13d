"""An ONNX detector of the YOLOX family, run by onnxruntime on the CPU.

As YOLOX's own demo does it (Ge et al., "YOLOX: Exceeding YOLO Series in 2021", and its repository): the picture is
scaled to fit a square, placed top left on grey 114, fed as BGR 0 to 255; the raw output is decoded on grids of strides
8, 16 and 32; score = objectness x best class; non-maximum suppression within each class.

Limits: one picture at a time, since the usual exports have a batch of one; threads are pinned, so that workers on one
machine do not fight and results do not change with their number; no GPU.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import Field

from pipeline.detectors import Boxes, Detector, Picture
from pipeline.errors import DetectorError

Floats = npt.NDArray[np.float32]

STRIDES = (8, 16, 32)
GREY = 114
MOST = 300
"""Boxes of a picture after suppression, the best ones: more than any spec's cap."""


@dataclass(frozen=True)
class Model:
    """A session and what it is fed."""

    session: Any
    input_name: str
    grid: Floats  # [N, 3]: x, y, stride of each output row


class Onnx(Detector):
    """YOLOX weights and how much of their output is taken."""

    weights: str = Field(description="path of the .onnx file, relative to the spec file")
    classes: str = Field("", description="path of a text file with one class name a line, checked against the model")
    side: int = Field(
        416, ge=32, le=2048, multiple_of=32, description="side of the square that the model takes, pixels"
    )
    score: float = Field(0.35, ge=0, le=1, description="lowest score of a box")
    nms: float = Field(0.45, gt=0, le=1, description="overlap (IoU) above which the weaker of two boxes is left out")
    threads: int = Field(1, ge=1, description="threads of one session")

    def weights_digest(self) -> str:
        return hashlib.sha256(self._read(self.weights)).hexdigest()

    def identity(self) -> dict[str, Any]:
        found = super().identity()
        found["options"].pop("threads")  # does not change a box
        return found

    def load(self) -> Model:
        """Raises DetectorError that names the file."""
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = self.threads, 1
        options.log_severity_level = 3
        data = self._read(self.weights)
        path = str(self._path(self.weights))
        try:
            session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        except Exception as e:  # onnxruntime's own exceptions have no common base
            raise DetectorError(path, f"is not an ONNX model ({' '.join(str(e).split())[:200]})") from None
        grid = _grid(self.side)
        wanted = [1, 3, self.side, self.side]
        inputs, outputs = session.get_inputs(), session.get_outputs()
        shape = list(inputs[0].shape)
        if (
            len(inputs) != 1
            or len(shape) != 4
            or any(isinstance(a, int) and a != b for a, b in zip(shape, wanted, strict=True))
        ):
            raise DetectorError(
                path, f"takes {[list(i.shape) for i in inputs]}, with side {self.side} it gets [{wanted}]"
            )
        rows = outputs[0].shape
        if len(rows) != 3 or (isinstance(rows[1], int) and rows[1] != len(grid)):
            raise DetectorError(path, f"gives {rows}, a YOLOX of side {self.side} gives [1, {len(grid)}, 5 + classes]")
        if self.classes and isinstance(rows[2], int):
            names = self._read(self.classes).decode("utf-8", "replace").split("\n")
            count = len([name for name in names if name.strip()])
            if count != rows[2] - 5:
                raise DetectorError(str(self._path(self.classes)), f"names {count} classes, {path} has {rows[2] - 5}")
        return Model(session, inputs[0].name, grid)

    def detect(self, state: Model, pictures: Sequence[Picture]) -> list[Boxes]:
        found = []
        for picture in pictures:
            square, scale = letterbox(picture, self.side)
            found.append(self._decoded(self._run(state, square), state.grid, scale))
        return found

    def _run(self, state: Model, square: Floats) -> Floats:
        """Raw rows [N, 5 + classes] of one square. Raises DetectorError: a model may not tell its shapes before."""
        path = str(self._path(self.weights))
        try:
            raw = state.session.run(None, {state.input_name: square[None]})[0]
        except Exception as e:  # onnxruntime's own exceptions have no common base
            raise DetectorError(path, f"fails on a picture ({' '.join(str(e).split())[:200]})") from None
        if raw.ndim != 3 or raw.shape[:2] != (1, len(state.grid)) or raw.shape[2] < 6:
            wanted = f"[1, {len(state.grid)}, 5 + classes]"
            raise DetectorError(path, f"gives {list(raw.shape)}, a YOLOX of side {self.side} gives {wanted}")
        rows: Floats = raw[0]
        return rows

    def _decoded(self, raw: Floats, grid: Floats, scale: float) -> Boxes:
        """Boxes in pixels of the picture from the model's raw rows [N, 5 + classes]."""
        classes = raw[:, 5:]
        labels = classes.argmax(axis=1)
        scores = raw[:, 4] * classes[np.arange(len(raw)), labels]
        good = scores >= self.score
        raw, grid, scores, labels = raw[good], grid[good], scores[good], labels[good]
        stride = grid[:, 2:]
        centre = (raw[:, :2] + grid[:, :2]) * stride
        half = np.exp(raw[:, 2:4].clip(-20, 10)) * stride / 2
        boxes = (np.concatenate([centre - half, centre + half], axis=1) / scale).astype(np.float32)
        stay = nms(boxes, scores, labels, self.nms)[:MOST]
        return boxes[stay], scores[stay].astype(np.float32), labels[stay].astype(np.int32)

    def _path(self, name: str) -> Path:
        return Path(self.base) / name

    def _read(self, name: str) -> bytes:
        path = self._path(name)
        try:
            return path.read_bytes()
        except OSError as e:
            raise DetectorError(str(path), f"cannot be read ({e.strerror})") from None


def letterbox(picture: Picture, side: int) -> tuple[Floats, float]:
    """(float32 [3, side, side] BGR 0 to 255, scale): the picture [H, W, 3] RGB times `scale`, top left on grey."""
    import cv2

    height, width = picture.shape[:2]
    scale = min(side / height, side / width)
    size = max(1, int(width * scale)), max(1, int(height * scale))
    square = np.full((side, side, 3), GREY, np.uint8)
    square[: size[1], : size[0]] = cv2.resize(picture, size, interpolation=cv2.INTER_LINEAR)
    return np.ascontiguousarray(square[:, :, ::-1].transpose(2, 0, 1), np.float32), scale


def nms(boxes: Floats, scores: Floats, labels: npt.NDArray[Any], overlap: float) -> npt.NDArray[np.int64]:
    """Indices of the boxes [R, 4] that stay, scores descending; only boxes of one label suppress each other."""
    order = np.argsort(-scores, kind="stable")
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    stay: list[int] = []
    while len(order):
        best, rest = int(order[0]), order[1:]
        stay.append(best)
        low = np.maximum(boxes[best, :2], boxes[rest, :2])
        high = np.minimum(boxes[best, 2:], boxes[rest, 2:])
        shared = (high - low).clip(0).prod(axis=1)
        union = area[best] + area[rest] - shared
        order = rest[(shared <= overlap * union) | (labels[rest] != labels[best])]
    return np.array(stay, np.int64)


def _grid(side: int) -> Floats:
    """[N, 3] x, y and stride of each output row, finest stride first."""
    parts = []
    for stride in STRIDES:
        y, x = np.mgrid[: side // stride, : side // stride]
        parts.append(np.stack([x.ravel(), y.ravel(), np.full(x.size, stride)], axis=1))
    return np.concatenate(parts).astype(np.float32)
