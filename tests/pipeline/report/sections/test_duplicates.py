"""Section `duplicates`: merges of two different own words are counted, and those in doubt are shown side by side."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.report.page import environment
from pipeline.report.section import Material
from pipeline.report.sections import duplicates
from pipeline.stages import STAGES
from pipeline.store import sql
from pipeline.store.build import Build

pytestmark = pytest.mark.slow

VIEWS = {
    "candidates": """
        SELECT id AS candidate_id, 'f' || id AS fetch_id, 's' AS source, 'http://p.test/' AS page_url,
        'http://i.test/' || id AS image_url, [{kind: kind, text: text}, {kind: 'title', text: 'Title'}] AS texts
        FROM (VALUES ('a', 'alt', '商務艙'), ('b', 'alt', '經濟艙'), ('c', 'caption', '商務 艙。'),
        ('d', 'title', 'Other'), ('e', 'alt', '經濟艙'), ('f', 'alt', '2023'), ('g', 'alt', '商务舱<b>')
        ) AS t(id, kind, text)""",
    "decisions": """
        SELECT id, 'candidate' AS subject, 'dedup' AS stage, leader AS duplicate_of, reason
        FROM (VALUES ('b', 'a', 'near_image'), ('c', 'a', 'near_image'), ('d', 'a', 'near_image'),
        ('e', 'a', 'same_image'), ('f', 'elsewhere', 'near_image'), ('g', 'a', 'near_image'), ('a', '', 'cap_per_text')
        ) AS t(id, leader, reason)""",
    "removed": "SELECT * FROM (VALUES ('e', 'alt')) AS t(candidate_id, kind)",
}


def test_merges_of_different_words_are_counted_and_what_is_in_doubt_is_shown(
    synthetic_build: Build, material: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, view in VIEWS.items():
        monkeypatch.setitem(sql.VIEWS, name, lambda _, view=view: view)
    monkeypatch.setattr(Material, "add_pictures", lambda _, rows, *__: [row.update(picture="") for row in rows])
    monkeypatch.setattr(Material, "without_hidden", lambda _, rows: list(rows))
    said = duplicates.merges(material(synthetic_build))
    assert said["counts"] == [
        {"reason": "near_image", "count": 4, "other_words": 2},
        {"reason": "same_image", "count": 1, "other_words": 0},
    ]
    shown = [(pair["worded"], pair["leader"]["id"], pair["dropped"]["id"]) for pair in said["pairs"]]
    assert shown == [(True, "a", "b"), (True, "a", "g"), (False, "a", "d")]
    values = {"cluster_sizes": {"total": 0}, "clusters": [], "merges": said}
    html = environment(STAGES).from_string(duplicates.HTML).render(**values)
    assert "經濟艙" in html
    assert "<b>2</b>" in html
    assert "商务舱&lt;b&gt;" in html


def test_merges_have_the_pictures_of_both(synthetic_build: Build, material: Any, run_stage: Any) -> None:
    run_stage(synthetic_build, "shard")
    said = duplicates.merges(material(synthetic_build))
    assert {row["reason"]: row["count"] for row in said["counts"]} == {"near_image": 2, "same_image": 3}
    assert all(pair[name]["picture"] for pair in said["pairs"] for name in ("leader", "dropped"))
    assert len(said["pairs"]) == 2
