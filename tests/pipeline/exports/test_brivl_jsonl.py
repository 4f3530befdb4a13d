"""The released row format: what a dataset becomes in it, and that it comes back, boxes included."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from data_specs.shard import read_manifest
from pipeline.errors import StoreError
from pipeline.exports import export
from pipeline.exports.brivl_jsonl import sentences, whole_pixels
from pipeline.plugins import configure
from pipeline.rows.account import Account
from pipeline.rows.records import Candidate
from pipeline.sources import TableSource
from pipeline.store.dataset import Dataset

pytestmark = pytest.mark.slow


def test_rows_images_and_boxes_are_those_of_the_dataset(shards_of: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    counts = export(Dataset.open(shards_of), "brivl-jsonl", out)
    assert counts == read_manifest(shards_of).samples
    rows = [json.loads(line) for split in counts for line in (out / f"{split}.jsonl").read_text().splitlines()]
    assert len({row["image_id"] for row in rows}) == sum(counts.values())
    for row in rows:
        assert set(row) == {"image_id", "sentences", "bbox"}
        assert all(isinstance(n, int) for box in row["bbox"] for n in box)
        with Image.open(io.BytesIO((out / row["image_id"]).read_bytes())) as image:
            assert row["bbox"][0] == [0, 0, round(image.width / 2), round(image.height / 2)]
    assert sorted(path.name for path in out.iterdir()) == ["dev.jsonl", "images", "train.jsonl", "val.jsonl"]


def test_it_is_read_back_by_url_table(shards_of: Path, tmp_path: Path) -> None:
    export(Dataset.open(shards_of), "brivl-jsonl", tmp_path / "out")
    options = {"name": "back", "source_kind": "library", "format": "brivl_jsonl", "images": str(tmp_path / "out")}
    source = configure("sources", "url_table", {**options, "path": str(tmp_path / "out/*.jsonl")}, TableSource)
    entries = [entry for part in range(source.parts()) for entry in source.read(part, Account())]
    assert len(entries) == sum(read_manifest(shards_of).samples.values())
    for entry in entries:
        assert isinstance(entry, Candidate)
        assert len(entry.boxes) in (4, 8)
        assert {text.kind for text in entry.texts} <= {"caption", "alt"}
        assert (source.read_image(entry.image_url) or b"")[:2] == b"\xff\xd8"


def test_texts_have_the_names_of_the_release_and_its_cuts() -> None:
    long = "第一句。" + "很长的说明" * 40
    texts = [{"kind": "alt", "text": "图"}, {"kind": "surrounding", "text": long}, {"kind": "caption", "text": "题"}]
    assert sentences(texts) == [
        ["alt_text", "图"],
        ["sur_text", long],
        ["caption", "题"],
        ["easy", long[:128]],
        ["first", "第一句"],
    ]


@given(st.lists(st.tuples(*[st.floats(0, 50, width=32)] * 4), max_size=5))
def test_boxes_are_whole_pixels_inside_the_picture(raw: list[tuple[float, ...]]) -> None:
    boxes = [(min(a, c), min(b, d), max(a, c), max(b, d)) for a, b, c, d in raw]
    for box, (x1, y1, x2, y2) in zip(boxes, whole_pixels(np.ravel(boxes).tolist(), 50, 40), strict=True):
        assert 0 <= x1 < x2 <= 50
        assert 0 <= y1 < y2 <= 40
        assert abs(x1 - min(box[0], 49)) <= 0.5
        assert abs(y1 - min(box[1], 39)) <= 0.5


def test_a_detector_that_is_not_there_is_named(shards_of: Path, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"no detector or several named 'yolo'; detectors: grid-"):
        export(Dataset.open(shards_of), "brivl-jsonl", tmp_path / "out", detector="yolo")
    assert not (tmp_path / "out").exists()
