"""Input and output of the YOLOX family: a picture becomes the net's input, raw rows become boxes.

After Ge et al., "YOLOX: Exceeding YOLO Series in 2021", and the demo of its repository; for every ONNX file of that
family.

A picture is scaled to fit a square and laid top left on grey 114. A raw row holds x, y, log w, log h in cells of a grid
of stride 8, 16 or 32, an objectness and a score per class; score = objectness x best class. Suppression is within a
class.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pipeline.detectors import Boxes, Picture

Floats = npt.NDArray[np.float32]

STRIDES = (8, 16, 32)
GREY = 114
CANDIDATES, MOST = 600, 300
"""The best boxes of a picture that enter suppression, and that leave it at most: far more than a spec's cap."""


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


def decoded(raw: Floats, grid: Floats, scale: float, score: float, overlap: float) -> Boxes:
    """Boxes in pixels of the picture from raw rows [N, 5 + classes]: at most MOST after suppression, the best first.

    grid: `cells` [N, 3] of the rows; scale: that of `letterbox`; score: the lowest; overlap: the IoU that suppresses.
    """
    classes = raw[:, 5:]
    labels = classes.argmax(axis=1)
    scores = raw[:, 4] * classes[np.arange(len(raw)), labels]
    good = scores >= score
    raw, grid, scores, labels = raw[good], grid[good], scores[good], labels[good]
    stride = grid[:, 2:]
    centre = (raw[:, :2] + grid[:, :2]) * stride
    half = np.exp(raw[:, 2:4].clip(-20, 10)) * stride / 2  # clipped: a broken net must not overflow
    boxes = (np.concatenate([centre - half, centre + half], axis=1) / scale).astype(np.float32)
    stay = nms(boxes, scores, labels, overlap)[:MOST]
    return boxes[stay], scores[stay].astype(np.float32), labels[stay].astype(np.int32)


def nms(boxes: Floats, scores: Floats, labels: npt.NDArray[np.integer], overlap: float) -> npt.NDArray[np.int64]:
    """Non-maximum suppression: indices of the boxes [R, 4] that stay, by falling score, of the best CANDIDATES.

    Only boxes of the same label suppress each other.
    """
    order = np.argsort(-scores, kind="stable")[:CANDIDATES]
    best, kind = boxes[order], labels[order]
    x1, y1, x2, y2 = np.ascontiguousarray(best.T)
    # [C, C]: the intersection of every two boxes; IoU > overlap, without a division by an empty union
    shared = np.maximum(np.minimum(x2[:, None], x2) - np.maximum(x1[:, None], x1), 0)
    shared *= np.maximum(np.minimum(y2[:, None], y2) - np.maximum(y1[:, None], y1), 0)
    area = (x2 - x1) * (y2 - y1)
    rivals = (shared > overlap * (area[:, None] + area[None] - shared)) & (kind[:, None] == kind[None])
    alive = np.ones(len(order), bool)
    for i in range(len(order)):
        if alive[i]:
            alive[i + 1 :] &= ~rivals[i, i + 1 :]
    return order[alive]
