"""Scans of JPEG files: the bound that both halves check before they decode one.

A progressive JPEG is a sequence of scans, each of which goes over all coefficients of the picture and may take 40 bytes
of the file: 215 kB with 5,000 scans of 2,000 x 2,000 pixels take 14 s to decode, and no decoder has a limit.
Encoders write one scan per component, progressive ones about ten, those that search for the smallest file some dozens.
"""

from __future__ import annotations

import re

MAX_SCANS = 64
"""Scans of a JPEG that is decoded."""

Bytes = bytes | memoryview

_MARKER = re.compile(b"\xff+([^\x00\xff])")
_SCAN = re.compile(b"\xff\xda")
_WITHOUT_LENGTH = frozenset((0x01, *range(0xD0, 0xD9)))
_START_OF_SCAN, _END, _BASELINE = 0xDA, 0xD9, (0xC0, 0xC1)


def has_too_many_scans(data: Bytes) -> bool:
    """True if a file is a JPEG with more than MAX_SCANS scans that may cost nothing but time.

    Walks the markers (ITU-T T.81, B.1) up to the end of the first picture: thumbnails in EXIF, and what phones append
    to a picture, are not its scans. Baseline pictures, which are most, end the walk at their frame header: their scans
    take at least two bits per block. Of the others most end it at the first scan, by one search.
    """
    if data[:2] != b"\xff\xd8":
        return False
    at, scans = 2, 0
    while scans <= MAX_SCANS and (found := _MARKER.search(data, at)):
        marker, at = found.group(1)[0], found.end()
        if marker == _END or marker in _BASELINE:
            return False
        if marker == _START_OF_SCAN:
            if not scans and len(_SCAN.findall(data, at)) < MAX_SCANS:
                return False
            scans += 1
        if marker not in _WITHOUT_LENGTH:
            at += max(2, int.from_bytes(data[at : at + 2], "big"))
    return scans > MAX_SCANS
