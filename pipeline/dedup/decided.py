"""Blocks of pairs as `lead` decides them: what nothing else can match in bulk, the others by the leader pass.

A pair is free if its image and its texts are alone (`pipeline.dedup.handed_on.Alone`) and its domain has no cap.
Whatever else the build holds, and earlier builds kept, it is kept and leads, and so do its texts: no look-up and no
step of Python is needed for it. The other pairs are bound, and decided one after the other.

All rows that `lead` writes of a block are made here, column by column.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.dedup.handed_on import Alone
from pipeline.dedup.splits import Placed
from pipeline.dedup.taken_texts import COPY_SCHEMA
from pipeline.files.digests import DIGEST, Digests, column_of, digests_of, rows_of
from pipeline.matching import text_rows
from pipeline.matching.holders import ELSEWHERE, HELD, ImageRows, hashes_of, signatures_of
from pipeline.matching.leader_pass import BLOCK, REASONS, Block, LeaderPass
from pipeline.matching.looks import Details
from pipeline.matching.sketches import spread
from pipeline.records import DropReason
from pipeline.store.identities import IMAGE_SCHEMA

Ints = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]

VERDICT_SCHEMA = pa.schema(
    [
        ("position", pa.int32()),  # of the pair in its run
        ("reasons", pa.uint8()),  # bits of leader_pass.REASONS; 0 = kept
        ("leader", DIGEST),  # candidate_id of the leader of a duplicate; zeros if there is none
        ("earlier", pa.bool_()),  # an earlier build kept that leader
        ("known", pa.bool_()),  # an earlier build of the same dataset did; not in files of an older wenlan
        ("text_leaders", pa.list_(DIGEST)),  # of a kept pair; zeros for a text that it must not have (_splits)
        ("split", pa.string()),  # of a kept pair, null of another; not in files of an older wenlan
    ]
)


class Pairs:
    """The next pairs by rank [N], rows of RUN_SCHEMA; `run_of_row` [N] is the number of each one's run.

    Of a pair's texts the first `max_texts` count. Texts [T] of all pairs lie end to end, those of pair i from starts[i]
    on; those that count end before ends[i].
    """

    def __init__(self, table: pa.Table, run_of_row: npt.NDArray[np.int32], max_texts: int, alone: Alone) -> None:
        self.table, self.run_of_row, self._known = table, run_of_row, alone
        lists = table["sketches"].combine_chunks()
        # A slice of a list array keeps the offsets of the whole, `flatten` does not: they are moved to begin with 0.
        offsets = lists.offsets.to_numpy().astype(np.int64) - lists.offsets[0].as_py()
        self.texts = lists.flatten()
        self.starts, self.ends = offsets[:-1], np.minimum(offsets[1:], offsets[:-1] + max_texts)
        self._numbers = alone.numbers(run_of_row) if alone.known else np.zeros(0, np.int64)
        self.alone = alone.images(self._numbers) if alone.known else None
        self.alone_texts = alone.texts(np.diff(offsets), run_of_row) if alone.known else None

    def __len__(self) -> int:
        return len(self.starts)

    def free(self, capped: bool) -> Flags:
        """[N] pairs that nothing else can match. capped: whether domains have a cap."""
        if self.alone is None or self.alone_texts is None:
            return np.zeros(len(self), np.bool_)
        others = np.concatenate([[0], np.cumsum(~self.alone_texts)])  # texts before each one that are not alone
        free: Flags = self.alone & (others[self.ends] == others[self.starts])
        return free & (self.table["domain"].to_numpy() == 0) if capped else free

    def images(self, rows: Ints, table: pa.Table) -> ImageRows:
        """The images of some pairs [R]; of those that are alone, which nobody compares, no signatures are read."""
        compared = np.arange(len(rows)) if self.alone is None else np.flatnonzero(~self.alone[rows])
        some = self.signatures(rows[compared])
        signatures = np.zeros((len(rows), some.shape[1]), np.uint8)
        signatures[compared] = some
        own = self.details(rows[compared])
        looks = signatures, Details(compared[own.of], own.stored)
        return ImageRows(rows_of(digests_of(table["sha256"])), hashes_of(table), *looks)

    def signatures(self, rows: Ints) -> npt.NDArray[np.uint8]:
        """[R, bytes] of the images of some pairs."""
        if self._known.known:
            return self._known.signatures(self._numbers[rows])
        return signatures_of(self.table["signature"].take(pa.array(rows)))

    def details(self, rows: Ints) -> Details:
        """Of the images of some pairs."""
        if self._known.known:
            return self._known.details(self._numbers[rows])
        return Details.of_table(self.table.select(["details"]).take(pa.array(rows)))

    def splits(self, rows: Ints) -> list[str] | None:
        """The splits of some pairs by their images' bytes, where that is known."""
        return self._known.splits(self._numbers[rows]) if self._known.known else None

    def block(self, rows: Ints) -> tuple[Block, Ints]:
        """Some pairs for the leader pass; and where the texts of the block are among [T]."""
        columns = ["candidate_id", "position", "domain", "sha256", "phash"]
        table = self.table.select(columns).take(pa.array(rows))
        at = spread(self.starts[rows], self.ends[rows])
        # The block holds each distinct text once: its number by id, where it first is, and each text's number.
        number: dict[bytes, int] = {}
        numbers = [number.setdefault(name, len(number)) for name in rows_of(digests_of(self.texts.field("id"))[at])]
        first = at[np.unique(np.array(numbers, np.int64), return_index=True)[1]]
        ends = np.cumsum(self.ends[rows] - self.starts[rows]).tolist()
        block = Block(
            digests_of(table["candidate_id"]),
            # where a pair is, as one number: its run in the upper 32 bits, its position in the run in the lower ones
            self.run_of_row[rows].astype(np.int64) << 32 | table["position"].to_numpy(),
            self.images(rows, table),
            table["domain"].to_pylist(),
            text_rows.read(self.texts.take(pa.array(first))),
            [numbers[start:end] for start, end in itertools.pairwise([0, *ends])],
            None if self.alone is None else self.alone[rows],
            # a text that stands twice in the block is not alone, wherever it stands
            None if self.alone_texts is None else self.alone_texts[first],
        )
        return block, first


@dataclass(frozen=True)
class Decided:
    """Decisions about pairs [N]: `reasons`, `leader` and `place` as in `leader_pass.Verdicts`."""

    reasons: npt.NDArray[np.uint8]
    leader: Digests
    place: Ints
    kept: Ints
    """Rows that are kept, ascending."""
    starts: Ints
    """[N + 1] where the leaders of each row's texts begin, and the end; of a dropped row there are none."""
    text_leaders: Digests
    new_texts: Ints
    """Texts, among those of all pairs, that lead from now on, in the order in which they began to."""

    def lists(self) -> list[list[bytes]]:
        """The leaders of each kept row's texts."""
        flat = rows_of(self.text_leaders)
        ends = self.starts[self.kept + 1].tolist()
        return [flat[start:end] for start, end in zip(self.starts[self.kept].tolist(), ends, strict=True)]


def decide(pairs: Pairs, leader_pass: LeaderPass, free: Flags) -> Decided:
    """Decide about pairs [N], of which some are free; the others are entered into the pass's memory."""
    size, bound, rows = len(pairs), np.flatnonzero(~free), np.flatnonzero(free)
    reasons, leader = np.zeros(size, np.uint8), np.zeros((size, 32), np.uint8)
    place, counts = np.full(size, ELSEWHERE, np.int64), np.zeros(size, np.int64)
    counts[rows] = pairs.ends[rows] - pairs.starts[rows]
    own = spread(pairs.starts[rows], pairs.ends[rows])
    new, new_rows, leaders = [own], [np.repeat(rows, counts[rows])], list[bytes]()
    for start in range(0, len(bound), BLOCK):
        here = bound[start : start + BLOCK]
        block, at = pairs.block(here)
        verdicts = leader_pass.decide(block)
        reasons[here], leader[here], place[here] = verdicts.reasons, verdicts.leader, verdicts.place
        counts[here[verdicts.kept]] = [len(of_row) for of_row in verdicts.text_leaders.values()]
        leaders += itertools.chain.from_iterable(verdicts.text_leaders.values())
        new.append(at[np.array(verdicts.new_texts, np.int64)])
        new_rows.append(here[np.array(verdicts.new_rows, np.int64)])
    starts = np.concatenate([[0], np.cumsum(counts)])
    text_leaders = np.empty((int(starts[-1]), 32), np.uint8)
    text_leaders[spread(starts[rows], starts[rows + 1])] = digests_of(pairs.texts.field("id"))[own]
    text_leaders[spread(starts[bound], starts[bound + 1])] = np.frombuffer(b"".join(leaders), np.uint8).reshape(-1, 32)
    order = np.argsort(np.concatenate(new_rows), kind="stable")
    kept = np.flatnonzero(reasons == 0)
    return Decided(reasons, leader, place, kept, starts, text_leaders, np.concatenate(new)[order])


def image_rows(kept: pa.Table, decided: Decided, splits: Sequence[str]) -> pa.Table:
    """IMAGE_SCHEMA rows of the kept pairs of a block."""
    primary = decided.text_leaders[decided.starts[decided.kept]]
    added = {"text_leader": column_of(primary), "split": pa.array(splits, pa.string())}
    return pa.table({name: added[name] if name in added else kept[name] for name in IMAGE_SCHEMA.names})


def new_text_rows(pairs: Pairs, decided: Decided, placed: Placed, schema: pa.Schema) -> pa.Table:
    """TEXT_SCHEMA, or PLACED_TEXT_SCHEMA, rows of a block's texts that lead from now on."""
    texts = pairs.texts.take(pa.array(decided.new_texts))
    columns: dict[str, Any] = {"text": texts}
    if "split" in schema.names:
        split_of_text = placed.split_of_texts()
        ids = rows_of(digests_of(texts.field("id")))
        columns["split"] = pa.array([split_of_text[leader] for leader in ids], pa.string())
    return pa.table(columns)


def verdict_rows(pairs: Pairs, decided: Decided, placed: Placed) -> pa.Table:
    """VERDICT_SCHEMA rows of a block, of which some kept pairs may be dropped for their texts."""
    reasons, leaders = decided.reasons.copy(), decided.text_leaders
    reasons[decided.kept[placed.dropped]] |= 1 << REASONS.index(DropReason.OTHER_SPLIT)
    if placed.text_leaders is not None:
        joined = b"".join(itertools.chain.from_iterable(placed.text_leaders))
        leaders = np.frombuffer(joined, np.uint8).reshape(-1, 32)
    split, dropped = np.zeros(len(pairs), np.int64), np.ones(len(pairs), np.bool_)
    split[decided.kept], dropped[decided.kept] = np.arange(len(decided.kept)), False
    duplicate = decided.leader.any(axis=1)
    columns = {
        "position": pairs.table["position"],
        "reasons": pa.array(reasons, pa.uint8()),
        "leader": column_of(decided.leader),
        "earlier": pa.array(duplicate & (decided.place < 0)),  # only leaders of this build have a place in a run
        "known": pa.array(duplicate & (decided.place == HELD)),
        "text_leaders": pa.ListArray.from_arrays(pa.array(decided.starts, pa.int32()), column_of(leaders)),
        "split": pa.array(placed.splits, pa.string()).take(pa.array(split, mask=dropped)),
    }
    return pa.table(columns, schema=VERDICT_SCHEMA)


def copy_rows(pairs: Pairs, decided: Decided) -> tuple[Any, pa.Table]:
    """(run of the leader, COPY_SCHEMA row) of each copy of a leader of this build."""
    rows = np.flatnonzero(decided.place >= 0)
    place = decided.place[rows]  # of the leader: run << 32 | position
    own = pairs.table.select(["texts", "sketches"]).take(pa.array(rows))
    columns = {
        "position": pa.array((place & 0xFFFFFFFF).astype(np.int32)),
        "texts": own["texts"],
        "text_ids": text_ids(own),
    }
    return (place >> 32).astype(np.int32), pa.table(columns, schema=COPY_SCHEMA)


def text_ids(table: pa.Table) -> pa.Array:
    """Ids of each row's texts, from its sketches."""
    lists = table["sketches"].combine_chunks()
    if not table.num_rows:
        return pa.array([], pa.list_(DIGEST))
    offsets = pc.subtract(lists.offsets, lists.offsets[0])  # to begin with 0, as `flatten` does
    return pa.ListArray.from_arrays(offsets, lists.flatten().field("id"))
