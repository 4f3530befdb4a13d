"""Export `brivl-jsonl`: rows and images in the format of BriVL's release, one file of rows per split.

    OUT/train.jsonl dev.jsonl val.jsonl     {"image_id": "images/KEY.jpg", "sentences": [[KIND, TEXT]], "bbox": [...]}
    OUT/images/KEY.jpg                      the stored images; boxes are in their pixels

Image paths are relative to the folder of the rows. Texts have the names of the release: `alt_text` for alt and title,
`sur_text` for surrounding. With `sur_text` come the two excerpts of it that the release has: `easy` (its first 128
characters) and `first` (its first sentence without the closing mark). Other kinds keep their own names.
`wenlan-train embed --jsonl` and the source `url_table` (format brivl_jsonl, images: OUT) read it back.

Limits: the format has whole pixels only, and neither scores nor labels; boxes are rounded and stay in order of score.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from data_specs.shard import Split
from pipeline.exports import ExportData
from pipeline.store.samples import Stored

KINDS = {"alt": "alt_text", "title": "alt_text", "surrounding": "sur_text"}
"""The release's names of our kinds of text."""

EASY = 128
"""Characters of the excerpt `easy`."""


def write(data: ExportData, out: Path) -> dict[Split, int]:
    """Raises StoreError for a dataset without regions: a row has boxes."""
    data.samples.frames.detector(data.samples.detector)
    counts = dict.fromkeys(data.splits, 0)
    (out / "images").mkdir()
    for split in data.splits:
        with (out / f"{split}.jsonl").open("wb") as rows:
            for stored in data.of(split):
                row = _row(stored)
                (out / row["image_id"]).write_bytes(stored.image)
                rows.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
                counts[split] += 1
    return counts


def _row(stored: Stored) -> dict[str, Any]:
    sides = stored.row["width"], stored.row["height"]
    return {
        "image_id": f"images/{stored.key}.jpg",
        "sentences": sentences(stored.row["texts"]),
        "bbox": whole_pixels(stored.boxes_R4.ravel().tolist(), *sides),
    }


def sentences(texts: list[dict[str, str]]) -> list[list[str]]:
    """Texts {kind, text} as [kind, text] pairs of the release, in order, with the excerpts of the first surrounding."""
    pairs = [[KINDS.get(text["kind"], text["kind"]), text["text"]] for text in texts]
    surrounding = next((text["text"] for text in texts if text["kind"] == "surrounding"), "")
    excerpts = [["easy", surrounding[:EASY]], ["first", surrounding.partition("。")[0]]] if surrounding else []
    return pairs + excerpts


def whole_pixels(boxes: list[float], width: int, height: int) -> list[list[int]]:
    """Boxes rounded to whole pixels [[x1, y1, x2, y2], ...], at least one pixel wide and high, inside the image.

    boxes: four numbers per box, flattened.
    """
    corners = np.rint(np.array(boxes, np.float64).reshape(-1, 2, 2)).astype(
        int
    )  # [R, top left or bottom right, x or y]
    low = corners[:, 0].clip(0, np.array([width, height]) - 1)
    high = np.maximum(corners[:, 1].clip(0, (width, height)), low + 1)
    pixels: list[list[int]] = np.concatenate([low, high], axis=1).tolist()
    return pixels
