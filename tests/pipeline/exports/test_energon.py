"""energon: the index beside each tar, and the folder as Energon itself reads it where it is installed."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml


@pytest.mark.slow
def test_the_index_of_a_tar_is_where_its_samples_begin(
    exported: Callable[..., Path], rows: dict[str, dict[str, Any]]
) -> None:
    out = exported("energon")
    counts = json.loads((out / ".nv-meta/.info.json").read_bytes())["shard_counts"]
    assert sum(counts.values()) == len(rows)
    assert yaml.safe_load((out / ".nv-meta/split.yaml").read_bytes())["split_parts"] == {
        split: [name for name in counts if name.startswith(split)] for split in ("train", "dev", "val")
    }
    for name, count in counts.items():
        *starts, end = np.frombuffer((out / f"{name}.idx").read_bytes(), "<u8").tolist()
        assert len(starts) == count
        data = (out / name).read_bytes()
        assert not any(data[end:]), "nothing but the end of the archive follows the last sample"
        for start in starts:
            header = tarfile.TarInfo.frombuf(data[start : start + 512], "utf-8", "strict")
            assert header.name.removesuffix(".jpg") in rows


@pytest.mark.drill(15)
@pytest.mark.filterwarnings("ignore")
def test_energon_itself_opens_it_without_preparing_anything(
    exported: Callable[..., Path], rows: dict[str, dict[str, Any]]
) -> None:
    package = pytest.importorskip("megatron.energon", reason="megatron-energon is not installed")
    worker = package.WorkerConfig(rank=0, world_size=1, num_workers=0)
    out = str(exported("energon"))
    for split in ("train", "dev", "val"):
        opened = package.get_val_dataset(out, split_part=split, worker_config=worker, batch_size=1)
        batches = list(package.get_loader(opened))
        captions = {batch.__key__[0].rpartition("/")[2]: batch.caption[0] for batch in batches}
        assert captions == {key: row["texts"][0]["text"] for key, row in rows.items() if row["split"] == split}
        sides = {batch.__key__[0].rpartition("/")[2]: tuple(batch.image.shape[-2:]) for batch in batches}
        assert all(sides[key] == (rows[key]["height"], rows[key]["width"]) for key in sides)
