"""Signatures of a picture and of its parts: coarse brightness and colour, used to verify matches of hashes.

Of a picture in a frame they are those of what lies inside (`pipeline.pictures.frames`).

`pipeline.pictures.signatures` says how they are computed and compared.
"""

from __future__ import annotations

import numpy as np

from pipeline.features import Feature
from pipeline.pictures.signatures import CONTENT, GRIDS, SIZE, signatures_of
from pipeline.pictures.thumbs import Views


class Signature(Feature):
    """Bytes: a grid of `signatures.SIZE` bytes for each of `parts.BOXES`, and one of what lies between the margins."""

    VERSION = 3

    def of(self, views: Views) -> list[bytes]:
        grids = np.zeros((len(views.thumbs), GRIDS, SIZE), np.uint8)
        grids[:, :CONTENT] = signatures_of(views.unframed_thumbs, views.unframed_colour_thumbs)
        if views.with_content:
            grids[views.with_content, CONTENT] = signatures_of(views.content_thumbs, views.content_colour_thumbs)[:, 0]
        return [signature.tobytes() for signature in grids]
