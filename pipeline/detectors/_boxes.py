"""Boxes of a picture between a detector, STORE's cache and the contract: checked, cleaned, and as rows.

Raw boxes, as a detector returns them, are what STORE caches. `data_specs.pictures.boxes` makes of them what the
contract asks, on the way out of the cache, so that another cap does not run a detector again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data_specs.build import BuildSpec
from pipeline.detectors import Boxes, Detector, Picture
from pipeline.errors import DetectorError
from pipeline.rows.records import BOX_SCHEMA

BOX_CAP = 10_000
"""Boxes of a picture at most, of a detector whose boxes are all kept."""


def max_boxes(detector: Detector, spec: BuildSpec) -> int:
    """Returns the number of boxes to keep of a detector's, per picture."""
    return BOX_CAP if detector.EVERY else spec.regions.max_boxes


def blank(width: int, height: int) -> Picture:
    """One byte, seen as a picture of any size: a detector that needs no pixels costs no decoding."""
    return np.broadcast_to(np.uint8(0), (height, width, 3))


def raw_boxes(detector: Detector, state: Any, pictures: Sequence[Picture]) -> Sequence[Boxes]:
    """Raw boxes of each picture, of the right shapes. Raises DetectorError that names the detector."""
    boxes_of_pictures = detector.detect(state, pictures)
    if len(boxes_of_pictures) != len(pictures):
        problem = f"returned boxes of {len(boxes_of_pictures)} pictures for {len(pictures)}"
        raise DetectorError(detector.detector_id, problem)  # not for each batch: an id takes reading all weights
    for boxes, scores, labels in boxes_of_pictures:
        if boxes.ndim != 2 or boxes.shape[1] != 4 or not len(boxes) == len(scores) == len(labels):
            shapes = f"{boxes.shape}, {scores.shape}, {labels.shape}"
            problem = f"returned boxes, scores, labels of shapes {shapes}; expected [R, 4], [R], [R]"
            raise DetectorError(detector.detector_id, problem)
    return boxes_of_pictures


UNSEEN = -1
"""Label of a box around the whole picture that stands for: the detector could not look at it."""


def unseen_row(width: int, height: int) -> Boxes:
    """Returns the empty row that detect's files hold for a picture on which a detector failed."""
    return np.array([[0, 0, width, height]], np.float32), np.zeros(1, np.float32), np.full(1, UNSEEN, np.int32)


def rows_of(boxes_of_image: Mapping[str, Boxes]) -> pa.Table:
    """BOX_SCHEMA rows from boxes by sha256, in the mapping's order."""
    return pa.table(
        {
            "sha256": pa.array(list(boxes_of_image), pa.string()),
            "boxes": pa.array(
                [boxes.ravel() for boxes, _, _ in boxes_of_image.values()], BOX_SCHEMA.field("boxes").type
            ),
            "scores": pa.array([scores for _, scores, _ in boxes_of_image.values()], BOX_SCHEMA.field("scores").type),
            "labels": pa.array([labels for _, _, labels in boxes_of_image.values()], BOX_SCHEMA.field("labels").type),
        },
        schema=BOX_SCHEMA,
    )


def boxes_of(rows: pa.Table) -> dict[str, Boxes]:
    """Boxes by sha256, of a table with at least BOX_SCHEMA's columns."""
    boxes_of_image: dict[str, Boxes] = {}
    for sha256, boxes, scores, labels in zip(*(rows[name] for name in BOX_SCHEMA.names), strict=True):
        boxes_of_image[sha256.as_py()] = (
            _array(boxes, np.float32).reshape(-1, 4),
            _array(scores, np.float32),
            _array(labels, np.int32),
        )
    return boxes_of_image


def _array(values: Any, kind: type[Any]) -> Any:
    """The values of one list scalar, as a NumPy array."""
    return pc.cast(values.values, pa.from_numpy_dtype(kind)).to_numpy(zero_copy_only=False)
