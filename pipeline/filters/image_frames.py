"""Drops animations, of which only the first frame would be kept: often blank, a title or a fade-in.

Counts frames of GIF, WebP, PNG, AVIF and pages of TIFF. Not among the default filters.
"""

from __future__ import annotations

from pydantic import Field

from pipeline.filters import Drop, ImageFilter
from pipeline.records import DropReason, Features


class ImageFrames(ImageFilter):
    """Frames of a file."""

    max_frames: int = Field(1, ge=1, description="most frames of an animation, or pages")

    def check(self, features: Features) -> Drop | None:
        if features.frames > self.max_frames:
            return Drop(DropReason.IMAGE_ANIMATED, f"{features.frames} frames; at most {self.max_frames}")
        return None
