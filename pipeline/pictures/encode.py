"""Encoding for storage: an image as JPEG bytes of three components, at the size that the spec allows.

`shards.reencode: never` keeps the bytes as they were fetched wherever every reader can read them; an image that is no
JPEG, is grey, CMYK or turned by EXIF, or is larger than `shards.max_side` is re-encoded, from the picture as shown.
`all` encodes every image, which also removes what a camera wrote into it. So does `shards.faces: blur` with an image
that has faces: nothing but the JPEG of the blurred picture is stored of it, neither EXIF nor a thumbnail.

The sides of a stored picture follow from those of the fetched one (`stored_sides`), so that rows, KEY.json and boxes
can state them without decoding anything. Regions were detected on the fetched picture: `scaled_boxes` converts them to
the stored one. `sha256` is that of the fetched bytes everywhere.

Limits: colour profiles are not applied. Encoded bytes depend on the version of libjpeg-turbo.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from data_specs.build import Shards
from data_specs.pictures.jpeg import Bytes
from pipeline.pictures import decode as pictures
from pipeline.pictures.faces import mosaic

Boxes = npt.NDArray[np.float32]
"""[N, 4] x1 y1 x2 y2 in pixels."""


def stored_sides(width: Any, height: Any, max_side: int) -> tuple[Any, Any]:
    """(width, height) of stored pictures, single numbers or arrays: at most `max_side` (0: no limit), at least 1."""
    if not max_side:
        return width, height
    width, height = np.asarray(width, np.int64), np.asarray(height, np.int64)
    longer = np.maximum(np.maximum(width, height), max_side)
    # halves are rounded up, in whole numbers: the same on every machine
    return tuple(np.maximum(1, (2 * side * max_side + longer) // (2 * longer)) for side in (width, height))


def scaled_boxes(boxes_N4: Boxes, fetched_N2: Any, stored_N2: Any) -> Boxes:
    """Boxes in pixels of the stored picture. fetched_N2, stored_N2: width and height of each box's picture.

    0 <= x1 < x2 <= width still holds, whatever is lost to rounding.
    """
    fetched, stored = (np.asarray(sides, np.float64) for sides in (fetched_N2, stored_N2))
    edge = stored.astype(np.float32)
    # [N, 2 corners, 2 axes] times [N, 1, 2 axes]
    scaled = (boxes_N4.reshape(-1, 2, 2) * (stored / fetched)[:, None, :]).astype(np.float32)
    least = np.nextafter(np.float32(0), np.float32(1))  # what is smaller yet is lost to rounding altogether
    high = np.clip(scaled[:, 1], least, edge)
    low = np.minimum(scaled[:, 0], np.nextafter(high, np.float32(0)))  # at least one float below `high`
    return np.stack([low, high], axis=1).reshape(-1, 4)


def as_stored(
    data: Bytes, shards: Shards, sides: tuple[int, int], max_pixels: int, faces_N4: Boxes | None = None
) -> Bytes:
    """JPEG bytes to store, always with three components. sides: width and height of the picture as fetched.

    faces_N4: boxes, in pixels of the stored picture, of what becomes a mosaic; such a picture is always re-encoded.

    Raises PictureError. Grey and CMYK JPEGs are re-encoded although they are JPEGs: Ray Data stacks images into one
    column and fails on the first grey one (an array of two dimensions), and several decoders refuse CMYK.
    """
    quality, fits = shards.jpeg_quality, not shards.max_side or max(sides) <= shards.max_side
    has_faces = faces_N4 is not None and len(faces_N4) > 0
    if shards.reencode == "never" and fits and not has_faces:
        if is_plain_jpeg(data):
            return data
        image = pictures.to_jpeg(data, quality, max_pixels)
        if components_of(image) == 3:
            return image
        data = image
    pixels = pictures.decode(data, max_pixels).pixels
    if not fits:
        width, height = stored_sides(*sides, shards.max_side)
        pixels = pictures.resized(pixels, int(width), int(height))
    if faces_N4 is not None and has_faces:
        pixels = mosaic(pixels, faces_N4)
    return pictures.encode_jpeg(pixels, quality)


def is_plain_jpeg(data: Bytes) -> bool:
    """True if bytes are a JPEG that can be stored as it is, by its markers alone; where False, Pillow must decide.

    Such a JPEG has three components, and no segment that could turn the picture or make it another format (EXIF, XMP,
    Adobe, MPF ...).
    """
    if data[:2] != b"\xff\xd8":
        return False
    at, components = 2, 0
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker, length = data[at + 1], data[at + 2] << 8 | data[at + 3]  # the length counts its own two bytes
        if marker == 0xDA:  # the scan begins
            return components == 3
        if marker in (0xC0, 0xC1, 0xC2) and at + 10 <= len(data):
            components = data[at + 9]  # frame header: length 2, precision 1, height 2, width 2, components 1
        elif marker not in _PLAIN and not (marker == 0xE2 and data[at + 4 : at + 15] == b"ICC_PROFILE"):
            return False
        at += 2 + length
    return False


_PLAIN = frozenset([0xE0, 0xDB, 0xC4, 0xDD, 0xFE])
"""Markers that change nothing about the picture: JFIF, tables, restart intervals and comments."""


def holds_more(jpeg: Bytes) -> bool:
    """True if a JPEG has room for anything but its pixels: a segment of an application other than a bare JFIF header, a
    comment, or bytes after its end (ITU-T T.81, B.1).
    """
    at = 2
    while at + 4 <= len(jpeg) and jpeg[at] == 0xFF and jpeg[at + 1] != 0xDA:
        marker, length = jpeg[at + 1], jpeg[at + 2] << 8 | jpeg[at + 3]  # the length counts its own two bytes
        bare = marker == 0xE0 and length == 16 and jpeg[at + 4 : at + 8] == b"JFIF"
        if not bare and (0xE0 <= marker <= 0xEF or marker == 0xFE):
            return True
        at += 2 + length
    return bytes(jpeg).find(b"\xff\xd9", at) != len(jpeg) - 2  # within a scan FF is followed by 00 or RST


def components_of(jpeg: Bytes) -> int:
    """Number of colour components of a JPEG, from its frame header (ITU-T T.81, B.2.2); 0 if missing."""
    at = 2
    while at + 10 <= len(jpeg) and jpeg[at] == 0xFF:
        marker, length = jpeg[at + 1], int.from_bytes(jpeg[at + 2 : at + 4], "big")
        if marker == 0xFF:  # a fill byte before a marker
            at += 1
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            return jpeg[at + 9]
        else:
            at += 2 + length
    return 0
