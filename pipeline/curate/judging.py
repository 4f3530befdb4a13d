"""Judges: each returns a verdict for every pair that earlier judges have kept.

A judge runs in a pass of its own, `curate.NAME`, which writes its verdicts as a column file. What must be known of all
pairs before, such as the marks of hosts or the counts of words, are further passes of the judge.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from data_specs.build import BuildSpec
from pipeline.filters import Drop
from pipeline.store.build import Build, Pass, PassFile, one_cpu
from pipeline.store.commits import ROWS_DIGEST
from pipeline.store.pairs import PAIRS, pass_name, reaching, reads_before

ROW_GROUP = 10_000

VERDICT_SCHEMA = pa.schema(
    [
        (
            "reasons",
            pa.list_(pa.string()),
        ),  # every failing one; empty of a pair that is kept, null of one not asked about
        ("evidence", pa.string()),
        ("duplicate_of", pa.string()),  # candidate_id of the pair that it is a copy of
    ]
)
"""Verdicts on the pairs of a partition; the judge's own columns follow."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Why a pair goes: every reason, none to keep it. duplicate_of: candidate_id of the pair that it is a copy of."""

    drops: tuple[Drop, ...] = ()
    duplicate_of: str = ""


KEEP = Verdict()


@dataclass(frozen=True)
class Verdicts:
    """Verdicts of a judge on rows. columns: its own columns, row by row. counts: more for the record."""

    verdicts: Sequence[Verdict]
    columns: Mapping[str, pa.Array] = field(default_factory=dict)
    counts: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Judge:
    """One judge. name: as its section of the spec, or its filters, are called; one of `pairs.JUDGES`.

    judge(build, partition, rows): a verdict for each row of DEDUP_SCHEMA that reaches it.
    when(spec): whether a spec asks for it. token(build): its part of the spec.
    passes: what must be known before, in order. columns: names and types of what it notes beside verdicts.
    """

    name: str
    zh: str
    judge: Callable[[Build, str, pa.Table], Verdicts]
    when: Callable[[BuildSpec], bool]
    token: Callable[[Build], Any]
    version: int = 1
    passes: tuple[Pass, ...] = ()
    columns: tuple[pa.Field, ...] = ()
    resources: Callable[[BuildSpec], dict[str, float]] = one_cpu

    @property
    def schema(self) -> pa.Schema:
        return pa.schema([*VERDICT_SCHEMA, *self.columns])

    def all_passes(self) -> tuple[Pass, ...]:
        """Its passes, the one in which it is asked last."""
        asking = Pass(
            name=pass_name(self.name),
            over=pair_partitions,
            reads=("fetch", *reads_before(self.name), *(own.name for own in self.passes)),
            run=self.run,
            token=self.token,
            version=self.version,
            when=self.when,
            resources=self.resources,
            files=(PassFile("parquet", self.schema, aligned=PAIRS),),
            unit="pairs",
        )
        return (*self.passes, asking)

    def run(self, build: Build, partition: str) -> None:
        """Runs the judge on one partition and commits its verdicts."""
        stage = build.stage(PAIRS)
        record = stage.record(partition)
        mask = reaching(build, partition, self.name)
        rows = stage.table(record).filter(pa.array(mask))
        judged = self.judge(build, partition, rows)
        said = [verdict.drops for verdict in judged.verdicts]
        columns = {
            "reasons": pa.array(
                [list(dict.fromkeys(d.reason.value for d in drops)) for drops in said], pa.list_(pa.string())
            ),
            "evidence": pa.array(["; ".join(dict.fromkeys(d.evidence for d in drops)) for drops in said], pa.string()),
            "duplicate_of": pa.array([verdict.duplicate_of for verdict in judged.verdicts], pa.string()),
            **judged.columns,
        }
        dropped = sum(map(bool, said))
        with build.stage(pass_name(self.name)).attempt(partition) as attempt:
            attempt.write_table("parquet", spread(columns, mask, self.schema), row_group_size=ROW_GROUP)
            counts = {"seen": rows.num_rows, "kept": rows.num_rows - dropped, "dropped": dropped, **judged.counts}
            attempt.commit(counts, {ROWS_DIGEST: record.info[ROWS_DIGEST]})


def pair_partitions(build: Build) -> list[str]:
    """`Pass.over` of a pass over the pairs."""
    return build.stage(PAIRS).partitions()


def spread(columns: Mapping[str, pa.Array], mask: Any, schema: pa.Schema) -> pa.Table:
    """A column file of all pairs of a partition [N] from values of those that a mask [N] selects; null elsewhere."""
    at = np.where(mask, np.cumsum(mask) - 1, -1)
    rows = pa.array(at, mask=~np.asarray(mask))
    return pa.table({field.name: columns[field.name].take(rows) for field in schema}, schema=schema)
