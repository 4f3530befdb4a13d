"""Export `clip-benchmark`: a retrieval task for CLIP_benchmark; split val unless --split is given.

    OUT/dataset_type.txt        "retrieval"
    OUT/test/nshards.txt        number of tars
    OUT/test/0.tar ...          KEY.jpg and KEY.txt, one caption per line

Split val is written as `test`, which the tool evaluates by default, the others under their own names. The caption of an
image is its primary text, on which `wenlan-train eval` measures too.

Limits: CLIP_benchmark counts only an image's own captions as hits; another image with the same text is a mistake there.
"""

from __future__ import annotations

from pathlib import Path

from data_specs.shard import Split
from pipeline.exports import ExportData, Format
from pipeline.exports._tars import Members, write_tars
from pipeline.store.samples import Stored

NAMES = {"val": "test"}
"""The tool's names of our splits."""


def write(data: ExportData, out: Path) -> dict[Split, int]:
    counts = {}
    (out / "dataset_type.txt").write_text("retrieval")
    for split in data.splits:
        folder = out / NAMES.get(split, split)
        folder.mkdir()
        tars, counts[split] = write_tars(data.of(split), folder, "{}.tar", _members)
        (folder / "nshards.txt").write_text(str(len(tars)))
    return counts


def _members(stored: Stored) -> Members:
    caption = " ".join(stored.text.split())  # a line break would begin another caption
    return [(f"{stored.key}.jpg", stored.image), (f"{stored.key}.txt", caption.encode())]


FORMAT = Format(write, splits=("val",))
