"""chinese-clip, read as Chinese-CLIP's scripts read it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.processes import value_of


@pytest.mark.slow
def test_chinese_clip_reads_pairs(exported: Callable[..., Path], rows: dict[str, Any]) -> None:
    """As `cn_clip.preprocess.build_lmdb_dataset` and `cn_clip.training.data` read them, line by line."""
    script = """
import base64, io, json, os, sys
from PIL import Image
folder, pairs = sys.argv[1], []
for split in ("train", "valid", "test"):
    keys = dict(line.rstrip("\\n").split("\\t") for line in open(os.path.join(folder, f"{split}_keys.tsv")))
    sizes = {}
    for line in open(os.path.join(folder, f"{split}_imgs.tsv"), "r"):
        image_id, b64 = line.strip().split("\\t")
        b64 = b64.encode("utf-8").decode(encoding="utf8", errors="ignore")
        sizes[int(image_id)] = Image.open(io.BytesIO(base64.urlsafe_b64decode(b64))).convert("RGB").size
    texts = [json.loads(line.strip()) for line in open(os.path.join(folder, f"{split}_texts.jsonl"), encoding="utf-8")]
    assert len({row["text_id"] for row in texts}) == len(texts)
    for row in texts:
        pairs += [[keys[str(i)], row["text"], *sizes[i]] for i in row["image_ids"]]
    if split != "train":
        assert len({row["text"] for row in texts}) == len(texts)  # images of one text share its line
print(json.dumps(pairs))
"""
    pairs = {key: rest for key, *rest in value_of(script, exported("chinese-clip"))}
    assert pairs == {key: [r["texts"][0]["text"], r["width"], r["height"]] for key, r in rows.items()}
