"""Explain: the decision about a candidate, what it is a duplicate of, and what each stage saw of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from data_specs.build import SpecError
from pipeline.report.explain import MAX_TRACED, explain
from pipeline.rows.records import sha256_hex
from pipeline.store.build import Build

pytestmark = pytest.mark.slow

Run = Callable[[Build, str], None]


def test_explain_finds_by_id_key_image_and_page(synthetic_build: Build, synthetic: Any, run_stage: Run) -> None:
    run_stage(synthetic_build, "shard")
    items = synthetic.items()
    kept, dropped = items[1], next(item for item in items if item.reason == "image_too_small")
    for subject in (kept.candidate.candidate_id, kept.candidate.candidate_id[:32], kept.candidate.image_url):
        rows = explain(synthetic_build, subject)
        assert [(row["id"], row["kept"]) for row in rows if not row["duplicate_of"]] == [
            (kept.candidate.candidate_id, True)
        ]
    [row] = explain(synthetic_build, sha256_hex(dropped.candidate.image_url))
    assert (row["stage"], row["reason"]) == ("filter", "image_too_small")
    page = explain(synthetic_build, kept.candidate.page_url)
    assert {row["page_url"] for row in page} == {kept.candidate.page_url}
    assert explain(synthetic_build, "https://nowhere.example/") == []
    with pytest.raises(SpecError, match="at least 8 digits"):
        explain(synthetic_build, "abc")


def test_what_each_stage_saw_ends_where_the_candidate_was_dropped(
    synthetic_build: Build, synthetic: Any, run_stage: Run
) -> None:
    run_stage(synthetic_build, "shard")
    last = {"admit": "extract", "fetch": "fetch", "measure": "fetch", "filter": "measure", "dedup": "filter"}
    items = {(item.stage, item.reason): item for item in synthetic.items()}
    for (stage, reason), item in items.items():
        row = next(
            r for r in explain(synthetic_build, item.candidate.candidate_id) if r["id"] == item.candidate.candidate_id
        )
        seen = list(row["saw"])
        assert (row["stage"], row["reason"]) == (stage, reason)
        if stage in last:
            assert seen[-1] == last[stage], (stage, reason, seen)
    kept = next(item for item in synthetic.items() if item.stage == "shard")
    [row] = [r for r in explain(synthetic_build, kept.candidate.candidate_id) if r["kept"]]
    saw = row["saw"]
    assert saw["fetch"]["ok"]
    assert saw["fetch"]["size"] == len(kept.data)
    assert (saw["measure"]["width"], saw["measure"]["height"]) == (saw["shard"]["width"], saw["shard"]["height"])
    assert saw["dedup"]["split"] == saw["shard"]["partition"].split("-")[0]
    assert saw["shard"]["texts"][0]["text"] == kept.candidate.texts[0].text
    assert any("boxes" in str(value) for value in saw["detect"].values())


def test_a_duplicate_names_the_picture_that_was_kept(synthetic_build: Build, synthetic: Any, run_stage: Run) -> None:
    run_stage(synthetic_build, "shard")
    copy = next(item for item in synthetic.items() if item.reason == "near_image")
    [row] = explain(synthetic_build, copy.candidate.candidate_id)
    assert row["duplicate_of"] == copy.leader
    assert row["leader"]["id"] == copy.leader
    assert row["leader"]["kept"]


@pytest.mark.drill(2)
def test_beyond_a_number_of_rows_decisions_are_given_without_their_trace(
    synthetic_build: Build, synthetic: Any, run_stage: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert MAX_TRACED >= 10
    monkeypatch.setattr("pipeline.report.explain.MAX_TRACED", 1)
    run_stage(synthetic_build, "shard")
    page = next(item.candidate.page_url for item in synthetic.items() if item.candidate.page_url)
    rows = explain(synthetic_build, page)
    assert len(rows) > 1
    assert rows[0]["saw"] is not None
    assert all(more["saw"] is None for more in rows[1:])
