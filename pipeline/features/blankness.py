"""Blankness: the share of a picture covered by its most frequent grey level (of 64), 0 to 1.

A placeholder or a scan of an empty page is near 1; a drawing on white may well be at 0.9 and still be a picture, so
what counts as blank is the filter's business.
"""

from __future__ import annotations

from pipeline.features import Feature
from pipeline.pictures.thumbs import Views


class Blankness(Feature):
    """Floats 0 to 1."""

    VERSION = 2

    def of(self, views: Views) -> list[float]:
        # [B, 256] levels, four neighbours to one of 64
        shares: list[float] = views.levels.reshape(-1, 64, 4).sum(axis=2).max(axis=1).tolist()
        return shares
