"""Image decoding: bytes become the picture as shown. The only decoder of the pipeline (measure, detect, screen, shard).

"As shown" means what a browser paints: EXIF orientation applied, alpha laid on white, the first frame of an animation,
RGB with 8 bits per channel. Boxes, sides and stored JPEGs all refer to this picture, so it must have one definition.

Pillow is the reference: it alone of the usual decoders refuses a truncated file in every format, knows Adobe's inverted
CMYK and reads size and orientation without decoding. A sound JPEG, which is most of the web, takes a shorter way to the
same pixels: simplejpeg calls the same libjpeg-turbo without Pillow's opening and copying, a third faster at a reduced
size, and raises at the first warning; Pillow then decides. A reduced size comes from the DCT, which reads every byte
all the same, so that damage is still found.

Limits: colour profiles are not applied; damage inside JPEG data that libjpeg conceals is not seen; orientation from
XMP alone is ignored, as browsers do. Decoding by Pillow changes the process's warning filters while it runs, so this
module is not for threads.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from data_specs.pictures.jpeg import MAX_SCANS, Bytes, has_too_many_scans
from data_specs.pictures.rgb import from_deep, is_deep, on_white
from pipeline.pictures.formats import READERS, format_of, readable_formats

MAX_PIXELS = 100_000_000
"""Default limit of `decode`, the same as fetch.max_pixels of a spec."""

JPEG_MAX_SIDE = 65_500
"""Largest side that libjpeg reads and writes (JPEG_MAX_DIMENSION), although the format has room for 65,535."""

MAX_FRAMES = 20_000
"""Frames of a picture are counted up to so many."""

DECODE_VERSION = 2
"""Raised when this module shows another picture for the same bytes: cached features are then computed again."""

Pixels = npt.NDArray[np.uint8]
"""[H, W, 3] RGB of the picture as shown."""

Grey = npt.NDArray[np.uint8]
"""[H, W]"""


class PictureError(ValueError):
    """The bytes are not a picture that can be shown.

    `too_many_pixels` tells a decompression bomb from damage; `unreadable_here` a sound picture in a format whose reader
    is not installed, which the message names.
    """

    def __init__(self, message: str, too_many_pixels: bool = False, unreadable_here: bool = False) -> None:
        super().__init__(message, too_many_pixels, unreadable_here)
        self.message = message
        self.too_many_pixels = too_many_pixels
        self.unreadable_here = unreadable_here

    def __str__(self) -> str:
        return self.message


@dataclass(frozen=True, slots=True)
class Header:
    """Facts of a file's header, read before anything is decoded. Sides are those of the picture as shown."""

    format: str  # one of `formats.FORMATS`
    width: int
    height: int
    orientation: int  # EXIF, 1 to 8; 1 also where the field is absent or senseless
    frames: int
    alpha: bool

    @property
    def pixels(self) -> int:
        return self.width * self.height


@dataclass(frozen=True, slots=True)
class Picture:
    """A decoded picture. `pixels` are smaller than `header` says if it was decoded at a reduced size."""

    header: Header
    pixels: Pixels


def header(data: Bytes) -> Header:
    """Format, sides, orientation, frames and alpha, without decoding. Raises PictureError."""
    with _picture_errors():
        sound = _plain_jpeg_header(data)
        if sound is not None:
            return sound
        with _without_warnings(), _open_by_pillow(data) as image:
            return _pillow_header(image)


def decode(data: Bytes, max_pixels: int = MAX_PIXELS, reduce_to: int = 0) -> Picture:
    """The picture as shown. Raises PictureError; sides and pixel count are checked before anything is decoded.

    reduce_to: if above 0, the picture is reduced by a whole factor, such that its shorter side keeps at least so many
    pixels. Most of a reduced JPEG is never computed.
    """
    with _picture_errors():
        if has_too_many_scans(data):
            raise PictureError(f"a JPEG of more than {MAX_SCANS} scans")
        picture = _decode_plain_jpeg(data, max_pixels, reduce_to) or _decode_by_pillow(data, max_pixels, reduce_to)
        header, pixels = picture.header, picture.pixels
        if not reduce_to and pixels.shape[:2] != (header.height, header.width):
            raise PictureError(f"its header says {header.width} x {header.height}, its pixels {pixels.shape[1::-1]}")
        factor = min(pixels.shape[:2]) // reduce_to if reduce_to else 1
        return picture if factor < 2 else Picture(header, _shrink(pixels, factor))


def _decode_by_pillow(data: Bytes, max_pixels: int, reduce_to: int) -> Picture:
    with _without_warnings(), _open_by_pillow(data) as image:
        header = _pillow_header(image)
        _check_size(header, max_pixels)
        if reduce_to and header.format == "jpeg":
            scale = _dct_scale(header, reduce_to)
            image.draft(None, (max(1, image.width // scale), max(1, image.height // scale)))
        image.load()
        return Picture(header, _to_rgb(image, header))


def _check_size(header: Header, max_pixels: int) -> None:
    """Raises PictureError for a picture that is too large, before its pixels take memory."""
    if header.pixels > max_pixels:
        message = f"{header.width} x {header.height} pixels; at most {max_pixels:,} are allowed"
        raise PictureError(message, too_many_pixels=True)
    if max(header.width, header.height) > JPEG_MAX_SIDE:  # refused here, or the shard that should store it would fail
        message = f"{header.width} x {header.height} pixels do not fit into a JPEG"
        raise PictureError(message, too_many_pixels=True)


def _decode_plain_jpeg(data: Bytes, max_pixels: int, reduce_to: int) -> Picture | None:
    """A JPEG of one or three components, decoded without Pillow; None if anything about it is unusual."""
    header = _plain_jpeg_header(data)
    if header is None:
        return None
    import simplejpeg

    _check_size(header, max_pixels)
    orientation = header.orientation
    # the sides as stored: orientations 5 to 8 swap them
    height, width = (header.width, header.height) if orientation >= 5 else (header.height, header.width)
    scale = _dct_scale(header, reduce_to) if reduce_to else 1
    try:
        pixels = simplejpeg.decode_jpeg(
            data, min_height=-(-height // scale), min_width=-(-width // scale), min_factor=scale
        )
    except ValueError:
        return None
    return Picture(header, _orient(pixels, orientation))


def _plain_jpeg_header(data: Bytes) -> Header | None:
    """`header` of such a JPEG, in a twentieth of Pillow's time; None if anything about it is unusual."""
    if data[:3] != b"\xff\xd8\xff":
        return None
    import simplejpeg

    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return None
    if colours not in ("YCbCr", "RGB", "Gray"):
        return None
    orientation = _jpeg_orientation(data)
    if orientation is None:
        return None
    sides = (height, width) if orientation >= 5 else (width, height)
    return Header("jpeg", *sides, orientation, frames=1, alpha=False)


def _jpeg_orientation(data: Bytes) -> int | None:
    """EXIF orientation of a JPEG whose EXIF is absent or as plain as cameras write it; None if Pillow should decide.

    Walks the segments before the first scan (ITU-T T.81, B.1) and reads the first directory of EXIF (Exif 2.32, 4.6).
    A segment is FF, marker, length in two bytes (which count themselves), data; SOS (DA) begins the scan, APP1 (E1)
    holds EXIF. EXIF is a TIFF header (byte order, offset of the first directory), a directory a count and entries of 12
    bytes: tag 2, type 2, number of values 4, value 4.
    """
    at, end, exif = 2, len(data) - 4, b""
    while at < end and data[at] == 0xFF and data[at + 1] != 0xDA:
        size = data[at + 2] << 8 | data[at + 3]
        if data[at + 1] == 0xE1 and data[at + 4 : at + 10] == b"Exif\0\0":
            if exif:
                return None
            exif = bytes(data[at + 10 : at + 2 + size])
        at += 2 + size
    if at >= end or data[at] != 0xFF:
        return None
    if not exif:
        return 1
    order: Literal["little", "big"] | None = {b"II*\0": "little", b"MM\0*": "big"}.get(exif[:4])  # type: ignore[assignment]
    if order is None:
        return None

    def number(place: int, size: int) -> int:
        return int.from_bytes(exif[place : place + size], order)

    first = number(4, 4)  # offset of the directory, whose first two bytes are its count
    last = first + 2 + 12 * number(first, 2)
    if last > len(exif):
        return None
    for entry in range(first + 2, last, 12):
        if number(entry, 2) == 0x0112:
            plain = number(entry + 2, 2) == 3 and number(entry + 4, 4) == 1  # one SHORT
            return number(entry + 8, 2) if plain and 1 <= number(entry + 8, 2) <= 8 else None
    return 1


def _dct_scale(header: Header, reduce_to: int) -> int:
    """1, 2, 4 or 8: the factor by which a JPEG is reduced while it is decoded. The DCT's other factors are slower."""
    factor = min(header.width, header.height) // reduce_to
    return 8 if factor >= 8 else 4 if factor >= 4 else 2 if factor >= 2 else 1


def _shrink(pixels: Pixels, factor: int) -> Pixels:
    """Means over blocks of factor x factor pixels, narrower at the right and lower edge. Integer arithmetic."""
    from PIL import Image

    return np.asarray(Image.fromarray(pixels).reduce(factor))


def _orient(pixels: Pixels, orientation: int) -> Pixels:
    """Pixels as stored, turned by their EXIF orientation (Exif 2.32, tag 0x0112)."""
    if orientation == 1:
        return pixels
    if orientation >= 5:
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)


def luma(data: Bytes, max_pixels: int = MAX_PIXELS) -> Grey:
    """Grey levels of a JPEG as it holds them, before any colour is added, and as stored. Raises PictureError."""
    with _picture_errors(), _without_warnings(), _open_by_pillow(data) as image:
        _check_size(_pillow_header(image), max_pixels)
        image.draft("L", image.size)
        return np.asarray(image.convert("L"))


def to_jpeg(data: Bytes, quality: int, max_pixels: int = MAX_PIXELS) -> Bytes:
    """JPEG bytes of the picture as shown, without metadata that would turn it; deterministic. Raises PictureError.

    A JPEG that needs no turning is returned byte for byte, whatever its colour space.
    """
    # Pillow may refuse what libjpeg decodes (a senseless segment before the picture): then it is re-encoded too, or
    # a picture that was measured would end the build when it is stored.
    with contextlib.suppress(PictureError), _picture_errors(), _without_warnings(), _open_by_pillow(data) as image:
        # Some readers also follow an orientation that only XMP states; such a file is stored without it.
        if (
            _pillow_header(image).format == "jpeg"
            and _exif_orientation(image) == 1
            and image.getexif().get(274, 1) in (0, 1)
        ):
            return data
    return encode_jpeg(decode(data, max_pixels).pixels, quality)


def resized(pixels: Pixels, width: int, height: int) -> Pixels:
    """RGB pixels [height, width, 3], resized by Lanczos; Pillow computes it in whole numbers, so everywhere alike.

    Raises PictureError.
    """
    from PIL import Image

    with _picture_errors():
        return np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.LANCZOS))


def encode_jpeg(pixels: Pixels, quality: int) -> bytes:
    """Baseline JPEG, 4:2:0, of RGB pixels [H, W, 3]. Raises PictureError if a side is above JPEG_MAX_SIDE."""
    from PIL import Image

    if max(pixels.shape[:2]) > JPEG_MAX_SIDE:
        raise PictureError(f"{pixels.shape[1]} x {pixels.shape[0]} pixels do not fit into a JPEG")
    out = io.BytesIO()
    with _picture_errors():
        Image.fromarray(pixels).save(out, "JPEG", quality=quality, subsampling=2)
    return out.getvalue()


_DECODERS = ("PIL", "cv2", "simplejpeg")


@contextmanager
def _picture_errors() -> Iterator[None]:
    """Turns whatever a decoder raises on hostile bytes into PictureError: the one place where the pipeline does so."""
    try:
        yield
    except PictureError:
        raise
    except Exception as e:  # OSError, SyntaxError, struct.error, TypeError, MemoryError, SystemError and more
        if isinstance(e, ModuleNotFoundError) and e.name in _DECODERS:
            raise  # the extra pipeline is not installed; the bytes are not at fault
        text = " ".join(str(e).split())
        raise PictureError(f"{type(e).__name__}: {text}" if text else type(e).__name__) from None


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Silences Pillow's warnings about hostile bytes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _open_by_pillow(data: Bytes) -> Any:
    from PIL import Image, UnidentifiedImageError

    Image.MAX_IMAGE_PIXELS = None  # our own limit is checked from the header, with a reason of its own
    name = format_of(data)
    if name in READERS and name not in readable_formats():
        shown = "HEIC (HEIF)" if name == "heif" else name.upper()
        message = f"{shown} pictures cannot be read by this installation: {READERS[name]}, then build again"
        raise PictureError(message, unreadable_here=True)
    if name == "ico":
        _check_icon(data)
    with contextlib.suppress(UnidentifiedImageError):
        if name in readable_formats():
            return Image.open(io.BytesIO(data), formats=[name.upper()])
    raise PictureError(f"not a supported image (it starts with {data[:8].hex() or 'nothing'})")


def _check_icon(data: Bytes) -> None:
    """Raises PictureError for an icon with a picture of other sides than its directory states, 256 x 256 at most.

    The directory (6 bytes, then 16 an entry) states sides in a byte each, 0 for 256, and where the picture lies: a PNG
    of any size, or a bitmap of twice the height, whose other half is a mask. Pillow decodes it before it compares.
    """
    for at in range(6, 6 + 16 * int.from_bytes(data[4:6], "little"), 16):
        stated = tuple(side or 256 for side in data[at : at + 2])
        start = int.from_bytes(data[at + 12 : at + 16], "little")
        inner = bytes(data[start : start + 24])
        if inner.startswith(b"\x89PNG"):
            sides = int.from_bytes(inner[16:20], "big"), int.from_bytes(inner[20:24], "big")
        else:
            sides = int.from_bytes(inner[4:8], "little"), int.from_bytes(inner[8:12], "little") // 2
        if stated != sides:
            raise PictureError(f"an icon whose directory says {stated}, its picture {sides}")


def _pillow_header(image: Any) -> Header:
    name = image.format.lower()
    name = "jpeg" if name == "mpo" else name  # MPO: a phone's JPEG with further pictures behind the first
    orientation = _exif_orientation(image)
    # Pillow turns a TIFF itself when it loads it, and its size is the turned one from the start.
    turned = orientation >= 5 and name != "tiff"
    width, height = (image.height, image.width) if turned else image.size
    if width < 1 or height < 1:
        raise PictureError(f"{width} x {height} pixels")
    frames = 1 if name == "jpeg" else _count_frames(image, name)
    alpha = image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info
    return Header(name, width, height, orientation, frames, alpha)


def _count_frames(image: Any, name: str) -> int:
    """Pictures in a file, MAX_FRAMES at most: Pillow walks through all of a GIF or TIFF, minutes for a few MB."""
    data = image.fp.getbuffer() if name in ("gif", "tiff") else b""
    if (name == "gif" and _has_many_frames(data)) or (name == "tiff" and _has_many_directories(data)):
        return MAX_FRAMES
    return min(int(getattr(image, "n_frames", 1)), MAX_FRAMES)


def _has_many_frames(data: Bytes) -> bool:
    """True if a GIF has more than MAX_FRAMES pictures.

    After a header of 13 bytes and a palette come blocks (GIF89a, appendix B): `,` begins a picture of 9 bytes, palette,
    code size, `!` an extension of a label; both end in sub-blocks of a length and so many bytes, the last of length 0.
    A flag byte's top bit says that there is a palette, its low three bits n that it has 3 * 2 ** (n + 1) bytes.
    """

    def palette(flags: int) -> int:
        return 3 << (flags & 7) + 1 if flags & 0x80 else 0

    at, end, frames = 13 + palette(data[10]), len(data), 0
    while at < end and frames <= MAX_FRAMES:
        kind, at = data[at], at + 1
        if kind == 0x2C and at + 9 < end:
            frames += 1
            at += 10 + palette(data[at + 8])
        elif kind == 0x21:
            at += 1
        elif kind == 0x3B:
            break
        else:
            continue  # Pillow passes over it too
        while at < end and data[at]:
            at += 1 + data[at]
        at += 1
    return frames > MAX_FRAMES


def _has_many_directories(data: Bytes) -> bool:
    """True if a TIFF has more than MAX_FRAMES directories: each ends with the offset of the next one, 0 after the last.

    In a plain TIFF (version 42) offsets have 4 bytes, counts 2, entries 12; in a BigTIFF (43) they have 8, 8 and 20.
    """
    order: Literal["little", "big"] = "little" if bytes(data[:2]) == b"II" else "big"
    big = int.from_bytes(data[2:4], order) == 43
    offset, count, entry = (8, 8, 20) if big else (4, 2, 12)
    at, directories = int.from_bytes(data[8:16] if big else data[4:8], order), 0
    while 0 < at < len(data) and directories <= MAX_FRAMES:
        directories += 1
        after = at + count + entry * int.from_bytes(data[at : at + count], order)
        at = int.from_bytes(data[after : after + offset], order)
    return directories > MAX_FRAMES


def _exif_orientation(image: Any) -> int:
    from PIL import Image

    if image.format == "TIFF":
        value = image.tag_v2.get(274, 1)
    else:
        exif = Image.Exif()
        try:
            exif.load(image.info.get("exif", b""))
            value = exif.get(274, 1)
        except Exception:  # damaged EXIF: the picture itself may be sound
            value = 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _to_rgb(image: Any, header: Header) -> Pixels:
    """[H, W, 3] of a loaded image: in RGB, alpha on white, turned by its orientation."""
    if header.alpha:
        pixels = on_white(image)
    elif is_deep(image):
        pixels = from_deep(image)
    else:
        pixels = np.asarray(image if image.mode == "RGB" else image.convert("RGB"))
    return _orient(pixels, 1 if header.format == "tiff" else header.orientation)
