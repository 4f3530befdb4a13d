"""Perceptual hashes of a picture and of its parts: 64 bits each, used by `dedup` to find near-copies.

Of a picture in a frame they are those of what lies inside (`pipeline.pictures.frames`).
`pipeline.pictures.hashing` says how they are computed, what they forgive and what they do not.
"""

from __future__ import annotations

import numpy as np

from pipeline.features import Feature
from pipeline.pictures.hashing import CONTENT, HASHES, hashes_of
from pipeline.pictures.thumbs import Views


class PHash(Feature):
    """Lists of 64-bit hashes: of `parts.BOXES`, of what lies between the margins, of `parts.HALVES`."""

    VERSION = 3

    def of(self, views: Views) -> list[list[int]]:
        hashes = np.zeros((len(views.thumbs), HASHES), np.uint64)
        unframed = hashes_of(views.unframed_thumbs)
        hashes[:, :CONTENT], hashes[:, CONTENT + 1 :] = unframed[:, :CONTENT], unframed[:, CONTENT:]
        if views.with_content:
            hashes[views.with_content, CONTENT] = hashes_of(views.content_thumbs)[:, 0]
        lists: list[list[int]] = hashes.tolist()
        return lists
