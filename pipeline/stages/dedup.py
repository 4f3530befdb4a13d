"""Dedup: one pair for each image, however often and in whatever form the web holds it, and an id for each text.

`pipeline.stages.rank` prepares what is compared, `pipeline.stages.lead` decides in one pass, and this stage applies
what it decided, run by run and in parallel: kept pairs, with the texts of their copies, by split, and a Decision for
each that goes, with its leader and every failing reason. Kept pairs carry the ids by which training masks false
negatives (image_leader, text_leaders), and their split: a keyed hash of the leader, so that copies of one image never
straddle two splits. A leader of an earlier build is never kept again, so its split cannot change.

Limits: a run is held in memory (`rank.RUN` pairs).
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data_specs.build import Dedup
from data_specs.shard import SPLITS
from pipeline.files.digests import Digests, digests_of, hexed, rows_of
from pipeline.matching.leader_pass import REASONS
from pipeline.records import DEDUP_SCHEMA, PAIR_SCHEMA, Decision, DropReason, candidates_of, drop
from pipeline.stages import rank
from pipeline.stages.lead import PARTITION as LEAD
from pipeline.stages.lead import split_of
from pipeline.store.build import Build
from pipeline.store.stage import Stage, StageFile

VERSION = 2
INPUTS: tuple[str, ...] = ("rank", "lead")
ROW_GROUP = 1_000


def token(build: Build) -> Any:
    return None  # what the leader pass was told is in its own token


def partitions(build: Build) -> list[str]:
    """The runs: neighbouring ranges of order_key."""
    return build.stage("rank").partitions()


def run_partition(build: Build, partition: str) -> None:
    """Kept pairs of each split, sorted by (order_key, candidate_id), and a Decision for each dropped one."""
    lead = build.stage("lead")
    record = lead.record(LEAD)
    pairs = rank.pairs_of(build, partition)
    verdicts, merged = (lead.table(record, f"{partition}.{what}").combine_chunks() for what in ("verdicts", "merged"))
    reasons = _with_placeholders(pairs, verdicts, lead.table(record, "placeholders.parquet"))
    kept = _kept_table(build, pairs, verdicts, merged, np.flatnonzero(reasons == 0))
    decisions = _decisions(build, pairs, verdicts, reasons)
    first = Counter(decision.reason for decision in decisions)
    with build.stage("dedup").attempt(partition) as attempt:
        counts = {"seen": pairs.num_rows, "kept": kept.num_rows, "dropped": len(decisions)}
        for split in SPLITS:
            rows = kept.filter(pc.field("split") == split)
            attempt.write_table(f"{split}.parquet", rows, row_group_size=ROW_GROUP)
            counts[split] = rows.num_rows
        attempt.decide(decisions)
        attempt.commit({**counts, **{reason.value: first[reason.value] for reason in REASONS}})


def _with_placeholders(pairs: pa.Table, verdicts: pa.Table, placeholders: pa.Table) -> Any:
    """Bits of REASONS for each pair; a placeholder found out at the end of the pass takes its copies along."""
    reasons = verdicts["reasons"].to_numpy().copy()
    known = set(rows_of(digests_of(placeholders["candidate_id"])))
    if known:
        own = [bytes.fromhex(name) in known for name in pairs["candidate_id"].to_pylist()]
        copies = [name in known for name in rows_of(digests_of(verdicts["leader"]))]
        reasons[np.array(own, bool) | np.array(copies, bool)] |= 1 << REASONS.index(DropReason.PLACEHOLDER)
    return reasons


def _kept_table(build: Build, pairs: pa.Table, verdicts: pa.Table, merged: pa.Table, kept: Any) -> pa.Table:
    """DEDUP_SCHEMA rows of the kept pairs: their own texts first, then those of their copies."""
    shards, rows = build.spec.shards, pairs.take(pa.array(kept, pa.int64()))
    leaders = verdicts["text_leaders"].combine_chunks().take(pa.array(kept, pa.int64()))
    counts = (
        leaders.value_lengths().to_numpy(zero_copy_only=False).astype(np.int64) if len(kept) else np.zeros(0, np.int64)
    )
    texts = rows["texts"].combine_chunks() if len(kept) else pa.array([], PAIR_SCHEMA.field("texts").type)
    texts = pc.list_slice(texts, 0, build.spec.dedup.max_texts)
    here = np.full(pairs.num_rows, -1, np.int64)
    here[kept] = np.arange(len(kept))
    to = here[merged["position"].to_numpy()]
    added = merged.filter(pa.array(to >= 0))
    of_row = np.concatenate([np.repeat(np.arange(len(kept)), counts), to[to >= 0]])
    order = pa.array(np.argsort(of_row, kind="stable"))
    offsets = pa.array(np.concatenate([[0], np.cumsum(np.bincount(of_row, minlength=len(kept)))]), pa.int32())
    flat = texts.flatten()
    fields = {
        name: pa.concat_arrays([flat.field(name), added[name].combine_chunks().cast(pa.string())])
        for name in ("kind", "text")
    }
    ids: Digests = np.concatenate([digests_of(leaders.flatten()), digests_of(added["text_leader"])])
    columns = {name: rows[name] for name in PAIR_SCHEMA.names}
    values = pa.StructArray.from_arrays(list(fields.values()), list(fields)).take(order)
    columns["texts"] = pa.ListArray.from_arrays(offsets, values)
    columns["text_leaders"] = pa.ListArray.from_arrays(offsets, hexed(ids).take(order))
    columns["image_leader"] = rows["sha256"]
    splits = [split_of(s, build.spec.seed, shards.dev_share, shards.val_share) for s in rows["sha256"].to_pylist()]
    columns["split"] = pa.array(splits, pa.string())
    return pa.table({name: columns[name] for name in DEDUP_SCHEMA.names}).cast(DEDUP_SCHEMA)


def _decisions(build: Build, pairs: pa.Table, verdicts: pa.Table, reasons: Any) -> list[Decision]:
    rows = np.flatnonzero(reasons)
    at = pa.array(rows, pa.int64())
    dropped = pairs.take(at)
    found = verdicts.take(at)
    decisions = []
    for candidate, bits, leader, earlier in zip(
        candidates_of(dropped),
        reasons[rows].tolist(),
        found["leader"].to_pylist(),
        found["earlier"].to_pylist(),
        strict=True,
    ):
        failing = [reason for i, reason in enumerate(REASONS) if bits & 1 << i]
        duplicate_of = leader.hex() if any(leader) else ""
        evidence = "; ".join(
            _evidence(build.spec.dedup, reason, candidate, duplicate_of, earlier) for reason in failing
        )
        names = tuple(reason.value for reason in failing)
        decisions.append(drop(candidate, "dedup", failing[0], evidence, duplicate_of=duplicate_of, reasons=names))
    return decisions


def _evidence(rules: Dedup, reason: DropReason, candidate: Any, leader: str, earlier: bool) -> str:
    if reason is DropReason.CAP_PER_TEXT:
        return f"{rules.max_pairs_per_text} pairs with this text, or nearly this text, are kept already"
    if reason is DropReason.CAP_PER_DOMAIN:
        domain = rank.domain_of(candidate.page_url or candidate.image_url)
        return f"{rules.max_pairs_per_domain} pairs of {domain} are kept already"
    if reason is DropReason.PLACEHOLDER:
        return f"a picture under more than {rules.placeholder_texts} different texts"
    seen = "same bytes as" if reason is DropReason.SAME_IMAGE else "looks like"
    return f"{seen} {leader[:32]}{', which an earlier build kept' if earlier else ''}"


STAGE = Stage(
    name="dedup",
    zh="去重",
    folder="unique",
    inputs=INPUTS,
    version=VERSION,
    token=token,
    partitions=partitions,
    run=run_partition,
    files=tuple(StageFile(f"{split}.parquet", DEDUP_SCHEMA, "candidate_id") for split in SPLITS),
    rewrites_others=False,
)
