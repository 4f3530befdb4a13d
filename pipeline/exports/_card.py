"""README.md of an export: a Hugging Face card that lists the files of each split for `datasets`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from data_specs.shard import Split
from pipeline.exports import ExportData


def card(data: ExportData, counts: Mapping[Split, int], pattern: str, columns: str, **head: Any) -> str:
    """The card. pattern: the files of a split, by `{split}`. columns: what they are, in words. head: more front matter.

    Without the patterns the hub takes dev and val for one split, "validation".
    """
    manifest = data.dataset.manifest
    files = [{"split": split, "path": pattern.format(split=split)} for split, count in counts.items() if count]
    front = {
        "language": ["zh"],
        "license": "other",
        "task_categories": ["image-to-text", "feature-extraction"],
        "tags": ["wenlan"],
        "configs": [{"config_name": "default", "data_files": files}],
        **head,
    }
    name = manifest.dataset or manifest.build_id
    release = f", release {manifest.release}" if manifest.release else ""
    rows = "\n".join(f"| {split} | {count:,} |" for split, count in counts.items())
    return f"""---
{yaml.safe_dump(front, allow_unicode=True, sort_keys=False)}---

# {name}

Pairs of an image and Chinese texts{release}; build `{manifest.build_id}`, content digest `{manifest.content_digest}`.
Boxes are from detector `{data.samples.detector or "none"}`, in pixels of the image.

| split | samples |
|---|---:|
{rows}

{columns} Rights in images and texts stay with their owners.

```python
import datasets
dataset = datasets.load_dataset("PATH OF THIS FOLDER")
```
"""
