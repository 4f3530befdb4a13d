"""Decisions: what a drop names, and the columns that it is written to."""

from __future__ import annotations

import dataclasses

import pytest

from data_specs.shard import Text
from pipeline.rows.decisions import DECISION_SCHEMA, Decision, DropReason, decision_rows, drop
from pipeline.rows.records import Candidate

CANDIDATE = Candidate(
    source="news",
    source_kind="news",
    origin="http://a.cn/1.html",
    page_url="http://a.cn/1.html",
    image_url="http://a.cn/1.jpg",
    texts=(Text("alt", "图一"), Text("title", "标题", "標題")),
)


def test_columns_are_the_fields_in_their_order() -> None:
    assert DECISION_SCHEMA.names == [field.name for field in dataclasses.fields(Decision) if field.name != "lost"]


def test_a_drop_names_its_reasons_and_a_takedown_names_nothing() -> None:
    one = drop(CANDIDATE, "filter", DropReason.IMAGE_BLANK, "0.99")
    assert (one.reason, one.reasons, one.evidence, one.duplicate_of) == ("image_blank", ("image_blank",), "0.99", "")
    both = ("near_image", "cap_per_text")
    two = drop(CANDIDATE, "dedup", DropReason.NEAR_IMAGE, reasons=both, duplicate_of="f" * 64)
    assert (two.reason, two.reasons, two.duplicate_of) == ("near_image", both, "f" * 64)
    removed = drop(CANDIDATE, "admit", DropReason.FORGOTTEN, "a host that was taken down")
    assert (removed.url, removed.page_url, removed.text, removed.id) == ("", "", "", CANDIDATE.candidate_id)
    assert decision_rows([one, two, removed]).schema == DECISION_SCHEMA
    with pytest.raises(TypeError):
        drop(CANDIDATE, "filter", DropReason.IMAGE_BLANK, duplicates="x")  # type: ignore[call-arg]
