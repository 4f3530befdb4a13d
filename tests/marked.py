"""Pictures of textures, and a logo that is laid on them half transparent."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from tests.drawn import encoded
from tests.stages import DEDUP

SIZE = (320, 240)

Picture = np.ndarray[Any, Any]


def textures(count: int, seed: int = 0, size: tuple[int, int] = SIZE, cell: int = 24) -> list[Picture]:
    """Pictures [H, W, 3] of smooth coloured blobs with grain, no two alike."""
    made = []
    for number in range(count):
        rng = np.random.default_rng([seed, number])
        small = rng.integers(20, 236, (size[1] // cell, size[0] // cell, 3), dtype=np.uint8)
        blobs = np.asarray(Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)).astype(np.int16)
        made.append(np.clip(blobs + rng.integers(-12, 13, blobs.shape), 0, 255).astype(np.uint8))
    return made


def logo(size: tuple[int, int] = SIZE) -> Image.Image:
    """[H, W] mask of a sign in the lower right corner: a ring, a bar and two dots."""
    width, height = size
    mask = Image.new("L", size, 0)
    pen = ImageDraw.Draw(mask)
    right, bottom = width - 14, height - 12
    pen.ellipse((right - 34, bottom - 34, right, bottom), outline=255, width=6)
    pen.rectangle((right - 90, bottom - 22, right - 42, bottom - 12), fill=255)
    pen.ellipse((right - 70, bottom - 36, right - 60, bottom - 26), fill=255)
    pen.ellipse((right - 56, bottom - 36, right - 46, bottom - 26), fill=255)
    return mask


def stamped(picture: Picture, mask: Image.Image, opacity: float = 0.3) -> Picture:
    """The picture with a white sign laid on it where the mask is."""
    alpha = np.asarray(mask)[..., None] / 255 * opacity
    laid: Picture = np.rint(picture * (1 - alpha) + 255 * alpha).astype(np.uint8)
    return laid


STAGES = ("measure", "filter", *DEDUP, "screen", "marks", "watermark")
MARKED, PLAIN = 24, 6
"""Pictures of img.test with its logo and without it; as many of plain.test have none, and FEW of few.test all do."""
FEW = 8


def images() -> list[tuple[str, bytes, str]]:
    """(URL, JPEG, text) of the pictures of three hosts; a name says what a picture is."""
    all_ = textures(2 * (MARKED + PLAIN) + FEW)
    made = []
    for number, picture in enumerate(all_):
        kind = "marked" if number < MARKED else "plain"
        host = "img.test" if number < MARKED + PLAIN else "plain.test"
        if number >= 2 * (MARKED + PLAIN):
            kind, host = "marked", "few.test"
        shown = stamped(picture, logo(), 0.4) if kind == "marked" else picture
        text = f"第{number}幅画，{kind}，{host}"
        made.append((f"http://{host}/{kind}-{number}.jpg", encoded(Image.fromarray(shown), quality=90), text))
    return made
