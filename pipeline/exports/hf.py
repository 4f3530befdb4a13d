"""Export `hf`: a folder for the Hugging Face hub, readable by `datasets.load_dataset(OUT)`.

    OUT/README.md                  dataset card; its head names the splits' files and the type of every column
    OUT/data/train-00000.tar ...   KEY.jpg, KEY.txt and KEY.json of each sample; `load_dataset("webdataset", ...)` too

Tars, since whatever reads WebDataset then reads the same folder; the export `parquet` is the other form of the hub.
KEY.json is that of the dataset, and in addition has `boxes`, `scores` and `labels` of one detector.

Limits: the card says what the manifest says; the dataset's own README.md says how it was made.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from data_specs.shard import Split, canonical_json
from pipeline.exports import ExportData
from pipeline.exports._card import card
from pipeline.exports._tars import Members, image_and_text, write_tars
from pipeline.store.samples import Stored

_FIELDS: dict[str, Any] = {
    "boxes": {"list": {"list": "float32"}},
    "candidate_id": {"dtype": "string"},
    "height": {"dtype": "int32"},
    "image_url": {"dtype": "string"},
    "labels": {"list": "int32"},
    "page_url": {"dtype": "string"},
    "schema": {"dtype": "int32"},
    "scores": {"list": "float32"},
    "sha256": {"dtype": "string"},
    "source": {"dtype": "string"},
    "source_kind": {"dtype": "string"},
    "texts": {"list": [{"name": name, "dtype": "string"} for name in ("kind", "original", "text")]},
    "width": {"dtype": "int32"},
}
"""Type of each field of KEY.json."""

FEATURES: list[dict[str, Any]] = [
    {"name": "jpg", "dtype": "image"},
    {"name": "txt", "dtype": "string"},
    {"name": "json", "struct": [{"name": name, **kind} for name, kind in _FIELDS.items()]},
    {"name": "__key__", "dtype": "string"},
    {"name": "__url__", "dtype": "string"},
]
"""Columns as `datasets` writes them into a card: without them it would guess each type from the first samples."""

COLUMNS = """`jpg` is the image, `txt` its primary text, `json` has all texts with their kind, source, page
and image URL, sha256 of the bytes as fetched, and the boxes."""


def write(data: ExportData, out: Path) -> dict[Split, int]:
    (out / "data").mkdir()
    counts = {}
    for split in data.splits:
        _, counts[split] = write_tars(data.of(split), out / "data", f"{split}-{{:05d}}.tar", _members)
    readme = card(data, counts, "data/{split}-*.tar", COLUMNS, dataset_info={"features": FEATURES})
    (out / "README.md").write_text(readme, encoding="utf-8")
    return counts


def _members(stored: Stored) -> Members:
    raw = json.loads(stored.json)
    values = {
        **{name: raw.get(name) for name in _FIELDS},  # a later wenlan may add some, and columns are fixed
        "texts": [{"original": "", **text} for text in raw["texts"]],  # every row has every column
        "boxes": stored.boxes_R4.tolist(),
        "scores": stored.scores_R.tolist(),
        "labels": stored.labels_R.tolist(),
    }
    return [*image_and_text(stored), (f"{stored.key}.json", canonical_json(values))]
