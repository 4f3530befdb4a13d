"""Real pairs: splits that share nothing."""

from __future__ import annotations

import pyarrow.parquet as pq
import pytest

from tests.benchmarks.study import real
from tests.benchmarks.study.scenes import Source


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
