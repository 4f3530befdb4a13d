"""Real pairs: splits that share nothing, and records whose hits are their figures."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.benchmarks.study import real
from tests.benchmarks.study.records import COMMITTED, load, save
from tests.benchmarks.study.scenes import Source
from tests.benchmarks.study.trial import unpacked


@pytest.mark.slow
def test_a_leader_that_stands_in_two_splits_is_counted(source: Source) -> None:
    found = real._facts(source)
    assert found["splits"] == {"dev": 8, "train": 24, "val": 8}
    assert found["in_two_splits"] == {"image": 0, "text": 0}
    train, val = (next(source.manifest.parent.glob(f"{split}-*.parquet")) for split in ("train", "val"))
    table = pq.read_table(val)
    leaders = [pq.read_table(train)["image_leader"][0].as_py(), *table["image_leader"].to_pylist()[1:]]
    pq.write_table(table.set_column(table.schema.get_field_index("image_leader"), "image_leader", [leaders]), val)
    assert real._facts(source)["in_two_splits"] == {"image": 1, "text": 0}


@pytest.mark.drill(20)
def test_records_have_hits_by_name_where_arms_are_compared(
    source: Source, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "records.json"
    known = load(COMMITTED)
    others = tuple(run for run in known.pairs if run.source != "packages")
    save(replace(known, datasets={k: v for k, v in known.datasets.items() if k != "packages"}, pairs=others), path)
    changed = {"SOURCE": Source("packages", source.manifest), "COMMITTED": path, "TUNING": 32, "SEEDS": (0, 1)}
    for name, value in {**changed, "TEMPERATURES": (0.07,), "RATES": (5e-4, 5e-3)}.items():
        monkeypatch.setattr(real, name, value)
    words = ["--out", str(tmp_path / "runs"), "--weights", str(weights), "--jobs", "1", "--samples", "320"]
    assert real.main(words) == 0
    kept = load(path)
    runs = [run for run in kept.pairs if run.source == "packages"]
    assert Counter(run.arm for run in runs) == {"moco": 2, "moco-k0": 2, "clip": 2}
    names = kept.datasets["packages"]["names"]
    assert len(names) == 8
    for run in runs:
        compared = [i for i, hits in enumerate(run.hits) if hits]
        assert 1 <= len(compared) <= 2
        for i in compared:
            found = [unpacked(text, len(names)).mean() for text in run.hits[i]]
            assert found == pytest.approx([run.val[i], run.val10[i]], abs=1e-4)
