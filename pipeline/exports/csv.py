"""Export `csv`: one table per split and the images as files, as open_clip reads them.

    OUT/train.csv dev.csv val.csv     filepath, title, key, texts, source, URLs, width, height, boxes
    OUT/images/KEY.jpg                the stored images

`filepath` (relative to OUT) and `title` (the primary text) are the columns that open_clip reads by default; its
`--csv-separator` is a comma here. UTF-8, quoted as RFC 4180 says; `texts` and `boxes` hold JSON.

A title that a spreadsheet would take for a formula (`=HYPERLINK(...)`, `@SUM(...)`; OWASP, CSV Injection) has an
apostrophe before it, and `texts` has it as it is: pages write titles, and people open tables by a double click.
"""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

from data_specs.shard import Split
from pipeline.exports import ExportData
from pipeline.exports._rows import COPIED
from pipeline.store.samples import Stored

COLUMNS = ("filepath", "title", "key", "texts", *COPIED, "boxes")

FORMULAS = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")
"""First characters of formulas; full width too, which spreadsheets in Chinese and Japanese take for the same."""


def write(data: ExportData, out: Path) -> dict[Split, int]:
    counts = dict.fromkeys(data.splits, 0)
    (out / "images").mkdir()
    for split in data.splits:
        with (out / f"{split}.csv").open("w", encoding="utf-8", newline="") as f:
            table = csv.DictWriter(f, COLUMNS)
            table.writeheader()
            for stored in data.of(split):
                row = _row(stored)
                (out / row["filepath"]).write_bytes(stored.image)
                table.writerow(row)
                counts[split] += 1
    return counts


def _row(stored: Stored) -> dict[str, Any]:
    texts = [{"kind": text["kind"], "text": text["text"]} for text in stored.row["texts"]]
    return {
        "filepath": f"images/{stored.key}.jpg",
        "title": f"'{stored.text}" if stored.text.startswith(FORMULAS) else stored.text,
        "key": stored.key,
        "texts": json.dumps(texts, ensure_ascii=False),
        **{name: stored.row[name] for name in COPIED},
        "boxes": json.dumps([[round(x, 2) for x in box] for box in stored.boxes_R4.tolist()]),
    }
