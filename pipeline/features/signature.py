"""Signatures of a picture and of its parts: coarse brightness and colour, by which a match of hashes is verified.

Of a picture in a frame they are those of what lies inside (`pipeline.pictures.frames`).

`pipeline.pictures.signatures` says how they are computed and compared.
"""

from __future__ import annotations

from pipeline.features import Feature
from pipeline.pictures.signatures import signatures_of
from pipeline.pictures.thumbs import Views


class Signature(Feature):
    """Bytes: a grid of `signatures.SIZE` bytes for each of `parts.BOXES`."""

    VERSION = 3

    def of(self, views: Views) -> list[bytes]:
        own = signatures_of(views.unframed_thumbs, views.unframed_colour_thumbs)
        return [signature.tobytes() for signature in own]
