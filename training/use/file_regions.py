"""Boxes of image files that lie in no dataset.

    boxes.jsonl      one JSON line per image, in the images' order: [[x1, y1, x2, y2], ...], or a released row's `bbox`
    boxes.parquet    a regions file of the shard contract: joined by the sha256 of the image's bytes

Boxes are pixels of the image, best first.

Limits: the file is read into memory; it belongs to the images of one command.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from training.data.released_rows import Box, boxes_of
from training.errors import InputError, first_line


def read_regions(file: Path, images: Sequence[str]) -> list[tuple[Box, ...]]:
    """Boxes of each image. Raises InputError naming the line or image that has none, OSError."""
    return _by_sha256(file, images) if file.suffix == ".parquet" else _by_line(file, images)


def _by_line(file: Path, images: Sequence[str]) -> list[tuple[Box, ...]]:
    boxes: list[tuple[Box, ...]] = []
    for number, line in enumerate(file.read_bytes().splitlines(), 1):
        try:
            value = json.loads(line)
            boxes.append(boxes_of(value["bbox"] if isinstance(value, dict) else value))
        except (ValueError, KeyError, RecursionError) as e:
            reason = first_line(e)
            raise InputError(f"{file}:line {number}", f"no list of boxes [[x1, y1, x2, y2], ...] ({reason})") from None
    if len(boxes) != len(images):
        raise InputError(str(file), f"boxes of {len(boxes)} images, but {len(images)} images are given")
    return boxes


def _by_sha256(file: Path, images: Sequence[str]) -> list[tuple[Box, ...]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        columns = pq.read_table(file, columns=["sha256", "boxes"]).to_pydict()
        of_sha256 = {sha: _grouped(flat) for sha, flat in zip(columns["sha256"], columns["boxes"], strict=True)}
    except (pa.ArrowException, ValueError, KeyError, TypeError) as e:
        reason = first_line(e)
        raise InputError(str(file), f"not a regions file of the contract ({reason})") from None
    of_images = []
    for image in images:
        digest = hashlib.sha256(Path(image).read_bytes()).hexdigest()
        if digest not in of_sha256:
            raise InputError(str(file), f"has no boxes of {image} (sha256 {digest})")
        of_images.append(of_sha256[digest])
    return of_images


def _grouped(flat: list[float]) -> tuple[Box, ...]:
    if len(flat) % 4:
        raise ValueError("boxes that are not groups of four numbers")
    return boxes_of([flat[i : i + 4] for i in range(0, len(flat), 4)])
