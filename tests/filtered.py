"""A build whose stages measure and filter are written straight through the store: dedup's input without a picture."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from data_specs.shard import Text, TextKind
from pipeline.pictures.hashing import HASHES
from pipeline.pictures.signatures import GRIDS, SIZE
from pipeline.rows.records import FEATURE_SCHEMA, LOOKS, PAIR_SCHEMA, Candidate, candidate_rows, order_range
from pipeline.stages.filter import reduce
from pipeline.store.build import Build
from tests.detailed import drawn_details
from tests.fetched import begun

MEASURED_SCHEMA = pa.schema([*PAIR_SCHEMA, *(FEATURE_SCHEMA.field(name) for name in LOOKS)])
"""Pairs with the columns by which their images are compared."""


@dataclass(frozen=True)
class Shown:
    """A picture on a page. Equal `picture` = it looks the same; equal `data` as well = the same bytes."""

    name: str
    picture: int
    texts: tuple[str, ...] = ("一张图片",)
    side: int = 200
    data: str = ""
    page: str = ""
    """The page that it stands on; one of its own if empty."""
    kind: TextKind = "content"
    fine: int = 0
    """Pictures with the same number here, other than 0, look the same by their details."""

    pixels: int = 0

    @property
    def url(self) -> str:
        return f"http://img.test/{self.name}"

    @property
    def origin(self) -> str:
        return self.page or f"http://site.test/{self.name}.html"

    @property
    def sha256(self) -> str:
        return hashlib.sha256(f"{self.picture} {self.data or self.name}".encode()).hexdigest()


def make(folder: Path, shown: Sequence[Shown], parts: int = 1, **more: Any) -> Build:
    """A Build below `folder` with measure and filter committed; `more` is what `begun` of tests/fetched.py takes."""
    build = begun(folder, **more)
    rows = _pairs(shown, build.spec.seed)
    for part in range(parts):
        low, high = order_range(part, parts)
        here = rows.filter(pa.array([low <= key < high for key in rows["order_key"].to_pylist()], pa.bool_()))
        commit(build, f"{part:05d}-of-{parts:05d}", here)
    return build


def commit(build: Build, partition: str, rows: pa.Table) -> None:
    """Commits a partition of measure and of filter. rows: columns of PAIR_SCHEMA and of FEATURE_SCHEMA."""
    first = list({name: row for row, name in reversed([*enumerate(rows["sha256"].to_pylist())])}.values())
    images = rows.take(pa.array(first, pa.int64())).select(FEATURE_SCHEMA.names)
    for stage, table in (("measure", images), ("filter", rows.select(PAIR_SCHEMA.names))):
        with build.stage(stage).attempt(partition) as attempt:
            attempt.write_table("parquet", table)
            attempt.commit({"seen": table.num_rows, "kept": table.num_rows, "dropped": 0})
    build.stage("filter").write_reduced(reduce(build))


def _pairs(shown: Sequence[Shown], seed: int) -> pa.Table:
    by_url = {s.url: s for s in shown}
    assert len(by_url) == len(shown)
    candidates = [
        Candidate("table", "library", s.origin, s.origin, s.url, tuple(Text(s.kind, text) for text in s.texts))
        for s in shown
    ]
    rows = []
    for row in candidate_rows(candidates, seed).to_pylist():
        own = by_url[row["image_url"]]
        rng = np.random.default_rng(own.picture)
        looks = {
            "phash": rng.integers(1, 2**63, HASHES, dtype=np.uint64).tolist(),
            "signature": rng.integers(0, 256, GRIDS * SIZE, dtype=np.uint8).tobytes(),
        }
        if own.fine:  # without texture, so that there are details
            looks["signature"] = bytes([128]) * GRIDS * SIZE
            looks["details"] = drawn_details(np.random.default_rng(own.fine), 1, 1, 0, 1.0).stored.tobytes()
        rows.append({**row, **looks, "pixels": own.pixels, "sha256": own.sha256, "width": own.side, "height": own.side})
    return pa.Table.from_pylist(rows, schema=MEASURED_SCHEMA)
