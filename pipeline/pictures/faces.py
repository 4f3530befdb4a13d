"""Faces of a picture: where they are, and the mosaic that makes them unrecognisable.

Faces are found by the cascade of boosted features that comes with OpenCV (Viola and Jones, "Rapid object detection
using a boosted cascade of simple features", 2001; Lienhart's `frontalface_alt2`), or by a network of YuNet's form (Wu
et al., "YuNet: a tiny millisecond-level face detector", 2023) whose .onnx file is named.

A mosaic replaces each cell of a grid by its mean. Cells have 8, 16, 32 ... pixels, the smallest with at most CELLS of
them across the face, and stand on multiples of their size. So a cell is made of whole blocks of a JPEG, which encodes
it without loss and without a halo: of a face nothing is left but a dozen means, and that this is so can be read off the
stored picture (`unblurred`).

Limits: the cascade sees faces from the front that are upright and have at least 20 pixels where the longer side has
`side`; faces may be left.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.errors import ModelError
from pipeline.pictures.decode import Grey, Pixels

Boxes = npt.NDArray[np.float32]
"""[N, 4] x1 y1 x2 y2 in pixels."""

CASCADE = "haarcascade_frontalface_alt2.xml"

MARGIN = 0.25
"""Margin on each side, as a share of it: boxes go from brow to chin, and a mosaic hides hair and ears as well."""
SMALLEST, CELLS = 8, 4
FLAT = 3.0
"""Standard deviation, in grey levels, of a block of a mosaic at most: what rounding leaves at quality 50."""


@dataclass(frozen=True)
class Finder:
    """Looks for faces.

    weights: an .onnx file of YuNet's form, "" for OpenCV's cascade. score: lowest of a face, for the former. side: of
    the picture that is looked at, the longer one in pixels; the time goes by its square. step, neighbours: of the
    cascade: the ratio of one size of faces to the next, and the hits next to one another that make a face.
    """

    weights: str = ""
    score: float = 0.7
    side: int = 320
    step: float = 1.2
    neighbours: int = 2

    @property
    def digest(self) -> str:
        """sha256 over what finds: the weights, or OpenCV's release and its cascade."""
        if self.weights:
            try:
                return hashlib.sha256(Path(self.weights).read_bytes()).hexdigest()
            except OSError as e:
                raise ModelError(self.weights, f"cannot be read: {e.strerror or e}") from None
        import cv2

        release = ".".join(cv2.__version__.split(".")[:2])
        return hashlib.sha256(release.encode() + _cascade_file().read_bytes()).hexdigest()

    def load(self) -> Any:
        """Returns the state that `find` takes. Raises ModelError that names the file."""
        import cv2

        if not self.weights:
            found = cv2.CascadeClassifier(str(_cascade_file()))
            if found.empty():
                raise ModelError(str(_cascade_file()), "not a cascade that this OpenCV can read")
            return found
        try:
            return cv2.FaceDetectorYN.create(self.weights, "", (self.side, self.side), self.score)
        except cv2.error as e:
            reason = " ".join(str(e).split())
            raise ModelError(self.weights, f"not a YuNet face detector: {reason[:200]}") from None

    def find(self, state: Any, picture: Pixels) -> tuple[Boxes, npt.NDArray[np.float32]]:
        """Boxes [N, 4] of the faces of a picture [H, W, 3] RGB, in its pixels, and their scores [N]."""
        import cv2

        height, width = picture.shape[:2]
        scale = min(1.0, self.side / max(height, width))
        sides = max(1, round(width * scale)), max(1, round(height * scale))
        shown = picture if self.weights else cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)  # fewer channels to resize
        small: Any = cv2.resize(shown, sides, interpolation=cv2.INTER_AREA)
        boxes, scores = _detect_by_network(state, small) if self.weights else self._detect_by_cascade(state, small)
        boxes[:, 2:] += boxes[:, :2]
        boxes *= np.array([width / sides[0], height / sides[1]] * 2, np.float32)
        # never the whole picture, which is not a region (data_specs/shard.py); the mosaic reaches farther anyway
        return boxes.clip(0, np.array([width - 1, height - 1] * 2, np.float32)), scores

    def _detect_by_cascade(self, cascade: Any, grey: Any) -> tuple[Boxes, npt.NDArray[np.float32]]:
        """Boxes [N, 4] x y width height on a grey picture [H, W], and scores, 0 to 1: how sure the last step is."""
        import cv2

        found, _, weights = cascade.detectMultiScale3(
            cv2.equalizeHist(grey), self.step, self.neighbours, outputRejectLevels=True
        )
        if not len(found):
            return np.zeros((0, 4), np.float32), np.zeros(0, np.float32)
        surely = np.asarray(weights, np.float64).reshape(-1)
        return np.asarray(found, np.float32), (1 / (1 + np.exp(-surely))).astype(np.float32)


def _cascade_file() -> Path:
    import cv2

    return Path(cv2.__file__).parent / "data" / CASCADE


def _detect_by_network(network: Any, picture: Pixels) -> tuple[Boxes, npt.NDArray[np.float32]]:
    """Boxes [N, 4] x y width height, and scores, by a network of YuNet's form."""
    import cv2

    network.setInputSize(picture.shape[1::-1])
    _, rows_N15 = network.detect(cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))  # a box, five landmarks, the score
    if rows_N15 is None:
        return np.zeros((0, 4), np.float32), np.zeros(0, np.float32)
    return np.array(rows_N15[:, :4], np.float32), np.array(rows_N15[:, 14], np.float32)


def areas(boxes_N4: Boxes, width: int, height: int) -> list[tuple[int, int, int, int, int]]:
    """(x1, y1, x2, y2, cell) of each box's mosaic, in whole pixels of a picture, small cells first.

    The edges stand on multiples of the cell, or are the picture's own.
    """
    found = []
    for x1, y1, x2, y2 in np.asarray(boxes_N4, np.float64).reshape(-1, 4).tolist():
        cell = SMALLEST
        while max(x2 - x1, y2 - y1) > CELLS * cell:
            cell *= 2
        across, down = MARGIN * (x2 - x1), MARGIN * (y2 - y1)
        left, top = (max(0, int((low - more) // cell) * cell) for low, more in ((x1, across), (y1, down)))
        right, bottom = (-int(-(high + more) // cell) * cell for high, more in ((x2, across), (y2, down)))
        found.append((left, top, min(right, width), min(bottom, height), cell))
    # cells of twice the size hold whole cells: laid later, they leave nothing of the others' edges
    return sorted(found, key=lambda area: (area[4], area))


def mosaic(picture: Pixels, boxes_N4: Boxes) -> Pixels:
    """The picture [H, W, 3] with each cell of the faces' areas replaced by its mean."""
    made: Pixels = picture.copy()
    for left, top, right, bottom, cell in areas(boxes_N4, picture.shape[1], picture.shape[0]):
        for y in range(top, bottom, cell):
            for x in range(left, right, cell):
                part = made[y : min(y + cell, bottom), x : min(x + cell, right)]
                part[:] = np.rint(part.reshape(-1, 3).mean(0)).astype(np.uint8)
    return made


def unblurred(grey_HW: Grey, boxes_N4: Boxes) -> int:
    """Returns the number of 8 x 8 blocks in the faces' areas of a stored picture with more than one level of grey.

    grey_HW: its grey levels as the JPEG holds them (`pipeline.pictures.decode.luma`). Not of its RGB pixels: there
    colours are stored at half the size and reach over the edges of cells, and strong ones are cut off.
    """
    grey = grey_HW.astype(np.float32)
    height, width = grey.shape
    blocks = grey[: height // 8 * 8, : width // 8 * 8].reshape(height // 8, 8, width // 8, 8)
    uneven = blocks.std(axis=(1, 3)) > FLAT
    inside = np.zeros_like(uneven)
    for left, top, right, bottom, _ in areas(boxes_N4, width, height):
        inside[top // 8 : bottom // 8, left // 8 : right // 8] = True
    return int((uneven & inside).sum())
