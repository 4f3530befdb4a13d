"""Boxes of a picture as the contract asks for them (`data_specs.shard`), made of a detector's own."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Boxes = tuple[npt.NDArray[np.float32], npt.NDArray[np.float32], npt.NDArray[np.int32]]
"""Boxes [R, 4] x1 y1 x2 y2 in pixels, scores [R], labels [R]."""


def cleaned(raw: Boxes, width: int, height: int, max_boxes: int) -> Boxes:
    """Returns boxes of a picture [R, 4] that meet the contract: finite, inside it, at least a pixel wide and high,
    unique (the best score stays), not the whole picture, scores descending, at most max_boxes.

    Equal scores are ordered by place from the top left, so that the result does not depend on the raw order.
    """
    boxes, scores, labels = raw
    boxes = np.asarray(boxes, np.float32).reshape(-1, 4)
    finite = np.isfinite(boxes).all(axis=1) & np.isfinite(scores)
    boxes, scores, labels = boxes[finite], scores[finite].astype(np.float32), labels[finite].astype(np.int32)
    boxes = boxes.clip(0, np.array([width, height, width, height], np.float32))
    sound = (boxes[:, 2] - boxes[:, 0] >= 1) & (boxes[:, 3] - boxes[:, 1] >= 1)
    sound &= (boxes != np.array([0, 0, width, height], np.float32)).any(axis=1)
    boxes, scores, labels = boxes[sound], scores[sound], labels[sound]
    # lexsort's last key is the first to count: score descending, then top, left, bottom, right, label
    order = np.lexsort((labels, boxes[:, 2], boxes[:, 3], boxes[:, 0], boxes[:, 1], -scores))
    boxes, scores, labels = boxes[order], scores[order], labels[order]
    _, first = np.unique(boxes, axis=0, return_index=True)  # of equal boxes the first, which has the best score
    stay = np.sort(first)[:max_boxes]
    return boxes[stay], scores[stay], labels[stay]
