"""csv, read by the standard library."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from pathlib import Path

import pytest
from PIL import Image

from data_specs.shard import SPLITS
from pipeline.exports import csv as table
from pipeline.exports import export
from pipeline.store.dataset import Dataset
from pipeline.store.frames import Frames
from pipeline.store.samples import Samples

pytestmark = pytest.mark.slow


def test_a_table_of_csv_reads_back(shards_of: Path, tmp_path: Path) -> None:
    export(Dataset.open(shards_of), "csv", tmp_path / "out")
    frames = Frames.of_dataset(Dataset.open(shards_of))
    stored = {own.key: own for own in Samples.of(frames).read()}
    for split in SPLITS:
        with (tmp_path / f"out/{split}.csv").open(encoding="utf-8", newline="") as f:
            for row in csv.DictReader(f):
                own = stored.pop(row["key"])
                assert row["title"] == own.text
                assert json.loads(row["texts"])[0]["text"] == own.text
                assert json.loads(row["boxes"]) == [[pytest.approx(x, abs=0.01) for x in box] for box in own.boxes_R4]
                with Image.open(io.BytesIO((tmp_path / "out" / row["filepath"]).read_bytes())) as image:
                    assert image.size == (int(row["width"]), int(row["height"]))
    assert not stored


@pytest.mark.parametrize("title", ['=HYPERLINK("http://a.cn","x")', "@SUM(1)", "-1+2", "+1", "＝1", "\t=1"])
def test_a_title_is_no_formula_for_a_spreadsheet(shards_of: Path, title: str) -> None:
    [stored] = Samples.of(Frames.of_dataset(Dataset.open(shards_of))).first(1)
    texts = [{**stored.row["texts"][0], "text": title}]
    row = table._row(dataclasses.replace(stored, row={**stored.row, "texts": texts}))
    assert row["title"] == f"'{title}"
    assert json.loads(row["texts"])[0]["text"] == title, "the text itself stays"
    assert table._row(stored)["title"] == stored.text
