"""Candidates in words: reasons, evidence, leaders, regions, what stages saw; and what is withheld."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from pipeline.store.build import Build

Connect = Callable[..., Any]


@pytest.mark.slow
def test_a_row_is_shown_with_its_reason_in_both_languages(built: Build, client_of: Connect) -> None:
    client = client_of(built.out)
    about = client.get("/api/about").json()
    assert about["name"] == "synthetic"
    assert about["report"] is True
    assert about["notices"] == []
    rows = client.get("/api/rows", params={"reason": "near_image", "g": about["g"]}).json()["rows"]
    assert len(rows) == 2
    assert rows[0]["reasons"] == [{"name": "near_image", "en": "near-copy of an image", "zh": "近似图像"}]
    assert rows[0]["stage"]["zh"] == "去重"
    item = client.get("/api/item", params={"pos": rows[0]["pos"], "g": about["g"]}).json()
    assert item["leader"]["id"] == item["duplicate_of"]
    assert item["leader"]["fate"] == "kept"
    assert item["picture"]["width"] == 150
    assert item["picture"]["regions"] == {}
    kept = client.get("/api/rows", params={"fate": "kept", "limit": 1}).json()["rows"][0]
    item = client.get("/api/item", params={"pos": kept["pos"], "g": about["g"]}).json()
    [boxes] = item["picture"]["regions"].values()
    assert all(0 <= x1 < x2 <= item["picture"]["width"] for x1, _, x2, _, _ in boxes)
    assert len(boxes) in (1, 2)


def test_what_each_stage_saw_is_told_with_all_texts(built: Build, client_of: Connect) -> None:
    client = client_of(built.out)
    g = client.get("/api/about").json()["g"]
    row = client.get("/api/rows", params={"reason": "image_too_small"}).json()["rows"][0]
    seen = client.get("/api/saw", params={"pos": row["pos"], "g": g}).json()
    assert [stage["name"] for stage in seen["stages"]] == ["extract", "admit", "fetch", "measure"]
    assert seen["texts"][0]["text"] == row["text"]
    assert seen["texts"][0]["kind"] == {"name": "caption", "en": "caption", "zh": "图注"}
    measured = next(stage for stage in seen["stages"] if stage["name"] == "measure")
    assert measured["new"]["width"] == 20


@pytest.mark.slow
def test_why_is_this_not_in(built: Build, client_of: Connect, synthetic: Any) -> None:
    client = client_of(built.out)

    def why(named: str) -> Any:
        return client.get("/api/why", params={"named": named})

    item = next(item for item in synthetic.items() if item.reason == "text_too_short")
    [row] = why(item.candidate.image_url).json()["rows"]
    assert row["reasons"][0]["name"] == "text_too_short"
    assert row["evidence"]["en"] == "text_too_short, as made"
    page = why("https://www.pages.example/1.html").json()["rows"]
    assert len(page) > 1
    [lost] = why("https://www.pages.example/lost1.html").json()["rows"]
    assert (lost["subject"], lost["reasons"][0]["name"]) == ("capture", "http_status")
    [same] = why(f" {row['key']} ").json()["rows"]
    assert same["id"] == row["id"]
    unknown = why("https://img1.example/none.jpg").json()
    assert unknown["rows"] == []
    assert "img1.example" in unknown["nothing"]["en"]
    assert "没有遇到" in unknown["nothing"]["zh"]
    assert "no source of the spec covers it" in why("https://other.example/a.jpg").json()["nothing"]["en"]
    assert why("??").status_code == 400


def test_what_may_not_be_shown_is_counted_and_withheld(built: Build, client_of: Connect) -> None:
    client = client_of(built.out)
    g = client.get("/api/about").json()["g"]
    for reason in ("opt_out", "forgotten"):
        [row] = client.get("/api/rows", params={"reason": reason}).json()["rows"]
        assert (row["text"], row["url"], row["page_url"], row["evidence"]["en"]) == ("", "", "", "")
        assert row["withheld"]["zh"]
        assert client.get("/api/thumb", params={"pos": row["pos"], "g": g}).status_code == 404
        assert client.get("/api/saw", params={"pos": row["pos"], "g": g}).json()["texts"] == []


@pytest.mark.slow
def test_a_leader_that_is_nowhere_is_named_by_its_id(own: Callable[..., Build], client_of: Connect) -> None:
    build = own()
    for record in build.stage("shard").records():
        build.stage("shard").delete_record(record.partition)
    client = client_of(build.out)
    g = client.get("/api/about").json()["g"]
    row = client.get("/api/rows", params={"reason": "near_image"}).json()["rows"][0]
    item = client.get("/api/item", params={"pos": row["pos"], "g": g}).json()
    assert item["leader"]["unknown"] is True
    assert item["leader"]["id"] == row["duplicate_of"]
