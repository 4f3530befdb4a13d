"""Ready arrays in an .npz file, prepared by other tools: nothing is decoded, resized or tokenised.

    images [B, 3, S, S] float, normalised     boxes [B, R, 4] in pixels of S      n_boxes [B]
    input_ids [B, L], padded with 0           n_tokens [B]

`n_boxes` counts the whole-image box, which sits at index n_boxes - 1; rows after it are zero. `n_tokens` counts [CLS]
and [SEP]. Images alone or texts alone are fine. L is taken as it is: a BERT without a mask sees the padding.

Limits: read with `allow_pickle=False`; the arrays are in memory as a whole.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from training.config import TextTowerConfig
from training.errors import InputError, first_line
from training.records import Batch

_IMAGES = ("images", "boxes", "n_boxes")
_TEXTS = ("input_ids", "n_tokens")


@dataclass(frozen=True, slots=True)
class Arrays:
    """The checked content of a file: images, boxes and n_boxes; input_ids and n_tokens; either may be None."""

    file: Path
    images: tuple[npt.NDArray[np.float32], npt.NDArray[np.float32], npt.NDArray[np.int64]] | None
    tokens: tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]] | None

    def check_tokens(self, text: TextTowerConfig) -> None:
        """Raises InputError when the ids are none of this text tower's, or more than it has positions for."""
        assert self.tokens is not None
        ids_BL = self.tokens[0]
        if ids_BL.size and int(ids_BL.max()) >= text.vocab_size:
            raise InputError(str(self.file), f"input_ids: {ids_BL.max()} is beyond the {text.vocab_size} tokens")
        if ids_BL.shape[1] > text.max_positions:
            raise InputError(
                str(self.file), f"input_ids: {ids_BL.shape[1]} tokens, the tower has {text.max_positions} positions"
            )

    def image_batches(self, size: int) -> Iterator[Batch]:
        """Batches of at most `size` images, in order."""
        import torch

        assert self.images is not None
        for start in range(0, len(self.images[0]), size):
            images, boxes, counts = (torch.from_numpy(a[start : start + size]) for a in self.images)
            yield Batch.of(images_B3HW=images, boxes_BR4=boxes, n_boxes_B=counts)

    def text_batches(self, size: int) -> Iterator[Batch]:
        """Batches of at most `size` texts, in order."""
        import torch

        assert self.tokens is not None
        for start in range(0, len(self.tokens[0]), size):
            ids, counts = (torch.from_numpy(a[start : start + size]) for a in self.tokens)
            yield Batch.of(token_ids_BL=ids, n_tokens_B=counts)


def read_arrays(file: Path) -> Arrays:
    """Read and check an .npz file. Raises InputError naming the array that is missing or of a wrong shape."""
    arrays = _read(file)
    if not arrays.keys() & {*_IMAGES, *_TEXTS}:
        raise InputError(str(file), f"none of the arrays {', '.join((*_IMAGES, *_TEXTS))} is in it")
    images = _images(file, arrays) if arrays.keys() & set(_IMAGES) else None
    tokens = _tokens(file, arrays) if arrays.keys() & set(_TEXTS) else None
    return Arrays(file, images, tokens)


def _read(file: Path) -> dict[str, npt.NDArray[Any]]:
    try:
        if not zipfile.is_zipfile(file):
            raise ValueError("an .npz file is a zip archive")
        with np.load(file, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files if name in (*_IMAGES, *_TEXTS)}
    except (ValueError, EOFError, MemoryError, zipfile.BadZipFile, zlib.error, NotImplementedError) as e:
        reason = first_line(e)
        raise InputError(str(file), f"not an .npz file of plain arrays ({reason})") from None


def _images(file: Path, arrays: dict[str, npt.NDArray[Any]]) -> tuple[Any, Any, Any]:
    images, boxes, counts = (_array(file, arrays, name, kind) for name, kind in zip(_IMAGES, "ffi", strict=True))
    if images.ndim != 4 or images.shape[1] != 3 or images.shape[2] != images.shape[3] or not images.size:
        raise InputError(str(file), f"images: {list(images.shape)} is not [B, 3, S, S]")
    if boxes.ndim != 3 or boxes.shape[0] != len(images) or boxes.shape[2] != 4:
        raise InputError(str(file), f"boxes: {list(boxes.shape)} is not [{len(images)}, R, 4]")
    _check_counts(file, "n_boxes", counts, len(images), boxes.shape[1])
    return images, boxes, counts


def _tokens(file: Path, arrays: dict[str, npt.NDArray[Any]]) -> tuple[Any, Any]:
    ids, counts = (_array(file, arrays, name, "i") for name in _TEXTS)
    if ids.ndim != 2 or not ids.size:
        raise InputError(str(file), f"input_ids: {list(ids.shape)} is not [B, L]")
    if int(ids.min()) < 0:
        raise InputError(str(file), "input_ids: a number below 0")
    _check_counts(file, "n_tokens", counts, *ids.shape)
    return ids, counts


def _array(file: Path, arrays: dict[str, npt.NDArray[Any]], name: str, kind: str) -> npt.NDArray[Any]:
    """An array as float32 (`f`) or int64 (`i`), finite."""
    if name not in arrays:
        raise InputError(str(file), f"lacks the array {name}")
    array = arrays[name]
    wanted = "iu" if kind == "i" else "fiu"
    if array.dtype.kind not in wanted or (name == "images" and array.dtype.kind != "f"):
        words = "whole numbers" if kind == "i" else "normalised floats" if name == "images" else "numbers"
        raise InputError(str(file), f"{name}: {array.dtype} are not {words}")
    cast = array.astype(np.float32 if kind == "f" else np.int64)
    if not np.isfinite(cast).all():
        raise InputError(str(file), f"{name}: NaN or infinity in it")
    return np.ascontiguousarray(cast)


def _check_counts(file: Path, name: str, counts: npt.NDArray[Any], rows: int, most: int) -> None:
    if counts.shape != (rows,):
        raise InputError(str(file), f"{name}: {list(counts.shape)} is not [{rows}]")
    if int(counts.min()) < 1 or int(counts.max()) > most:
        raise InputError(str(file), f"{name}: {counts.min()} to {counts.max()} is not within 1 to {most}")
