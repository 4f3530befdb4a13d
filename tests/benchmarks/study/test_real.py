"""The section on real pairs: budgets and verdicts from records, and splits that share nothing."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.benchmarks.study import real
from tests.benchmarks.study.regions import Run
from tests.benchmarks.study.scenes import Source


def _run(seed: int, val: float, *more: float) -> dict[str, object]:
    reached = (val + 0.001 * seed, *more)
    samples = (32_000, 45_000)[: len(reached)]
    return asdict(Run("packages", "whole", seed, samples, reached, reached, reached, reached, 0.001, (80, 10, 10), 1.0))


def test_equal_samples_and_equal_compute_are_told_apart(tmp_path: Path) -> None:
    record = {
        "dataset": {"splits": {"train": 8_000, "dev": 1_000, "val": 1_000}, "sources": {"apps": 10_000}},
        "temperature": {},
        "runs": {
            "moco": [_run(seed, 0.05) for seed in real.SEEDS],
            "moco-k0": [_run(seed, 0.05 + 0.02 * (seed - 1)) for seed in real.SEEDS],
            "clip": [_run(seed, 0.03, 0.09) for seed in real.SEEDS],
        },
    }
    path = tmp_path / "real.json"
    path.write_text(json.dumps(record))
    (part,) = real.content(path)["parts"]
    says = [english for english, _ in part.says if english.startswith("R@1:")]
    assert says[0].startswith("R@1: Towers with the queue beat in-batch CLIP, equal samples (+2.0 ")
    assert says[1].startswith("R@1: Towers with the queue are worse than in-batch CLIP, equal compute (-3.9 ")
    assert says[2].startswith("R@1: Key towers without a queue are not shown to beat in-batch CLIP, equal samples ")
    assert [row.r1[:3] for row in part.rows] == ["3.1", "9.0", "5.1", "5.1"]
    assert "10,000 pairs of 1 sources; 8,000 to train" in part.note[0]


@pytest.mark.slow
def test_a_leader_that_stands_in_two_splits_is_counted(source: Source) -> None:
    found = real._dataset(source.manifest)
    assert found["splits"] == {"dev": 8, "train": 24, "val": 8}
    assert found["in_two_splits"] == {"image": 0, "text": 0}
    train, val = (next(source.manifest.parent.glob(f"{split}-*.parquet")) for split in ("train", "val"))
    table = pq.read_table(val)
    leaders = [pq.read_table(train)["image_leader"][0].as_py(), *table["image_leader"].to_pylist()[1:]]
    pq.write_table(table.set_column(table.schema.get_field_index("image_leader"), "image_leader", [leaders]), val)
    assert real._dataset(source.manifest)["in_two_splits"] == {"image": 1, "text": 0}
