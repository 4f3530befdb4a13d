"""Features of pictures from the shipped ImageNet backbone, computed once and mapped into memory by every run.

The backbone is a frozen MobileNetV2, all of it prefix. What is frozen need not run again in every step, so
its map is pooled over the boxes once (`training.towers.region_pooling`, as the image tower does it), and a picture
becomes R rows of 1,280 numbers in half precision. A run reads them as a map of one row and R columns whose boxes are
its cells: pooling with one sample per box then returns each column as it is, and the image tower is used unchanged.

One file per style, written under another name and renamed: a killed study computes at most one style again.

Limits: half precision rounds the features to three digits. Boxes are fixed when the features are made.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tests.benchmarks.study.drawings import Drawings, Style, needed, raster
from training.config import ImageTowerConfig
from training.encoders.cnn_regions import Prefix
from training.errors import InputError
from training.records import Batch
from training.towers.backbones import load_backbone
from training.towers.region_pooling import pool_regions

SIDE = 192
"""Pixels of the backbone's square input: the starter recipe's."""

GRID = 2
"""Cells per side of a picture; with the whole picture, which is the last region, these are its regions."""

REGIONS = GRID * GRID + 1

CHANNELS = 1280

VERSION = 2
"""Raised when the same packages give other features."""

_AT_ONCE = 32

Rows = npt.NDArray[Any]


class Backbone:
    """The frozen backbone: uint8 pictures and boxes to features of the boxes."""

    def __init__(self, weights: Path) -> None:
        """Raises ConfigError if the file of weights is not there or does not fit."""
        backbone = load_backbone("torchvision/mobilenet_v2", str(weights), SIDE)
        self._prefix = Prefix(backbone, len(backbone.stages), ImageTowerConfig()).eval()
        self._prefix.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @torch.no_grad()
    def __call__(self, pictures_BHW3: npt.NDArray[np.uint8], boxes_BR4: Tensor) -> Rows:
        """float16 [B, R, CHANNELS]: the mean of the map over each box, in pixels of the pictures."""
        images_B3HW = torch.from_numpy(np.ascontiguousarray(pictures_BHW3)).permute(0, 3, 1, 2)
        map_BCHW = self._prefix(Batch.of(images_B3HW=images_B3HW))
        side = (images_B3HW.shape[-2], images_B3HW.shape[-1])
        regions_BRC: Rows = pool_regions(map_BCHW, boxes_BR4, side).to(torch.float16).numpy()
        return regions_BRC


def grid_boxes(side: int, cells: int) -> Tensor:
    """Boxes [cells^2 + 1, 4] in pixels of a square picture: a grid's cells in reading order, then the whole picture."""
    step = side / cells
    boxes = [(x * step, y * step, (x + 1) * step, (y + 1) * step) for y in range(cells) for x in range(cells)]
    return torch.tensor([*boxes, (0.0, 0.0, float(side), float(side))])


@dataclass(frozen=True)
class StyleFeatures:
    """One style's drawings: the emoji's codes and features [N, R, C], mapped."""

    style: Style
    codes: tuple[str, ...]
    regions_NRC: Rows


def key_of(style: Style, tarballs: Mapping[str, Path], weights: Path) -> str:
    """Dependencies of a style's features: packages (so their versions), weights, sizes, and this code's version."""
    names = [tarballs[package].name for package in needed([style])]
    parts = [*names, weights_id(weights), str((VERSION, SIDE, GRID))]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


@lru_cache(maxsize=4)
def weights_id(weights: Path) -> str:
    """Identity of weights: the file's name where that holds the beginning of its sha256, as torchvision's do, else
    also the digest. Of a file that is not there, which a page does not need, the name."""
    try:
        digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    except OSError:
        return weights.name
    return weights.name if digest[:8] in weights.name else f"{weights.name} {digest}"


def load(folder: Path, style: Style, key: str) -> StyleFeatures | None:
    """The style's features in `folder`, or None where they have still to be made from the drawings of `key`."""
    stem = folder / _stem(style)
    try:
        record = json.loads(stem.with_suffix(".json").read_text(encoding="utf-8"))
        if record["key"] != key:
            return None
        return StyleFeatures(style, tuple(record["codes"]), np.load(f"{stem}.regions.npy", mmap_mode="r"))
    except (OSError, ValueError, KeyError):
        return None


def make(folder: Path, style: Style, key: str, drawings: Drawings, wanted: set[str], backbone: Backbone) -> None:
    """Draw the style's emoji of `wanted` and write their features into `folder`. Raises InputError."""
    icons = {code: name for code, name in sorted(drawings.codes(style).items()) if code in wanted}
    if not icons:
        raise InputError(style.package, "draws none of the emoji; is it laid out in another way now?")
    boxes_R4 = grid_boxes(SIDE, GRID)
    pictures = _pictures(drawings, style, list(icons.values()))
    regions = [backbone(pictures_BHW3, boxes_R4.expand(len(pictures_BHW3), -1, -1)) for pictures_BHW3 in pictures]
    folder.mkdir(parents=True, exist_ok=True)
    stem = folder / _stem(style)
    new = Path(f"{stem}.regions.new.npy")
    np.save(new, np.concatenate(regions))
    new.replace(f"{stem}.regions.npy")
    new = stem.with_suffix(".new")
    new.write_text(json.dumps({"key": key, "style": style.name, "codes": list(icons)}), encoding="utf-8")
    new.replace(stem.with_suffix(".json"))  # last: without it the style is not there


def flat(png: bytes, side: int) -> npt.NDArray[np.uint8]:
    """A PNG on white, in the middle of a square of `side` pixels: [side, side, 3] RGB."""
    import io

    from PIL import Image

    with Image.open(io.BytesIO(png)) as image:
        drawing = image.convert("RGBA")
    square = Image.new("RGBA", (side, side), "white")
    square.alpha_composite(drawing, ((side - drawing.width) // 2, (side - drawing.height) // 2))
    return np.asarray(square.convert("RGB"))


def _pictures(drawings: Drawings, style: Style, names: Sequence[str]) -> Iterator[npt.NDArray[np.uint8]]:
    for start in range(0, len(names), _AT_ONCE):
        some = names[start : start + _AT_ONCE]
        yield np.stack([flat(raster(drawings.svg(style, name), SIDE), SIDE) for name in some])


def _stem(style: Style) -> str:
    return style.package.rpartition("/")[2]
