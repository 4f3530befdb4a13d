"""Any detector in an ONNX file: the YOLOX family, and models with outputs named boxes, scores and labels.

The outputs of a file tell which of the two it is. A YOLOX (Ge et al., "YOLOX: Exceeding YOLO Series in 2021") gets a
picture scaled to fit a square, top left on grey 114, and returns raw rows: x, y, log w, log h in cells of a grid of
stride 8, 16 or 32, an objectness and a score per class, decoded as in the demo of its repository: score = objectness x
best class, suppression within a class. A model with outputs `boxes` [R, 4], `scores` [R] and `labels` [R] has decoded
and suppressed its boxes itself, as torchvision's export does and as a bottom-up-attention detector is exported; its
boxes are in pixels of its input.

The size of the input is a square of `side` for a YOLOX, else the size that the file states, or, where that is free, the
picture with its shorter side scaled to `side` and its longer one to at most `longest`. A YOLOX gets its pictures
together if the file allows it, else in batches of the size that the file fixes.

Needs: your own weights, an .onnx file.

Thresholds: side (416) and nms (0.45) are those of YOLOX's own demo of its Nano model; score and longest are ours.

Limits: threads are pinned, so that workers on one machine do not compete and results do not change with their number.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import ConfigDict, Field

from pipeline.detectors import Boxes, Detector, Picture
from pipeline.errors import DetectorError, ModelError
from pipeline.pictures import models

Floats = npt.NDArray[np.float32]

NAMES = ("boxes", "scores", "labels")

STRIDES = (8, 16, 32)
GREY = 114
CANDIDATES, MAX_BOXES = 600, 300
"""The best boxes of a picture that enter suppression, and that leave it at most: far more than a spec's cap."""


@dataclass(frozen=True)
class OnnxModel:
    """A session and the input that it takes. `shape` has 0 where a size is free."""

    session: Any
    input_name: str
    shape: tuple[int, ...]  # [3, H, W] or [B, 3, H, W]
    bytes_in: bool  # takes uint8
    grid: Floats | None  # [N, 3] cells of a YOLOX; None for a model with named outputs


class Onnx(Detector):
    """A model file, how pictures are prepared for it, and which of its boxes are kept."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"weights": "detector.onnx"}]})

    weights: str = Field(description="path of the .onnx file, relative to the spec file")
    classes: str = Field("", description="path of a text file with one class name per line, checked against the model")
    side: int = Field(
        416,
        ge=32,
        le=2048,
        multiple_of=32,
        description="input size of a YOLOX; shorter side of models with a variable input size",
    )
    longest: int = Field(1024, ge=32, le=4096, description="maximum longer side for models with a variable input size")
    colours: Literal["bgr", "rgb"] = Field("bgr", description="colour order of the model's input")
    unit: Literal[255, 1] = Field(255, description="value of white before mean and std are applied")
    mean: tuple[float, float, float] = Field((0, 0, 0), description="subtracted from the colours, in the model's order")
    std: tuple[float, float, float] = Field((1, 1, 1), description="values that the colours are then divided by")
    score: float = Field(0.35, ge=0, le=1, description="minimum score of a box")
    nms: float = Field(0.45, gt=0, le=1, description="overlap (IoU) above which the weaker of two boxes is removed")
    threads: int = Field(1, ge=1, description="threads per session")

    def weights_digest(self) -> str:
        return hashlib.sha256(self._read(self.weights)).hexdigest()

    def load(self, gpu: bool = False) -> OnnxModel:
        """The model, ready to run. Raises DetectorError that names the file."""
        try:
            session = models.session(self._read(self.weights), self._name, self.threads, gpu)
        except ModelError as e:
            raise DetectorError(e.subject, e.message) from None
        inputs, outputs = session.get_inputs(), session.get_outputs()
        shape = tuple(size if isinstance(size, int) else 0 for size in inputs[0].shape)
        if len(inputs) != 1 or len(shape) not in (3, 4) or shape[-3] not in (0, 3):
            shapes = [list(i.shape) for i in inputs]
            raise DetectorError(self._name, f"takes {shapes}, but a detector must take one picture [(B,) 3, H, W]")
        bytes_in = inputs[0].type == "tensor(uint8)"
        if {output.name for output in outputs} >= set(NAMES):
            return OnnxModel(session, inputs[0].name, shape, bytes_in, None)
        self._check_yolox(shape, outputs)
        return OnnxModel(session, inputs[0].name, shape, bytes_in, cells(self.side))

    def _check_yolox(self, shape: tuple[int, ...], outputs: Sequence[Any]) -> None:
        """Raises DetectorError for a model that is not a YOLOX of this side and these classes."""
        if len(shape) != 4 or any(size not in (0, self.side) for size in shape[2:]):
            raise DetectorError(self._name, f"takes {list(shape)}, with side {self.side} it gets {self.side} pixels")
        rows, count = outputs[0].shape, len(cells(self.side))
        if len(outputs) != 1 or len(rows) != 3 or (isinstance(rows[1], int) and rows[1] != count):
            actual = {output.name: list(output.shape) for output in outputs}
            raise DetectorError(
                self._name,
                f"returns {actual}; a YOLOX of side {self.side} returns [B, {count}, 5 + classes], "
                f"any other detector {', '.join(NAMES)}",
            )
        if self.classes and isinstance(rows[2], int):
            names = self._read(self.classes).decode("utf-8", "replace").split("\n")
            listed = len([name for name in names if name.strip()])
            if listed != rows[2] - 5:
                path = str(self._path(self.classes))
                raise DetectorError(path, f"lists {listed} classes, but {self._name} has {rows[2] - 5}")

    def detect(self, state: OnnxModel, pictures: Sequence[Picture]) -> list[Boxes]:
        if state.grid is None:
            return [self._detect_one(state, picture) for picture in pictures]
        framed = [letterbox(picture, self.side, self.side) for picture in pictures]
        raw = self._rows(state, [self._tensor(square, state.bytes_in) for square, _ in framed])
        scales = (scale for _, scale in framed)
        return [decode(rows, state.grid, scale, self.score, self.nms) for rows, scale in zip(raw, scales, strict=True)]

    def _rows(self, state: OnnxModel, squares: Sequence[Any]) -> Iterator[Floats]:
        """Raw rows [N, 5 + classes] of each square. Raises DetectorError, since a file may not state its shapes."""
        assert state.grid is not None
        at_once = state.shape[0] or len(squares)
        for first in range(0, len(squares), at_once):
            batch = squares[first : first + at_once]
            tensors = np.stack([*batch, *[batch[-1]] * (at_once - len(batch))])  # a fixed batch is filled up
            raw = self._run(state, tensors)[0]
            if raw.ndim != 3 or raw.shape[:2] != (at_once, len(state.grid)) or raw.shape[2] < 6:
                expected = f"[{at_once}, {len(state.grid)}, 5 + classes]"
                message = f"returns {list(raw.shape)}, but a YOLOX of side {self.side} returns {expected}"
                raise DetectorError(self._name, message)
            yield from raw[: len(batch)]

    def _detect_one(self, state: OnnxModel, picture: Picture) -> Boxes:
        """Boxes of a model that decodes and suppresses its boxes itself."""
        height, width = self._input_size(state, picture)
        framed, scale = letterbox(picture, height, width)
        tensor = self._tensor(framed, state.bytes_in)
        raw = dict(zip(NAMES, self._run(state, tensor if len(state.shape) == 3 else tensor[None], NAMES), strict=True))
        boxes = np.asarray(raw["boxes"], np.float32).reshape(-1, 4) / np.float32(scale)
        scores, labels = np.asarray(raw["scores"], np.float32).ravel(), np.asarray(raw["labels"]).ravel()
        if not len(boxes) == len(scores) == len(labels):
            shapes = {name: list(value.shape) for name, value in raw.items()}
            raise DetectorError(self._name, f"returns {shapes}; boxes, scores and labels must be [R, 4], [R], [R]")
        likely = np.flatnonzero(scores >= self.score)
        boxes, scores, labels = boxes[likely], scores[likely], labels[likely].astype(np.int32)
        kept = nms(boxes, scores, labels, self.nms)
        return boxes[kept], scores[kept], labels[kept]

    def _input_size(self, state: OnnxModel, picture: Picture) -> tuple[int, int]:
        """(height, width) of the model's input for a picture."""
        height, width = picture.shape[:2]
        scale = min(self.side / min(height, width), self.longest / max(height, width))
        free = max(1, round(height * scale)), max(1, round(width * scale))
        return state.shape[-2] or free[0], state.shape[-1] or free[1]

    def _tensor(self, framed: Picture, bytes_in: bool) -> Any:
        """[3, H, W] of an RGB picture [H, W, 3]: colours, unit, mean and std as the options say."""
        ordered = framed if self.colours == "rgb" else framed[:, :, ::-1]
        if bytes_in:
            return np.ascontiguousarray(ordered.transpose(2, 0, 1))
        values = np.ascontiguousarray(ordered.transpose(2, 0, 1), np.float32)
        if self.unit == 1:
            values /= 255
        if self.mean != (0, 0, 0) or self.std != (1, 1, 1):
            values -= np.array(self.mean, np.float32)[:, None, None]
            values /= np.array(self.std, np.float32)[:, None, None]
        return values

    def _run(self, state: OnnxModel, tensors: Any, outputs: Sequence[str] | None = None) -> list[Any]:
        """Returns the session's outputs; its errors are about one picture, not DetectorErrors, which end a build."""
        results: list[Any] = state.session.run(outputs, {state.input_name: tensors})
        return results

    @property
    def _name(self) -> str:
        return str(self._path(self.weights))

    def _path(self, name: str) -> Path:
        return Path(self.base) / name

    def _read(self, name: str) -> bytes:
        path = self._path(name)
        try:
            return path.read_bytes()
        except OSError as e:
            raise DetectorError(str(path), f"cannot be read ({e.strerror})") from None


def letterbox(picture: Picture, height: int, width: int) -> tuple[Picture, float]:
    """(RGB [height, width, 3], scale): the picture [H, W, 3] times `scale`, top left on grey."""
    import cv2

    scale = min(height / picture.shape[0], width / picture.shape[1])
    size = max(1, int(picture.shape[1] * scale)), max(1, int(picture.shape[0] * scale))
    framed = np.full((height, width, 3), GREY, np.uint8)
    framed[: size[1], : size[0]] = cv2.resize(picture, size, interpolation=cv2.INTER_LINEAR)
    return framed, scale


def cells(side: int) -> Floats:
    """[N, 3]: x, y and stride of each raw row of a square of `side` pixels, finest stride first."""
    parts = []
    for stride in STRIDES:
        y, x = np.mgrid[: side // stride, : side // stride]
        parts.append(np.stack([x.ravel(), y.ravel(), np.full(x.size, stride)], axis=1))
    return np.concatenate(parts).astype(np.float32)


def decode(raw: Floats, grid: Floats, scale: float, score: float, overlap: float) -> Boxes:
    """Boxes in pixels of the picture from raw rows [N, 5 + classes]: at most MOST after suppression, the best first.

    grid: `cells` [N, 3] of the rows; scale: that of `letterbox`; score: the lowest; overlap: the IoU that suppresses.
    """
    classes = raw[:, 5:]
    labels = classes.argmax(axis=1)
    scores = raw[:, 4] * classes[np.arange(len(raw)), labels]
    likely = scores >= score
    raw, grid, scores, labels = raw[likely], grid[likely], scores[likely], labels[likely]
    stride = grid[:, 2:]
    centre = (raw[:, :2] + grid[:, :2]) * stride
    half = np.exp(raw[:, 2:4].clip(-20, 10)) * stride / 2  # clipped: a broken net must not overflow
    boxes = (np.concatenate([centre - half, centre + half], axis=1) / scale).astype(np.float32)
    kept = nms(boxes, scores, labels, overlap)[:MAX_BOXES]
    return boxes[kept], scores[kept].astype(np.float32), labels[kept].astype(np.int32)


def nms(boxes: Floats, scores: Floats, labels: npt.NDArray[np.integer], overlap: float) -> npt.NDArray[np.int64]:
    """Non-maximum suppression: indices of the boxes [R, 4] that stay, by falling score, of the best CANDIDATES.

    Only boxes of the same label suppress each other.
    """
    import cv2

    sides = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)
    kept = cv2.dnn.NMSBoxesBatched(sides.tolist(), scores.tolist(), labels.tolist(), -1.0, overlap, top_k=CANDIDATES)
    return np.asarray(kept, np.int64)
