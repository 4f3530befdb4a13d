"""A digest of a picture's pixels, used by `dedup` to recognise lossless copies.

PNG, WebP and BMP of the same pixels have the same digest, as have files that differ in their metadata. It is made of
the thumbnails (`pipeline.pictures.thumbs`), which are there already.

Limits: a difference that moves no cell of 64 x 64, or of 32 x 32 in colours, by half a level is not seen: a word of ten
pixels in a screen of 4,000 x 4,000, say. The longer side of a picture beyond 2 : 1 is sampled.
"""

from __future__ import annotations

import hashlib

import numpy as np

from pipeline.features import Feature
from pipeline.pictures.thumbs import Views


class Pixels(Feature):
    """The first 64 bits of a digest of brightness and colours of the whole picture, frame included."""

    def of(self, views: Views) -> list[int]:
        pictures = zip(views.thumbs, views.colour_thumbs, strict=True)
        wholes = (np.concatenate([bright.ravel(), colours.ravel()]).data for bright, colours in pictures)
        return [int.from_bytes(hashlib.blake2b(whole, digest_size=8).digest()) for whole in wholes]
