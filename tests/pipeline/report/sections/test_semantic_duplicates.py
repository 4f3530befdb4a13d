"""Section `semantic_duplicates`: counts what was merged, and shows each duplicate beside its leader."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from data_specs.shard import Text
from pipeline.report.page import environment
from pipeline.report.sections import semantic_duplicates
from pipeline.report.sections.semantic_duplicates import _rows, duplicates
from pipeline.rows.decisions import DropReason, drop
from pipeline.rows.records import Candidate
from pipeline.store.sql import Tables
from tests import alike
from tests.fetched import begun
from tests.stages import run_stage

SHOWN = [(f"p{i}", (0.8, 0.1 + 0.04 * i, 0.1), 400 - 10 * i, f"第{i}图") for i in range(12)]


@pytest.fixture
def build(fetched_build: Any, got: Any, tmp_path: Path) -> Any:
    def make(shown: Any = SHOWN, **more: Any) -> Any:
        made = alike.made(fetched_build, got, tmp_path, shown, {"distance": 0.01}, **more)
        run_stage(made, "detect", "shard")
        return made

    return make


def groups(said: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    return {group["name"]: group["pairs"] for group in said["groups"]}


def test_of_a_pair_that_came_twice_the_judges_decision_is_shown(tmp_path: Path) -> None:
    build = begun(tmp_path)
    build = replace(build, fingerprints={**build.fingerprints, "curate": "f" * 64})
    came = Candidate("t", "library", "1", "http://a.cn/", "http://a.cn/1.jpg", (Text("alt", "一张图片"),))
    reasons = {"admit": DropReason.SAME_CANDIDATE, "curate": DropReason.SEMANTIC_DUPLICATE}
    for name, reason in reasons.items():
        with build.stage(name).attempt("0") as attempt:
            attempt.decide([drop(came, name, reason, "", duplicate_of="b" * 64 if name == "curate" else "")])
            attempt.commit({})
    with Tables.of(build) as tables:
        [row] = _rows(tables, {came.candidate_id}).values()
    assert (row["stage"], row["duplicate_of"]) == ("curate", "b" * 64)


@pytest.mark.slow
def test_it_shows_the_nearest_those_just_dropped_and_those_just_kept(build: Any, material: Any) -> None:
    made = build(parts=2)
    said = duplicates(material(made))
    assert said is not None
    dropped = alike.dropped(made)
    assert (said["seen"], said["kept"], said["dropped"]) == (12, 12 - len(dropped), len(dropped))
    assert 3 < len(dropped) < 11
    [limit] = said["histogram"]["limits"]
    assert limit["dropped"] == sum(b["own"] for b in said["histogram"]["bins"]) == len(dropped)
    shown = groups(said)
    for name, order in (("closest", 1), ("just_dropped", -1)):
        apart = [order * pair["apart"] for pair in shown[name]]
        assert apart == sorted(apart)
        assert {pair["other"]["id"] for pair in shown[name]} == {row["id"] for row in dropped.values()}
    assert all(pair["apart"] <= 0.01 for pair in shown["closest"])
    assert all(0.01 < pair["apart"] <= 0.015 for pair in shown["just_kept"])
    assert shown["just_kept"]
    for pair in (*shown["closest"], *shown["just_kept"]):
        assert pair["leader"]["kept"]
        assert pair["leader"]["picture"].startswith("data:image/jpeg;base64,")
        assert pair["other"]["picture"].startswith("data:image/jpeg;base64,")
        assert pair["leader"]["id"] != pair["other"]["id"]
    for pair in shown["closest"]:
        assert pair["other"]["duplicate_of"] == pair["leader"]["id"]
    page = environment(made.stages).from_string(semantic_duplicates.HTML)
    html = page.render(semantic_duplicates=said)
    assert ("Closest to each other" in html, "Just dropped" in html) == (True, False), "they are the same ones"
    assert "Just dropped" in page.render(semantic_duplicates={**said, "dropped": 99})
