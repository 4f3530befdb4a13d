"""Features: measurements from a single decode of an image, each a column of `pipeline.rows.records.FEATURE_SCHEMA`.

Features look at many images at once, since at these sizes a call of NumPy costs more than what it does. What the header
alone tells (format, sides, frames, alpha, orientation) needs no feature. Hashes, signature and details are of what lies
inside a picture's frame (`pipeline.pictures.frames`).

Limits: `entropy` is blind to where the levels are, so noise and a fine photograph score alike. `sharpness` does not see
a blur that disappears in 64 x 64, some 4 pixels of a picture of 500. `pixels` does not see what moves no cell of
64 x 64, or of 32 x 32 in colours, by half a level: a word of ten pixels in a screen of 4,000 x 4,000.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from pipeline.pictures import details, hashing, signatures
from pipeline.pictures.thumbs import Views


class Feature(NamedTuple):
    """of: the column's value for each picture. version: raised when it changes for the same pixels."""

    of: Callable[[Views], list[Any]]
    version: int = 1


def _blankness(views: Views) -> list[float]:
    """Share of a picture that its most frequent grey level (of 64) covers, 0 to 1.

    A placeholder or a scan of an empty page is near 1; a drawing on white may well be at 0.9 and still be a picture.
    """
    # [B, 256] levels, four neighbours to one of 64
    shares: list[float] = views.levels.reshape(-1, 64, 4).sum(axis=2).max(axis=1).tolist()
    return shares


def _details(views: Views) -> list[bytes | None]:
    """`details.SIZE` bytes of a picture without texture, such as a screenshot, chart or drawing; None of another."""
    values: list[bytes | None] = [None] * len(views.thumbs)
    flat = list(views.flat)
    if flat:
        grids = signatures.signatures_of(views.unframed_thumbs[flat], views.unframed_colour_thumbs[flat])[:, 0]
        hashes = details.hashes_of(np.stack([square for square, _ in views.flat.values()]))
        stored = details.stored(hashes, np.stack([cells for _, cells in views.flat.values()]))
        for row, packed, plain in zip(flat, stored, signatures.is_plain(grids, details.PLAIN), strict=True):
            values[row] = packed.tobytes() if plain else None
    return values


def _entropy(views: Views) -> list[float]:
    """Shannon's entropy (1948) of the grey levels, in bits: 0 for a single level, 8 if all are equally frequent.

    To three decimals: the last digits of a logarithm differ between machines.
    """
    shares = views.levels
    bits = -(shares * np.log2(shares, where=shares > 0, out=np.zeros_like(shares))).sum(axis=1)
    rounded: list[float] = (np.round(bits, 3) + 0.0).tolist()  # + 0.0: no minus zero
    return rounded


def _phash(views: Views) -> list[list[int]]:
    """64-bit hashes of `parts.BOXES`, of what lies between the margins, of `parts.HALVES`: they find near-copies."""
    hashes, content = np.zeros((len(views.thumbs), hashing.HASHES), np.uint64), hashing.CONTENT
    unframed = hashing.hashes_of(views.unframed_thumbs)
    hashes[:, :content], hashes[:, content + 1 :] = unframed[:, :content], unframed[:, content:]
    if views.with_content:
        hashes[views.with_content, content] = hashing.hashes_of(views.content_thumbs)[:, 0]
    lists: list[list[int]] = hashes.tolist()
    return lists


def _pixels(views: Views) -> list[int]:
    """64 bits of a digest of the thumbnails, frame included: PNG, WebP and BMP of the same pixels have the same."""
    pictures = zip(views.thumbs, views.colour_thumbs, strict=True)
    wholes = (np.concatenate([bright.ravel(), colours.ravel()]).data for bright, colours in pictures)
    return [int.from_bytes(hashlib.blake2b(whole, digest_size=8).digest()) for whole in wholes]


def _sharpness(views: Views) -> list[float]:
    """Variance of the Laplacian of the grey thumbnail (Pech-Pacheco et al., 2000): large where there are edges."""
    import cv2

    # whole numbers: nothing is rounded before the root
    deviations = (cv2.meanStdDev(cv2.Laplacian(thumb, cv2.CV_16S))[1] for thumb in views.thumbs)
    return [float(deviation[0, 0]) ** 2 for deviation in deviations]


def _signature(views: Views) -> list[bytes]:
    """A grid for each of `parts.BOXES`, and one of what lies between the margins: they verify matches of hashes."""
    grids = np.zeros((len(views.thumbs), signatures.GRIDS, signatures.SIZE), np.uint8)
    grids[:, : signatures.CONTENT] = signatures.signatures_of(views.unframed_thumbs, views.unframed_colour_thumbs)
    if views.with_content:
        content = signatures.signatures_of(views.content_thumbs, views.content_colour_thumbs)
        grids[views.with_content, signatures.CONTENT] = content[:, 0]
    return [signature.tobytes() for signature in grids]


FEATURES = {
    "blankness": Feature(_blankness, 2),
    "details": Feature(_details, 2),
    "entropy": Feature(_entropy),
    "phash": Feature(_phash, 3),
    "pixels": Feature(_pixels),
    "sharpness": Feature(_sharpness),
    "signature": Feature(_signature, 3),
}
"""Features by their column."""
