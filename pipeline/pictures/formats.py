"""Formats of pictures, detected by the first bytes of a file.

One table for everything that asks whether a file is a picture: the sources `folder` and `webdataset`, `init`, the
images that `fetch` stores, and the decoder, which lets Pillow try the detected format only.

Limits: a Targa file has no magic number, so its header is compared with the values that the format allows.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable

from data_specs.pictures.jpeg import Bytes

FORMATS = (
    "jpeg", "png", "gif", "webp", "bmp", "tiff", "avif", "heif", "ico", "jpeg2000", "ppm", "dib", "tga",
)  # fmt: skip
"""Formats that are read, by Pillow's names in small letters. A file's first bytes decide, never its content type."""

READERS = {"avif": "pip install -U 'pillow>=11.3'", "heif": "install wenlan's extra heif"}
"""Formats that not every installation reads, and the command that makes it read them."""

SUFFIXES = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".pjpeg", ".pjp", ".png", ".apng", ".gif", ".webp", ".bmp", ".dib", ".tif",
    ".tiff", ".avif", ".heic", ".heif", ".ico", ".jp2", ".j2k", ".jpx", ".tga", ".ppm", ".pgm", ".pbm", ".pnm",
)  # fmt: skip
"""Suffixes by which a file is a picture without a look at its bytes."""

TEXT_SUFFIXES = (".txt", ".json", ".caption")
"""Suffixes of the texts beside pictures: such a file is not a picture, and its bytes are not looked at either."""

HEAD = 256
"""First bytes of a file by which its format is detected."""

_STARTS = {
    "jpeg": (b"\xff\xd8\xff",),
    "png": (b"\x89PNG\r\n\x1a\n",),
    "gif": (b"GIF87a", b"GIF89a"),
    "tiff": (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"),
    "jpeg2000": (b"\xff\x4f\xff\x51", b"\0\0\0\x0cjP  \r\n\x87\n"),
}

_BRANDS = {"avif": {b"avif", b"avis"}, "heif": {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}}
"""Brands of the files that hold such pictures (ISO/IEC 23008-12, 10.2; AV1 Image File Format, 6)."""

_DIB_HEADERS = (12, 40, 52, 56, 64, 108, 124)
"""Sizes of the header of a Windows bitmap, which its first four bytes state."""


def is_picture(name: str, head: Callable[[], bytes]) -> bool:
    """True if a file is a picture: by its suffix, else by its first HEAD bytes.

    head: reads them. It is called only if the suffix does not tell.
    """
    suffix = name[name.rfind(".") :].lower()
    if suffix in SUFFIXES:
        return True
    return suffix not in TEXT_SUFFIXES and format_of(head()) != ""


def format_of(data: Bytes) -> str:
    """The format (one of FORMATS) of a file that begins with these bytes, HEAD of them or more; "" for another file."""
    head = bytes(data[:HEAD])
    for name, starts in _STARTS.items():
        if head.startswith(starts):
            return name
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "webp"
    if name := _format_in_box(head):
        return name
    tests = {"bmp": _is_bitmap_file, "ico": _is_icon, "ppm": _is_portable, "dib": _is_bitmap, "tga": _is_targa}
    return next((name for name, test in tests.items() if test(head)), "")


@functools.cache
def readable_formats() -> tuple[str, ...]:
    """Returns the FORMATS that this installation reads: AVIF needs a recent Pillow, HEIF the extra `heif`."""
    from PIL import Image, features

    Image.init()
    with contextlib.suppress(ImportError):
        import pi_heif

        pi_heif.register_heif_opener()
    missing = {name for name in FORMATS if name.upper() not in Image.OPEN}
    missing |= {name for name, feature in (("avif", "avif"), ("jpeg2000", "jpg_2000")) if not features.check(feature)}
    return tuple(name for name in FORMATS if name not in missing)


def _format_in_box(head: bytes) -> str:
    """`avif` or `heif` by the brands of a file's first box; "" for anything else.

    The box `ftyp` (ISO/IEC 14496-12, 4.3): its size in 4 bytes, its name, the major brand, a version, and compatible
    brands up to its end, 4 bytes each. Only these tell AVIF from HEIF where the major brand is the `mif1` of both.
    """
    if head[4:8] != b"ftyp":
        return ""
    end = min(int.from_bytes(head[:4], "big"), 256, len(head))
    brands = {head[8:12]} | {head[at : at + 4] for at in range(16, end, 4)}
    return next((name for name, own in _BRANDS.items() if brands & own), "")


def _is_icon(head: bytes) -> bool:
    """ICONDIR: reserved 0, type 1, number of pictures; in the first entry byte 3 is reserved."""
    return head[:4] == b"\0\0\1\0" and len(head) >= 22 and head[4:6] != b"\0\0" and head[9] == 0


def _is_portable(head: bytes) -> bool:
    """PBM, PGM and PPM (netpbm): P1 to P6, white space or a comment, a number."""
    rest = head[2:].split(maxsplit=1)
    starts = head[:1] == b"P" and head[1:2] in b"123456" and head[2:3] in b" \t\r\n#" and len(head) > 2
    return starts and bool(rest) and (rest[0].isdigit() or rest[0].startswith(b"#"))


def _is_bitmap_file(head: bytes) -> bool:
    """BITMAPFILEHEADER of 14 bytes, and behind it the size of a bitmap's header."""
    return head[:2] == b"BM" and int.from_bytes(head[14:18], "little") in _DIB_HEADERS


def _is_bitmap(head: bytes) -> bool:
    """BITMAPCOREHEADER or BITMAPINFOHEADER and its successors: size, width and height, 1 plane, bits of a pixel."""
    size = int.from_bytes(head[:4], "little")
    at = 8 if size == 12 else 12
    planes, bits = (int.from_bytes(head[at + shift : at + shift + 2], "little") for shift in (0, 2))
    return size in _DIB_HEADERS and planes == 1 and bits in (1, 4, 8, 16, 24, 32)


def _is_targa(head: bytes) -> bool:
    """Truevision TGA 2.0, fields 2 to 5: palette or none, kind of picture, palette, place, sides, bits of a pixel."""
    if len(head) < 18:
        return False
    palette, kind, bits, flags = head[1], head[2], head[16], head[17]
    if palette == 0:
        fits = kind in (2, 3, 10, 11) and not any(head[3:8])
    else:
        fits = palette == 1 and kind in (1, 9) and bits == 8 and head[7] in (15, 16, 24, 32)
    has_sides = any(head[12:14]) and any(head[14:16])
    return fits and has_sides and bits in (8, 15, 16, 24, 32) and flags & 0xC0 == 0
