"""Boxes around faces, to count them, to train on them, or to blur them in the stored images (`shards.faces`).

By default OpenCV's cascade finds them, which comes with its package (`pipeline.pictures.faces`); another detector of
YuNet's form, an .onnx file, finds more of them, also turned and small ones. Every label is 0.

Thresholds: 0.7 for a network, near the 0.6 to 0.9 of YuNet's own examples; those of the cascade are ours.

Limits: the cascade sees upright faces from the front, of at least 6% of the picture's longer side; of 65 faces on 35
photos it found 71% (tests/benchmarks/bench_faces.py). A larger `side` finds smaller ones, and takes longer by its
square.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from pydantic import Field

from data_specs.build import resolve_path
from pipeline.detectors import Boxes, Detector, Picture
from pipeline.errors import DetectorError, ModelError
from pipeline.pictures.faces import Finder


class Faces(Detector):
    """Detects faces."""

    EVERY: ClassVar[bool] = True
    ON_GPU: ClassVar[bool] = False

    weights: str = Field(
        "", description="a YuNet .onnx file, relative to the spec file; default: OpenCV's own detector"
    )
    score: float = Field(0.7, ge=0, le=1, description="minimum score of a face, if `weights` are given")
    side: int = Field(320, ge=64, le=2048, description="longer side, in pixels, of the picture scaled for detection")

    def weights_digest(self) -> str:
        try:
            return self.finder.digest
        except ModelError as e:
            raise DetectorError(e.subject, e.message) from None

    def load(self, gpu: bool = False) -> Any:
        try:
            return self.finder.load()
        except ModelError as e:
            raise DetectorError(e.subject, e.message) from None

    def detect(self, state: Any, pictures: Sequence[Picture]) -> list[Boxes]:
        found = (self.finder.find(state, picture) for picture in pictures)
        return [(boxes, scores, np.zeros(len(boxes), np.int32)) for boxes, scores in found]

    @property
    def finder(self) -> Finder:
        return Finder(resolve_path(self.base, self.weights) if self.weights else "", self.score, self.side)
