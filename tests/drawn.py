"""Pictures drawn by a seed, their thumbnails as the features see them, and a picture as phones write it."""

from __future__ import annotations

import base64
import io
import random
import struct
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from pipeline.pictures.decode import Header, Picture
from pipeline.pictures.thumbs import THUMB, Views, fill


def squares_of(pictures: Sequence[Picture]) -> np.ndarray[Any, Any]:
    """[B, 64, 64, 4]: the squares of some pictures, as `Views` takes them."""
    squares = np.empty((len(pictures), THUMB, THUMB, 4), np.uint8)
    for square, picture in zip(squares, pictures, strict=True):
        fill(square, picture)
    return squares


def views(*pictures: np.ndarray[Any, Any]) -> Views:
    headers = [Header("png", pixels.shape[1], pixels.shape[0], 1, 1, False) for pixels in pictures]
    return Views(
        squares_of([Picture(of, np.ascontiguousarray(pixels)) for of, pixels in zip(headers, pictures, strict=True)])
    )


def encoded(image: Image.Image, kind: str = "JPEG", **more: Any) -> bytes:
    """The bytes of a file; `more` goes to Pillow."""
    out = io.BytesIO()
    image.save(out, kind, **more)
    return out.getvalue()


def picture(seed: int, size: tuple[int, int] = (160, 120), kind: str = "JPEG", **more: Any) -> bytes:
    """A file of smooth blobs, of which each seed has its own."""
    small = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return encoded(Image.fromarray(small).resize(size, Image.Resampling.BICUBIC), kind, **more)


def mosaic(seed: int, side: int = 240) -> bytes:
    """A JPEG of 8 x 8 squares of any colours: sharp, and of high entropy, as the filters of web crawls want it."""
    pixels = np.random.default_rng(seed).integers(0, 255, (8, 8, 3), np.uint8)
    return encoded(Image.fromarray(pixels).resize((side, side), Image.Resampling.NEAREST), quality=90)


def rectangles(seed: int, side: int = 240, wide: int = 0) -> Image.Image:
    """A picture unlike the others: random coloured rectangles. `wide`: its width, if it is no square."""
    dice = random.Random(seed)
    image = Image.new("RGB", (wide or side, side), tuple(dice.randrange(256) for _ in range(3)))
    for _ in range(12):
        x, y, w, h = (dice.randrange(side) for _ in range(4))
        image.paste(tuple(dice.randrange(256) for _ in range(3)), (x, y, x + w + 8, y + h + 8))
    return image


def blobs(seed: int, size: tuple[int, int] = (500, 400)) -> np.ndarray[Any, Any]:
    """A smooth colour picture [H, W, 3]."""
    small = np.random.default_rng(seed).integers(0, 256, (9, 11, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(small).resize(size, Image.Resampling.BICUBIC))


HEIC = base64.b64decode("""
AAAAHGZ0eXBoZWljAAAAAG1pZjFoZWljbWlhZgAAAX1tZXRhAAAAAAAAACFoZGxyAAAAAAAAAABwaWN0AAAAAAAAAAAAAAAAAAAAACJpbG9jAA
AAAERAAAEAAQAAAAABoQABAAAAAAAAAGEAAAAjaWluZgAAAAAAAQAAABVpbmZlAgAAAAABAABodmMxAAAAAA5waXRtAAAAAAABAAAA/WlwcnAA
AADdaXBjbwAAAHZodmNDAQNwAAAAkAAAAAAAHvAA/P34+AAADwNgAAEAGEABDAH//wNwAAADAJAAAAMAAAMAHroCQGEAAQAqQgEBA3AAAAMAkA
AAAwAAAwAeoCCBBZbq5Ka5uAhoMCAAAAMDIAAAAwAhYgABAAZEAcFzwIkAAAATY29scm5jbHgAAQANAAaAAAAAFGlzcGUAAAAAAAAAQAAAAEAA
AAAoY2xhcAAAAEAAAAABAAAAMAAAAAEAAAAAAAAAAv////AAAAACAAAAEHBpeGkAAAAAAwgICAAAABhpcG1hAAAAAAAAAAEAAQWBAgMFhAAAAG
ltZGF0AAAAXSgBrxOA5TJ1/+8IT/daT/N8mZOoMQv/OyPgIvzNixBuOnv+dp8dH6v72eIKNGfIv+mtLdmTyU1z99uteQ+fJJ2dCM1WHKUD9Khn
rNSQHaVQgQHHeKY36r3AHRIsKA==
""")
"""64 x 48 pixels, written by libheif with x265: red left and blue right, the lower half half as bright."""


def with_faces(*places: tuple[int, int, int], size: tuple[int, int] = (400, 300)) -> np.ndarray[Any, Any]:
    """[H, W, 3] RGB: a plain picture with a drawn face at each x, y, side, which OpenCV's cascade takes for one."""
    pixels = np.full((size[1], size[0], 3), (150, 160, 150), np.uint8)
    for x, y, side in places:
        pixels[y : y + side, x : x + side] = _face(side)
    return pixels


def _face(side: int) -> np.ndarray[Any, Any]:
    import cv2

    skin, hair, shade, light = (200, 165, 140), (40, 30, 25), (110, 91, 77), (224, 185, 157)
    pixels = np.full((side, side, 3), (90, 110, 120), np.uint8)

    def blob(x: float, y: float, across: float, down: float, colour: tuple[int, int, int]) -> None:
        centre, axes = (round(x * side), round(y * side)), (round(across * side), round(down * side))
        cv2.ellipse(pixels, centre, axes, 0, 0, 360, colour, -1, cv2.LINE_AA)

    blob(0.5, 0.45, 0.36, 0.42, hair)
    blob(0.5, 0.52, 0.29, 0.37, skin)
    for x in (0.38, 0.62):
        blob(x, 0.45, 0.085, 0.05, shade)
        blob(x, 0.455, 0.05, 0.025, (240, 240, 240))
        blob(x, 0.455, 0.024, 0.024, (30, 20, 20))
        blob(x, 0.385, 0.085, 0.012, hair)
    blob(0.5, 0.56, 0.035, 0.06, light)
    blob(0.5, 0.61, 0.05, 0.015, shade)
    blob(0.5, 0.72, 0.11, 0.03, (150, 70, 70))
    return np.asarray(cv2.GaussianBlur(pixels, (0, 0), max(0.5, side / 100)))


def claiming(data: bytes, width: int, height: int) -> bytes:
    """A JPEG or PNG whose header claims other sides; the rest is as it was."""
    if data[:2] == b"\xff\xd8":
        at = data.index(b"\xff\xc0")  # the frame header: marker 2, length 2, precision 1, height 2, width 2
        return data[: at + 5] + struct.pack(">HH", height, width) + data[at + 9 :]
    head = b"IHDR" + struct.pack(">II", width, height) + data[24:29]
    return data[:12] + head + struct.pack(">I", zlib.crc32(head)) + data[33:]
