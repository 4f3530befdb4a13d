"""Pages and pictures that a later build finds gone, or opted out: the next release is without their samples."""

from __future__ import annotations

import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.commands import builds
from pipeline.errors import GateError, NothingNew, SourceError, StoreError
from pipeline.publish import dataset, release
from pipeline.publish.verify import verify
from pipeline.rows.decisions import DropReason
from pipeline.rows.records import sha256_hex
from pipeline.stages import _recheck
from pipeline.store.build import Build
from pipeline.store.commits import DECISIONS
from pipeline.takedown import vanished
from pipeline.web import policy
from pipeline.web.client import RequestFailed
from tests.parks import PAGES, page, picture
from tests.stages import run_stage

pytestmark = pytest.mark.slow


def _decisions(build: Build, url: str) -> list[dict[str, Any]]:
    return [row for rows in build.tables("fetch", DECISIONS) for row in rows.to_pylist() if row["url"] == url]


def released(build: Build) -> int:
    return sum(build.store.releases("parks").read().samples.values())


def test_an_opt_out_that_appears_is_honoured_and_a_missing_page_is_kept(week: Any, site: Any) -> None:
    release.publish(week("2026-11-01"))
    site.pages["/1.html"] = page(1, "<meta name='robots' content='noai'>")
    site.pages["/2.html"] = (404, {}, b"")
    second = week("2026-11-08")
    assert vanished.lost_in(second) == vanished.Lost((site.url("/1.html"),), ())
    assert vanished.leave_out(second) == {"opted_out": 1, "vanished": 0, "samples": 1}
    releases = second.store.releases("parks")
    assert (releases.read().release, released(second)) == (2, PAGES - 1)
    assert verify(releases.folder.url) == []
    assert vanished.leave_out(second)["samples"] == 0, "once"


@pytest.mark.drill(2)
def test_an_opt_out_of_a_picture_whose_address_a_decision_cuts_is_honoured(week: Any, site: Any) -> None:
    """A Decision names 2,000 characters of an address, which may have 2,048."""
    address = f"/{'1' * 2005}.jpg"
    site.pages["/1.html"] = page(1).replace(b"/1.jpg", address.encode())
    site.pages[address] = site.pages["/1.jpg"]
    first = week("2026-11-01")
    release.publish(first)
    assert released(first) == PAGES
    shutil.rmtree(Path(first.store.url) / "fetched")  # it is asked for again
    site.pages[address] = (200, {"Content-Type": "image/jpeg", "X-Robots-Tag": "noai"}, picture(1))
    second = week("2026-11-08")
    assert vanished.lost_in(second).opted_out == (sha256_hex(site.url(address)),)
    assert vanished.leave_out(second) == {"opted_out": 1, "vanished": 0, "samples": 1}
    assert released(second) == PAGES - 1


@pytest.mark.drill(2)
def test_what_was_killed_is_finished_by_the_same_build(week: Any, site: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The earlier build had no manifest then, and was left alone: the dataset stayed withdrawn."""
    first = week("2026-11-01")
    release.publish(first)
    site.pages["/1.html"] = page(1, "<meta name='robots' content='noai'>")
    second = week("2026-11-08")

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(release, "renew", killed)
        with pytest.raises(KeyboardInterrupt):
            vanished.leave_out(second)
    assert first.store.releases("parks").latest().withdrawn
    vanished.leave_out(second)
    assert not first.store.releases("parks").latest().withdrawn
    assert released(second) == PAGES - 1
    assert verify(Path(first.out)) == []


@pytest.mark.drill(2)
def test_an_earlier_build_that_is_not_there_is_named_and_is_done_once_it_is_back(week: Any, site: Any) -> None:
    """Its disk was not mounted: it was passed over without a word, and its sample stayed in every later release."""
    first = week("2026-11-01")
    release.publish(first)
    away, place = Path(f"{first.out}-away"), Path(first.out)
    site.pages["/1.html"] = page(1, "<meta name='robots' content='noai'>")
    second = week("2026-11-08")
    place.rename(away)
    with pytest.raises(StoreError) as fault:
        vanished.leave_out(second)
    assert f"may remain in the dataset: {first.out}: was left out: the folder is gone, or" in str(fault.value)
    todo = f"if it was deleted on purpose, wenlan-data store delete {first.out} --store {first.store.url}"
    assert str(fault.value).endswith(todo)
    away.rename(place)
    assert vanished.leave_out(second)["samples"] == 1
    assert released(second) == PAGES - 1


@pytest.mark.drill(2)
def test_a_page_and_a_picture_that_are_gone_are_dropped_if_the_source_says_so(week: Any, site: Any) -> None:
    release.publish(week("2026-11-01", vanished="drop"))
    site.pages["/2.html"] = (410, {}, b"")
    site.pages["/new.html"] = page(3).replace(b"/3.jpg", b"/lost.jpg")
    site.pages["/"] = site.pages["/"].replace(b"</body>", "<a href='/new.html'>新的页面</a></body>".encode())
    second = week("2026-11-08", vanished="drop")
    lost = vanished.lost_in(second)
    assert lost == vanished.Lost((), (site.url("/2.html"), site.url("/lost.jpg")))
    assert vanished.leave_out(second) == {"opted_out": 0, "vanished": 2, "samples": 1}
    assert released(second) == PAGES - 1


PICTURE = {"Content-Type": "image/jpeg"}


def elsewhere(site: Any, changes: dict[str, Any]) -> None:
    """The crawl meets one new page, and nothing that the dataset holds; what it holds has changed."""
    site.pages["/"] = page(0).replace(b"/0.jpg", b"/new.jpg")
    site.pages |= {"/new.jpg": (200, PICTURE, picture(7)), **changes}


def test_known_addresses_are_asked_again_and_opt_outs_that_came_later_reach_their_samples(week: Any, site: Any) -> None:
    """What is stored was never asked for again."""
    release.publish(week("2026-11-01"))
    opted_out = {
        "/0.jpg": (200, {**PICTURE, "X-Robots-Tag": "noai, max-image-preview:large"}, picture(0)),
        "/2.jpg": (302, {"Location": "/moved"}, b""),
        "/moved": (200, {"X-Robots-Tag": "noimageai"}, b"x"),
        "/robots.txt": (200, {}, b"User-agent: wenlan\nDisallow: /3.html\n"),
        "/.well-known/tdmrep.json": (200, {}, b'[{"location": "/4.jpg", "tdm-reservation": 1}]'),
        "/5.html": page(5, "<meta name=robots content=noimageai>"),
    }
    others = {"/1.jpg": (200, {**PICTURE, "X-Robots-Tag": "googlebot: noindex"}, picture(1))}
    elsewhere(site, opted_out | others)
    second = week("2026-11-08", recheck_every=1)
    found = {site.url(path) for path in ("/0.jpg", "/2.jpg", "/3.html", "/4.jpg", "/5.html")}
    assert vanished.lost_in(second) == vanished.Lost(tuple(sorted(found)), ())
    assert vanished.leave_out(second)["samples"] == len(found)
    assert released(second) == PAGES - len(found)


@pytest.mark.drill(2)
@pytest.mark.parametrize(("drops", "lost"), [pytest.param("keep", 0, marks=pytest.mark.drill(2)), ("drop", 2)])
def test_known_addresses_that_are_gone_count_if_the_source_says_so_and_silent_hosts_never(
    week: Any, site: Any, drops: str, lost: int
) -> None:
    release.publish(week("2026-11-01", vanished=drops))
    gone = {"/2.html": (404, {}, b""), "/3.jpg": (410, {}, b"")}
    elsewhere(site, gone | {f"/{n}.jpg": (503, {}, b"") for n in (0, 1, 4, 5)})
    second = week("2026-11-08", recheck_every=1, vanished=drops)
    assert vanished.leave_out(second) == {"opted_out": 0, "vanished": lost, "samples": lost}


def test_robots_rules_that_ask_for_long_pauses_are_no_opt_out() -> None:
    said = {policy.DISALLOWED: True, "robots.txt asks for 600 s between two requests": False}
    failures = {words: RequestFailed(DropReason.ROBOTS_DISALLOWED, words) for words in said}
    assert {words: _recheck._is_answer(failure) for words, failure in failures.items()} == said


@pytest.mark.drill(2)
@pytest.mark.parametrize(
    "reason", [pytest.param("opt_out", marks=pytest.mark.drill(2)), "robots_disallowed", "http_status"]
)
def test_a_picture_that_was_refused_later_stays_out_though_its_page_still_shows_it(
    week: Any, site: Any, reason: str
) -> None:
    """Of the build that finds it, too: what robots.txt disallows stayed in its images and its report."""
    release.publish(week("2026-11-01", vanished="drop"))
    if reason == "opt_out":
        site.pages["/1.jpg"] = (200, {**PICTURE, "X-Robots-Tag": "noai"}, picture(1))
    elif reason == "robots_disallowed":
        site.pages["/robots.txt"] = (200, {}, b"User-agent: wenlan\nDisallow: /1.jpg\n")
    else:
        site.pages["/1.jpg"] = (410, {}, b"")
        assert _decisions(week("2026-11-05", recheck_every=1), site.url("/1.jpg")) == [], "vanished: keep"
    second = week("2026-11-08", recheck_every=1, vanished="drop")
    assert {d["reason"] for d in _decisions(second, site.url("/1.jpg"))} == {reason}
    fetched = [row for rows in second.tables("fetch", "parquet") for row in rows.to_pylist() if row["ok"]]
    assert {row["image_url"] for row in fetched} == {site.url(f"/{n}.jpg") for n in range(PAGES) if n != 1}
    gone = reason == "http_status"
    assert vanished.leave_out(second) == {"opted_out": int(not gone), "vanished": int(gone), "samples": 1}
    third = week("2026-11-15", recheck_every=1, vanished="drop")
    assert {d["reason"] for d in _decisions(third, site.url("/1.jpg"))} == {reason}
    assert "parks-2026-11-15" not in str(third.store.releases("parks").read().builds)
    assert released(third) == PAGES - 1


@pytest.mark.drill(2)
@pytest.mark.parametrize("pace", [pytest.param(0, marks=pytest.mark.drill(2)), 1_000])
def test_a_site_that_disallows_everything_ends_no_build_and_loses_all_its_samples_at_once(
    week: Any, site: Any, pace: int
) -> None:
    """The crawl failed, so that the strongest opt-out was never honoured."""
    closed = (200, dict[str, str](), b"User-agent: *\nDisallow: /\n")
    site.pages["/robots.txt"] = closed
    with pytest.raises(SourceError, match="no page can be crawled \\(robots_disallowed"):
        week("2026-10-25", recheck_every=pace)
    site.pages["/robots.txt"] = (404, {}, b"")
    release.publish(week("2026-11-01", recheck_every=pace))
    site.pages["/robots.txt"] = closed
    before = len(site.asked)
    second = week("2026-11-08", recheck_every=pace)
    assert set(site.asked[before:]) <= {"/robots.txt", "/.well-known/tdmrep.json"}
    assert second.counted("crawl", "kept") == 0
    with pytest.raises((GateError, NothingNew)):
        release.publish(second)
    assert vanished.leave_out(second, vanished=False)["samples"] == PAGES
    assert released(second) == 0


@given(st.integers(1, 12), st.integers(1, 30), st.integers(1, 40))
def test_each_shard_is_due_once_in_so_many_builds(every: int, shards: int, builds: int) -> None:
    names = [f"parks-2026@train-{n:06d}" for n in range(shards)]
    due = Counter(name for turn in range(builds * every) for name in names if _recheck.is_due(name, turn, every))
    assert due == dict.fromkeys(names, builds)


@pytest.mark.drill(2)
def test_the_turn_advances_though_nothing_new_is_published_and_is_the_same_in_a_second_run(weeks: Any) -> None:
    """It followed the builds in the newest release: what was not due in a quiet week never was."""
    options = {"fetch": {"recheck_every": 3}, "shards": {"samples_per_shard": 1}}
    release.publish(weeks.build("2026-11-01", range(6), **options))
    asked = list[list[str]]()
    for day in ("2026-11-08", "2026-11-15", "2026-11-22"):
        build = weeks.open(day, range(6), **options)
        run_stage(build, "fetch.recheck")
        asked.append(build.stage("fetch.recheck").partitions())
        assert sorted(_recheck.partitions(build)) == sorted(asked[-1])
    shards = len(build.store.releases("weekly").read().shards)
    assert (sum(map(len, asked)), len(set().union(*asked))) == (shards, shards)


@pytest.mark.drill(2)
def test_a_copy_that_is_gone_takes_no_sample_whose_own_picture_is_there(week: Any, site: Any) -> None:
    """The bytes that it had took the sample along, at whichever address that had them."""
    addresses = {site.url("/1.jpg"), site.url("/copy.jpg")}
    site.pages["/copy.jpg"] = site.pages["/1.jpg"]
    site.pages["/copy.html"] = page(2).replace(b"/2.jpg", b"/copy.jpg")
    site.pages["/"] = site.pages["/"].replace(b"</body>", "<a href='/copy.html'>另一个页面</a></body>".encode())
    first = week("2026-11-01", vanished="drop")
    release.publish(first)
    assert released(first) == PAGES
    stage = first.stage("shard")
    [kept] = addresses.intersection(*[stage.table(r, "parquet", ["image_url"])[0].to_pylist() for r in first.packed()])
    [copy] = addresses - {kept}
    for snapshot, gone, left in (("2026-11-08", copy, PAGES), ("2026-11-15", kept, PAGES - 1)):
        shutil.rmtree(Path(first.store.url) / "fetched")  # all pictures are asked for again
        site.pages[gone.removeprefix(site.url(""))] = (404, {}, b"")
        later = week(snapshot, vanished="drop")
        assert gone in vanished.lost_in(later).vanished
        assert vanished.leave_out(later)["samples"] == PAGES - left
        assert released(later) == left


@pytest.mark.drill(2)
def test_a_rollback_brings_back_nothing_that_was_left_out_meanwhile(week: Any, site: Any) -> None:
    whole = site.pages["/"]
    site.pages["/"] = whole.replace(b"<a href='/1.html'>", b"<a href='/0.html'>")
    release.publish(week("2026-11-01"))
    site.pages["/"] = whole
    second = week("2026-11-08")
    release.publish(second)
    assert released(second) == PAGES
    dataset.rollback(second.store, "parks", 1)
    assert released(second) == PAGES - 1
    site.pages["/1.html"] = page(1, "<meta name='robots' content='noai'>")
    assert vanished.leave_out(week("2026-11-15"))["samples"] == 1, "of a build that is in no newest release"
    dataset.rollback(second.store, "parks", 2)
    assert released(second) == PAGES - 1


@pytest.mark.drill(2)
def test_an_old_build_that_is_run_again_takes_nothing_from_later_ones(week: Any, site: Any) -> None:
    there = site.pages["/1.html"]
    site.pages["/1.html"] = page(1, "<meta name='robots' content='noai'>")
    first = week("2026-11-01")
    release.publish(first)
    site.pages["/1.html"] = there  # the owner has changed his mind
    second = week("2026-11-08")
    release.publish(second)
    assert vanished.leave_out(first) == {"opted_out": 1, "vanished": 0, "samples": 0}
    assert released(second) == PAGES


@pytest.mark.drill(2)
def test_only_opt_outs_are_honoured_while_a_build_waits(week: Any, site: Any) -> None:
    release.publish(week("2026-11-01", vanished="drop"))
    site.pages["/1.html"] = page(1, "<meta name='robots' content='noai'>")
    site.pages["/2.html"] = (404, {}, b"")
    second = week("2026-11-08", vanished="drop")
    assert vanished.leave_out(second, vanished=False) == {"opted_out": 1, "vanished": 0, "samples": 1}
    assert vanished.leave_out(second)["samples"] == 1


@pytest.mark.drill(2)
@pytest.mark.parametrize("until", [pytest.param("published", marks=pytest.mark.drill(2)), "held by a gate", "fetch"])
def test_an_opt_out_reaches_earlier_builds_that_were_never_published_and_waits_for_no_gate(
    week: Any, site: Any, until: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Only published builds lost the pictures; and nothing did, where a gate held the build that found the opt-out."""
    first = week("2026-11-01", until="fetch" if until == "fetch" else "shard")
    if until == "published":
        release.publish(first)
    site.pages["/1.html"] = page(1, "<meta name='robots' content='noai'>")
    second = week("2026-11-08")
    publish = second.spec.publish.model_copy(update={"min_samples": 1_000})
    spec = second.spec.model_copy(update={"publish": publish})
    with pytest.raises(GateError):
        builds._publish_unless_manual(replace(second, spec=spec))
    [record] = first.stage("fetch").records()
    left = {row["image_url"] for row in first.stage("fetch").table(record).to_pylist()}
    assert left == {site.url(f"/{n}.jpg") for n in range(PAGES) if n != 1}
    assert site.url("/1.html") not in first.stage("crawl").column(first.stage("crawl").record("park"), "parquet", "url")


@pytest.mark.drill(2)
def test_it_is_no_ban(week: Any, site: Any) -> None:
    first = week("2026-11-01")
    release.publish(first)
    there = site.pages["/1.html"]
    site.pages["/1.html"] = page(1, "<meta name='robots' content='noai'>")
    vanished.leave_out(week("2026-11-08"))
    assert not first.store.takedowns()
    site.pages["/1.html"] = there
    third = week("2026-11-15")
    release.publish(third)
    assert released(third) == PAGES
    assert [own.samples["train"] > 0 for own in third.store.releases("parks").read().builds] == [True, True]


def test_a_first_build_has_nothing_to_leave_out(week: Any, site: Any) -> None:
    site.pages["/1.html"] = page(1, "<meta name='robots' content='noai'>")
    first = week("2026-11-01")
    release.publish(first)
    assert vanished.leave_out(first) == {"opted_out": 1, "vanished": 0, "samples": 0}
    assert released(first) == PAGES - 1
