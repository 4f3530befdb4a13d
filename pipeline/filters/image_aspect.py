"""Drops banners and strips: pictures much longer than wide, or wider than long.

The default is that of Wukong and DataComp: at most 3 to 1 either way.

Thresholds: Wukong (aspect 1/3 to 3) and DataComp basic (at most 3).
"""

from __future__ import annotations

from pydantic import Field

from pipeline.filters import Drop, ImageFilter, Limit
from pipeline.records import DropReason, Features


class ImageAspect(ImageFilter):
    """Longer side divided by shorter side."""

    max_aspect: float = Field(3.0, ge=1, description="longer side divided by shorter side")

    def limits(self) -> tuple[Limit, ...]:
        return (Limit("max_aspect", "aspect", DropReason.IMAGE_ASPECT, most=self.max_aspect, mirrored=True),)

    def check(self, features: Features) -> Drop | None:
        aspect = max(features.width, features.height) / min(features.width, features.height)
        if aspect > self.max_aspect:
            return Drop(
                DropReason.IMAGE_ASPECT,
                f"{features.width} x {features.height} pixels: {aspect:.2f} to 1; at most {self.max_aspect:g}",
            )
        return None
