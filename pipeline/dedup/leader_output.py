"""Output of the pass in order: verdicts by run, texts that leaders take over, and what STORE gets of a build."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from data_specs.shard import SPLITS
from pipeline.dedup.greedy import BIT, NONE, Flags, Ints, LeaderPass, Verdicts
from pipeline.dedup.leader_input import LeaderInput
from pipeline.dedup.merged_texts import MergedTexts
from pipeline.dedup.runs import ROW_SCHEMA
from pipeline.dedup.splits import TextSplits
from pipeline.files.digests import DIGEST, Digests, column_of, digests_of
from pipeline.files.parquet import Rows
from pipeline.matching.contexts import column_of as column_of_contexts
from pipeline.matching.sketches import distinct, spread
from pipeline.matching.text_rows import TextRows
from pipeline.rows.decisions import DropReason
from pipeline.store.build import Build
from pipeline.store.commits import Attempt
from pipeline.store.identities import DETAILS, IMAGE_SCHEMA, PLACEHOLDER_SCHEMA, SIGNATURES, TEXT_SCHEMA
from pipeline.texts.text_order import TextOrder

VERDICT_SCHEMA = pa.schema(
    [
        ("candidate_id", DIGEST),
        ("reasons", pa.uint8()),  # bits of greedy.REASONS; 0 = kept
        ("leader", DIGEST),  # candidate_id of the leader of a duplicate; zeros without a leader
        ("earlier", pa.bool_()),  # an earlier build kept that leader
        ("known", pa.bool_()),  # an earlier build of the same dataset did
        ("text_leaders", pa.list_(DIGEST)),  # of a kept pair; zeros for a text that it must not have (`splits`)
        ("split", pa.string()),  # of a kept pair, null of another
    ]
)

MERGED_SCHEMA = pa.schema(
    [
        ("leader", DIGEST),  # candidate_id
        ("kind", pa.string()),
        ("text", pa.string()),
        ("original", pa.string()),
        ("text_leader", DIGEST),
        ("rank", pa.int32()),  # by kind, as among the texts of its own pair
    ]
)
"""Texts that leaders take over."""

WRITTEN = 50_000
"""Kept pairs that are written together."""


COPIED = 2_048
"""Signatures that are copied together: they stay in a processor's cache."""


@dataclass
class LeaderOutput:
    """Decisions about all pairs of a build, by their numbers [N], and their texts [T]; `began` as in `Verdicts`."""

    inputs: LeaderInput
    reasons: npt.NDArray[np.uint8]
    leader: Ints
    earlier: Ints
    splits: npt.NDArray[np.int8]
    """[N] number of the split of a kept pair."""
    text_leaders: Ints
    """[T] node that leads each text, NONE for one that leads itself and is not a node."""
    left_out: Flags
    """[T] texts that their pair must not have."""
    began: Flags
    text_order: TextOrder
    counts: Counter[str] = field(default_factory=Counter)

    @property
    def kept(self) -> Ints:
        """Numbers of the pairs that the pass keeps, by rank; those that are dropped for their splits are among them."""
        passed = (self.reasons & ~np.uint8(BIT[DropReason.OTHER_SPLIT])) == 0
        kept: Ints = self.inputs.order[passed[self.inputs.order]]
        return kept

    def leader_ids(self, texts: Ints) -> Digests:
        """[K, 32] ids of the leaders of texts, by their places [K] among the texts of all pairs; zeros if left out."""
        inputs, nodes = self.inputs, self.text_leaders[texts]
        ids = node_ids(inputs, nodes)
        own = np.flatnonzero(nodes == NONE)
        ids[own] = inputs.runs.text_ids(inputs.all_texts[texts[own]])
        ids[self.left_out[texts]] = 0
        return ids


def node_ids(inputs: LeaderInput, nodes: Ints) -> Digests:
    """[K, 32] ids of texts by their nodes; zeros of NONE."""
    ids, own = np.zeros((len(nodes), 32), np.uint8), len(inputs.texts)
    earlier, here = np.flatnonzero(nodes >= own), np.flatnonzero((nodes >= 0) & (nodes < own))
    ids[earlier] = inputs.earlier_texts.ids[nodes[earlier] - own]
    ids[here] = inputs.runs.text_ids(inputs.texts.numbers[nodes[here]])
    return ids


def decide_all_pairs(
    build: Build, inputs: LeaderInput, verdicts: Verdicts, text_splits: TextSplits | None
) -> LeaderOutput:
    """Decisions about all pairs from those about the pairs that are bound; the others are kept."""
    size, bound, pairs = len(inputs.order), inputs.bound, inputs.pairs()
    places = spread(inputs.text_starts[bound], inputs.text_starts[bound] + inputs.counted[bound])
    free = np.ones(size, np.bool_)
    free[bound] = False
    outcome = LeaderOutput(
        inputs,
        np.zeros(size, np.uint8),
        np.full(size, NONE),
        np.full(size, NONE),
        np.concatenate([np.zeros(0, np.int8), *(arrays["split"] for arrays in inputs.runs.arrays)]),
        np.full(len(inputs.all_texts), NONE),
        np.zeros(len(inputs.all_texts), np.bool_),
        np.zeros(len(inputs.all_texts), np.bool_),
        TextOrder.of(build.spec),
    )
    outcome.reasons[bound], outcome.earlier[bound] = verdicts.reasons, verdicts.earlier
    led = verdicts.leader != NONE
    outcome.leader[bound[led]] = bound[verdicts.leader[led]]
    outcome.text_leaders[places] = verdicts.text_leaders
    low = inputs.text_starts[:-1]
    passed = np.repeat(verdicts.reasons == 0, np.diff(pairs.starts))
    # a text that matches nothing leads as soon as its pair is kept
    outcome.began[places] = verdicts.began | (passed & (pairs.texts == NONE))
    outcome.began[spread(low[free], (low + inputs.counted)[free])] = True
    kept = outcome.kept
    for place, split in zip(kept.tolist(), inputs.inherited_splits(kept), strict=True) if build.made_from else ():
        if split:
            outcome.splits[place] = SPLITS.index(split)
    if text_splits is not None:
        _assign_splits(build, outcome, kept[~free[kept]], text_splits)
    return outcome


def _assign_splits(build: Build, outcome: LeaderOutput, kept: Ints, text_splits: TextSplits) -> None:
    """Assigns splits to kept pairs by their texts; pairs whose texts match nothing keep theirs."""
    inputs = outcome.inputs
    hashed = np.concatenate([np.zeros(0, np.int8), *(arrays["split"] for arrays in inputs.runs.arrays)])
    inherited = inputs.inherited_splits(kept)
    for pair, other in zip(kept.tolist(), inherited, strict=True):
        first = int(inputs.text_starts[pair])
        places = range(first, first + int(inputs.counted[pair]))
        # a text without a node is a cluster of its own, with a number below all nodes
        leaders = [own if (own := int(outcome.text_leaders[at])) != NONE else -2 - at for at in places]
        split, stay = text_splits.assign(SPLITS[hashed[pair]], other, leaders)
        outcome.splits[pair] = SPLITS.index(split)
        outcome.left_out[first : first + len(stay)] = ~np.array(stay)
        if stay and not any(stay):
            outcome.reasons[pair] |= BIT[DropReason.OTHER_SPLIT]


def merged(
    outcome: LeaderOutput, rules_taken: MergedTexts, deciding: LeaderPass, text_splits: TextSplits | None
) -> dict[int, pa.Table]:
    """MERGED_SCHEMA rows by run, of the texts of copies that leaders take over, in the order in which they are placed.

    These texts are placed last, in the order of their leaders.
    """
    inputs = outcome.inputs
    firsts = inputs.texts.first_of(inputs.all_texts)
    starts, counted = inputs.text_starts, inputs.counted
    copies = inputs.bound[outcome.leader[inputs.bound] != NONE]
    for copy, leader in zip(copies.tolist(), outcome.leader[copies].tolist(), strict=True):
        low = int(starts[leader])
        own = firsts[low : low + int(counted[leader])].tolist()
        rules_taken.add(leader, own, copy, firsts[starts[copy] : starts[copy + 1]].tolist())
    taken = rules_taken.by_leader()
    leaders = np.array(sorted(taken), np.int64)
    position = np.concatenate([np.zeros(0, np.int32), *(rows["position"].to_numpy() for rows in inputs.rows)])
    run = np.searchsorted(inputs.runs.starts, leaders, "right") - 1
    leaders = leaders[np.lexsort((position[leaders], run))]
    rows = list[tuple[int, int, int]]()  # leader, place among all texts, node of its own leader
    for leader in leaders.tolist():
        for copy, at in taken[leader]:
            place = int(starts[copy]) + at
            node = int(inputs.text_nodes[place])
            led = node if node == NONE else deciding.leader_of_text(node)[0]
            if text_splits is None or text_splits.admits(led, SPLITS[outcome.splits[leader]]):
                rows.append((leader, place, led))
    columns = np.array(rows, np.int64).reshape(-1, 3)
    return _merged_rows(outcome, *columns.T)


def _merged_rows(outcome: LeaderOutput, leader: Ints, place: Ints, node: Ints) -> dict[int, pa.Table]:
    inputs = outcome.inputs
    ids = node_ids(inputs, node)
    own = np.flatnonzero(node == NONE)
    ids[own] = inputs.runs.text_ids(inputs.all_texts[place[own]])
    run = np.searchsorted(inputs.runs.starts, leader, "right") - 1
    found = {}
    texts, ranks = _texts_at(inputs, place, outcome.text_order)
    names = _gathered(inputs, leader, ["candidate_id"])["candidate_id"]
    for number in distinct(run).tolist():
        here = pa.array(np.flatnonzero(run == number))
        table = pa.table(
            {
                "leader": names.take(here),
                **{name: texts.field(name).take(here) for name in ("kind", "text", "original")},
                "text_leader": column_of(ids).take(here),
                "rank": pa.array(ranks).take(here),
            }
        )
        original = pc.fill_null(table["original"], "")
        found[number] = table.set_column(3, "original", original).cast(MERGED_SCHEMA)
    return found


def _texts_at(inputs: LeaderInput, places: Ints, text_order: TextOrder) -> tuple[pa.StructArray, Ints]:
    """(texts by their places among the texts of all pairs, their ranks)."""
    ends = inputs.text_starts[inputs.runs.starts]  # where the texts of each run begin, and the end
    order, parts, ranks = list[Ints](), list[pa.Array](), list[Ints]()
    for number, rows in enumerate(inputs.rows):
        here = np.flatnonzero((places >= ends[number]) & (places < ends[number + 1]))
        if len(here):
            lists = rows["texts"].combine_chunks()
            flat, own = lists.flatten(), places[here] - ends[number]
            counts = pc.list_value_length(lists).to_numpy(zero_copy_only=False).astype(np.int64)
            order.append(here)
            parts.append(flat.take(pa.array(own)))
            ranks.append(text_order.ranks(flat.field("kind"), np.repeat(np.cumsum(counts), counts))[own])
    if not parts:
        kind = inputs.rows[0]["texts"].type.value_type if inputs.rows else MERGED_SCHEMA.field("text").type
        return pa.array([], kind), np.zeros(0, np.int64)
    by_place = np.argsort(np.concatenate(order))
    return pa.concat_arrays(parts).take(pa.array(by_place)), np.concatenate(ranks)[by_place]


def write(
    attempt: Attempt, outcome: LeaderOutput, merged_rows: dict[int, pa.Table], placeholders: Sequence[int]
) -> None:
    """Write what `dedup` needs of each run, and what STORE gets."""
    inputs = outcome.inputs
    for number, record in enumerate(inputs.runs.records):
        rows = np.arange(inputs.runs.starts[number], inputs.runs.starts[number + 1])
        attempt.write_table(f"{record.partition}.verdicts", _verdict_rows(outcome, number, rows))
        attempt.write_table(f"{record.partition}.merged", merged_rows.get(number, MERGED_SCHEMA.empty_table()))
    kept = outcome.kept
    with contextlib.ExitStack() as files:
        images, texts, flagged = (
            files.enter_context(Rows(attempt.path(f"{name}.parquet"), schema))
            for name, schema in (("images", IMAGE_SCHEMA), ("texts", TEXT_SCHEMA), ("placeholders", PLACEHOLDER_SCHEMA))
        )
        signatures, details = (files.enter_context(attempt.path(name).open("wb")) for name in (SIGNATURES, DETAILS))
        for first in range(0, len(kept), WRITTEN):
            some = kept[first : first + WRITTEN]
            images.add(_image_rows(outcome, some))
            for at in range(0, len(some), COPIED):
                signatures.write(inputs.signatures.signatures(some[at : at + COPIED]).data)
            inputs.signatures.details(some).shifted(first).write(details)
        for rows_of_texts in _text_rows(outcome, kept):
            texts.add(rows_of_texts)
        own = np.array(sorted(placeholders), np.int64)
        flagged.add(_gathered(inputs, own, ["candidate_id"]))


def _verdict_rows(outcome: LeaderOutput, number: int, pairs: Ints) -> pa.Table:
    """VERDICT_SCHEMA rows of a run, by rank."""
    inputs, rows = outcome.inputs, outcome.inputs.rows[number]
    reasons, leader, earlier = outcome.reasons[pairs], outcome.leader[pairs], outcome.earlier[pairs]
    ids = np.zeros((len(pairs), 32), np.uint8)
    own, others = np.flatnonzero(leader != NONE), np.flatnonzero(earlier != NONE)
    ids[own] = digests_of(_gathered(inputs, leader[own], ["candidate_id"])["candidate_id"])
    at = inputs.earlier_images.positions(earlier[others])
    ids[others] = inputs.earlier_images.candidate[at]
    known = np.zeros(len(pairs), np.bool_)
    known[others] = inputs.earlier_images.held[at]
    kept = (reasons & ~np.uint8(BIT[DropReason.OTHER_SPLIT])) == 0
    counts = np.where(kept, inputs.counted[pairs], 0)
    low = inputs.text_starts[pairs]
    splits = pa.array(np.where(kept, outcome.splits[pairs], 0).astype(np.int32), mask=~kept)
    columns = {
        "candidate_id": rows["candidate_id"],
        "reasons": pa.array(reasons, pa.uint8()),
        "leader": column_of(ids),
        "earlier": pa.array(earlier != NONE),
        "known": pa.array(known),
        "text_leaders": pa.ListArray.from_arrays(
            pa.array(np.concatenate([[0], np.cumsum(counts)]), pa.int32()),
            column_of(outcome.leader_ids(spread(low, low + counts))),
        ),
        "split": pa.array(SPLITS, pa.string()).take(splits),
    }
    return pa.table(columns, schema=VERDICT_SCHEMA)


def _image_rows(outcome: LeaderOutput, pairs: Ints) -> pa.Table:
    """IMAGE_SCHEMA rows of kept pairs."""
    added = {
        "text_leader": column_of(_ids_before_splits(outcome, outcome.inputs.text_starts[pairs])),
        "split": pa.array(SPLITS, pa.string()).take(pa.array(outcome.splits[pairs])),
        "context": column_of_contexts(outcome.inputs.runs.contexts(pairs)),
    }
    own = _gathered(outcome.inputs, pairs, [name for name in IMAGE_SCHEMA.names if name not in added])
    return pa.table({name: added[name] if name in added else own[name] for name in IMAGE_SCHEMA.names})


def _ids_before_splits(outcome: LeaderOutput, places: Ints) -> Digests:
    """Ids of the leaders of texts, left out or not."""
    inputs, nodes = outcome.inputs, outcome.text_leaders[places]
    ids = node_ids(inputs, nodes)
    own = np.flatnonzero(nodes == NONE)
    ids[own] = inputs.runs.text_ids(inputs.all_texts[places[own]])
    return ids


def _text_rows(outcome: LeaderOutput, kept: Ints) -> Iterator[pa.Table]:
    """TEXT_SCHEMA rows of the texts that lead from now on, in the order in which they began to."""
    inputs = outcome.inputs
    for start in range(0, len(kept), WRITTEN):
        some = kept[start : start + WRITTEN]
        low, counts = inputs.text_starts[some], inputs.counted[some]
        places, pair = spread(low, low + counts), np.repeat(some, counts)
        new = np.flatnonzero(outcome.began[places])
        texts = inputs.all_texts[places[new]]
        distinct, at = np.unique(texts, return_inverse=True)
        rows = TextRows(inputs.runs.text_ids(distinct), inputs.runs.whole_sketches(distinct)).columns()
        splits = pa.array(SPLITS, pa.string()).take(pa.array(outcome.splits[pair[new]]))
        yield pa.table({"text": rows.take(pa.array(at)), "split": splits}, schema=TEXT_SCHEMA)
        outcome.counts["text_clusters"] += len(new)


def _gathered(inputs: LeaderInput, pairs: Ints, columns: list[str]) -> pa.Table:
    """Columns of pairs, by their numbers in any order."""
    run = np.searchsorted(inputs.runs.starts, pairs, "right") - 1
    order, parts = [np.zeros(0, np.int64)], list[pa.Table]()
    for number in distinct(run).tolist():
        here = np.flatnonzero(run == number)
        order.append(here)
        rows = inputs.rows[number].select(columns)
        parts.append(rows.take(pa.array(pairs[here] - inputs.runs.starts[number])))
    if not parts:
        return ROW_SCHEMA.empty_table().select(columns)
    return pa.concat_tables(parts).take(pa.array(np.argsort(np.concatenate(order))))
