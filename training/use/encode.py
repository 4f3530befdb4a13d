"""A finished checkpoint as an object: features and similarities of pictures and texts, for Python.

Features are those of `wenlan-train embed` to the last bit, since both go through `training.use.embed`.

Limits: all features of a call are in memory, and the pictures of one batch. A picture that is already decoded is taken
at its full size; a JPEG file may be decoded at a reduced one, and its features then differ a little.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from training.data.transforms import UnreadableImage
from training.errors import InputError
from training.outputs.progress import Progress
from training.use.embed import Image, image_features, text_features
from training.weights.load import BATCH, Boxes, Loaded, distinct_texts, load

if TYPE_CHECKING:
    import PIL.Image
    from torch import Tensor

    Picture = str | Path | bytes | PIL.Image.Image
    """A picture: where it lies, the content of its file, or itself."""

Features = npt.NDArray[np.float32]

_PNG_MODES = ("1", "I;16", "L", "LA", "P", "RGB", "RGBA")
"""Modes of PIL that a PNG keeps as they are."""


@dataclass(frozen=True, repr=False)
class Encoder:
    """A checkpoint's query towers, in eval mode on a device.

    Both `encode` methods take many things in batches of `batch_size`, and draw a bar where `progress` is true. By the
    default size features are those of `wenlan-train embed` to the last bit.

    boxes_of: makes the boxes of a picture that comes without, from its file's content; None for the grid.
    """

    loaded: Loaded
    boxes_of: Callable[[bytes], Boxes] | None = None

    def __repr__(self) -> str:
        checkpoint, config = self.loaded.checkpoint, self.loaded.config
        image, text, data = config.image, config.text, config.data
        boxes = f"{data.max_boxes} boxes of {checkpoint.detector} and the whole image"
        return "\n".join(
            [
                f"<wenlan.Encoder: recipe {config.recipe}, {checkpoint.folder}",
                f"  pictures: {image.backbone}, {data.image_size} x {data.image_size}, {boxes}",
                f"  texts: {text.encoder}, at most {data.max_tokens} tokens",
                f"  features: {self.width} numbers, of length 1",
                f"  on {self.loaded.device}>",
            ]
        )

    @property
    def width(self) -> int:
        return int(self.loaded.config.moco.feature_dim)

    def encode_image(
        self,
        images: Picture | Sequence[Picture],
        boxes: Sequence[Boxes | None] | None = None,
        *,
        batch_size: int = BATCH,
        progress: bool = False,
    ) -> Features:
        """Unit rows [N, D], float32, one per picture.

        boxes: of each picture x1 y1 x2 y2 in its pixels, best first, or None. Pictures without get those of `boxes_of`,
        or the grid, which is not what a model has seen that was trained on a detector's boxes. Raises InputError naming
        a picture that cannot be read.
        """
        listed = _as_list(images)
        of_images: list[Boxes | None] = [None] * len(listed) if boxes is None else list(boxes)
        if len(of_images) != len(listed):
            raise InputError("boxes", f"{len(of_images)} lists of boxes for {len(listed)} images; give each its own")

        def of_batch(batch: range) -> Tensor:
            named = [_named_image(listed[number], number) for number in batch]
            given = [of_images[number] for number in batch]
            if self.boxes_of is not None:
                given = [
                    self._detect_boxes(image) if own is None else own for image, own in zip(named, given, strict=True)
                ]
            return image_features(self.loaded, named, given, batch_size)

        return self._by_batches(len(listed), of_batch, batch_size, "pictures" if progress else "")

    def encode_text(self, texts: str | Sequence[str], *, batch_size: int = BATCH, progress: bool = False) -> Features:
        """Unit rows [M, D], float32, one per text; equal texts are embedded once."""
        listed, places = distinct_texts([texts] if isinstance(texts, str) else texts)

        def of_batch(batch: range) -> Tensor:
            return text_features(self.loaded, listed[batch.start : batch.stop], batch_size)

        return self._by_batches(len(listed), of_batch, batch_size, "texts" if progress else "")[places]

    def similarity(
        self,
        images: Picture | Sequence[Picture],
        texts: str | Sequence[str],
        boxes: Sequence[Boxes | None] | None = None,
        *,
        calibrated: bool = False,
    ) -> Features:
        """Cosines [N, M] of every picture with every text.

        calibrated: scores instead, the share of unrelated training pairs that are less alike (training/outputs/
        background.py). Raises InputError where the checkpoint lacks a background.
        """
        background = self.loaded.background() if calibrated else None
        if calibrated and background is None:
            folder = self.loaded.checkpoint.folder
            raise InputError(
                str(folder), f"lacks a background; add it with wenlan-train calibrate {folder} --data TRAIN"
            )
        cosines: Features = self.encode_image(images, boxes) @ self.encode_text(texts).T
        return cosines if background is None else background.score(cosines)

    def _by_batches(self, total: int, of_batch: Callable[[range], Tensor], batch_size: int, shown: str) -> Features:
        """Features of `total` things, batch by batch; `shown`: their plural on a bar, "" for no bar."""
        if batch_size < 1:
            raise InputError("batch_size", f"{batch_size} is out of range; it must be at least 1")
        parts = [np.zeros((0, self.width), np.float32)]
        with Progress(total, shown) if shown else nullcontext() as bar:
            for start in range(0, total, batch_size):
                batch = range(start, min(start + batch_size, total))
                parts.append(of_batch(batch).numpy())
                if bar is not None:
                    bar.add(len(batch))
        return np.concatenate(parts)

    def _detect_boxes(self, image: Image) -> Boxes:
        """Boxes of a picture by `boxes_of`. Raises InputError naming it."""
        name, file = image
        assert self.boxes_of is not None
        try:
            return self.boxes_of(file if isinstance(file, bytes) else file.read_bytes())
        except (OSError, UnreadableImage) as e:
            raise InputError(name, getattr(e, "strerror", None) or str(e)) from None


def open_encoder(path: Path, device: str, boxes_of: Callable[[bytes], Boxes] | None = None) -> Encoder:
    """The checkpoint in a folder, or a run's newest. Raises CheckpointError, and ConfigError on a missing device."""
    return Encoder(load(path, device), boxes_of)


def _as_list(images: Any) -> list[Any]:
    single = isinstance(images, (str, Path, bytes)) or hasattr(images, "save")
    return [images] if single else list(images)


def _named_image(image: Any, number: int) -> Image:
    """A picture with its name in messages. Raises InputError for anything else."""
    if isinstance(image, (str, Path)):
        return str(image), Path(image)
    name = f"images[{number}]"
    if isinstance(image, bytes):
        return name, image
    if not hasattr(image, "save"):
        raise InputError(name, f"got a {type(image).__name__}; give a path, bytes of a file, or a PIL image")
    out = io.BytesIO()
    (image if image.mode in _PNG_MODES else image.convert("RGB")).save(out, "PNG")  # loses nothing
    return name, out.getvalue()
