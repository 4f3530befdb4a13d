"""A site in several crawls: a page counts with its newest capture, and an owner who opted out is heard."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pyarrow as pa

from data_specs.shard import Text
from pipeline.rows.decisions import Decision, DropReason, drop
from pipeline.rows.records import OPT_OUT_SCHEMA, OPT_OUTS, Candidate
from pipeline.sources.site import Site
from pipeline.stages._stored_crawls import StoredCrawls
from pipeline.stages.crawl import CRAWL_SCHEMA
from pipeline.store.build import Build, Earlier
from pipeline.store.commits import Record

SITE = Site(name="site", source_kind="news", start=("http://a.test/",), exclude=("/private/",))

Shown = dict[str, dict[str, str]]
"""By page the texts of its images, "" for an image without one, which is dropped."""


def crawl(build: Build, number: int, shown: Shown, opted_out: tuple[str, ...] = ()) -> Record:
    """Commit a crawl that was taken over."""
    with build.stage("crawl").attempt(f"site@{number:05d}") as attempt:
        attempt.write_table("parquet", pa.Table.from_pylist([{"url": page} for page in shown], schema=CRAWL_SCHEMA))
        if opted_out:
            attempt.write_table(OPT_OUTS, pa.table({"url": list(opted_out)}, schema=OPT_OUT_SCHEMA))
        return attempt.commit({"kept": len(shown)}, {"source": "site", "snapshot": f"s{number}", "crawl": number})


def stored(build: Build, *crawls: tuple[Shown, tuple[str, ...]]) -> tuple[StoredCrawls, Counter[str]]:
    own = replace(build, made_from=(Earlier("t", "s", "out", "t.json"),))
    records = [crawl(own, number, *one) for number, one in enumerate(crawls)]

    def read(record: Record, tally: Counter[str]) -> tuple[list[Candidate], list[Decision]]:
        candidates, decisions = [], []
        for page, images in crawls[record.info["crawl"]][0].items():
            tally["pages"] += 1
            for image, text in images.items():
                one = Candidate(
                    "site", "news", page, page, f"http://a.test/{image}", (Text("alt", text),) if text else ()
                )
                candidates += [one] if text else []
                decisions += [] if text else [drop(one, "extract", DropReason.NO_TEXT)]
        return candidates, decisions

    tally = Counter[str]()
    return StoredCrawls(own, SITE, records, read, tally), tally


def texts(site: StoredCrawls) -> dict[str, str]:
    return {c.image_url.rpartition("/")[2]: c.texts[0].text for c in site.candidates()}


def site_build(make_build: Callable[..., Build]) -> Build:
    return make_build(sources=[{"kind": "site", "name": "site", "source_kind": "news", "start": ["http://a.test/"]}])


def test_a_page_counts_with_its_newest_capture_and_older_ones_add_what_it_no_longer_shows(make_build: Any) -> None:
    page, vanished = "http://a.test/1", "http://a.test/2"
    first = {page: {"a": "旧的说明", "b": "已撤下的图", "c": "曾有说明"}, vanished: {"d": "消失的页"}}
    site, tally = stored(site_build(make_build), (first, ()), ({page: {"a": "新的说明", "c": "", "e": ""}}, ()))
    assert texts(site) == {"a": "新的说明", "b": "已撤下的图", "c": "曾有说明", "d": "消失的页"}
    assert {site.first_snapshot[c.candidate_id] for c in site.candidates()} == {"s0"}
    assert [decision.url for decision in site.decisions()] == ["http://a.test/e"], "c is a candidate of the older one"
    assert (tally["pages"], tally["captures"]) == (2, 3)


def test_who_opted_out_later_is_left_out_and_who_came_back_is_not(make_build: Any) -> None:
    shown = {"http://a.test/1": {"a": "一"}, "http://a.test/2": {"b": "二"}}
    back = {"http://a.test/2": {"b": "二又来"}}
    site, tally = stored(site_build(make_build), (shown, ()), ({}, tuple(shown)), (back, ()))
    assert texts(site) == {"b": "二又来"}
    [decision] = site.decisions()
    assert (decision.url, decision.reason, decision.subject) == ("http://a.test/1", "opt_out", "capture")
    assert tally["pages_dropped"] == 1


def test_pages_that_the_site_leaves_out_today_are_left_out(make_build: Any) -> None:
    shown = {"http://a.test/private/1": {"a": "一"}, "http://a.test/2": {"b": "二"}, "http://b.test/": {"c": "三"}}
    site, tally = stored(site_build(make_build), (shown, ()))
    assert texts(site) == {"b": "二"}
    assert tally["pages"] == 1
