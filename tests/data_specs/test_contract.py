"""The contract from both sides: shards that `pipeline` wrote from pictures of mixed formats, read by everybody.

Plain webdataset, wids, Ray Data, Hugging Face datasets and `training` must each return every image, with the text that
belongs to it. Readers with global state (Ray's processes, the hub's settings) run in a process of their own.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from PIL import Image

from data_specs.shard import read_manifest

TRUTH = dict[str, tuple[str, int, int]]


@pytest.fixture
def truth(shards_of: Path, synthetic: Any) -> TRUTH:
    """key -> (primary text, width, height) as the index says; every format of the fixture is among the samples."""
    rows = [row for path in sorted(shards_of.glob("*.parquet")) for row in pq.read_table(path).to_pylist()]
    assert len(rows) == synthetic.KEPT
    assert {row["format"] for row in rows} == {"jpeg", "png", "gif", "webp", "bmp"}
    return {row["key"]: (row["texts"][0]["text"], row["width"], row["height"]) for row in rows}


def _sides(data: bytes) -> tuple[int, int]:
    with Image.open(io.BytesIO(data)) as image:
        image.load()
        assert image.format == "JPEG"
        return image.size


def _in_a_process(script: str, *args: str) -> Any:
    """The JSON value that a script prints as its last line."""
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    env |= {"RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0", "RAY_USAGE_STATS_ENABLED": "0"}
    done = subprocess.run(
        [sys.executable, "-c", script, *args], env=env, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def _as_truth(found: list[list[Any]]) -> TRUTH:
    keys = [key for key, *_ in found]
    assert len(keys) == len(set(keys))
    return {key: (text, width, height) for key, text, width, height in found}


def test_plain_webdataset_reads_every_sample(shards_of: Path, truth: TRUTH) -> None:
    script = """
import io, json, sys, webdataset
from PIL import Image
found = []
for s in webdataset.WebDataset(sys.argv[1:], shardshuffle=False, empty_check=False):
    assert json.loads(s["json"])["texts"][0]["text"] == s["txt"].decode()
    found.append([s["__key__"], s["txt"].decode(), *Image.open(io.BytesIO(s["jpg"])).convert("RGB").size])
print(json.dumps(found))
"""
    assert _as_truth(_in_a_process(script, *map(str, sorted(shards_of.glob("*.tar"))))) == truth


def test_wids_reads_the_shard_lists_that_publish_wrote(shards_of: Path, truth: TRUTH, tmp_path: Path) -> None:
    script = """
import json, sys, wids
found = []
for split in ("train", "dev", "val"):
    dataset = wids.ShardListDataset(f"{sys.argv[1]}/{split}.json", cache_dir=f"{sys.argv[2]}/{split}")
    for i in range(len(dataset)):
        sample = dataset[i]
        found.append([sample["__key__"], sample[".txt"], *sample[".jpg"].size])
print(json.dumps(found))
"""
    assert _as_truth(_in_a_process(script, str(shards_of), str(tmp_path / "cache"))) == truth


def test_ray_data_reads_every_sample(shards_of: Path, truth: TRUTH) -> None:
    script = """
import json, logging, sys, ray
ray.init("local", num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
ray.data.DataContext.get_current().enable_progress_bars = False
rows = ray.data.read_webdataset(sys.argv[1:]).take_all()
print(json.dumps([[r["__key__"], r["txt"], r["jpg"].shape[1], r["jpg"].shape[0]] for r in rows]))
"""
    assert _as_truth(_in_a_process(script, *map(str, sorted(shards_of.glob("*.tar"))))) == truth


def test_hugging_face_datasets_reads_every_sample_by_the_card(shards_of: Path, truth: TRUTH, tmp_path: Path) -> None:
    script = """
import json, sys, datasets
found = []
for split in ("train", "dev", "val"):
    files = {split: f"{sys.argv[1]}/{split}-*.tar"}
    rows = datasets.load_dataset("webdataset", data_files=files, split=split, cache_dir=sys.argv[2])
    found += [[r["__key__"], r["txt"], *r["jpg"].size] for r in rows]
print(json.dumps(found))
"""
    assert _as_truth(_in_a_process(script, str(shards_of), str(tmp_path / "cache"))) == truth


def test_training_reads_every_sample_with_its_regions(shards_of: Path, truth: TRUTH, tmp_path: Path) -> None:
    from training.data.index import open_dataset

    [detector] = read_manifest(shards_of).detectors
    found = {}
    for split in ("train", "dev", "val"):
        dataset = open_dataset([str(shards_of)], split, detector=detector, cache=tmp_path / "index")
        for number in range(len(dataset)):
            row = dataset.row(number)
            found[row.key] = (row.texts[0].text, *_sides(dataset.image(row)))
            assert row.boxes is not None
            assert len(row.boxes) in (4, 8)
            assert max(row.boxes[2::4]) <= row.width
        dataset.close()
    assert found == truth
