"""hf, and parquet as a folder of Hugging Face: read by `datasets`, which skips a test where it is not installed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.processes import value_of


@pytest.mark.drill(2)
@pytest.mark.parametrize("to", ["hf", "parquet"])
def test_hugging_face_reads_the_folder(
    to: str, exported: Callable[..., Path], rows: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    """`load_dataset(path)`: the card gives the splits, and the images are pictures."""
    pytest.importorskip("datasets", reason="datasets is not installed")
    script = """
import datasets, json, sys
samples = []
for split, part in datasets.load_dataset(sys.argv[1], cache_dir=sys.argv[2]).items():
    image, text, key = ("jpg", "txt", "__key__") if sys.argv[3] == "hf" else ("image", "text", "key")
    assert isinstance(part.features[image], datasets.Image), part.features
    for row in part:
        boxes = row["json"]["boxes"] if sys.argv[3] == "hf" else row["boxes"]
        samples.append([row[key], split, row[text], *row[image].size, len(boxes)])
print(json.dumps(samples))
"""
    samples = value_of(script, exported(to), tmp_path / "cache", to)
    assert {key: row[:4] for key, *row in samples} == {
        key: [row["split"], row["texts"][0]["text"], row["width"], row["height"]] for key, row in rows.items()
    }
    assert {row[-1] for row in samples} <= {1, 2}


@pytest.mark.drill(2)
def test_hugging_face_reads_the_tars_as_webdataset(
    exported: Callable[..., Path], rows: dict[str, Any], tmp_path: Path
) -> None:
    pytest.importorskip("datasets", reason="datasets is not installed")
    script = """
import datasets, json, sys
files = {"val": sys.argv[1] + "/data/val-*.tar"}
part = datasets.load_dataset("webdataset", data_files=files, split="val", cache_dir=sys.argv[2])
print(json.dumps([row["__key__"] for row in part if row["jpg"].size]))
"""
    assert set(value_of(script, exported("hf"), tmp_path / "cache")) == {
        k for k, r in rows.items() if r["split"] == "val"
    }
