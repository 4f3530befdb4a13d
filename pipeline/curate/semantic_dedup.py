"""Judge semantic_dedup: keeps one of the pairs whose images show the same content, by the features of a tower.

SemDeDup (arXiv 2303.09540) and DanQing (arXiv 2601.10305) remove what a perceptual hash cannot see: the same product on
another background, another frame of one scene. Leaders decide, ranked by a column that the spec names, in one pass that
begins with what earlier builds kept (`pipeline.curate._semantic`); here its verdicts are applied in parallel. A verdict
names the leader and the cosine distance from it.

Limits: texts of duplicates do not go over to their leader, as those of copies do: they tell of another picture. A
leader that `balance` drops takes its duplicates with it. Distances mean nothing without their tower.
"""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from pipeline.curate._semantic import ALL, NEAR_SCHEMA, NEAREST, VECTORS, when
from pipeline.curate.judging import KEEP, Judge, Verdict, Verdicts
from pipeline.filters import Drop
from pipeline.matching.semantic import MILLION
from pipeline.processes import pulse
from pipeline.rows.decisions import DropReason
from pipeline.store.build import Build

COLUMNS = tuple(NEAR_SCHEMA.field(name) for name in ("leader", "earlier", "millionths"))
"""The nearest pair that was kept before, of pairs that have one near by; null of others."""


def token(build: Build) -> Any:
    return None  # the rules and the identities are in the tokens of its passes


def judge_pairs(build: Build, partition: str, rows: pa.Table) -> Verdicts:
    nearest = build.stage(NEAREST.name)
    near = nearest.table(nearest.record(ALL), f"{partition}.verdicts")
    near_of = {row["candidate_id"]: row for row in near.to_pylist()}
    pulse.expect(rows.num_rows)
    verdicts, noted = list[Verdict](), list[dict[str, Any]]()
    for name in rows["candidate_id"].to_pylist():
        pulse.advance()
        own = near_of.get(name)
        verdicts.append(_verdict(own) if own is not None and own["dropped"] else KEEP)
        noted.append(own or {})
    return Verdicts(
        verdicts, {field.name: pa.array([own.get(field.name) for own in noted], field.type) for field in COLUMNS}
    )


def _verdict(near: dict[str, Any]) -> Verdict:
    whose = "an earlier build's" if near["earlier"] else "the"
    evidence = f"cosine distance {near['millionths'] / MILLION:.4f} from {whose} picture {near['leader'][:12]}"
    return Verdict((Drop(DropReason.SEMANTIC_DUPLICATE, evidence),), near["leader"])


JUDGE = Judge("semantic_dedup", "语义去重", judge_pairs, when, token, passes=(VECTORS, NEAREST), columns=COLUMNS)
