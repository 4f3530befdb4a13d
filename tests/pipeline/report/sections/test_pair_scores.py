"""Section `pair_scores`: histograms count what was scored and kept; sheets show the pairs that they say they show."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.curate import _words
from pipeline.report.sections.pair_scores import _edges, scores
from pipeline.store.build import Build
from tests import curated, towered
from tests.towered import coloured

pytestmark = pytest.mark.slow

STAGES = ("extract", "measure", "filter", "dedup", "curate")


@pytest.fixture
def build(fetched_build: Callable[..., Build], got: Any, run_stage: Any, tmp_path: Path) -> Callable[..., Build]:
    """A build of thirty pictures that fit their texts less and less; the keyword arguments are those of the filter."""

    def make(*stages: str, **options: Any) -> Build:
        images = [
            got(f"i{i}", coloured(i, 1 - i / 30, 0.05, i / 30), f"红色的图第{'一二三四五六七八九十'[i % 10]}{i}")
            for i in range(30)
        ]
        filters = [{"name": "pair_score", **options}] if options else []
        section = towered.written(tmp_path / "towers")
        regions = {"detectors": [{"name": "grid", "n": 2}]}
        made = fetched_build(images, parts=2, pair_score=section, filters=filters, regions=regions)
        run_stage(made, *STAGES[1:], *stages)
        return made

    return make


def rows_of(build: Build, stage: str) -> dict[str, float]:
    rows = curated.reached(build, "pair_score") if stage == "score" else curated.kept(build)
    return {row["candidate_id"]: round(row["pair_score"], 4) for row in rows}


def groups(said: dict[str, Any]) -> dict[tuple[str, str], list[dict[str, Any]]]:
    return {(group["name"], group["limit"]): group["rows"] for group in said["groups"]}


def test_it_shows_the_best_the_worst_and_those_at_each_limit(build: Callable[..., Build], material: Any) -> None:
    made = build("detect", "shard", min_score=0.3, top_share=0.5)
    before, after = rows_of(made, "score"), rows_of(made, "choose")
    said = scores(material(made))
    assert said is not None
    assert (said["pairs"], said["scored"], said["kept"]) == (30, 30, len(after))
    [histogram] = said["histograms"]
    assert sum(b["count"] for b in histogram["bins"]) == histogram["total"] == len(after)
    assert sum(b["own"] for b in histogram["bins"]) == 30 - len(after)
    lowest = sum(score < 0.3 for score in before.values())
    assert [(limit["option"], limit["dropped"]) for limit in histogram["limits"]] == [
        ("min_score", lowest),
        ("top_share", 30 - lowest - len(after)),
    ]
    shown = groups(said)

    def ids(*group: str) -> list[str]:
        return [row["id"] for row in shown[group[0], group[1] if len(group) > 1 else ""]]

    ordered = sorted(before, key=lambda name: (-before[name], name))
    assert ids("best") == ordered[:12]
    assert ids("worst") == sorted(before, key=lambda name: (before[name], name))[:12]
    assert set(ids("just_dropped", "min_score")) == {name for name, score in before.items() if score < 0.3}
    assert ids("just_kept", "min_score") == sorted(after, key=lambda name: (after[name], name))[:20]
    within = {name for name, score in before.items() if score >= 0.3}
    assert set(ids("just_dropped", "top_share")) == within - set(after)
    pictured = [row for row in shown["best", ""] if row["picture"].startswith("data:image/jpeg;base64,")]
    assert len(pictured) == 12
    assert all(row["text"].startswith("红色的图") for row in pictured)


def test_the_page_says_it_in_both_languages_and_report_json_has_no_picture(
    build: Callable[..., Build], part: Callable[[str, str], str]
) -> None:
    made = build("detect", "shard", "report", max_score=0.9)
    page, written = (Path(made.out) / "report" / name for name in ("index.html", "report.json"))
    html, report = page.read_text("utf-8"), json.loads(written.read_text("utf-8"))
    section = part(html, "pair_scores")
    for words in ("How well pictures and texts match", "图文匹配得分", "刚好丢弃", "得分最低", "max_score"):
        assert words in section
    assert section.count("data:image/jpeg;base64,") == sum(len(g["rows"]) for g in report["pair_scores"]["groups"])
    assert "base64" not in written.read_text("utf-8")
    assert '<a href="#pair_scores">' in html


def test_what_was_taken_down_or_opted_out_is_not_shown(
    build: Callable[..., Build], material: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = build("detect", "shard")
    own = material(made)
    said = scores(own)
    assert said is not None
    assert said["kept"] is None
    first, second = groups(said)["best", ""][:2]
    own.tables.execute(f"INSERT INTO refused SELECT {int(first['fetch_id'][:16], 16)}")
    monkeypatch.setattr("pipeline.store.takedowns.Takedowns.names", lambda self, row: row["id"] == second["id"])
    again = scores(own)
    assert again is not None
    assert not {first["id"], second["id"]} & {row["id"] for rows in groups(again).values() for row in rows}


def test_bins_are_round_and_few_whatever_the_scores() -> None:
    for low, high in ((-10_000, 10_000), (2_310, 4_380), (500, 510), (0, 0)):
        edges = _edges(Counter({low: 5, (low + high) // 2: 5, high: 5}))
        steps = {b - a for a, b in itertools.pairwise(edges)}
        assert len(edges) <= 24
        assert len(steps) <= 1
        assert edges[0] <= low
        assert all(edge % 100 == 0 for edge in edges)


def test_scores_by_words_are_a_column_that_filter_and_report_read(
    fetched_build: Callable[..., Build], got: Any, run_stage: Any, material: Any
) -> None:
    texts = ["一只翠鸟站在水边的树枝上", "反正我那天也没有再想这么多", "红色的灯笼挂在门口", "你以后就会明白我说的了"]
    images = [got(f"i{i}", coloured(i, 0.9, 0.05, 0.1 * i), text) for i, text in enumerate(texts)]
    filters = [{"name": "pair_score", "top_share": 0.5}]
    regions = {"detectors": [{"name": "grid", "n": 2}]}
    build = fetched_build(images, parts=2, pair_score={}, filters=filters, regions=regions)
    run_stage(build, "measure", "filter", "dedup", "curate", "detect", "shard")
    reached = {row["texts"][0]["text"]: row for row in curated.reached(build, "pair_score")}
    of_words = _words.chances([row["texts"] for row in reached.values()])
    assert [row["pair_score"] for row in reached.values()] == pytest.approx(of_words, abs=6e-5)
    assert {row["texts"][0]["text"] for row in curated.kept(build)} == {texts[0], texts[2]}
    said = scores(material(build))
    assert said is not None
    assert (said["by_words"], said["scored"], said["kept"], said["models"]) == (True, 4, 2, [_words.ID])
