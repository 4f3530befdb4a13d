"""Boxes around objects of any kind, by a small packaged network, so nothing has to be downloaded.

The net says where something stands out and how well a box outlines it, not what it is: every label is 0.
It was trained on what permits Apache-2.0 (NOTICE).

Thresholds: ours.

Limits: trained on composites, not on photos with boxes drawn by people; a detector for your own domain is better. Of
things smaller than a fifth of the picture's side most are missed.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic import Field

from pipeline.detectors import Boxes, Detector, Picture
from pipeline.detectors.onnx import Onnx, OnnxModel

WEIGHTS = Path(__file__).with_suffix(".onnx")
SIDE = 160
"""Pixels per side of the net's input. With more it finds more small things, and ranks a thing that fills the picture
behind its parts (tests/benchmarks/README.md)."""


class Proposals(Detector):
    """Detects things of any kind by a small net; options select its boxes."""

    score: float = Field(0.02, ge=0, le=1, description="minimum score of a box: its expected overlap with an object")
    nms: float = Field(0.6, gt=0, le=1, description="overlap (IoU) above which the weaker of two boxes is removed")
    threads: int = Field(1, ge=1, description="threads per session")

    def weights_digest(self) -> str:
        return self._onnx.weights_digest()

    def load(self, gpu: bool = False) -> OnnxModel:
        return self._onnx.load(gpu)

    def detect(self, state: OnnxModel, pictures: Sequence[Picture]) -> list[Boxes]:
        return self._onnx.detect(state, pictures)

    @property
    def _onnx(self) -> Onnx:
        return Onnx(weights=str(WEIGHTS), side=SIDE, score=self.score, nms=self.nms, threads=self.threads)
