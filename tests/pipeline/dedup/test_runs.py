"""Rows of runs in the order of their ranks."""

from __future__ import annotations

import random

import numpy as np
import pyarrow as pa

from pipeline.dedup.runs import ROW_SCHEMA, order_of
from pipeline.files.digests import column_of


def rows(dice: random.Random, count: int) -> pa.Table:
    """Rows whose ids often begin alike."""
    ids = np.frombuffer(dice.randbytes(32 * count), np.uint8).reshape(count, 32).copy()
    ids[:, :8] = ids[:, :1] % 2
    columns = {name: pa.nulls(count, ROW_SCHEMA.field(name).type) for name in ROW_SCHEMA.names}
    columns |= {"candidate_id": column_of(ids), "kept_by": pa.array([dice.randrange(3) for _ in range(count)])}
    columns |= {side: pa.array([dice.choice((1, 300)) for _ in range(count)]) for side in ("width", "height")}
    columns["words"] = pa.array([dice.randrange(3) for _ in range(count)])
    return pa.table({name: columns[name] for name in ROW_SCHEMA.names}).cast(ROW_SCHEMA)


def test_pairs_rank_by_the_build_that_kept_them_then_by_words_then_by_size_then_by_id() -> None:
    dice = random.Random(1)
    tables = [rows(dice, 400) for _ in range(3)]
    together = pa.concat_tables(tables).select(["kept_by", "words", "width", "height", "candidate_id"]).to_pylist()
    ranks = [(row["kept_by"], row["words"], -row["width"] * row["height"], row["candidate_id"]) for row in together]
    assert order_of(tables).tolist() == sorted(range(1_200), key=ranks.__getitem__)
