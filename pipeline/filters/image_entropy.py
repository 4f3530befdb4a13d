"""Drops pictures of few grey levels: plain text, line drawings, logos, where photographs are wanted.

Of 173 photos of dishes the lowest had 5.9 bits; of 235 drawings on white a quarter had less than 3.0, a twentieth less
than 1.7.

Not among the default filters: which of them are wanted is the dataset's own affair.
"""

from __future__ import annotations

from pydantic import Field

from pipeline.filters import Drop, ImageFilter
from pipeline.records import DropReason, Features


class ImageEntropy(ImageFilter):
    """Entropy of the grey levels."""

    min_entropy: float = Field(1.0, ge=0, le=8, description="bits; 8 is the most that 256 levels have")

    def check(self, features: Features) -> Drop | None:
        if features.entropy < self.min_entropy:
            return Drop(DropReason.IMAGE_ENTROPY, f"entropy {features.entropy:.2f} bits; at least {self.min_entropy:g}")
        return None
