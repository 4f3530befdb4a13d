"""Drops blank pictures: placeholders, empty scans, a single colour.

`blankness` is the share of the most frequent of 64 grey levels. A small drawing on white may reach 0.95, so the
default drops only pictures that are flat almost everywhere.

Thresholds: ours, from drawings on white that are good pictures.
"""

from __future__ import annotations

from pydantic import Field

from pipeline.filters import Drop, ImageFilter, Limit
from pipeline.rows.decisions import DropReason
from pipeline.rows.records import Features


class ImageBlank(ImageFilter):
    """Share of the picture in one grey level."""

    max_blankness: float = Field(0.98, gt=0, le=1, description="maximum share of one of 64 grey levels, 0 to 1")

    def limits(self) -> tuple[Limit, ...]:
        return (Limit("max_blankness", "blankness", DropReason.IMAGE_BLANK, most=self.max_blankness),)

    def check(self, features: Features) -> Drop | None:
        if features.blankness > self.max_blankness:
            share = f"{features.blankness:.1%} of the picture in one grey level"
            return Drop(DropReason.IMAGE_BLANK, f"{share}; at most {self.max_blankness:.1%}")
        return None
