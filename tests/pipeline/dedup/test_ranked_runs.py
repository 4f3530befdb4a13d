"""Runs merged by rank: a new generation begins with what builds of the last one kept, in the order of these builds."""

from __future__ import annotations

import itertools
import random
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pipeline.dedup import ranked_runs
from pipeline.dedup.ranked_runs import KEPT_BY, RUN_SCHEMA, merged, sorted_by_rank, write_ordered
from pipeline.files.digests import column_of
from pipeline.files.folder import Folder
from pipeline.store.partitions import StageDir


def rows(dice: random.Random, count: int) -> pa.Table:
    ids = np.frombuffer(dice.randbytes(32 * count), np.uint8).reshape(count, 32)
    columns = {name: pa.nulls(count, RUN_SCHEMA.field(name).type) for name in RUN_SCHEMA.names}
    columns |= {"candidate_id": column_of(ids)}
    columns |= {
        side: pa.array([dice.choice((1, 300)) for _ in range(count)], pa.int32()) for side in ("width", "height")
    }
    table = pa.table({name: columns[name] for name in RUN_SCHEMA.names}, schema=RUN_SCHEMA)
    return table.append_column(KEPT_BY, pa.array([dice.randrange(3) for _ in range(count)], pa.int32()))


def test_runs_are_merged_by_the_build_that_kept_a_pair_then_by_size_then_by_id(tmp_path: Path) -> None:
    dice, stage = random.Random(1), StageDir(Folder(str(tmp_path)), "rank", "f" * 64)
    tables = [rows(dice, 400) for _ in range(3)]
    for number, table in enumerate(tables):
        with stage.attempt(str(number)) as attempt:
            attempt.write_table("parquet", sorted_by_rank(table))
            attempt.commit({"pairs": table.num_rows})
    together = pa.concat_tables([table for table, _ in merged(stage, stage.records(), 64)])
    ranks = [
        (row[KEPT_BY], -row["width"] * row["height"], row["candidate_id"])
        for row in together.select([KEPT_BY, "width", "height", "candidate_id"]).to_pylist()
    ]
    assert len(ranks) == 1200
    assert all(a < b for a, b in itertools.pairwise(ranks))


@pytest.mark.parametrize("counts", [(700, 1, 0, 900), (300,), (0, 0), (256, 257, 5, 5)])
@pytest.mark.parametrize("block", [64, 1_000])
@pytest.mark.parametrize("handed_on", [False, True])
def test_every_row_comes_once_with_its_run_in_blocks_of_one_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, counts: tuple[int, ...], block: int, handed_on: bool
) -> None:
    dice, stage = random.Random(2), StageDir(Folder(str(tmp_path)), "rank", "f" * 64)
    monkeypatch.setattr(ranked_runs, "BUFFER", 1)  # a run is read in several times
    monkeypatch.setattr(ranked_runs, "ORDERED_ROWS", 100)
    run_of, tables, ordered = {}, list[pa.Table](), list[Path]()
    for number, count in enumerate(counts):
        table = sorted_by_rank(rows(dice, count))
        tables.append(table)
        run_of |= dict.fromkeys(table["candidate_id"].to_pylist(), number)
        with stage.attempt(str(number)) as attempt:
            attempt.write_table("parquet", table, row_group_size=100)
            attempt.commit({"pairs": count})
        ordered.append(tmp_path / f"{number}.arrow")
        write_ordered(ordered[-1], table.drop_columns(["texts"]))
    blocks = list(merged(stage, stage.records(), block, ordered=ordered if handed_on else ()))
    ids = [name for table, _ in blocks for name in table["candidate_id"].to_pylist()]
    assert ids == sorted_by_rank(pa.concat_tables(tables))["candidate_id"].to_pylist()
    assert [run_of[name] for name in ids] == [run for _, runs in blocks for run in runs.tolist()]
    assert all(table.num_rows == len(runs) == block for table, runs in blocks[:-1])
    together = sorted_by_rank(pa.concat_tables(tables)).drop_columns(["texts"])
    read = [table.select(together.column_names) for table, _ in blocks]
    assert pa.concat_tables([together.schema.empty_table(), *read]) == together
    assert all(("texts" in table.column_names) != handed_on for table, _ in blocks)
