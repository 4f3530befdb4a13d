"""Drops files that are too small to hold a photograph (below 5 KB, as in LAION-5B), or larger than the spec allows.

Not among the default filters: a drawing of two colours is a good picture in 2 KB.

Thresholds: min_bytes is LAION-5B's (5 KB), max_bytes ours.
"""

from __future__ import annotations

from pydantic import Field

from pipeline.filters import Drop, ImageFilter, Limit
from pipeline.rows.decisions import DropReason
from pipeline.rows.records import Features


class ImageBytes(ImageFilter):
    """Size of the file as fetched."""

    min_bytes: int = Field(5_000, ge=0, description="minimum file size in bytes")
    max_bytes: int = Field(50_000_000, ge=1, description="maximum file size in bytes")

    def limits(self) -> tuple[Limit, ...]:
        return (
            Limit("min_bytes", "file_bytes", DropReason.IMAGE_TOO_SMALL, least=self.min_bytes),
            Limit("max_bytes", "file_bytes", DropReason.IMAGE_TOO_LARGE, most=self.max_bytes),
        )

    def check(self, features: Features) -> Drop | None:
        if features.bytes < self.min_bytes:
            return Drop(DropReason.IMAGE_TOO_SMALL, f"{features.bytes:,} bytes; at least {self.min_bytes:,}")
        if features.bytes > self.max_bytes:
            return Drop(DropReason.IMAGE_TOO_LARGE, f"{features.bytes:,} bytes; at most {self.max_bytes:,}")
        return None
