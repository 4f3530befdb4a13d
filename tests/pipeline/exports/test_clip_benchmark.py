"""clip-benchmark, read as CLIP_benchmark reads it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.processes import value_of


@pytest.mark.drill(6)
def test_clip_benchmark_reads_images_with_their_captions(exported: Callable[..., Path], rows: dict[str, Any]) -> None:
    """Its own builder, called as its command line calls it. (Where it is not installed: webdataset, which it uses.)"""
    out = exported("clip-benchmark")
    script = """
import json, sys
try:
    from clip_benchmark.datasets.builder import build_wds_dataset
    data = build_wds_dataset("wenlan", transform=lambda image: image, split="test", data_dir=sys.argv[1])
except ImportError:
    import webdataset as wds
    tars = int(open(sys.argv[1] + "/test/nshards.txt").read())
    urls = [f"{sys.argv[1]}/test/{number}.tar" for number in range(tars)]
    data = wds.WebDataset(urls, shardshuffle=False).decode("pil").to_tuple("jpg", "txt").map_tuple(None, str.splitlines)
print(json.dumps([[*image.size, captions] for image, captions in data]))
"""
    val = [row for row in rows.values() if row["split"] == "val"]
    pairs = sorted(value_of(script, out))
    assert pairs == sorted([row["width"], row["height"], [row["texts"][0]["text"]]] for row in val)
    assert (out / "dataset_type.txt").read_text() == "retrieval"
    assert sorted(path.name for path in out.iterdir()) == ["dataset_type.txt", "test"]
