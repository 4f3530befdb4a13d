"""The sheet and the groups of duplicates: which rows of the decisions the page shows, and which nobody sees."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from data_specs.build import Report
from pipeline.report import page
from pipeline.report.hidden_content import HIDDEN
from pipeline.report.sample_sheet import MEMBERS
from pipeline.rows.decisions import DropReason, drop
from pipeline.rows.records import sha256_hex
from pipeline.stages import report
from pipeline.store.build import Build
from pipeline.store.frames import Frames

pytestmark = pytest.mark.slow

Run = Callable[[Build, str], None]


def _shown(html: str) -> set[str]:
    return set(re.findall(r"第\d+幅", html))


def test_opted_out_and_forgotten_items_are_not_shown(written: tuple[str, dict[str, Any]], synthetic: Any) -> None:
    html, figures = written
    hidden = [item for item in synthetic.items() if item.reason in ("opt_out", "forgotten")]
    assert len(hidden) == figures["not_shown"] == 2
    for item in hidden:
        assert item.candidate.texts[0].text.split("，")[1] not in _shown(html)
        assert item.candidate.image_url not in html
        assert item.candidate.candidate_id not in json.dumps(figures)


@pytest.mark.drill(1)
def test_an_image_opted_out_on_one_page_is_shown_from_no_other(
    synthetic_build: Build, synthetic: Any, run_stage: Run
) -> None:
    run_stage(synthetic_build, "shard")
    items = synthetic.items()
    for item in (items[0], items[4]):  # items[0] also leads a group of duplicates
        elsewhere = replace(item.candidate, origin="https://other.example/", page_url="https://other.example/")
        with synthetic_build.stage("extract").attempt(f"more-{elsewhere.row}") as attempt:
            attempt.decide([drop(elsewhere, "extract", DropReason.OPT_OUT)])
            attempt.commit({})
    made = page.make_report(synthetic_build)
    rows = [*made["sheet"], *(row for cluster in made["clusters"] for row in cluster["members"])]
    shown = {row["url"] for row in rows}
    assert items[5].candidate.image_url in shown
    assert not shown & {items[0].candidate.image_url, items[4].candidate.image_url}


@pytest.mark.parametrize("by", ["image", pytest.param("domain", marks=pytest.mark.drill(1))])
def test_a_takedown_after_the_build_removes_items_from_a_new_report(
    synthetic_build: Build, synthetic: Any, run_stage: Run, by: str
) -> None:
    run_stage(synthetic_build, "shard")
    before = report.token(synthetic_build)
    items = [item for item in synthetic.items() if item.stage == "shard"]
    hashes = {"image": items[4].sha256, "domain": sha256_hex("img0.example")}
    synthetic_build.store.folder.write_json("forgotten/1.json", {"hashes": [hashes[by]]})
    assert report.token(synthetic_build) != before
    made = page.make_report(synthetic_build)
    rows = [*made["sheet"], *(row for cluster in made["clusters"] for row in cluster["members"])]
    urls = {row["url"] for row in rows if row["picture"] or by != "image"}
    assert items[4].candidate.image_url not in urls
    assert any(items[5].candidate.image_url == url for url in urls), "others are still shown"
    assert not (by == "domain" and any("img0.example" in url for url in urls))
    never = sum(row["reason"] in HIDDEN for table in Frames.of(synthetic_build).tables("decisions")
                for row in table.to_pylist() if row["subject"] == "candidate")  # fmt: skip
    assert (made["not_shown"] > never) == (by != "image"), "what was taken down counts as not shown"


@pytest.mark.drill(1)
def test_the_sheet_is_the_same_every_time_and_balanced(tmp_path: Path, synthetic: Any, run_stage: Run) -> None:
    build, _ = synthetic.make(tmp_path, report={"pictures": 20})
    run_stage(build, "shard")
    first, second = page.make_report(build), page.make_report(build)
    assert first == second
    assert len(first["sheet"]) == 20
    assert sum(row["kept"] for row in first["sheet"]) == 10
    assert len({row["reason"] for row in first["sheet"] if not row["kept"]}) == 9, "each reason that may be shown"


def test_of_each_fate_the_sheet_shows_those_with_the_smallest_keys(
    synthetic_build: Build, synthetic: Any, run_stage: Run
) -> None:
    run_stage(synthetic_build, "shard")
    for pictures in (0, 6, 10):
        build = replace(
            synthetic_build, spec=synthetic_build.spec.model_copy(update={"report": Report(pictures=pictures)})
        )
        fates: dict[str, list[str]] = {}
        for rows in Frames.of(build).tables("decisions"):
            for row in rows.to_pylist():
                if row["subject"] == "candidate" and row["reason"] not in HIDDEN:
                    fates.setdefault(row["reason"], []).append(row["id"])
        shown: dict[str, list[str]] = {}
        for row in page.make_report(build)["sheet"]:
            shown.setdefault(row["reason"], []).append(row["id"])
        assert sum(map(len, shown.values())) == pictures
        for reason, ids in shown.items():
            expected = sorted(fates[reason], key=lambda name: hashlib.md5(f"{build.spec.seed}{name}".encode()).digest())
            assert ids == expected[: len(ids)]


def test_clusters_start_with_their_leader_and_the_largest_comes_first(
    synthetic_build: Build, synthetic: Any, run_stage: Run
) -> None:
    run_stage(synthetic_build, "shard")
    made = page.make_report(synthetic_build)
    items = synthetic.items()
    assert [(c["leader"], c["size"]) for c in made["clusters"]] == [
        (items[0].candidate.candidate_id, 4),
        (items[1].candidate.candidate_id, 3),
    ]
    for cluster in made["clusters"]:
        assert cluster["members"][0]["id"] == cluster["leader"]
        assert len(cluster["members"]) == min(cluster["size"], MEMBERS)
