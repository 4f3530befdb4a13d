"""Runs of the second question: read from shards, and the same for the same seed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from tests.benchmarks.study import regions
from tests.benchmarks.study.arms import CLIP
from tests.benchmarks.study.regions import Job
from tests.benchmarks.study.scenes import Source
from training.data.index import open_dataset

pytestmark = pytest.mark.slow


@pytest.mark.drill(4)
def test_a_run_is_written_once_and_is_the_same_again(source: Source, weights: Path, tmp_path: Path) -> None:
    jobs = [Job(source, sight, 0, 64, tmp_path / name, weights) for name in ("a", "b") for sight in ("whole", "grid")]
    for job in jobs:
        regions.do(job)
    runs = [replace(run, seconds=0.0) for job in jobs if (run := job.record()) is not None]
    assert len(runs) == 4
    assert runs[:2] == runs[2:]
    assert runs[0] != runs[1]
    assert runs[0].samples == (16, 32, 48, 64)
    assert runs[0].pairs == (24, 8, 8)
    assert runs[0].chance == pytest.approx(1 / 8, abs=0.06)
    assert replace(jobs[0], samples=128).record() is None
    assert replace(jobs[0], arm=replace(jobs[0].arm, momentum=0.5)).record() is None


@pytest.mark.drill(4)
def test_an_arm_without_key_towers_goes_on_to_equal_compute(source: Source, weights: Path, tmp_path: Path) -> None:
    job = Job(source, "whole", 0, 64, tmp_path, weights, replace(CLIP, batch=2))
    regions.do(job)
    run = job.record()
    assert run is not None
    assert run.samples[:4] == (16, 32, 48, 64)
    assert 1.2 < run.samples[4] / 64 < 1.6


def test_other_weights_and_another_dataset_have_features_of_their_own(
    source: Source, weights: Path, tmp_path: Path
) -> None:
    """What one backbone had computed was read for another one, whatever the records said."""
    first = regions.half_of(source, "val", "grid", weights)
    state = torch.load(weights, weights_only=True)
    other = tmp_path / weights.name
    torch.save({name: value * 1.01 if value.is_floating_point() else value for name, value in state.items()}, other)
    assert not torch.equal(regions.half_of(source, "val", "grid", other).regions_NRC, first.regions_NRC)
    jobs = [Job(source, "grid", 0, 64, tmp_path, own) for own in (weights, other)]
    assert jobs[0].key() != jobs[1].key()
    manifest = json.loads(source.manifest.read_text())
    source.manifest.write_text(json.dumps({**manifest, "content_digest": "0" * 64}))
    regions.half_of.cache_clear()
    regions.half_of(source, "val", "grid", weights)
    assert len(list(source.manifest.parent.glob("val.grid-1.*.pt"))) == 3


def test_true_boxes_are_pooled_like_those_of_a_detector(source: Source, weights: Path, tmp_path: Path) -> None:
    dataset = open_dataset([str(source.manifest)], "val", detector="grid-1")
    rows = [dataset.row(number) for number in range(len(dataset))]
    table = pq.read_table(next(source.manifest.parent.glob("val-*.parquet")))
    files = dict(zip(table["key"].to_pylist(), table["image_url"].to_pylist(), strict=True))
    boxes = {}
    for row in rows:
        sides = np.array([row.width, row.height] * 2)
        boxes[files[row.key].rpartition("/")[2]] = (np.reshape(row.boxes, (-1, 4)) / sides).tolist()
    (tmp_path / "boxes.json").write_text(json.dumps(boxes))
    told = replace(source, true_boxes=tmp_path / "boxes.json")
    assert [*regions.sights(source), "things"] == regions.sights(told)
    grid, things = (regions.half_of(told, "val", sight, weights) for sight in ("grid", "things"))
    torch.testing.assert_close(things.regions_NRC, grid.regions_NRC, atol=0.01, rtol=0.01)
    assert float(grid.regions_NRC[:, :2].std(0).mean()) > 0.05  # boxes differ, so that a wrong order would be seen
    assert torch.equal(things.rest.n_boxes_B, grid.rest.n_boxes_B)
