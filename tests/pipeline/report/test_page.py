"""The report: figures that add up, a page that loads nothing, escapes everything and shows no forbidden picture."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pipeline.detectors import Detector, detectors_of
from pipeline.detectors._boxes import rows_of
from pipeline.records import DropReason, drop, sha256_hex
from pipeline.report import pictures as report_pictures
from pipeline.report.figures import Histogram, han_share, trim
from pipeline.report.pictures import MEMBERS
from pipeline.stages import STAGES, report
from pipeline.store.build import Build
from pipeline.texts.words import words_of

Run = Callable[[Build, str], None]


@pytest.fixture
def written(synthetic_build: Build, run_stage: Run) -> tuple[str, dict[str, Any]]:
    """(index.html, report.json) of the synthetic build."""
    run_stage(synthetic_build, "shard")
    run_stage(synthetic_build, "report")
    folder = Path(synthetic_build.out) / "report"
    return (folder / "index.html").read_text("utf-8"), json.loads((folder / "report.json").read_bytes())


class _Page(HTMLParser):
    """Collects tags, and tags that were not closed in order."""

    VOID = frozenset(["meta", "link", "img", "input", "br", "line", "rect", "hr"])

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.open: list[str] = []
        self.bad: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {k: v or "" for k, v in attrs}))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {k: v or "" for k, v in attrs}))

    def handle_endtag(self, tag: str) -> None:
        if tag in self.VOID:
            return
        if not self.open or self.open.pop() != tag:
            self.bad.append(tag)


def test_the_figures_add_up(written: tuple[str, dict[str, Any]], synthetic: Any) -> None:
    _, found = written
    expected = synthetic.expected_funnel()
    assert found["faults"] == []
    assert found["totals"] == {"candidates": sum(expected.values()), "kept": 30, "dropped": 24}
    assert {(s["stage"], r["name"]): r["count"] for s in found["funnel"] for r in s["reasons"]} == {
        key: n for key, n in expected.items() if key[1]
    }
    assert found["funnel"][0]["seen"] == found["totals"]["candidates"]
    assert found["funnel"][-1]["kept"] == found["totals"]["kept"]
    for row, following in zip(found["funnel"], found["funnel"][1:], strict=False):
        assert row["seen"] - row["dropped"] == row["kept"] == following["seen"]
    for name in ("candidates", "kept", "dropped"):
        assert sum(source[name] for source in found["sources"]) == found["totals"][name]
    for i, stage in enumerate(found["funnel"]):
        assert sum(source["stages"][i]["kept"] for source in found["sources"]) == stage["kept"]
    assert sum(split["samples"] for split in found["splits"]) == 30
    assert sum(reason["count"] for reason in found["reasons"]) == 24
    for histogram in found["histograms"]:
        assert sum(b["count"] for b in histogram["bins"]) == histogram["total"] == 30, histogram["name"]
    assert sum(kind["primary"] for kind in found["kinds"]) == 30
    assert sum(entry["count"] for entry in found["image_domains"]) == 30


def test_the_page_loads_nothing_and_is_well_formed(written: tuple[str, dict[str, Any]]) -> None:
    html, _ = written
    page = _Page(html)
    assert (page.bad, page.open) == ([], [])
    assert len(html.encode()) < 5_000_000
    policy = next(a["content"] for tag, a in page.tags if tag == "meta" and "http-equiv" in a)
    assert policy.startswith("default-src 'none'; img-src data:;")
    for tag, attributes in page.tags:
        assert tag not in ("link", "iframe", "object", "embed", "base")
        assert attributes.get("src", "data:").startswith("data:"), tag
        if tag == "img":
            assert attributes["alt"]
        assert tag != "svg" or attributes["aria-label"]
    assert "@import" not in html
    assert not re.search(r"url\(", html)
    ids = [a["id"] for _, a in page.tags if "id" in a]
    assert len(ids) == len(set(ids))


def test_what_pages_say_cannot_become_markup(synthetic_build: Build, run_stage: Run) -> None:
    run_stage(synthetic_build, "shard")
    made = report.make(synthetic_build)
    evil = "</script><script>alert(1)</script><img src=x onerror=alert(1)>\"'"
    for row in made["sheet"]:
        row |= {"text": evil, "evidence": evil, "url": "javascript:alert(1)", "page_url": f"https://x.example/{evil}"}
    made["build"]["name"] = evil
    made["words"] = [{"name": evil, "count": 1}]
    page = _Page(report.render(made, STAGES))
    assert (page.bad, page.open) == ([], [])
    assert sum(tag == "script" for tag, _ in page.tags) == 1
    assert not any("onerror" in a for _, a in page.tags)
    assert not any(a.get("href", "").startswith("javascript:") for _, a in page.tags)


def _shown(html: str) -> set[str]:
    return set(re.findall(r"第\d+幅", html))


def test_opted_out_and_forgotten_items_are_not_shown(written: tuple[str, dict[str, Any]], synthetic: Any) -> None:
    html, found = written
    hidden = [item for item in synthetic.items() if item.reason in ("opt_out", "forgotten")]
    assert len(hidden) == found["not_shown"] == 2
    for item in hidden:
        assert item.candidate.texts[0].text.split("，")[1] not in _shown(html)
        assert item.candidate.image_url not in html
        assert item.candidate.candidate_id not in json.dumps(found)


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
    made = report.make(synthetic_build)
    rows = [*made["sheet"], *(row for cluster in made["clusters"] for row in cluster["members"])]
    shown = {row["url"] for row in rows}
    assert items[5].candidate.image_url in shown
    assert not shown & {items[0].candidate.image_url, items[4].candidate.image_url}


@pytest.mark.parametrize("by", ["url", "image", "domain"])
def test_a_takedown_after_the_build_removes_items_from_a_new_report(
    synthetic_build: Build, synthetic: Any, run_stage: Run, by: str
) -> None:
    run_stage(synthetic_build, "shard")
    before = report.token(synthetic_build)
    items = [item for item in synthetic.items() if item.stage == "shard"]
    hashes = {"url": items[4].candidate.fetch_id, "image": items[4].sha256, "domain": sha256_hex("img0.example")}
    synthetic_build.store.folder.write_json("forgotten/1.json", {"hashes": [hashes[by]]})
    assert report.token(synthetic_build) != before
    made = report.make(synthetic_build)
    rows = [*made["sheet"], *(row for cluster in made["clusters"] for row in cluster["members"])]
    urls = {row["url"] for row in rows if row["picture"] or by != "image"}
    assert items[4].candidate.image_url not in urls
    assert any(items[5].candidate.image_url == url for url in urls), "others are still shown"
    assert not (by == "domain" and any("img0.example" in url for url in urls))


def test_the_sheet_is_the_same_every_time_and_balanced(tmp_path: Path, synthetic: Any, run_stage: Run) -> None:
    build, _ = synthetic.make(tmp_path, report={"pictures": 20})
    run_stage(build, "shard")
    first, second = report.make(build), report.make(build)
    assert first == second
    assert len(first["sheet"]) == 20
    assert sum(row["kept"] for row in first["sheet"]) == 10
    assert len({row["reason"] for row in first["sheet"] if not row["kept"]}) == 9, "each reason that may be shown"


def test_thumbnails_are_small_pictures_and_boxes_belong_to_them(
    synthetic_build: Build, synthetic: Any, run_stage: Run
) -> None:
    run_stage(synthetic_build, "shard")
    made = report.make(synthetic_build)
    kept = [row for row in made["sheet"] if row["kept"]]
    assert len(kept) == synthetic.KEPT
    for row in kept:
        data = base64.b64decode(row["picture"].removeprefix("data:image/jpeg;base64,"))
        with Image.open(io.BytesIO(data)) as image:
            assert max(image.size) <= synthetic_build.spec.report.picture_side
        [boxes] = row["boxes"].values()
        assert boxes
        for x1, y1, x2, y2, score in boxes:
            assert 0 <= x1 < x2 <= row["width"]
            assert 0 <= y1 < y2 <= row["height"]
            assert 0 < score <= 1
    for row in made["sheet"]:
        assert row["kept"] or bool(row["boxes"]) == bool(row["picture"]), "dropped ones with a picture have regions too"
    by_reason = {row["reason"]: row["picture"] for row in made["sheet"]}
    assert by_reason["same_image"]
    assert not by_reason["corrupt_image"]
    assert not by_reason["data_uri"]


def test_regions_of_dropped_pictures_come_from_the_cache_before_a_detector_looks(
    synthetic_build: Build, synthetic: Any, run_stage: Run
) -> None:
    run_stage(synthetic_build, "shard")
    small = [item for item in synthetic.items() if item.reason == "image_too_small"]
    [detector] = detectors_of(synthetic_build.spec)
    known = (np.array([[1, 2, 5, 7]], np.float32), np.array([0.5], np.float32), np.zeros(1, np.int32))
    cache = synthetic_build.store.regions(detector.detector_id)
    cache.put(rows_of({small[0].sha256: known}))
    before = cache.folder.names()
    shown = {row["id"]: row for row in report.make(synthetic_build)["sheet"]}
    rows = [shown[item.candidate.candidate_id] for item in small]
    assert rows[0]["boxes"] == {detector.detector_id: [[1.0, 2.0, 5.0, 7.0, 0.5]]}
    assert len(rows[1]["boxes"][detector.detector_id]) == 36, "the grid looked at it"
    assert cache.folder.names() == before


def test_a_detector_looks_at_the_pixels_of_dropped_pictures(
    synthetic_build: Build, run_stage: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, ...]] = []

    class Middle(Detector):
        def detect(self, state: Any, pictures: Any) -> Any:
            seen.extend(picture.shape for picture in pictures)
            half = [np.array([[0, 0, p.shape[1] / 2, p.shape[0]]], np.float32) for p in pictures]
            return [(box, np.ones(1, np.float32), np.zeros(1, np.int32)) for box in half]

    run_stage(synthetic_build, "shard")
    monkeypatch.setattr(report_pictures, "detectors_of", lambda spec: [Middle()])
    dropped = [row for row in report.make(synthetic_build)["sheet"] if row["picture"] and not row["kept"]]
    assert dropped
    for row in dropped:
        assert (row["height"], row["width"], 3) in seen, "at full size, as shown"
        assert row["boxes"] == {Middle().detector_id: [[0.0, 0.0, row["width"] / 2, row["height"], 1.0]]}


def test_clusters_start_with_their_leader_and_the_largest_comes_first(
    synthetic_build: Build, synthetic: Any, run_stage: Run
) -> None:
    run_stage(synthetic_build, "shard")
    made = report.make(synthetic_build)
    items = synthetic.items()
    assert [(c["leader"], c["size"]) for c in made["clusters"]] == [
        (items[0].candidate.candidate_id, 4),
        (items[1].candidate.candidate_id, 3),
    ]
    for cluster in made["clusters"]:
        assert cluster["members"][0]["id"] == cluster["leader"]
        assert len(cluster["members"]) == min(cluster["size"], MEMBERS)


def test_an_empty_build_still_has_a_report(tmp_path: Path, synthetic: Any, run_stage: Run, monkeypatch: Any) -> None:
    monkeypatch.setattr(synthetic, "items", lambda: ())
    build, _ = synthetic.make(tmp_path)
    run_stage(build, "shard")
    run_stage(build, "report")
    html = (Path(build.out) / "report/index.html").read_text("utf-8")
    page = _Page(html)
    assert (page.bad, page.open) == ([], [])
    assert json.loads((Path(build.out) / "report/report.json").read_bytes())["totals"]["kept"] == 0


def test_two_reports_of_one_build_are_the_same_page(synthetic_build: Build, run_stage: Run) -> None:
    run_stage(synthetic_build, "shard")
    pages = [report.render(report.make(synthetic_build), STAGES) for _ in range(2)]
    assert hashlib.sha256(pages[0].encode()).digest() == hashlib.sha256(pages[1].encode()).digest()


@given(st.lists(st.floats(-10, 10_000), max_size=50))
def test_a_histogram_counts_every_value_once_as_numpy_does(values: list[float]) -> None:
    edges = [0, 1, 5, 10, 100]
    histogram = Histogram("x", "x", "x", edges, ["a"] * 5)
    histogram.add(values[:20])
    histogram.add(values[20:])
    expected, _ = np.histogram(np.maximum(values, 0) if values else [], [*edges, np.inf])
    assert histogram.counts.tolist() == expected.tolist()


def test_words_and_han_share() -> None:
    assert words_of("番茄炒蛋的做法，2 种！") == ["番茄", "炒蛋", "的", "做法", "2", "种"]
    assert han_share("番茄 egg") == pytest.approx(2 / 5)
    assert han_share(" \n") == 0


def test_a_long_counter_keeps_its_larger_half(monkeypatch: pytest.MonkeyPatch) -> None:
    from collections import Counter

    monkeypatch.setattr("pipeline.report.figures.COUNTER_LIMIT", 4)
    counter = Counter({"a": 1, "b": 5, "c": 4, "d": 2, "e": 3})
    trim(counter)
    assert counter == {"b": 5, "c": 4}
