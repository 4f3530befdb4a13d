"""RGB of a picture that Pillow has loaded, for both halves: alpha on white, deep channels in 8 bits."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

STRIP = 4_000_000
"""Pixels that are laid on white at once: a whole picture would take four times its memory."""

Pixels = npt.NDArray[np.uint8]


def on_white(image: Any) -> Pixels:
    """[H, W, 3] of a loaded image, its alpha on white."""
    from PIL import Image

    width, height = image.size
    pixels = np.empty((height, width, 3), np.uint8)
    rows = max(1, STRIP // max(1, width))
    for top in range(0, height, rows):
        strip = image.crop((0, top, width, min(top + rows, height))).convert("RGBA")
        ground = Image.new("RGBA", strip.size, "white")
        pixels[top : top + rows] = np.asarray(Image.alpha_composite(ground, strip).convert("RGB"))
    return pixels


def is_deep(image: Any) -> bool:
    """True for one channel of 16 bits, 32 bits or floats, which Pillow would cut off at 255."""
    return bool(image.mode.startswith(("I", "F")))


def from_deep(image: Any) -> Pixels:
    """[H, W, 3] of one deep channel, scaled by the range of 16 bits, or else of its values."""
    values = np.nan_to_num(np.asarray(image).astype(np.float64))
    if image.mode.startswith("I") and values.min() >= 0 and values.max() <= 65_535:
        low, high = 0.0, 65_535.0
    else:
        low, high = float(values.min()), float(values.max())
    scaled = (values - low) * (255.0 / max(high - low, 1e-9))
    return np.repeat(np.rint(scaled).clip(0, 255).astype(np.uint8)[..., None], 3, axis=2)
