"""Drops pictures that are too small (by the shorter side) or too large (by the longer side).

The default is that of Wukong: both sides more than 200 pixels (DataComp basic asks for 200). On the web smaller ones
are thumbnails and icons. In a collection (`pipeline.filters.is_collection`) the default is 1: people chose what is in
it.

Thresholds: min_side is Wukong's and DataComp basic's (200), max_side ours.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from data_specs.build import SourceRef
from pipeline.filters import Drop, ImageFilter, Limit, is_collection
from pipeline.rows.decisions import DropReason
from pipeline.rows.records import Features

_MIN_SIDE = 200


class ImageSides(ImageFilter):
    """Sides in pixels of the picture as shown."""

    VERSION: ClassVar[int] = 2

    min_side: int | None = Field(
        None, ge=1, description="minimum side in pixels; default: 200, 1 in a folder or library"
    )
    max_side: int = Field(20_000, ge=1, description="maximum side in pixels")

    def for_source(self, source: SourceRef) -> ImageSides:
        unstated = is_collection(source) and self.min_side is None
        return self.model_copy(update={"min_side": 1}) if unstated else self

    def limits(self) -> tuple[Limit, ...]:
        return (
            Limit("min_side", "short_side", DropReason.IMAGE_TOO_SMALL, least=self._min_side),
            Limit("max_side", "long_side", DropReason.IMAGE_TOO_LARGE, most=self.max_side),
        )

    def check(self, features: Features) -> Drop | None:
        sides = f"{features.width} x {features.height} pixels"
        if min(features.width, features.height) < self._min_side:
            return Drop(DropReason.IMAGE_TOO_SMALL, f"{sides}; each side needs {self._min_side}")
        if max(features.width, features.height) > self.max_side:
            return Drop(DropReason.IMAGE_TOO_LARGE, f"{sides}; at most {self.max_side} are allowed")
        return None

    @property
    def _min_side(self) -> int:
        return _MIN_SIDE if self.min_side is None else self.min_side
