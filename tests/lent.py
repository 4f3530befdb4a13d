"""A leader that has the texts of its copy, as dedup leaves it where a spec merges texts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.rows.records import sha256_hex
from pipeline.store.build import Build


def lend(build: Build, leader: Any, copy: Any, scratch: Path) -> None:
    """Give a leader the texts of its copy, as dedup does where the spec merges texts."""
    stage = build.stage("dedup")
    for record in stage.records():
        table = stage.table(record)
        rows = table.to_pylist()
        for row in rows:
            if row["candidate_id"] == leader.candidate.candidate_id:
                row["texts"] += [{"kind": t.kind, "text": t.text, "original": ""} for t in copy.candidate.texts]
                row["text_leaders"] += [sha256_hex(t.text) for t in copy.candidate.texts]
        path = scratch / "parquet"
        pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), path)
        stage.amend(record, {"parquet": path})
