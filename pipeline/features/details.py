"""Details of pictures without texture, such as screenshots, charts and drawings: a fine map, and hashes of parts.

`pipeline.pictures.details` says what they are, and how `dedup` tells copies and look-alikes by them. Pictures with
texture, as nearly all photographs are, have none: the column is null.
"""

from __future__ import annotations

import numpy as np

from pipeline.features import Feature
from pipeline.pictures import details
from pipeline.pictures.signatures import is_plain, signatures_of
from pipeline.pictures.thumbs import Views


class Details(Feature):
    """`details.SIZE` bytes, null of a picture with texture."""

    VERSION = 2

    def of(self, views: Views) -> list[bytes | None]:
        values: list[bytes | None] = [None] * len(views.thumbs)
        flat = list(views.flat)
        if flat:
            signatures = signatures_of(views.unframed_thumbs[flat], views.unframed_colour_thumbs[flat])[:, 0]
            hashes = details.hashes_of(np.stack([square for square, _ in views.flat.values()]))
            stored = details.stored(hashes, np.stack([cells for _, cells in views.flat.values()]))
            for row, packed, plain in zip(flat, stored, is_plain(signatures, details.PLAIN), strict=True):
                values[row] = packed.tobytes() if plain else None
        return values
