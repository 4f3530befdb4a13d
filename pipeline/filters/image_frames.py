"""Drops animations: only the first frame would be kept, which is often blank, a title or a fade-in.

Counts the frames of GIF, WebP, PNG and AVIF and the pages of TIFF. Not among the default filters.

Thresholds: ours.
"""

from __future__ import annotations

from pydantic import Field

from pipeline.filters import Drop, ImageFilter, Limit
from pipeline.rows.decisions import DropReason
from pipeline.rows.records import Features


class ImageFrames(ImageFilter):
    """Frames of a file."""

    max_frames: int = Field(1, ge=1, description="maximum number of frames or pages")

    def limits(self) -> tuple[Limit, ...]:
        return (Limit("max_frames", "frames", DropReason.IMAGE_ANIMATED, most=self.max_frames),)

    def check(self, features: Features) -> Drop | None:
        if features.frames > self.max_frames:
            return Drop(DropReason.IMAGE_ANIMATED, f"{features.frames} frames; at most {self.max_frames}")
        return None
