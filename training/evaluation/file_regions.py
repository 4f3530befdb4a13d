"""Boxes of images that do not belong to a dataset.

    boxes.jsonl      one JSON line per image, in the images' order: [[x1, y1, x2, y2], ...], or a released row's `bbox`
    boxes.parquet    boxes by the sha256 of an image's bytes: a regions file of the shard contract
    DETECTOR/        a folder of such files: a dataset's regions/DETECTOR, or STORE/regions/DETECTOR, the cache of all
                     images that any build has shown to that detector

Boxes are pixels of the image, best first. Those of STORE's cache are raw; what a build does to them on the way into a
dataset (clipped, none twice, not the whole picture, sorted by score) is done here too, so that they are the same boxes.

Limits: what is read stays in memory, 16 bytes per box.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from data_specs.pictures.boxes import cleaned
from training.config import DataConfig
from training.data.released_rows import Box, boxes_of, boxes_of_flat, json_lines
from training.data.transforms import sides
from training.errors import InputError, first_line

if TYPE_CHECKING:
    import pyarrow as pa


def read_regions(file: Path, images: Sequence[str]) -> list[tuple[Box, ...]]:
    """Boxes of each image. Raises InputError naming the line or image without boxes, OSError."""
    if file.suffix == ".parquet" or file.is_dir():
        table = RegionTable.open(file)
        return [table.boxes_of(Path(image).read_bytes(), image) for image in images]
    return _by_line(file, images)


@dataclass(frozen=True)
class RegionTable:
    """Boxes by the sha256 of an image's bytes, from one file or from all of a folder."""

    place: Path
    table: pa.Table
    row_of: dict[str, int]
    raw: bool
    """True if they are a detector's own, as STORE caches them."""

    @staticmethod
    def open(place: Path) -> RegionTable:
        """Read regions. Raises InputError for anything else."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        files = sorted(place.glob("*.parquet")) if place.is_dir() else [place]
        if not files:
            raise InputError(
                str(place), "contains no regions (.parquet); give the regions/DETECTOR of a dataset or of STORE"
            )
        try:
            table = pa.concat_tables(pq.read_table(file, columns=["sha256", "boxes", "scores"]) for file in files)
            raw = "key" not in pq.read_schema(files[0]).names
            row_of = {str(sha256): row for row, sha256 in enumerate(table["sha256"].to_pylist())}
        except (pa.ArrowException, OSError, ValueError, KeyError, TypeError) as e:
            raise InputError(str(place), f"not regions of the contract ({first_line(e)})") from None
        return RegionTable(place, table, row_of, raw)

    def has(self, content: bytes) -> bool:
        """True if the boxes of an image, even an empty list, are known by the bytes of its file."""
        return hashlib.sha256(content).hexdigest() in self.row_of

    def boxes_of(self, content: bytes, name: str) -> tuple[Box, ...]:
        """Boxes of an image by the bytes of its file. Raises InputError naming an image without boxes."""
        digest = hashlib.sha256(content).hexdigest()
        row = self.row_of.get(digest)
        if row is None:
            raise InputError(str(self.place), f"lacks boxes of {name} (sha256 {digest})")
        flat, scores = self.table["boxes"][row].as_py(), self.table["scores"][row].as_py()
        try:
            if self.raw:
                boxes_R4, scores_R = np.asarray(flat, np.float32).reshape(-1, 4), np.asarray(scores, np.float32)
                if scores_R.shape != boxes_R4.shape[:1]:
                    raise ValueError(f"{len(boxes_R4)} boxes, but {scores_R.size} scores")
                raw = boxes_R4, scores_R, np.zeros(len(scores_R), np.int32)
                flat = cleaned(raw, *sides(content, DataConfig.max_pixels), len(boxes_R4))[0].ravel().tolist()
            return boxes_of_flat(flat)
        except (ValueError, TypeError) as e:
            raise InputError(str(self.place), f"boxes of {name}: {first_line(e)}") from None


def _by_line(file: Path, images: Sequence[str]) -> list[tuple[Box, ...]]:
    what, boxes = "not a list of boxes [[x1, y1, x2, y2], ...]", list[tuple[Box, ...]]()
    for where, value in json_lines(file, what):
        try:
            boxes.append(boxes_of(value["bbox"] if isinstance(value, dict) else value))
        except (ValueError, KeyError) as e:
            raise InputError(where, f"{what} ({first_line(e)})") from None
    if len(boxes) != len(images):
        raise InputError(str(file), f"boxes of {len(boxes)} images, but {len(images)} images are given")
    return boxes
