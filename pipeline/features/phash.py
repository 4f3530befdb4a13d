"""Perceptual hashes of a picture and of its parts: 64 bits each, by which `dedup` finds near copies.

Of a picture in a frame they are those of what lies inside (`pipeline.pictures.frames`).
`pipeline.pictures.hashing` says how they are computed, what they forgive and what they do not.
"""

from __future__ import annotations

from pipeline.features import Feature
from pipeline.pictures.hashing import hashes_of
from pipeline.pictures.thumbs import Views


class PHash(Feature):
    """Lists of 64-bit hashes: of `parts.BOXES`, then of `parts.HALVES`."""

    VERSION = 3

    def of(self, views: Views) -> list[list[int]]:
        hashes: list[list[int]] = hashes_of(views.unframed_thumbs).tolist()
        return hashes
