"""Drops pictures with few grey levels, such as text, line drawings and logos, from datasets of photographs.

The lowest of 173 photos of dishes had 5.9 bits; a quarter of 235 drawings on white had less than 3.0, a twentieth less
than 1.7.

Not among the default filters: a dataset may want drawings.

Thresholds: ours, from photos of dishes and drawings.
"""

from __future__ import annotations

from pydantic import Field

from pipeline.filters import Drop, ImageFilter, Limit
from pipeline.rows.decisions import DropReason
from pipeline.rows.records import Features


class ImageEntropy(ImageFilter):
    """Entropy of the grey levels."""

    min_entropy: float = Field(1.0, ge=0, le=8, description="minimum entropy in bits; 256 grey levels have at most 8")

    def limits(self) -> tuple[Limit, ...]:
        return (Limit("min_entropy", "entropy", DropReason.IMAGE_ENTROPY, least=self.min_entropy),)

    def check(self, features: Features) -> Drop | None:
        if features.entropy < self.min_entropy:
            return Drop(DropReason.IMAGE_ENTROPY, f"entropy {features.entropy:.2f} bits; at least {self.min_entropy:g}")
        return None
