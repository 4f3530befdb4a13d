"""Each export read by the tool that it is for. A tool that is not installed skips its test, which says so."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from data_specs.shard import SPLITS
from pipeline.exports import export
from pipeline.store.dataset import Dataset

Exported = Callable[..., Path]


@pytest.fixture
def exported(shards_of: Path, tmp_path: Path) -> Exported:
    """exported(to, *splits): the synthetic dataset in a format."""

    def make(to: str, *splits: Any) -> Path:
        export(Dataset.open(shards_of), to, tmp_path / to, splits)
        return tmp_path / to

    return make


@pytest.fixture
def rows(shards_of: Path) -> dict[str, dict[str, Any]]:
    """key -> row of the dataset's own tables."""
    tables = [pq.read_table(path) for path in sorted(shards_of.glob("*.parquet"))]
    return {row["key"]: row for table in tables for row in table.to_pylist()}


def run(script: str, *args: object) -> Any:
    """The JSON value that a script prints as its last line, in a process of its own."""
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-c", script, *map(str, args)]
    done = subprocess.run(words, env=env, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("to", ["hf", "parquet"])
def test_hugging_face_reads_the_folder(
    to: str, exported: Exported, rows: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    """`load_dataset(path)`: the card gives the splits, and the images are pictures."""
    pytest.importorskip("datasets", reason="datasets is not installed")
    script = """
import datasets, json, sys
found = []
for split, part in datasets.load_dataset(sys.argv[1], cache_dir=sys.argv[2]).items():
    image, text, key = ("jpg", "txt", "__key__") if sys.argv[3] == "hf" else ("image", "text", "key")
    assert isinstance(part.features[image], datasets.Image), part.features
    for row in part:
        boxes = row["json"]["boxes"] if sys.argv[3] == "hf" else row["boxes"]
        found.append([row[key], split, row[text], *row[image].size, len(boxes)])
print(json.dumps(found))
"""
    found = run(script, exported(to), tmp_path / "cache", to)
    assert {key: row[:4] for key, *row in found} == {
        key: [row["split"], row["texts"][0]["text"], row["width"], row["height"]] for key, row in rows.items()
    }
    assert {row[-1] for row in found} <= {1, 2}


def test_hugging_face_reads_the_tars_as_webdataset(exported: Exported, rows: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("datasets", reason="datasets is not installed")
    script = """
import datasets, json, sys
files = {"val": sys.argv[1] + "/data/val-*.tar"}
part = datasets.load_dataset("webdataset", data_files=files, split="val", cache_dir=sys.argv[2])
print(json.dumps([row["__key__"] for row in part if row["jpg"].size]))
"""
    assert set(run(script, exported("hf"), tmp_path / "cache")) == {k for k, r in rows.items() if r["split"] == "val"}


def test_clip_benchmark_reads_images_with_their_captions(exported: Exported, rows: dict[str, Any]) -> None:
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
    found = sorted(run(script, out))
    assert found == sorted([row["width"], row["height"], [row["texts"][0]["text"]]] for row in val)
    assert (out / "dataset_type.txt").read_text() == "retrieval"
    assert sorted(path.name for path in out.iterdir()) == ["dataset_type.txt", "test"]


def test_chinese_clip_reads_pairs(exported: Exported, rows: dict[str, Any]) -> None:
    """As `cn_clip.preprocess.build_lmdb_dataset` and `cn_clip.training.data` read them, line by line."""
    script = """
import base64, io, json, os, sys
from PIL import Image
folder, found = sys.argv[1], []
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
        found += [[keys[str(i)], row["text"], *sizes[i]] for i in row["image_ids"]]
    if split != "train":
        assert len({row["text"] for row in texts}) == len(texts)  # images of one text share its line
print(json.dumps(found))
"""
    found = {key: rest for key, *rest in run(script, exported("chinese-clip"))}
    assert found == {key: [r["texts"][0]["text"], r["width"], r["height"]] for key, r in rows.items()}


def test_lance_reads_and_filters(exported: Exported, rows: dict[str, Any]) -> None:
    lance = pytest.importorskip("lance", reason="pylance is not installed")
    out = exported("lance")
    for split in SPLITS:
        table = lance.dataset(str(out / f"{split}.lance")).to_table(
            columns=["key", "text", "boxes"], filter="width > 200"
        )
        wanted = {k: r["texts"][0]["text"] for k, r in rows.items() if r["split"] == split and r["width"] > 200}
        assert dict(zip(table["key"].to_pylist(), table["text"].to_pylist(), strict=True)) == wanted


def test_duckdb_and_polars_read_the_tables(exported: Exported, rows: dict[str, Any]) -> None:
    out, wide = exported("parquet"), sum(row["width"] > 200 for row in rows.values())
    duckdb = pytest.importorskip("duckdb", reason="duckdb is not installed")
    found = duckdb.sql(f"select count(*) from '{out}/*.parquet' where width > 200").fetchall()
    assert found == [(wide,)]
    polars = pytest.importorskip("polars", reason="polars is not installed")
    assert polars.read_parquet(f"{out}/*.parquet").filter(polars.col("width") > 200).height == wide
