"""Drops pictures whose shorter side is too short to show much, or whose longer side is longer than useful.

The default is that of Wukong: both sides more than 200 pixels (DataComp basic asks for 200).

Thresholds: min_side is Wukong's and DataComp basic's (200), max_side ours.
"""

from __future__ import annotations

from pydantic import Field

from pipeline.filters import Drop, ImageFilter, Limit
from pipeline.records import DropReason, Features


class ImageSides(ImageFilter):
    """Sides in pixels of the picture as shown."""

    min_side: int = Field(200, ge=1, description="shortest allowed side, pixels")
    max_side: int = Field(20_000, ge=1, description="longest allowed side, pixels")

    def limits(self) -> tuple[Limit, ...]:
        return (
            Limit("min_side", "short_side", DropReason.IMAGE_TOO_SMALL, least=self.min_side),
            Limit("max_side", "long_side", DropReason.IMAGE_TOO_LARGE, most=self.max_side),
        )

    def check(self, features: Features) -> Drop | None:
        sides = f"{features.width} x {features.height} pixels"
        if min(features.width, features.height) < self.min_side:
            return Drop(DropReason.IMAGE_TOO_SMALL, f"{sides}; each side needs {self.min_side}")
        if max(features.width, features.height) > self.max_side:
            return Drop(DropReason.IMAGE_TOO_LARGE, f"{sides}; at most {self.max_side} are allowed")
        return None
