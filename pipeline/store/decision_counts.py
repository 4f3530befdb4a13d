"""Summary of the decisions of one partition: counted when they are written, and kept in the partition's record.

A page that shows a build needs these few numbers first (`pipeline.studio.catalog`), and the records are read anyway:
so a build of ten million candidates opens without reading one of them. `of` names the file that was counted: where a
takedown has put another in its place, the numbers are no longer those of the partition.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
from pydantic import BaseModel, ConfigDict

from pipeline.files.parquet import read_parquet


class Fate(NamedTuple):
    """Key by which decisions are counted."""

    subject: str
    source: str
    stage: str
    kept: bool
    reason: str


COLUMNS = list(Fate._fields)


class DecisionCounts(BaseModel):
    """of: sha256 of the file of decisions. rows: fates, each with how many decisions have it."""

    model_config = ConfigDict(frozen=True)
    of: str
    rows: tuple[tuple[Fate, int], ...]

    @property
    def counts(self) -> Counter[Fate]:
        """The same by fate."""
        return Counter(dict(self.rows))


def count_decisions(path: Path, sha256: str) -> DecisionCounts:
    """Counts the decisions of a file on this disk, by fate."""
    return DecisionCounts(of=sha256, rows=tuple(sorted(count(read_parquet(path, COLUMNS)).items())))


def count(decisions: pa.Table) -> Counter[Fate]:
    """Decisions by fate; the table has COLUMNS."""
    grouped = decisions.select(COLUMNS).group_by(COLUMNS).aggregate([([], "count_all")]).to_pydict()
    return Counter(
        {Fate(*values): n for *values, n in zip(*(grouped[name] for name in (*COLUMNS, "count_all")), strict=True)}
    )
