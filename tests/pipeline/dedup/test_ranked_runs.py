"""Sorted tables merged into one sequence; runs' rows in the order of their ranks."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pipeline.dedup import ranked_runs
from pipeline.dedup.ranked_runs import merged
from pipeline.dedup.runs import ROW_SCHEMA, order_of
from pipeline.files.digests import column_of, digests_of
from pipeline.files.folder import Folder
from pipeline.store.partitions import StageDir


def rows(dice: random.Random, count: int) -> pa.Table:
    """Rows whose ids often begin alike."""
    ids = np.frombuffer(dice.randbytes(32 * count), np.uint8).reshape(count, 32).copy()
    ids[:, :8] = ids[:, :1] % 2
    columns = {name: pa.nulls(count, ROW_SCHEMA.field(name).type) for name in ROW_SCHEMA.names}
    columns |= {"candidate_id": column_of(ids), "kept_by": pa.array([dice.randrange(3) for _ in range(count)])}
    columns |= {side: pa.array([dice.choice((1, 300)) for _ in range(count)]) for side in ("width", "height")}
    return pa.table({name: columns[name] for name in ROW_SCHEMA.names}).cast(ROW_SCHEMA)


def test_pairs_rank_by_the_build_that_kept_them_then_by_size_then_by_id() -> None:
    dice = random.Random(1)
    tables = [rows(dice, 400) for _ in range(3)]
    together = pa.concat_tables(tables).select(["kept_by", "width", "height", "candidate_id"]).to_pylist()
    ranks = [(row["kept_by"], -row["width"] * row["height"], row["candidate_id"]) for row in together]
    assert order_of(tables).tolist() == sorted(range(1_200), key=ranks.__getitem__)


def _keys(table: pa.Table) -> Any:
    return np.ascontiguousarray(digests_of(table["candidate_id"])).view("V32").ravel()


@pytest.mark.slow
@pytest.mark.parametrize("counts", [(700, 1, 0, 900), (300,), (0, 0), (256, 257, 5, 5)])
@pytest.mark.parametrize("block", [64, 1_000])
def test_every_row_comes_once_with_its_table_in_blocks_of_one_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, counts: tuple[int, ...], block: int
) -> None:
    dice, stage = random.Random(2), StageDir(Folder(str(tmp_path)), "vectors", "f" * 64)
    monkeypatch.setattr(ranked_runs, "BUFFER", 1)  # a table is read in several times
    run_of: dict[bytes, int] = {}
    for number, count in enumerate(counts):
        table = rows(dice, count).sort_by("candidate_id")
        run_of |= dict.fromkeys(table["candidate_id"].to_pylist(), number)
        with stage.attempt(str(number)) as attempt:
            attempt.write_table("parquet", table, row_group_size=100)
            attempt.commit({"pairs": count})
    blocks = list(merged(stage, stage.records(), block, _keys))
    ids = [name for table, _ in blocks for name in table["candidate_id"].to_pylist()]
    assert ids == sorted(run_of)
    assert [run_of[name] for name in ids] == [run for _, runs in blocks for run in runs.tolist()]
    assert all(table.num_rows == len(runs) == block for table, runs in blocks[:-1])
