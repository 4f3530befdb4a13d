"""Export `chinese-clip`: the tsv and jsonl files that Chinese-CLIP turns into its LMDB.

    OUT/train_imgs.tsv        image id, a tab, the JPEG as base64 (the URL-safe alphabet, which its loader decodes)
    OUT/train_texts.jsonl     {"text_id": 1, "text": "...", "image_ids": [1]}
    OUT/train_texts.tr.jsonl  {"image_id": 1, "text_ids": [1]}: the answers of image -> text for its evaluation
    OUT/train_keys.tsv        image id, a tab, KEY: what its predictions and features are joined by

Split dev is written as `valid` and val as `test`, its names. Ids count from 1 through all splits. The text of an image
is its primary text. Images with the same text share one line in `valid` and `test`, so that none of them counts as a
mistake there. In `train` each image has a line of its own, as its loader takes pairs.

Limits: 200 bytes of memory per sample of `valid` and `test`.
"""

from __future__ import annotations

import base64
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from data_specs.shard import Split
from pipeline.exports import ExportData

NAMES = {"train": "train", "dev": "valid", "val": "test"}
"""The tool's names of our splits."""


def write(data: ExportData, out: Path) -> dict[Split, int]:
    ids, texts = itertools.count(1), itertools.count(1)
    return {split: _write_split(data, split, out, ids, texts) for split in data.splits}


def _write_split(data: ExportData, split: Split, out: Path, ids: Iterator[int], text_ids: Iterator[int]) -> int:
    name, count, shared = NAMES[split], 0, dict[str, list[int]]()
    with (
        (out / f"{name}_imgs.tsv").open("w", encoding="utf-8", newline="\n") as images,
        (out / f"{name}_texts.jsonl").open("w", encoding="utf-8", newline="\n") as texts,
        (out / f"{name}_texts.tr.jsonl").open("w", encoding="utf-8", newline="\n") as answers,
        (out / f"{name}_keys.tsv").open("w", encoding="utf-8", newline="\n") as keys,
    ):
        for stored in data.of(split):
            number, count = next(ids), count + 1
            images.write(f"{number}\t{base64.urlsafe_b64encode(stored.image).decode()}\n")
            keys.write(f"{number}\t{stored.key}\n")
            if split == "train":
                _write_text(texts, answers, next(text_ids), stored.text, [number])
            else:
                shared.setdefault(stored.text, []).append(number)
        for text, of_images in shared.items():
            _write_text(texts, answers, next(text_ids), text, of_images)
    return count


def _write_text(file: TextIO, answers: TextIO, number: int, text: str, images: list[int]) -> None:
    """A text's line, and one for each of its images, which is without another text."""
    line = {"text_id": number, "text": text, "image_ids": images}
    file.write(json.dumps(line, ensure_ascii=False) + "\n")
    answers.writelines(json.dumps({"image_id": image, "text_ids": [number]}) + "\n" for image in images)
