"""Colour changes of training pictures: ColorJitter and RandomGrayscale, repeatable in any process.

Brightness, contrast, saturation and hue as torchvision has them, but in one go on float planes: torchvision goes back
to uint8 after each change, which costs a rounding each, and its hue alone took two thirds of what a small picture takes
from bytes to batch.

Limits: pixels may differ from torchvision's by the roundings that it makes in between.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from torch import Generator, Tensor

_Planes = npt.NDArray[np.float32]


def recolour(
    image: Tensor, strength: tuple[float, float, float, float], p_jitter: float, p_gray: float, generator: Generator
) -> Tensor:
    """ColorJitter of `strength` (brightness, contrast, saturation, hue) with p_jitter, then grey with p_gray.

    `image` is uint8 [3, H, W], and so is what comes back. All randomness is the generator's; distributions are those of
    torchvision's ColorJitter and RandomGrayscale.
    """
    import torch

    draws = torch.rand(6, generator=generator).tolist()
    changes = []
    if draws[0] < p_jitter:
        for which in torch.randperm(4, generator=generator).tolist():
            amount = strength[which]
            low, high = (-amount, amount) if which == 3 else (max(0.0, 1 - amount), 1 + amount)
            if amount:
                changes.append((_CHANGES[which], low + (high - low) * draws[1 + which]))
    gray = draws[5] < p_gray
    if not changes and not gray:
        return image
    planes = image.contiguous().numpy().reshape(3, -1).astype(np.float32)
    for change, value in changes:
        planes = change(planes, value)
    if gray:
        planes = np.broadcast_to(_gray(planes), planes.shape)
    pixels = np.rint(planes.T).astype(np.uint8)  # channel last, as it came
    return torch.from_numpy(pixels.reshape(*image.shape[1:], 3)).permute(2, 0, 1)


def _gray(planes: _Planes) -> _Planes:
    """[N], with torchvision's shares. Not a matrix product: BLAS would start threads of its own."""
    gray: _Planes = planes[0] * np.float32(0.2989)
    gray += planes[1] * np.float32(0.587)
    gray += planes[2] * np.float32(0.114)
    return gray


def _clipped(planes: _Planes) -> _Planes:
    clipped: _Planes = np.clip(planes, 0, 255, out=planes)
    return clipped


def _brightness(planes: _Planes, factor: float) -> _Planes:
    planes *= np.float32(factor)
    return _clipped(planes)


def _contrast(planes: _Planes, factor: float) -> _Planes:
    middle = _gray(planes).mean()
    planes *= np.float32(factor)
    planes += np.float32((1 - factor) * middle)
    return _clipped(planes)


def _saturation(planes: _Planes, factor: float) -> _Planes:
    gray = _gray(planes)
    gray *= np.float32(1 - factor)
    planes *= np.float32(factor)
    planes += gray
    return _clipped(planes)


def _hue(planes: _Planes, turn: float) -> _Planes:
    """Turn the hue of HSV by `turn` of the circle; value and chroma, the largest and the spread, stay.

    The hue is counted in sixths of the circle: 0 is red, 2 green, 4 blue.
    """
    red, green, blue = planes
    lowest = np.minimum(np.minimum(red, green), blue)
    highest = np.maximum(np.maximum(red, green), blue)
    chroma = highest - lowest
    per_sixth = 1 / np.maximum(chroma, np.float32(1e-6))  # without chroma any hue will do
    hue = (red - green) * per_sixth + 4
    np.copyto(hue, (blue - red) * per_sixth + 2, where=highest == green)
    np.copyto(hue, (green - blue) * per_sixth, where=highest == red)
    hue += np.float32(6 * turn)
    hue -= 6 * np.floor(hue / 6)
    turned = np.empty_like(planes)
    np.abs(hue - 3, out=turned[0])
    turned[0] -= 1
    for plane, centre in ((1, 2), (2, 4)):
        np.abs(hue - centre, out=turned[plane])
        np.subtract(2, turned[plane], out=turned[plane])
    np.clip(turned, 0, 1, out=turned)
    turned *= chroma
    turned += lowest
    return turned


_CHANGES = (_brightness, _contrast, _saturation, _hue)
