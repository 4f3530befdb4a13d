"""Stage curate: judges decide on the pairs that dedup kept (`pipeline.curate`), and one pass selects.

Judges are asked in the order of `pipeline.store.pairs.JUDGES`, each in passes of its own, about the pairs that those
before it have kept. What they say lies in column files beside the pairs. The last pass writes a Decision for each pair
that goes, with what the judge said who dropped it, and which pairs stay: no row is written again.

A leader that is dropped here takes its cluster with it: its copies were dropped in dedup, and none of them is called
back. For the same reason a later build drops copies of it as duplicates. A spec that asks for no judge is without
this stage, and what goes on is what dedup kept.
"""

from __future__ import annotations

from collections import Counter
from importlib import import_module
from typing import Any

import numpy as np
import pyarrow as pa

from data_specs.build import BuildSpec
from data_specs.shard import SPLITS
from pipeline.curate.judging import Judge, pair_partitions
from pipeline.rows.decisions import Decision, DropReason, drop
from pipeline.rows.records import candidates_of
from pipeline.store import pairs
from pipeline.store.build import Build, Pass, PassFile, Stage
from pipeline.store.commits import ROWS_DIGEST
from pipeline.store.pairs import KEPT_SCHEMA, PAIRS, SCORES, SELECTION, columns_of, judge_names, pass_name

JUDGES: tuple[Judge, ...] = tuple(import_module(f"pipeline.curate.{name}").JUDGE for name in pairs.JUDGES)


def token(build: Build) -> Any:
    return None  # all that it depends on are the judges' passes


def when(spec: BuildSpec) -> bool:
    """True if a spec asks for a judge, or for scores."""
    return spec.pair_score is not None or any(judge.when(spec) for judge in JUDGES)


def run_partition(build: Build, partition: str) -> None:
    """Selects the pairs of a partition, with a Decision for each that goes."""
    stage = build.stage(PAIRS)
    record, split = stage.record(partition), stage.table(stage.record(partition), columns=["split"])["split"]
    kept, decisions, dropped_by = np.ones(len(split), np.bool_), list[Decision](), Counter[str]()
    for name in judge_names(build):
        verdicts = columns_of(build, pass_name(name), partition, ["reasons", "evidence", "duplicate_of"])
        is_dropped = np.asarray([bool(reasons) for reasons in verdicts["reasons"].to_pylist()], np.bool_)
        if not is_dropped.any():
            continue
        kept &= ~is_dropped
        rows = candidates_of(stage.table(record).filter(pa.array(is_dropped)))
        for candidate, verdict in zip(rows, verdicts.filter(pa.array(is_dropped)).to_pylist(), strict=True):
            first, more = DropReason(verdict["reasons"][0]), {"duplicate_of": verdict["duplicate_of"] or ""}
            decisions.append(drop(candidate, SELECTION, first, verdict["evidence"], reasons=verdict["reasons"], **more))
        dropped_by[f"dropped_by_{name}"] += int(is_dropped.sum())
    with build.stage(SELECTION).attempt(partition) as attempt:
        attempt.write_table("parquet", pa.table([pa.array(kept)], schema=KEPT_SCHEMA))
        attempt.decide(decisions)
        counts = {"seen": len(split), "kept": int(kept.sum()), "dropped": len(decisions), **dropped_by}
        splits = Counter(split.filter(pa.array(kept)).to_pylist())
        attempt.commit({**counts, **{name: splits[name] for name in SPLITS}}, {ROWS_DIGEST: record.info[ROWS_DIGEST]})


STAGE = Stage(
    name="curate",
    zh="筛选",
    folder="curated",
    passes=(
        *(own for judge in JUDGES for own in judge.all_passes()),
        Pass(
            name=SELECTION,
            over=pair_partitions,
            reads=(PAIRS, SCORES, *(pass_name(judge.name) for judge in JUDGES)),
            run=run_partition,
            token=token,
            when=when,
            files=(PassFile("parquet", KEPT_SCHEMA, aligned=PAIRS),),
        ),
    ),
)
