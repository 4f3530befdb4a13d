"""Stage dedup: keeps one pair per image, however many copies of it exist, and assigns an ID to each text.

Signatures become keys, what shares a key is joined and compared, and one pass in order chooses leaders from the edges
(`pipeline.dedup.signatures`, `copies`, `edges`, `leaders`). The last pass applies its verdicts in parallel: kept pairs,
with the texts of their copies, and a Decision for each other one, with its leader and every failing reason. A pair
whose image an earlier build of the dataset kept is `known`, which is not a drop. Kept pairs carry the ids by which
training masks false negatives (image_leader, text_leaders), and their split (`pipeline.dedup.splits`): copies of one
image never straddle two splits. A leader of an earlier build is never kept again within a generation, so its split
cannot change.

Limits: a partition of filter, and the verdicts of a run (`signatures.RUN` pairs), are held in memory.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from data_specs.build import Dedup
from data_specs.shard import SPLITS
from pipeline.dedup import copies, edges, leaders, signatures
from pipeline.dedup.greedy import REASONS
from pipeline.dedup.runs import partitions_of
from pipeline.files.digests import Digests, column_of, digests_of, hexed, unhex
from pipeline.processes import pulse
from pipeline.rows.decisions import Decision, DropReason, drop
from pipeline.rows.records import DEDUP_SCHEMA, PAIR_SCHEMA, candidates_of
from pipeline.store.build import Build, Pass, PassFile, Stage
from pipeline.store.commits import ROWS_DIGEST, rows_digest
from pipeline.texts.text_order import TextOrder

ROW_GROUP = 1_000


def token(build: Build) -> Any:
    return list(build.spec.text_kinds)  # the rules and the identities are in the token of `leaders`


def partitions(build: Build) -> list[str]:
    """The partitions of filter: ranges of order_key."""
    return build.stage("filter").partitions()


def run_partition(build: Build, partition: str) -> None:
    """Kept pairs sorted by (order_key, candidate_id), and a Decision for each dropped one."""
    stage = build.stage("filter")
    pairs = stage.table(stage.record(partition)).combine_chunks()
    verdicts, merged, placeholders = _read_verdicts(
        build, partition, column_of(unhex(pairs["candidate_id"].to_pylist()))
    )
    reasons = _with_placeholders(verdicts, placeholders)
    kept = _kept_rows(build, pairs, verdicts, merged, np.flatnonzero(reasons == 0))
    pulse.expect(pairs.num_rows)
    decisions = _decisions(build, pairs, verdicts, reasons)
    pulse.advance(pairs.num_rows)

    first = Counter(decision.reason for decision in decisions)
    known = first[DropReason.KNOWN.value]
    with build.stage("dedup").attempt(partition) as attempt:
        attempt.write_table("parquet", kept, row_group_size=ROW_GROUP)
        attempt.decide(decisions)
        counts = {"seen": pairs.num_rows, "kept": kept.num_rows, "dropped": len(decisions) - known, "known": known}
        splits = Counter(kept["split"].to_pylist())
        counts |= {split: splits[split] for split in SPLITS}
        counts |= {reason.value: first[reason.value] for reason in REASONS}
        attempt.commit(counts, {ROWS_DIGEST: rows_digest(kept["candidate_id"].to_pylist())})


def _read_verdicts(build: Build, partition: str, ids: pa.Array) -> tuple[pa.Table, pa.Table, pa.Table]:
    """(verdicts of pairs with these ids, in their order; texts taken over, with the rows of leaders; placeholders)."""
    stage = build.stage("dedup.leaders")
    record = stage.record(leaders.ALL)
    runs = (suffix.removesuffix(".verdicts") for suffix in record.files if suffix.endswith(".verdicts"))
    run = next(run for run in runs if partition in partitions_of(run))
    verdicts, merged = (stage.table(record, f"{run}.{name}").combine_chunks() for name in ("verdicts", "merged"))
    at = pc.index_in(ids, value_set=verdicts["candidate_id"])
    row = pc.index_in(merged["leader"], value_set=ids)
    merged = merged.append_column("row", row).filter(pc.is_valid(row))
    return verdicts.take(at), merged, stage.table(record, "placeholders.parquet")


def _with_placeholders(verdicts: pa.Table, placeholders: pa.Table) -> npt.NDArray[np.uint8]:
    """Bits of REASONS for each pair; a placeholder recognised at the end of the pass takes its copies along."""
    reasons: npt.NDArray[np.uint8] = verdicts["reasons"].to_numpy().copy()
    for name in ("candidate_id", "leader"):
        is_placeholder = pc.is_in(verdicts[name], placeholders["candidate_id"]).to_numpy()
        reasons[is_placeholder] |= 1 << REASONS.index(DropReason.PLACEHOLDER)
    return reasons


def _kept_rows(
    build: Build, pairs: pa.Table, verdicts: pa.Table, merged: pa.Table, positions: npt.NDArray[np.int64]
) -> pa.Table:
    """DEDUP_SCHEMA rows of the kept pairs, which are rows `positions` [K] of `pairs`, ascending.

    merged: MERGED_SCHEMA rows, the texts of copies that kept pairs take over.
    """
    at = pa.array(positions, pa.int64())
    rows = pairs.take(at)
    row_of = np.full(pairs.num_rows, -1, np.int64)  # -1: dropped
    row_of[positions] = np.arange(len(positions))
    texts = _own_texts(rows, verdicts["text_leaders"].take(at), build.spec.dedup.max_texts, TextOrder.of(build.spec))
    texts = texts.concat(_merged_texts(merged, row_of))
    columns = {
        **{name: rows[name] for name in PAIR_SCHEMA.names},
        **texts.columns(rows.num_rows),
        "image_leader": rows["sha256"],
        "split": verdicts["split"].take(at),
    }
    return pa.table({name: columns[name] for name in DEDUP_SCHEMA.names}).cast(DEDUP_SCHEMA)


@dataclass(frozen=True)
class _Texts:
    """Texts [T] of kept pairs [K], each with the row of its pair, its rank by kind and the sha256 of its leader."""

    row: npt.NDArray[np.int64]
    rank: npt.NDArray[np.int64]
    kind: pa.Array
    text: pa.Array
    original: pa.Array
    leader: Digests

    def concat(self, other: _Texts) -> _Texts:
        return _Texts(
            np.concatenate([self.row, other.row]),
            np.concatenate([self.rank, other.rank]),
            pa.concat_arrays([self.kind, other.kind]),
            pa.concat_arrays([self.text, other.text]),
            pa.concat_arrays([self.original, other.original]),
            np.concatenate([self.leader, other.leader]),
        )

    def columns(self, rows: int) -> dict[str, pa.ListArray]:
        """The list columns `texts` and `text_leaders` [K] of DEDUP_SCHEMA.

        Texts are sorted by rank: those about one picture come before those of a page, whichever picture had them
        first. The sort is stable: texts of one rank stay in the order in which they stand here. List i is then
        flat[offsets[i] : offsets[i + 1]], where offsets [K + 1] count the texts of all rows before row i.
        """
        order = pa.array(np.lexsort((self.rank, self.row)))
        counts = np.bincount(self.row, minlength=rows)
        offsets = pa.array(np.concatenate([[0], np.cumsum(counts)]), pa.int32())
        fields = [self.kind, self.text, self.original]
        texts = pa.StructArray.from_arrays(fields, ["kind", "text", "original"]).take(order)
        return {
            "texts": pa.ListArray.from_arrays(offsets, texts),
            "text_leaders": pa.ListArray.from_arrays(offsets, hexed(self.leader).take(order)),
        }


def _own_texts(rows: pa.Table, leaders: pa.ChunkedArray, max_texts: int, order: TextOrder) -> _Texts:
    """The kept pairs' own texts, at most `max_texts` of each: those that have text leaders (lists of DIGEST)."""
    if not rows.num_rows:
        nothing = pa.array([], pa.string())
        return _Texts(
            np.zeros(0, np.int64), np.zeros(0, np.int64), nothing, nothing, nothing, np.zeros((0, 32), np.uint8)
        )
    lists = leaders.combine_chunks()
    counts = lists.value_lengths().to_numpy(zero_copy_only=False)
    flat = pc.list_slice(rows["texts"].combine_chunks(), 0, max_texts).flatten()
    row, digests = np.repeat(np.arange(rows.num_rows), counts), digests_of(lists.flatten())
    allowed = digests.any(axis=1)  # LEFT_OUT: a text that stands in another split
    ranks = order.ranks(flat.field("kind"), np.repeat(np.cumsum(counts), counts))
    texts = flat.filter(pa.array(allowed))
    kind, text, original = (texts.field(name) for name in ("kind", "text", "original"))
    return _Texts(row[allowed], ranks[allowed], kind, text, original, digests[allowed])


def _merged_texts(merged: pa.Table, row_of: npt.NDArray[np.int64]) -> _Texts:
    """Texts that kept pairs take over; a dropped leader takes none."""
    row = row_of[merged["row"].to_numpy()]
    of_kept = merged.filter(pa.array(row >= 0))
    names = "kind", "text", "original"
    kind, text, original = (of_kept[name].combine_chunks().cast(pa.string()) for name in names)
    rank = of_kept["rank"].to_numpy().astype(np.int64)
    return _Texts(row[row >= 0], rank, kind, text, original, digests_of(of_kept["text_leader"]))


def _decisions(build: Build, pairs: pa.Table, verdicts: pa.Table, reasons: npt.NDArray[np.uint8]) -> list[Decision]:
    rows = np.flatnonzero(reasons)
    at = pa.array(rows, pa.int64())
    dropped, dropped_verdicts = pairs.take(at), verdicts.take(at)
    decisions = []
    for candidate, bits, leader, earlier, is_known in zip(
        candidates_of(dropped),
        reasons[rows].tolist(),
        dropped_verdicts["leader"].to_pylist(),
        dropped_verdicts["earlier"].to_pylist(),
        dropped_verdicts["known"].to_pylist(),
        strict=True,
    ):
        failing = [reason for i, reason in enumerate(REASONS) if bits & 1 << i]
        if is_known and DropReason.PLACEHOLDER not in failing:
            failing.insert(0, DropReason.KNOWN)
        duplicate_of = leader.hex() if any(leader) else ""
        evidence = "; ".join(_evidence(build.spec.dedup, reason, duplicate_of, earlier) for reason in failing)
        names = tuple(reason.value for reason in failing)
        decisions.append(drop(candidate, "dedup", failing[0], evidence, duplicate_of=duplicate_of, reasons=names))
    return decisions


def _evidence(rules: Dedup, reason: DropReason, leader: str, earlier: bool) -> str:
    if reason is DropReason.CAP_PER_TEXT:
        return f"{rules.max_pairs_per_text} pairs with this or nearly this text are already kept"
    if reason is DropReason.PLACEHOLDER:
        return f"an image with more than {rules.placeholder_texts} different texts"
    if reason is DropReason.OTHER_SPLIT:
        return "all its texts, or near-copies of them, are in another split than its image (shards.apart: texts)"
    if reason is DropReason.KNOWN:
        return "its image is already in the dataset"
    relation = "same bytes as" if reason is DropReason.SAME_IMAGE else "looks like"
    return f"{relation} {leader[:32]}{', which an earlier build kept' if earlier else ''}"


STAGE = Stage(
    name="dedup",
    zh="去重",
    folder="unique",
    passes=(
        signatures.PASS,
        copies.PASS,
        edges.PASS,
        leaders.PASS,
        Pass(
            name="dedup",
            over=partitions,
            reads=("filter", "dedup.leaders"),
            run=run_partition,
            token=token,
            version=6,
            files=(PassFile("parquet", DEDUP_SCHEMA, "candidate_id"),),
        ),
    ),
)
