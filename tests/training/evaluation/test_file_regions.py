"""Boxes of image files: by line, or joined by the sha256 of the image."""

from __future__ import annotations

import hashlib
import json
import tracemalloc
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from data_specs.shard import REGION_SCHEMA
from tests.synthetic import encode
from training.errors import InputError
from training.evaluation.file_regions import RegionTable
from training.use.embed import embed_files

BOXES = [[4, 2, 30, 40], [0, 0, 20, 20], [30, 10, 60, 50], [8, 8, 16, 16], [1, 2, 3, 4], [9, 9, 50, 60]]


@pytest.mark.slow
def test_regions_of_a_dataset_are_joined_by_the_image(checkpoint: Path, pictures: list[Path], tmp_path: Path) -> None:
    rows = [
        {
            "key": "k",
            "sha256": hashlib.sha256(p.read_bytes()).hexdigest(),
            "boxes": [float(n) for box in BOXES[i : i + 2] for n in box],
            "scores": [0.9, 0.5],
            "labels": [1, 2],
        }
        for i, p in enumerate(pictures)
    ]
    pq.write_table(pa.Table.from_pylist(rows[::-1], schema=REGION_SCHEMA), tmp_path / "r.parquet")
    (tmp_path / "r.jsonl").write_text("\n".join(json.dumps(BOXES[i : i + 2]) for i in range(3)))
    files = [str(p) for p in pictures]
    for name in ("r.parquet", "r.jsonl"):
        embed_files(checkpoint, files, tmp_path / name, None, tmp_path / f"{name}.out")
    found, wanted = (load_file(tmp_path / f"{name}.out")["image_features"] for name in ("r.parquet", "r.jsonl"))
    assert torch.equal(found, wanted)
    pq.write_table(pa.Table.from_pylist(rows[:1], schema=REGION_SCHEMA), tmp_path / "r.parquet")
    with pytest.raises(InputError, match=r"r.parquet: lacks boxes of .*1.png"):
        embed_files(checkpoint, files, tmp_path / "r.parquet", None, tmp_path / "out")
    (tmp_path / "r.jsonl").write_text("[]\n[]\n")
    with pytest.raises(InputError, match=r"r.jsonl: boxes of 2 images, but 3 images are given"):
        embed_files(checkpoint, files, tmp_path / "r.jsonl", None, tmp_path / "out")
    (tmp_path / "r.jsonl").write_text("[]\n[1]\n[]\n")
    with pytest.raises(InputError, match=r"r.jsonl:line 2: not a list of boxes"):
        embed_files(checkpoint, files, tmp_path / "r.jsonl", None, tmp_path / "out")


def test_a_folder_of_regions_is_read_file_by_file(tmp_path: Path) -> None:
    """STORE's have columns that are not needed, and are many."""
    for number in range(8):
        columns = {"sha256": [str(number)], "boxes": [[0.0, 0.0, 1.0, 1.0]], "scores": [[1.0]]}
        more = {"more": pa.array([np.random.default_rng(number).bytes(2**21)])}
        pq.write_table(pa.table({**columns, **more}), tmp_path / f"{number}.parquet")
    tracemalloc.start()
    table = RegionTable.open(tmp_path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(table.row_of) == 8
    assert peak < 4 * 2**21


@pytest.mark.parametrize("scores", [[0.5], None, [0.5, 0.4, 0.3]])
def test_scores_that_are_not_one_for_each_box_are_named(scores: list[float] | None, tmp_path: Path) -> None:
    content = encode("png", 1, (48, 40))
    numbers = pa.list_(pa.float32())
    columns = {"boxes": pa.array([[0, 0, 5, 5, 1, 1, 9, 9]], numbers), "scores": pa.array([scores], numbers)}
    pq.write_table(pa.table({"sha256": [hashlib.sha256(content).hexdigest()], **columns}), tmp_path / "r.parquet")
    with pytest.raises(InputError, match=r"r.parquet: boxes of a.png: 2 boxes, but "):
        RegionTable.open(tmp_path / "r.parquet").boxes_of(content, "a.png")
