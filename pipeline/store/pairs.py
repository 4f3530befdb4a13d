"""The pairs that dedup kept, and the column files of the judges, row by row like those of a partition of `dedup`.

A column file holds no id: it belongs to the rows whose ids have the digest that its record and that of the rows name.
Survivors are the pairs that every judge kept; `detect` and `shard` go on with them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from data_specs.shard import PAIR_SCORE
from pipeline.errors import StoreError
from pipeline.rows.records import DEDUP_SCHEMA
from pipeline.store.build import Build
from pipeline.store.commits import REMOVED_LATER, ROWS_DIGEST

JUDGES = ("screen", "watermark", "pair_score", "semantic_dedup", "balance")
"""Names of all judges, in the order in which they are asked."""

PAIRS, SCORES, SELECTION = "dedup", "curate.score", "curate"
"""The passes that write the pairs, their scores, and which of them are kept."""

SURVIVORS = (PAIRS, SCORES, SELECTION)
"""`Pass.reads` of a pass that reads survivors."""

KEPT_SCHEMA = pa.schema([("kept", pa.bool_())])
"""Column file of SELECTION."""

Mask = npt.NDArray[np.bool_]


def pass_name(judge: str) -> str:
    return f"curate.{judge}"


def judge_names(build: Build, before: str = "") -> list[str]:
    """Names of the judges that a build asks, or of those before one of JUDGES."""
    first = JUDGES[: JUDGES.index(before)] if before else JUDGES
    return [name for name in first if pass_name(name) in build.passes]


def reads_before(judge: str) -> tuple[str, ...]:
    """`Pass.reads` of a pass that reads the pairs which reach a judge."""
    return (PAIRS, *(pass_name(name) for name in JUDGES[: JUDGES.index(judge)]))


def columns_of(build: Build, name: str, partition: str, columns: list[str] | None = None) -> pa.Table:
    """Column file of a pass. Raises StoreError where it is not of the pairs as they are now."""
    stage, record = build.stage(name), build.stage(name).record(partition)
    if record.info[ROWS_DIGEST] != build.stage(PAIRS).record(partition).info[ROWS_DIGEST]:
        where = stage.folder.at(record.files["parquet"].name)
        raise StoreError(where, "does not match the current pairs of dedup; delete the stage's folder to rebuild it")
    return stage.table(record, columns=columns)


def reaching(build: Build, partition: str, judge: str) -> Mask:
    """[N] which pairs of a partition no judge before this one has dropped."""
    counts = build.stage(PAIRS).record(partition).counts
    mask = np.ones(counts["kept"] - counts.get(REMOVED_LATER, 0), np.bool_)
    for name in judge_names(build, judge):
        reasons = columns_of(build, pass_name(name), partition, ["reasons"])["reasons"]
        mask &= np.asarray(pc.fill_null(pc.equal(pc.list_value_length(reasons), 0), False))
    return mask


def pairs_before(build: Build, partition: str, judge: str, columns: list[str] | None = None) -> pa.Table:
    """The pairs of a partition that reach a judge: rows of DEDUP_SCHEMA, with their score if it is asked for."""
    return _with_scores(build, partition, columns, reaching(build, partition, judge))


def survivors(build: Build, partition: str, columns: list[str] | None = None) -> pa.Table:
    """The pairs of a partition that go on: rows of DEDUP_SCHEMA, with their score where the spec asks for scores."""
    if columns is None and build.spec.pair_score is not None:
        columns = [*DEDUP_SCHEMA.names, PAIR_SCORE.name]
    mask = np.asarray(columns_of(build, SELECTION, partition)["kept"]) if SELECTION in build.passes else None
    return _with_scores(build, partition, columns, mask)


def primary_texts(rows: pa.Table) -> list[str]:
    texts: list[str] = pc.struct_field(pc.list_element(rows["texts"], 0), "text").to_pylist() if rows.num_rows else []
    return texts


def _with_scores(build: Build, partition: str, columns: Sequence[str] | None, mask: Mask | None) -> pa.Table:
    """Rows of a partition of PAIRS, with PAIR_SCORE if it is among the columns."""
    names = None if columns is None else [name for name in columns if name != PAIR_SCORE.name]
    stage = build.stage(PAIRS)
    rows = stage.table(stage.record(partition), columns=names)
    if names is not None and len(names) < len(columns or ()):
        scores = columns_of(build, SCORES, partition, [PAIR_SCORE.name])[PAIR_SCORE.name]
        rows = rows.append_column(PAIR_SCORE, scores)
    return rows if mask is None or mask.all() else rows.filter(pa.array(mask))
