"""The pass over pictures that were compared with the mark of their host: counts, and those nearest to the limit."""

from __future__ import annotations

import heapq
from collections import Counter
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.report.figures import trim
from pipeline.store.build import Build
from pipeline.store.host_marks import with_host
from pipeline.store.pairs import columns_of, primary_texts
from pipeline.store.partitions import Record

NEAREST = 12
"""Pictures on each side of the limit."""

_COLUMNS = ["candidate_id", "fetch_id", "source", "page_url", "image_url", "texts", "width", "height"]

Values = dict[str, Any]


class Marked:
    """compared, dropped: pictures by group (`named`)."""

    def __init__(self, limit: float | None) -> None:
        self._limit = limit
        self.compared, self.dropped = Counter[str](), Counter[str]()
        self._sides: dict[bool, list[Values]] = {False: [], True: []}

    def add(self, build: Build, record: Record) -> None:
        if record.stage != "curate.watermark" or self._limit is None:
            return
        here: dict[bool, list[Values]] = {False: [], True: []}
        correlations = columns_of(build, record.stage, record.partition, ["correlation"])["correlation"]
        pairs = build.stage("dedup")
        rows = pairs.table(pairs.record(record.partition), columns=_COLUMNS).append_column("correlation", correlations)
        rows = with_host(rows.filter(pc.is_valid(rows["correlation"])))
        rows = rows.append_column("text", pa.array(primary_texts(rows), pa.string())).drop_columns(["texts"])
        for row in rows.to_pylist():
            kept = round(row["correlation"], 4) <= self._limit
            self.compared[named(row)] += 1
            self.dropped[named(row)] += not kept
            here[kept].append(row)
        for kept, rows in here.items():
            self._look(kept, rows)
        self._trim()

    def _look(self, kept: bool, rows: list[Values]) -> None:
        limit = self._limit or 0.0
        nearest = [*self._sides[kept], *rows]
        self._sides[kept] = heapq.nsmallest(
            NEAREST, nearest, key=lambda row: (abs(row["correlation"] - limit), row["candidate_id"])
        )

    def _trim(self) -> None:
        trim(self.compared)
        trim(self.dropped)

    def state(self) -> dict[str, Any]:
        sides = {"just_dropped": self._sides[False], "just_kept": self._sides[True]}
        return {"compared": dict(self.compared), "dropped": dict(self.dropped), **sides}

    def merge(self, state: dict[str, Any]) -> None:
        self.compared.update(state["compared"])
        self.dropped.update(state["dropped"])
        self._look(False, state["just_dropped"])
        self._look(True, state["just_kept"])
        self._trim()

    def value(self) -> list[Values]:
        """The pictures nearest to the limit as report.json has them, but for thumbnails."""
        sides = (("just_dropped", False), ("just_kept", True))
        return [{"name": name, "rows": [_row(row, kept) for row in self._sides[kept]]} for name, kept in sides]


def named(row: Values) -> str:
    """The group of a picture, or of a mark: its host and its sides."""
    return f"{row['host']} {row['width']} x {row['height']}"


def _row(row: Values, kept: bool) -> Values:
    """A pair as the page and report.json have it."""
    same: dict[str, Any] = {name: row[name] for name in ("fetch_id", "source", "page_url", "host", "text")}
    own = {"id": row["candidate_id"], "url": row["image_url"], "stage": "curate", "duplicate_of": ""}
    return {**same, **own, "kept": kept, "correlation": round(row["correlation"], 4)}
