"""The pass over all decisions: counts of what may be shown, and of each fate the candidates that the sheet may show.

A sheet is a random but reproducible sample: of each fate (kept, or a reason to drop) those with the smallest keyed
hashes of their ids. So are groups of duplicates counted, of which the page shows the largest.

The funnel is what records say of the decisions (`funnel`). The rows are read here, so here they are held against that.

Limits: memory is one partition's decisions, the chosen rows, 8 bytes for each id that is never shown, and the counts of
groups, which are cut to the larger ones where they are very many (`figures.COUNTER_LIMIT`).
"""

from __future__ import annotations

import hashlib
import heapq
from collections import Counter
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.records import DropReason
from pipeline.report import figures
from pipeline.store.build import Build
from pipeline.store.frames import decisions_of
from pipeline.store.partitions import Record
from pipeline.store.takedowns import Takedowns

HIDDEN = frozenset(
    reason.value
    for reason in (
        DropReason.OPT_OUT,
        DropReason.FORGOTTEN,
        DropReason.ROBOTS_DISALLOWED,
        DropReason.ROBOTS_UNREACHABLE,
        DropReason.EGRESS_REFUSED,
    )
)
"""Reasons whose candidates are never shown."""

PLACED, NAMED = ("subject", "id", "fetch_id", "reason", "kept", "duplicate_of"), ("url", "page_url")
"""Columns of the decisions by which rows are chosen, and those that takedowns look at. The others, most of the bytes,
are read of what is shown."""

State = dict[str, Any]


def columns(takedowns: Takedowns) -> tuple[str, ...]:
    """Columns of the decisions by which rows are chosen."""
    return (*PLACED, *NAMED) if takedowns.hashes else PLACED


class Ids:
    """Ids, of which a dataset may have millions, by their first 64 bits: 8 bytes each, where text takes 150.

    Two that begin alike count as one.
    """

    def __init__(self) -> None:
        self._sorted, self._added = np.zeros(0, np.uint64), list[npt.NDArray[np.uint64]]()

    def update(self, ids: Iterable[str]) -> None:
        """Add ids, in hexadecimal; "" is none."""
        self.merge(np.array([int(one[:16], 16) for one in ids if one], np.uint64))

    def merge(self, heads: npt.NDArray[np.uint64]) -> None:
        """Add what `heads` returned."""
        if len(heads):
            self._added.append(heads)

    def heads(self) -> npt.NDArray[np.uint64]:
        """What there is of the ids, ascending."""
        if self._added:
            self._sorted, self._added = np.unique(np.concatenate([self._sorted, *self._added])), []
        return self._sorted

    def __contains__(self, one: str) -> bool:
        if not one:
            return False
        head, heads = np.uint64(int(one[:16], 16)), self.heads()
        at = int(np.searchsorted(heads, head))
        return at < len(heads) and bool(heads[at] == head)


class Place(NamedTuple):
    """Where a row of the decisions is: its file (the stage's number in the build, and the partition), and its number in
    that. Places are ordered as the decisions are."""

    part: tuple[int, str]
    at: int
    id: str
    fetch_id: str


def places(part: tuple[int, str], rows: pa.Table) -> list[Place]:
    """The places of rows of PLACED with their numbers `at` in a file."""
    own = (rows[name].to_pylist() for name in ("at", "id", "fetch_id"))
    return [Place(part, *values) for values in zip(*own, strict=True)]


class Smallest:
    """The `count` rows with the smallest keys of all that are added; of equal keys the earliest stay."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._rows: list[tuple[int, Place]] = []

    def add(self, keys: npt.NDArray[np.uint64], part: tuple[int, str], rows: pa.Table) -> None:
        """Keep those rows of a file that belong to the smallest. keys [N]; rows [N] of PLACED with `at`."""
        low = np.arange(len(keys))
        if self._count and len(self._rows) >= self._count:
            low = np.flatnonzero(keys <= np.uint64(self._rows[-1][0]))
        low = low[np.argsort(keys[low], kind="stable")[: self._count]]
        self.merge(list(zip(keys[low].tolist(), places(part, rows.take(pa.array(low))), strict=True)))

    def merge(self, rows: list[tuple[int, Place]]) -> None:
        self._rows = heapq.nsmallest(self._count, [*self._rows, *rows])

    def rows(self) -> list[tuple[int, Place]]:
        """(key, place) of the rows, smallest key first."""
        return self._rows

    def places(self) -> list[Place]:
        """The rows, smallest key first, one per image URL: an icon that is on every page would fill the sheet."""
        first: dict[str, Place] = {}
        for _, place in self._rows:
            first.setdefault(place.fetch_id or place.id, place)
        return list(first.values())


class Groups:
    """How many duplicates each leader has; cut to the larger half of figures.COUNTER_LIMIT leaders, as a counter is."""

    def __init__(self) -> None:
        self._tables = [pa.table({"leader": pa.array([], pa.string()), "duplicates": pa.array([], pa.int64())})]

    def add(self, leaders: pa.ChunkedArray) -> None:
        """Count a leader for each of its duplicates."""
        counts = pc.value_counts(leaders)
        self.merge(pa.table({"leader": counts.field("values"), "duplicates": counts.field("counts")}))

    def merge(self, table: pa.Table) -> None:
        """Add what `table` returned."""
        self._tables.append(table)
        if sum(own.num_rows for own in self._tables) > figures.COUNTER_LIMIT:
            self.table()

    def table(self) -> pa.Table:
        """Leaders, each with its `duplicates`."""
        if len(self._tables) > 1:
            grouped = pa.concat_tables(self._tables).group_by("leader").aggregate([("duplicates", "sum")])
            table = pa.table({"leader": grouped["leader"], "duplicates": grouped["duplicates_sum"]})
            if table.num_rows > figures.COUNTER_LIMIT:
                table = _largest(table, figures.COUNTER_LIMIT // 2)
            self._tables = [table]
        return self._tables[0]

    def sizes(self) -> Counter[int]:
        """How many groups there are of each size, leaders included."""
        counts = pc.value_counts(self.table()["duplicates"]).to_pylist()
        return Counter({row["values"] + 1: row["counts"] for row in counts})

    def largest(self, count: int) -> dict[str, int]:
        """Leaders with their duplicates, of the largest groups; of equal ones those with the smallest ids."""
        rows = _largest(self.table(), count)
        return dict(zip(rows["leader"].to_pylist(), rows["duplicates"].to_pylist(), strict=True))


def _largest(table: pa.Table, count: int) -> pa.Table:
    return table.sort_by([("duplicates", "descending"), ("leader", "ascending")]).slice(0, count)


class Fates:
    """The pass.

    hidden: candidates that may not be shown. duplicates: candidates that duplicate another one; known ones are none.
    opted_out: fetch_ids of images, and ids of pages, that are never shown. smallest: of each fate, a reason or "" for
    what is kept. copying: numbers of the stages that say of a candidate what it duplicates. differing: by stage,
    decisions that its files have more or fewer than its records count.
    """

    def __init__(self, seed: int, count: int, takedowns: Takedowns) -> None:
        self._seed, self._count, self._takedowns = seed, count, takedowns
        self.hidden, self.duplicates = 0, 0
        self.opted_out, self.groups = Ids(), Groups()
        self.smallest: dict[str, Smallest] = {}
        self.copying: set[int] = set()
        self.differing: Counter[str] = Counter()

    def add(self, build: Build, record: Record) -> None:
        decisions = decisions_of(build, record)
        if decisions is None:
            return
        part = list(build.fingerprints).index(record.stage), record.partition
        table = decisions.table(columns(self._takedowns))
        if record.fates is not None and table.num_rows != (counted := record.fates.counts.total()):
            self.differing[record.stage] += abs(table.num_rows - counted)
        pages = table.filter(pc.equal(table["subject"], "capture"))
        self.opted_out.update(pages.filter(pc.equal(pages["reason"], DropReason.OPT_OUT.value))["id"].to_pylist())
        table = table.append_column("at", pa.array(np.arange(table.num_rows)))
        if pages.num_rows:
            table = table.filter(pc.equal(table["subject"], "candidate"))
        never = pc.is_in(table["reason"], pa.array(sorted(HIDDEN)))
        self.opted_out.update(table.filter(never)["fetch_id"].to_pylist())
        self._add_copies(table, part[0])
        shown = table.filter(pc.invert(never))
        if self._takedowns.hashes:
            shown = shown.filter(pc.invert(self._takedowns.named(shown)))
        self.hidden += table.num_rows - shown.num_rows
        keys = keys_of(shown["id"].to_pylist(), self._seed)
        reasons = shown["reason"].combine_chunks().dictionary_encode()
        numbers = reasons.indices.to_numpy()
        for number, reason in enumerate(reasons.dictionary.to_pylist()):
            own = np.flatnonzero(numbers == number)
            self._of(reason).add(keys[own], part, shown.take(pa.array(own)))

    def _add_copies(self, table: pa.Table, stage: int) -> None:
        copies = table.filter(pc.not_equal(table["duplicate_of"], ""))
        if copies.num_rows:
            self.copying.add(stage)
            self.duplicates += pc.sum(pc.not_equal(copies["reason"], DropReason.KNOWN.value)).as_py()
            # a known candidate that is itself the sample held, found again, is no copy
            self.groups.add(copies.filter(pc.not_equal(copies["duplicate_of"], copies["id"]))["duplicate_of"])

    def _of(self, reason: str) -> Smallest:
        return self.smallest.setdefault(reason, Smallest(self._count))

    def faults(self) -> list[str]:
        """One line for each stage whose files of decisions are not what its records count; empty for a sound build."""
        return [
            f"{stage}: its files have {count:,} decisions more or fewer than its records count"
            for stage, count in self.differing.items()
        ]

    def state(self) -> State:
        return {
            "hidden": self.hidden,
            "duplicates": self.duplicates,
            "copying": sorted(self.copying),
            "differing": dict(self.differing),
            "smallest": {
                reason: [[key, *place.part, *place[1:]] for key, place in own.rows()]
                for reason, own in self.smallest.items()
            },
            "opted_out": pa.table({"head": self.opted_out.heads()}),
            "groups": self.groups.table(),
        }

    def merge(self, state: State) -> None:
        self.hidden += state["hidden"]
        self.duplicates += state["duplicates"]
        self.copying.update(state["copying"])
        self.differing.update(state["differing"])
        for reason, rows in state["smallest"].items():
            own = [(key, Place((stage, partition), *rest)) for key, stage, partition, *rest in rows]
            self._of(reason).merge(own)
        self.opted_out.merge(state["opted_out"]["head"].to_numpy())
        self.groups.merge(state["groups"])


def keys_of(ids: Iterable[str], seed: int) -> npt.NDArray[np.uint64]:
    """[N] the `order_key` of each id, as a number; the hash is keyed once for all, which is half of the work."""
    keyed, digests = hashlib.blake2b(digest_size=8, key=str(seed).encode()), list[bytes]()
    for name in ids:
        own = keyed.copy()
        own.update(name.encode())
        digests.append(own.digest())
    return np.frombuffer(b"".join(digests), ">u8").astype(np.uint64)
