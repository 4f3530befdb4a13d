"""Builds run up to dedup, and what came of their pairs, for tests of the stages around the leader pass."""

from __future__ import annotations

from collections import Counter
from typing import Any

from data_specs.shard import SPLITS
from pipeline.rows.records import DEDUP_SCHEMA
from pipeline.store.identities import IMAGE_SCHEMA, Identities
from tests.stages import run_stage


def run(build: Any) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, Any]], dict[str, int]]:
    """(kept rows, decisions, counts) of the dedup stage; rows by page and name of the image."""
    run_stage(build, "measure", "filter", "dedup")
    stage = build.stage("dedup")
    decided: list[dict[str, Any]] = []
    counts: Counter[str] = Counter()
    tables = [stage.table(record) for record in stage.records()]
    assert all(table.schema == DEDUP_SCHEMA for table in tables)
    rows = [row for table in tables for row in table.to_pylist()]
    assert {row["split"] for row in rows} <= set(SPLITS)
    assert rows == sorted(rows, key=lambda r: (r["order_key"], r["candidate_id"]))
    kept = {_name(row["page_url"], row["image_url"]): row for row in rows}
    for record in stage.records():
        decided += stage.table(record, "decisions.parquet").to_pylist()
        counts.update(record.counts)
    assert counts["seen"] == counts["kept"] + counts["dropped"] + counts["known"]
    counts.update(build.stage("dedup.leaders").record("all").counts)
    return kept, {_name(d["page_url"], d["url"]): d for d in decided}, dict(counts)


def _name(page: str, url: str) -> str:
    end = url.rpartition("/")[2]
    return end if page.endswith("/a.html") else f"{end}@{page.rpartition('/')[2]}"


def texts(row: dict[str, Any]) -> list[str]:
    """The texts of a kept row, the primary one first."""
    return [text["text"] for text in row["texts"]]


def publish(build: Any) -> list[dict[str, Any]]:
    """Publish a build's identities; the rows of its images as STORE has them."""
    identities = Identities(build.store)
    with build.store.lock():
        identities.publish(build)
    known = identities.read(identities.of(build.build_id))
    tables = list(identities.batches(known, "images.parquet"))
    assert all(table.schema == IMAGE_SCHEMA for table in tables)
    return [row for table in tables for row in table.to_pylist()]


def after(build: Any) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, Any]]]:
    """(kept rows, decisions) by name of the picture, of a build made by tests/filtered.py."""
    run_stage(build, "dedup")
    stage = build.stage("dedup")
    records = list(stage.records())
    kept = [row for r in records for row in stage.table(r).to_pylist()]
    decided = [row for r in records for row in stage.table(r, "decisions.parquet").to_pylist()]
    assert sum(r.counts["seen"] for r in records) == len(kept) + len(decided)
    by_name = (
        {_name("/a.html", row[url]): row for row in rows} for rows, url in ((kept, "image_url"), (decided, "url"))
    )
    return next(by_name), next(by_name)
