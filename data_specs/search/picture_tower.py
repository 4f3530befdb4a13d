"""Vectors of pictures without torch: an image tower as an ONNX file, run by onnxruntime.

The image half of `wenlan-train export --to onnx` says in its metadata how pictures are prepared: its side S, by which
mean and standard deviation, how many boxes. A picture is resized to S x S whatever its shape, as in training
(training/data/transforms.py), and its boxes are the even grid and the whole picture, as `wenlan-train embed` has them
without a detector.

Image towers of others take [B, 3, S, S] alone, and say nothing of themselves: `PictureTower.foreign` takes the rest.
Chinese-CLIP's (cn_clip/deploy/pytorch_to_onnx.py) take `image`, bicubic, by the mean and deviation of CLIP.

Limits: a checkpoint that was trained with a detector sees other boxes here, for the same picture.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from data_specs.search.folder import Towers
from data_specs.search.onnx_file import OpenTower, TowerFault, check_onnx_file, open_onnx_file, width_of
from data_specs.search.queries import Vectors, unit_rows

Resize = Literal["bilinear", "bicubic"]
OUR_RESIZE: Resize = "bilinear"
Colour = tuple[float, float, float]
"""R, G, B in [0, 1]."""

Picture = npt.NDArray[np.uint8]
"""[H, W, 3] RGB."""

MOST_SIDE, MOST_BOXES = 4_096, 10_000
"""Largest values that a file of our format may state: it is untrusted, and a picture is made of that size."""

_OURS = {"images", "boxes", "n_boxes"}
_FLOATS: dict[str, type[np.float32] | type[np.float16]] = {"tensor(float)": np.float32, "tensor(float16)": np.float16}


@dataclass(frozen=True, slots=True)
class PictureInputs:
    """Input of an image tower: pictures as `name` [B, 3, S, S], resized and normalised.

    boxes: of a tower of ours, [R, 4] in pixels of S, the whole picture last; None for another. named: the inputs that
    the file has, of which a tower that does not look at boxes has one. at_once: B, where the file fixes it; 0 for any.
    """

    name: str
    side: int
    mean: Colour
    std: Colour
    resize: Resize
    named: frozenset[str]
    boxes: npt.NDArray[np.float32] | None = None
    kind: type[np.float32] | type[np.float16] = np.float32
    at_once: int = 0


class PictureTower:
    """An image tower. towers: their identity. width: D. side: S, in pixels."""

    def __init__(self, session: Any, inputs: PictureInputs, towers: Towers, subject: str) -> None:
        self.towers, self.side = towers, inputs.side
        self._session, self._inputs = session, inputs
        mean, std = (np.array(own, np.float64).reshape(3, 1, 1) for own in (inputs.mean, inputs.std))
        self._scale: Vectors = (1 / (255 * std)).astype(np.float32)
        self._shift: Vectors = (mean / std).astype(np.float32)
        self.width = self._probed(subject)

    @staticmethod
    def open(path: Path, threads: int = 0, gpu: bool = False) -> PictureTower:
        """Open an image tower of wenlan. Raises TowerFault for a file that cannot be used so."""
        model = open_onnx_file(check_onnx_file(path), threads, gpu)
        about, names = model.about, frozenset(model.inputs)
        if "images" not in names or not names <= _OURS or "pixel_mean" not in about:
            raise TowerFault(f"{path}: is not an image tower made by wenlan-train export --to onnx")
        try:
            towers = Towers(recipe=about["recipe"], sha256=about["towers_sha256"])
            side, most = int(about["image_size"]), int(about["max_boxes"])
            mean, std = (_colour(json.loads(about[f"pixel_{name}"])) for name in ("mean", "std"))
            if not (1 <= side <= MOST_SIDE and 0 <= most <= MOST_BOXES and min(std) > 0):
                raise ValueError(f"image_size {side}, max_boxes {most}, pixel_std {std}")
        except (KeyError, RecursionError, TypeError, ValueError) as e:
            raise TowerFault(f"{path}: its metadata cannot be used ({type(e).__name__}: {e})") from None
        inputs = PictureInputs("images", side, mean, std, OUR_RESIZE, names, grid_boxes(side, most))
        return PictureTower(model.session, inputs, towers, str(path))

    @staticmethod
    def foreign(
        path: Path, side: int, mean: Colour, std: Colour, resize: Resize, threads: int = 0, gpu: bool = False
    ) -> PictureTower:
        """Open an image tower from elsewhere: one input [B, 3, S, S]. side: S, where the file leaves it free.

        Raises TowerFault for a file that cannot be used so.
        """
        file = check_onnx_file(path)
        model = open_onnx_file(file, threads, gpu)
        name, kind, shape = _only_input(path, model)
        fixed = {size for size in shape[2:] if size}
        if fixed - {side}:
            raise TowerFault(f"{path}: takes {list(shape)}, pair_score.side is {side}")
        named = frozenset(model.inputs)
        inputs = PictureInputs(name, side, mean, std, resize, named, kind=_FLOATS[kind], at_once=shape[0])
        return PictureTower(model.session, inputs, Towers(recipe="", sha256=file.sha256), str(path))

    def encode(self, pictures: Sequence[Picture]) -> Vectors:
        """float32 [n, D] unit rows of pictures, in their order. Raises ValueError for a row that is not finite."""
        size = self._inputs.at_once or len(pictures)
        rows = [self._features(self.prepare(pictures[low : low + size])) for low in range(0, len(pictures), size or 1)]
        return unit_rows(np.concatenate([np.empty((0, self.width), np.float32), *rows]))

    def prepare(self, pictures: Sequence[Picture]) -> npt.NDArray[np.float32]:
        """[n, 3, S, S] inputs of the tower."""
        side = self.side
        images = np.empty((len(pictures), 3, side, side), np.float32)
        for row, picture in enumerate(pictures):
            pixels = to_square(picture, side, self._inputs.resize)
            np.copyto(images[row], pixels.transpose(2, 0, 1))
            images[row] *= self._scale
            images[row] -= self._shift
        return images

    def _features(self, images: npt.NDArray[np.float32]) -> Vectors:
        """Raw features [n, D] of prepared pictures."""
        own, count = self._inputs, len(images)
        if own.at_once > count:
            images = np.concatenate([images, np.zeros((own.at_once - count, *images.shape[1:]), np.float32)])
        given: dict[str, npt.NDArray[Any]] = {own.name: images.astype(own.kind, copy=False)}
        if own.boxes is not None:
            given["boxes"] = np.repeat(own.boxes[None], len(images), axis=0)
            given["n_boxes"] = np.full(len(images), len(own.boxes), np.int64)
        features = self._session.run(None, {name: value for name, value in given.items() if name in own.named})[0]
        rows: Vectors = np.asarray(features, np.float32)[:count]
        return rows

    def _probed(self, subject: str) -> int:
        """D, by a first picture. Raises TowerFault that names the file, where the tower cannot encode it."""
        grey = np.full((self.side, self.side, 3), 128, np.uint8)
        return width_of(lambda: self._features(self.prepare([grey])), subject, "a picture")


def to_square(picture: Picture, side: int, resize: Resize) -> Picture:
    """[S, S, 3] of a picture, by Pillow; the picture itself where it has that shape."""
    if picture.shape[:2] == (side, side):
        return picture
    from PIL import Image

    how = Image.Resampling.BICUBIC if resize == "bicubic" else Image.Resampling.BILINEAR
    return np.asarray(Image.fromarray(picture).resize((side, side), how))


def grid_boxes(side: int, most: int) -> npt.NDArray[np.float32]:
    """[n * n + 1, 4] in pixels: an even grid, row by row, n the largest with n * n <= most, and the whole picture."""
    n = math.isqrt(most)
    cells = [(x / n, y / n, (x + 1) / n, (y + 1) / n) for y in range(n) for x in range(n)]
    boxes: npt.NDArray[np.float32] = np.asarray([*cells, (0, 0, 1, 1)], np.float32) * np.float32(side)
    return boxes


def _only_input(path: Path, model: OpenTower) -> tuple[str, str, tuple[int, ...]]:
    """(name, element type, shape) of a tower's one input."""
    taken = ", ".join(f"{name} {kind} {list(shape)}" for name, (kind, shape) in model.inputs.items())
    name, (kind, shape) = next(iter(model.inputs.items()), ("", ("", ())))
    if len(model.inputs) != 1 or kind not in _FLOATS or len(shape) != 4 or shape[1] not in (0, 3):
        raise TowerFault(f"{path}: takes {taken[:200]}; an image tower takes pictures [B, 3, S, S]")
    return name, kind, shape


def _colour(values: list[float]) -> Colour:
    red, green, blue = map(float, values)
    return red, green, blue
