"""Rows and their schemas: columns follow from the fields, and rows come back as what they were made of."""

from __future__ import annotations

import dataclasses
from collections import Counter

import pytest

from data_specs.shard import Text
from pipeline.rows.records import (
    CANDIDATE_SCHEMA,
    FEATURE_SCHEMA,
    WITH_REMOVED_SCHEMA,
    Candidate,
    Features,
    RemovedText,
    candidate_rows,
    candidates_of,
    split_of,
)

CANDIDATES = [
    Candidate(
        source="news",
        source_kind="news",
        origin=f"http://a.cn/{number}.html",
        page_url=f"http://a.cn/{number}.html",
        image_url=f"http://a.cn/{number}.jpg",
        texts=(Text("alt", f"图{number}"), Text("title", "标题", "標題")),
        row=number,
        text_rank=number % 2,
        removed=(RemovedText("title", "某某网", "boilerplate", "stands on 7 pages"),) * (number % 3),
    )
    for number in range(5)
]


def test_columns_are_the_fields_in_their_order() -> None:
    assert FEATURE_SCHEMA.names == [field.name for field in dataclasses.fields(Features)]
    elsewhere = {"boxes", "provenance", "userinfo", "removed"}  # in tables of their own
    fields = [field.name for field in dataclasses.fields(Candidate) if field.name not in elsewhere]
    assert CANDIDATE_SCHEMA.names == ["order_key", "candidate_id", "fetch_id", *fields]


def test_candidates_come_back_from_their_rows_by_order_key() -> None:
    rows = candidate_rows(CANDIDATES, seed=3)
    assert rows.schema == WITH_REMOVED_SCHEMA
    keys = rows["order_key"].to_pylist()
    assert keys == sorted(keys)
    again = candidates_of(rows)
    assert sorted(again, key=lambda candidate: candidate.row) == CANDIDATES
    assert [candidate.candidate_id for candidate in again] == rows["candidate_id"].to_pylist()
    bare = candidates_of(rows.drop_columns(["removed"]))
    assert bare == [dataclasses.replace(candidate, removed=()) for candidate in again]


def test_splits_have_their_shares_and_follow_the_leader() -> None:
    splits = Counter(split_of(f"{i:064x}", 0, 0.1, 0.2) for i in range(5_000))
    assert splits["dev"] == pytest.approx(500, rel=0.15)
    assert splits["val"] == pytest.approx(1_000, rel=0.15)
    assert split_of("a", 0, 0.0, 0.0) == "train"
    assert [split_of(f"{i}", 1, 0.3, 0.3) for i in range(50)] != [split_of(f"{i}", 2, 0.3, 0.3) for i in range(50)]
