"""Drops pictures without sharp edges: out of focus, enlarged thumbnails, gradients.

The default is low, for a picture that no human would call sharp: of 173 photos of dishes the least sharp had 470 and
the median 2,550; blurred with a radius of 8 pixels of 512 their median was 94, with 16 it was 18.

Not among the default filters: mist over a lake is a good picture.

Thresholds: ours, from photos of dishes, sharp and blurred.
"""

from __future__ import annotations

from pydantic import Field

from pipeline.filters import Drop, ImageFilter, Limit
from pipeline.rows.decisions import DropReason
from pipeline.rows.records import Features


class ImageSharpness(ImageFilter):
    """Variance of the Laplacian of the 64 x 64 thumbnail."""

    min_sharpness: float = Field(50.0, ge=0, description="minimum variance of the Laplacian; 0: off")

    def limits(self) -> tuple[Limit, ...]:
        return (Limit("min_sharpness", "sharpness", DropReason.IMAGE_BLURRED, least=self.min_sharpness),)

    def check(self, features: Features) -> Drop | None:
        if features.sharpness < self.min_sharpness:
            return Drop(
                DropReason.IMAGE_BLURRED, f"sharpness {features.sharpness:.1f}; at least {self.min_sharpness:g}"
            )
        return None
