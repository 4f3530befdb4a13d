"""Drops pictures with more faces than allowed: portraits, groups, crowds.

A face is what OpenCV's cascade takes for one (`pipeline.pictures.faces`), or another detector of YuNet's form, an .onnx
file. To keep such pictures and hide the faces, see `shards.faces`.

Not among the default filters.

Thresholds: none by default, since a dataset without persons is what the filter is mostly wanted for; data-juicer's
filter keeps pictures of exactly one face.

Limits: the cascade looks at a picture of 160 pixels, in five milliseconds: faces of less than an eighth of the longer
side are missed, and mostly those in profile, turned or half hidden. Of 65 faces on 35 photos it found 54%, without a
false alarm there and with four on 346 photos of dishes (tests/benchmarks/bench_faces.py); at 320 pixels 65%.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from pydantic import Field

from data_specs.build import resolve_path
from pipeline.filters import Drop, PixelFilter
from pipeline.pictures.decode import Pixels
from pipeline.pictures.faces import Finder
from pipeline.rows.decisions import DropReason

STEP, NEIGHBOURS = 1.3, 1
"""For the cascade: as many of the faces as with steps of 1.2 and two neighbours, in half of the time."""


class ImageFaces(PixelFilter):
    """Number of faces in the picture."""

    NEEDS_SIDE: ClassVar[int] = 160

    base: str = ""
    max_faces: int = Field(0, ge=0, description="maximum number of faces in a picture")
    model: str = Field("", description="a YuNet .onnx file, relative to the spec file; default: OpenCV's own detector")
    min_score: float = Field(0.7, ge=0, le=1, description="minimum score of a face, if a `model` is given")
    side: int = Field(160, ge=64, le=2048, description="longer side, in pixels, of the picture scaled for detection")

    def identity(self) -> dict[str, Any]:
        identity = super().identity()
        for name in ("base", "model"):  # the score's id has what the file holds
            identity["options"].pop(name, None)
        return identity

    def model_identity(self) -> list[Any]:
        """The detector and, of a model, the lowest score of a face."""
        return [self.finder.digest, self.side, self.min_score if self.model else None]

    @property
    def needs_side(self) -> int:
        return max(self.NEEDS_SIDE, self.side)

    def load(self) -> Any:
        return self.finder.load()

    def score(self, state: Any, pictures: Sequence[Pixels]) -> list[float]:
        return [float(len(self.finder.find(state, picture)[0])) for picture in pictures]

    def judge(self, score: float) -> Drop | None:
        if score > self.max_faces:
            return Drop(DropReason.FACES, f"{score:.0f} faces; at most {self.max_faces}")
        return None

    @property
    def finder(self) -> Finder:
        return Finder(
            resolve_path(self.base, self.model) if self.model else "", self.min_score, self.side, STEP, NEIGHBOURS
        )
