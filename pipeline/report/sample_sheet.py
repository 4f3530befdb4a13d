"""Chooses the decisions that the page shows: a sheet of kept and dropped samples, the largest groups of duplicates.

The sheet is a random but reproducible sample: of each fate (kept, or a reason to drop) the candidates with the smallest
hashes of the seed and their ids, new ones first. Half of it shows kept candidates, the other half the reasons in turn.

Limits: memory is that of the chosen rows, and of the sizes of all groups, which spill to the disk.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pyarrow as pa

from pipeline.report import earlier_samples
from pipeline.report.hidden_content import may_show, showable_rows, without_hidden
from pipeline.rows.decisions import DropReason
from pipeline.store.build import Build
from pipeline.store.sql import Tables, quoted
from pipeline.store.takedowns import Takedowns

CLUSTERS, MEMBERS = 6, 8
"""Groups of duplicates on the page, and rows shown of each."""
KNOWN = 14
"""Rows of the sheet that show what the dataset holds already."""

Row = dict[str, Any]


@dataclass
class Choice:
    """The rows of the decisions that the page shows.

    sheet: kept and dropped candidates. clusters: groups of duplicates, each with its leader first. hidden: how many
    candidates may not be shown. duplicates: how many candidates duplicate another one, without known ones.
    earlier_images: stored JPEGs of leaders that an earlier build kept, by candidate_id.
    """

    sheet: list[Row]
    clusters: list[Row]
    hidden: int
    duplicates: int
    earlier_images: dict[str, bytes] = field(default_factory=dict)

    def rows(self) -> list[Row]:
        return [*self.sheet, *(member for cluster in self.clusters for member in cluster["members"])]


class _RowLocation(NamedTuple):
    """Location of a row of the decisions, with the candidate and the image that it is about."""

    file: str
    row: int
    id: str
    fetch_id: str


_PLACE = f"struct_pack({', '.join(f'{name} := {name}' for name in _RowLocation._fields)})"


def choose(build: Build, tables: Tables, takedowns: Takedowns) -> Choice:
    """Choose the rows to show. Makes `groups`, a table of leaders with the number of their `duplicates`."""
    tables.execute(
        "CREATE TEMP TABLE groups AS SELECT duplicate_of AS leader, count(*) AS duplicates FROM decisions "
        "WHERE subject = 'candidate' AND duplicate_of <> '' AND duplicate_of <> id GROUP BY 1"
    )  # a known candidate that is itself the sample held, found again, is not a copy
    size, seed = build.spec.report.pictures, build.spec.seed
    shown = f"{showable_rows(takedowns)} AND {may_show('fetch_id')}"
    smallest = f"min_by({_PLACE}, md5('{seed}' || id), {2 * size}) FILTER (shown)" if size else "[]"
    fates = tables.rows(
        f"SELECT reason, count(*) FILTER (NOT {showable_rows(takedowns)}) AS hidden, "
        f"count(*) FILTER (duplicate_of <> '') AS copies, {smallest} AS places "
        f"FROM (SELECT *, {shown} AS shown FROM placed WHERE subject = 'candidate') GROUP BY 1"
    )
    piles = {fate["reason"]: [_RowLocation(**place) for place in fate["places"] or ()] for fate in fates}
    sheet = _sheet(piles, size)
    groups = [
        (leader, duplicates, members[:MEMBERS])
        for leader, duplicates, places in _largest_groups(build, tables, shown)
        if (members := _first_of_each("id", places))
    ][:CLUSTERS]
    rows = _rows(tables, [*sheet, *(one for *_, members in groups for one in members)])
    choice = Choice(
        [rows[place] for place in sheet],
        [  # a row that is on the sheet as well is shown twice
            {"leader": leader, "size": duplicates + 1, "members": [dict(rows[one]) for one in members], "held_by": ""}
            for leader, duplicates, members in groups
        ],
        sum(fate["hidden"] for fate in fates),
        sum(fate["copies"] for fate in fates if fate["reason"] != DropReason.KNOWN.value),
    )
    _add_earlier_leaders(build, tables, choice, takedowns)
    return choice


def _rows(tables: Tables, places: Iterable[_RowLocation]) -> dict[_RowLocation, Row]:
    wanted = sorted(set(places))
    if not wanted:
        return {}
    files = ", ".join(f"'{quoted(file)}'" for file in sorted({place.file for place in wanted}))
    tables.put("places", pa.table({"file": [place.file for place in wanted], "row": [place.row for place in wanted]}))
    rows = tables.rows(f"SELECT * FROM placed SEMI JOIN places USING (file, row) WHERE file IN ({files})")
    return {_RowLocation(row.pop("file"), row.pop("row"), row["id"], row["fetch_id"]): row for row in rows}


def _sheet(piles: Mapping[str, Sequence[_RowLocation]], size: int) -> list[_RowLocation]:
    """Half kept, half dropped, the reasons in turn. If one half has too few rows, the other takes its room.

    Few of those that are known: the report of the build that holds them shows them. One row per image URL in a pile: an
    icon that is on every page would fill the sheet.
    """
    known = DropReason.KNOWN.value
    shown = {
        reason: _first_of_each("fetch_id", pile)[: KNOWN if reason == known else size] for reason, pile in piles.items()
    }
    kept = shown.pop("", [])
    dropped = [pile[at] for at in range(size) for _, pile in sorted(shown.items()) if at < len(pile)]
    take_dropped = min(len(dropped), max(size // 2, size - len(kept)))
    return kept[: size - take_dropped] + dropped[:take_dropped]


def _first_of_each(name: str, places: Iterable[_RowLocation]) -> list[_RowLocation]:
    """Places without those that are about the same image, or candidate, as one before."""
    first: dict[str, _RowLocation] = {}
    for place in places:
        first.setdefault(getattr(place, name) or place.id, place)
    return list(first.values())


def _largest_groups(build: Build, tables: Tables, shown: str) -> list[tuple[str, int, list[_RowLocation]]]:
    """(leader, duplicates, places) of the largest groups, that of the leader first, then those of some duplicates.

    More leaders are looked for than are shown, since whole groups may be hidden, and more rows for the same reason.
    """
    largest: Mapping[str, int] = tables.pairs(
        f"SELECT leader, duplicates FROM groups ORDER BY duplicates DESC, leader LIMIT {2 * CLUSTERS}"
    )
    leaders = ", ".join(f"'{quoted(leader)}'" for leader in largest) or "NULL"
    copies = tables.pairs(
        f"SELECT duplicate_of, min_by({_PLACE}, id || reason, {3 * MEMBERS}) FROM placed "
        f"WHERE duplicate_of IN ({leaders}) AND duplicate_of <> id AND {shown} GROUP BY 1"
    )
    # the same candidate may have come a second time and been dropped; one of its rows says it was kept
    first = f"(NOT kept)::INTEGER * 1000 + list_position({list(build.stages)}, stage)"
    leader_places = tables.pairs(
        f"SELECT id, min_by({_PLACE}, {first}) FROM placed WHERE subject = 'candidate' AND id IN ({leaders}) "
        f"AND {shown} GROUP BY 1"
    )
    return [
        (
            leader,
            duplicates,
            [_RowLocation(**place) for place in (*filter(None, [leader_places.get(leader)]), *copies.get(leader, ()))],
        )
        for leader, duplicates in largest.items()
    ]


def _add_earlier_leaders(build: Build, tables: Tables, choice: Choice, takedowns: Takedowns) -> None:
    """Name the build that holds the leader of a group, if it is an earlier one, and show what it holds."""
    own = {row["id"] for cluster in choice.clusters for row in cluster["members"] if row["kept"]}
    held = earlier_samples.holders(build, {cluster["leader"] for cluster in choice.clusters} - own)
    for cluster in choice.clusters:
        if cluster["leader"] in held:
            cluster["held_by"] = held[cluster["leader"]].build_id
    found = {row["id"]: (row, data) for row, data in earlier_samples.samples(held)}
    leaders = {row["id"]: row for row in without_hidden(tables, takedowns, (row for row, _ in found.values()))}
    for cluster in choice.clusters:
        leader = leaders.get(cluster["leader"])
        if leader is not None and all(row["id"] != leader["id"] for row in cluster["members"]):
            cluster["members"] = [leader, *cluster["members"]][:MEMBERS]
            choice.earlier_images[leader["id"]] = found[leader["id"]][1]
