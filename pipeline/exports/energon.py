"""Export `energon`: a folder that Megatron Energon opens without `energon prepare`.

    OUT/train-00000.tar ...         KEY.jpg and KEY.txt of each sample
    OUT/train-00000.tar.idx ...     offset of each sample, and the end of the last one: unsigned 64-bit, little endian
    OUT/.nv-meta/split.yaml         tars of each split; train, dev and val keep their names
    OUT/.nv-meta/dataset.yaml       a sample is an image (KEY.jpg) with its primary text as caption (KEY.txt)
    OUT/.nv-meta/.info.json         number of samples in each tar

The format is that of megatron-energon 7.4 (https://nvidia.github.io/Megatron-Energon/).

Limits: boxes and the other texts are not exported. Joins with other datasets need Energon's index.sqlite, which only
`energon prepare` makes.
"""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import numpy as np
import yaml

from data_specs.shard import Split
from pipeline.exports import ExportData
from pipeline.exports._tars import image_and_text, write_tars

DATASET = {
    "sample_type": {"__module__": "megatron.energon", "__class__": "CaptioningSample"},
    "field_map": {"image": "jpg", "caption": "txt"},
}


def write(data: ExportData, out: Path) -> dict[Split, int]:
    counts, tars = {}, {}
    for split in data.splits:
        tars[split], counts[split] = write_tars(data.of(split), out, f"{split}-{{:05d}}.tar", image_and_text)
    samples = {path.name: _index(path) for paths in tars.values() for path in paths}
    names = {split: [path.name for path in paths] for split, paths in tars.items() if paths}
    meta = out / ".nv-meta"
    meta.mkdir()
    (meta / "split.yaml").write_text(yaml.safe_dump({"split_parts": names, "exclude": []}), encoding="utf-8")
    (meta / "dataset.yaml").write_text(yaml.safe_dump(DATASET), encoding="utf-8")
    (meta / ".info.json").write_text(json.dumps({"shard_counts": samples}), encoding="utf-8")
    return counts


def _index(path: Path) -> int:
    """Writes the index of a tar beside it; returns the number of its samples."""
    with tarfile.open(path) as tar:
        offsets = [member.offset for member in tar if member.name.endswith(".jpg")]
        offsets.append(tar.offset)
    path.with_name(f"{path.name}.idx").write_bytes(np.array(offsets, "<u8").tobytes())
    return len(offsets) - 1
