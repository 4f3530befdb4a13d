"""Exports a dataset in the row format of BriVL's release: one file of rows per split, and the images.

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
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from data_specs.shard import SPLITS, Manifest, ShardFiles
from pipeline.errors import StoreError
from pipeline.files.folder import Folder
from pipeline.store.dataset import Dataset

KINDS = {"alt": "alt_text", "title": "alt_text", "surrounding": "sur_text"}
"""The release's names of our kinds of text."""

EASY = 128
"""Characters of the excerpt `easy`."""

BATCH = 1_000
"""Samples in memory at once."""


def to_brivl_jsonl(dataset: Dataset, out: Path, detector: str = "") -> dict[str, int]:
    """Write the rows and images of a published dataset; returns the number of rows per split.

    detector: the id of the detector whose boxes are exported, or its name if only one id has it; by default the
    dataset's first one. A killed export starts again from the beginning; the file of a split appears when it is
    complete. Raises StoreError (no such detector, a full disk).
    """
    manifest = dataset.manifest
    chosen = _detector(dataset.shards, manifest, detector)
    target, counts = Folder(str(out)), dict[str, int]()
    for split in SPLITS:
        counts[split] = 0
        with target.making(f"{split}.jsonl") as rows:
            for shard in manifest.of_split(split):
                for row, image in _rows(dataset.folder_of(shard), shard, chosen):
                    with target.making(row["image_id"]) as f:
                        f.write(image)
                    rows.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
                    counts[split] += 1
    return counts


def _detector(shards: Folder, manifest: Manifest, name: str) -> str:
    """Id of the one detector with that id (`name-<12 digits>`) or name; of the first one for "". Raises StoreError."""
    matching = [d for d in manifest.detectors if not name or name in (d, d.rpartition("-")[0])]
    if not matching or (name and len(matching) > 1):
        detectors = ", ".join(manifest.detectors) or "none"
        raise StoreError(shards.url, f"has no one detector {name!r}; its detectors: {detectors}")
    return matching[0]


def _rows(shards: Folder, shard: ShardFiles, detector: str) -> Iterator[tuple[dict[str, Any], bytes]]:
    """The row and the image of each sample of a shard, in the order of the shard. Raises StoreError."""
    columns = ["key", "texts", "width", "height", "image_offset", "image_size"]
    with (
        shards.local(shard.tar.path) as tar,
        shards.local(shard.parquet.path) as index,
        shards.local(shard.regions[detector].path) as regions,
        tar.open("rb") as f,
        pq.ParquetFile(index) as samples,
        pq.ParquetFile(regions) as boxes,
    ):
        batches = zip(
            samples.iter_batches(BATCH, columns=columns),
            boxes.iter_batches(BATCH, columns=["key", "boxes"]),
            strict=True,
        )
        for of_samples, of_boxes in batches:
            for sample, region in zip(of_samples.to_pylist(), of_boxes.to_pylist(), strict=True):
                if sample["key"] != region["key"]:
                    raise StoreError(
                        shards.at(shard.regions[detector].path), f"{sample['key']}: has the regions of another sample"
                    )
                image = os.pread(f.fileno(), sample["image_size"], sample["image_offset"])
                yield (
                    {
                        "image_id": f"images/{sample['key']}.jpg",
                        "sentences": sentences(sample["texts"]),
                        "bbox": whole_pixels(region["boxes"], sample["width"], sample["height"]),
                    },
                    image,
                )


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
    whole: list[list[int]] = np.concatenate([low, high], axis=1).tolist()
    return whole
