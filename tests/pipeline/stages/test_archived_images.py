"""_archived_images: pictures of WARC files come before any request, by URL and time, and by the rules of requests."""

from __future__ import annotations

import gzip
import itertools
import logging
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pipeline.rows.records import ARCHIVED, sha256_hex, utc
from pipeline.stages import _archived_images, fetch
from pipeline.store.build import Build
from pipeline.store.commits import DECISIONS
from pipeline.takedown.forget import forget
from pipeline.takedown.request import Request
from tests.archived import jpeg, moved, page, record, revisit, wacz
from tests.drawn import picture
from tests.stages import run_stage

SITE = "http://a.cn"
PICTURES = [picture(seed) for seed in range(6)]
NEVER = {"network": "never"}

Archives = Callable[..., Build]


@pytest.fixture
def archives(tmp_path: Path, make_build: Callable[..., Build]) -> Archives:
    """archives(a=b"...", ...): a build of WARC files by name, extracted, admitted and fetched; `spec` goes into it."""
    numbers = itertools.count()

    def make(*webs: Any, spec: dict[str, Any] | None = None, **files: bytes) -> Build:
        for name, data in files.items():
            (tmp_path / f"{name}.warc.gz").write_bytes(data)
        paths = [str(tmp_path / f"{name}.warc.gz") for name in files]
        source = {"kind": "warc", "name": "w", "source_kind": "news", "path": paths}
        build = make_build(
            *webs, **{"sources": [source], "egress": NEVER, "out": f"build-{next(numbers)}", **(spec or {})}
        )
        build = replace(build, fingerprints={name: sha256_hex(name) for name in build.passes})
        run_stage(build, "extract", "admit", "fetch")
        return build

    return make


def outcomes(build: Build) -> dict[str, Any]:
    """By the URL of each image its bytes, or the reason for having none."""
    stage, found = build.stage("fetch"), dict[str, Any]()
    for part in stage.records():
        with stage.file(part, "tar") as path:
            data = path.read_bytes()
        for row in stage.table(part).to_pylist():
            found[row["image_url"]] = row["reason"] or data[row["offset"] :][: row["size"]]
    return found


def counts(build: Build) -> dict[str, int]:
    named = ("pages", "pages_dropped", "pictures", "revisits", "archived")
    return {name: build.counted("extract", name) for name in named}


@pytest.mark.slow
def test_pictures_are_read_from_whichever_file_holds_them_and_nothing_is_asked(archives, serve):
    web = serve({"/gone.jpg": (200, {}, PICTURES[0])})
    where = web.url()
    build = archives(
        web,
        a=page(f"{where}1.html", "/1.jpg", "/2.png", "/gone.jpg") + jpeg(f"{where}1.jpg", PICTURES[1]),
        b=record(f"{where}2.png", PICTURES[2], {"Content-Type": "image/png"}, kind="resource"),
    )
    assert outcomes(build) == {
        f"{where}1.jpg": PICTURES[1],
        f"{where}2.png": PICTURES[2],
        f"{where}gone.jpg": "not_stored",
    }
    assert web.asked == []
    assert counts(build) == {"pages": 1, "pages_dropped": 0, "pictures": 2, "revisits": 0, "archived": 2}
    [row] = [row for row in build.stage("fetch").table(next(build.stage("fetch").records())).to_pylist() if row["ok"]][
        :1
    ]
    assert row["fetched_at"] == "2026-01-02T00:00:00Z"
    assert build.store.fetched().get([row["fetch_id"]]) is None, "it lies in the archive"


def test_what_the_archive_lacks_is_asked_for_where_that_is_allowed(archives, serve):
    web = serve({"/2.jpg": (200, {"Content-Type": "image/jpeg"}, PICTURES[2]), "/robots.txt": (404, {}, b"")})
    where = web.url()
    both = page(f"{where}1.html", "/1.jpg", "/2.jpg") + jpeg(f"{where}1.jpg", PICTURES[1])
    build = archives(web, a=both, spec={"egress": {}})
    assert outcomes(build) == {f"{where}1.jpg": PICTURES[1], f"{where}2.jpg": PICTURES[2]}
    assert web.asked == ["/robots.txt", "/2.jpg"]


@pytest.mark.slow
def test_of_several_captures_the_nearest_to_the_page_counts_in_any_order_of_files(archives):
    captures = [
        jpeg(f"{SITE}/1.jpg", PICTURES[day], date=f"2026-01-0{day}T00:00:00Z") + page(f"{SITE}/none", date="2026")
        for day in (1, 3, 5)
    ]
    shown = page(f"{SITE}/p", "/1.jpg", date="2026-01-03T02:00:00.5Z")
    for order in ((0, 1, 2), (2, 1, 0)):
        one, two, three = (captures[number] for number in order)
        assert outcomes(archives(a=one, b=two + shown, c=three)) == {f"{SITE}/1.jpg": PICTURES[3]}
    undated = page(f"{SITE}/p", "/1.jpg", date="some day")
    assert outcomes(archives(a=captures[0], b=captures[2] + undated, c=captures[1])) == {f"{SITE}/1.jpg": PICTURES[5]}
    later = page(f"{SITE}/q", "/1.jpg", date="2026-01-06T00:00:00Z")
    assert outcomes(archives(a=captures[0], b=captures[2] + later, c=shown)) == {f"{SITE}/1.jpg": PICTURES[5]}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("known", "said"),
    [
        ({"WARC_Payload_Digest": "sha1:ONE"}, {"WARC_Payload_Digest": "sha1:ONE"}),
        ({}, {"WARC_Refers_To_Date": "2026-01-01T00:00:00Z"}),
    ],
    ids=["digest", "date"],
)
@pytest.mark.parametrize("named", ["", f"{SITE}/1.jpg", f"{SITE}/old.jpg"])
def test_a_revisit_leads_to_the_very_capture_that_has_its_body(archives, known, said, named):
    url = named or f"{SITE}/1.jpg"  # wget names no URL
    said = {**said, "WARC_Refers_To_Target_URI": f"<{url}>"} if named else said
    old = jpeg(url, PICTURES[1], date="2026-01-01T00:00:00Z", **known)
    other = jpeg(url, PICTURES[2], date="2026-01-04T00:00:00Z", WARC_Payload_Digest="sha1:OTHER")
    again = revisit(f"{SITE}/1.jpg", date="2026-01-05T00:00:00Z", **said)
    build = archives(a=old + other, b=page(f"{SITE}/p", "/1.jpg", date="2026-01-05T00:00:00Z") + again)
    assert outcomes(build) == {f"{SITE}/1.jpg": PICTURES[1]}
    assert counts(build)["revisits"] == 1


def test_a_revisit_of_what_is_not_there_is_not_there(archives):
    again = revisit(f"{SITE}/1.jpg", WARC_Payload_Digest="sha1:X")
    other = jpeg(f"{SITE}/1.jpg", PICTURES[1], date="2025-01-01T00:00:00Z", WARC_Payload_Digest="sha1:Y")
    assert outcomes(archives(a=page(f"{SITE}/p", "/1.jpg") + other + again)) == {f"{SITE}/1.jpg": "not_stored"}


@pytest.mark.slow
def test_redirects_are_followed_within_the_archive_and_not_without_end(archives):
    build = archives(
        a=page(f"{SITE}/p", "/1.jpg", "/2.jpg", "/loop.jpg") + moved(f"{SITE}/1.jpg", "/there.jpg"),
        b=moved(f"{SITE}/there.jpg", "http://b.cn/x.jpg") + moved(f"{SITE}/2.jpg", "http://b.cn/none.jpg"),
        c=jpeg("http://b.cn/x.jpg", PICTURES[1]) + moved(f"{SITE}/loop.jpg", "/loop.jpg"),
    )
    assert outcomes(build) == {
        f"{SITE}/1.jpg": PICTURES[1],
        f"{SITE}/2.jpg": "not_stored",
        f"{SITE}/loop.jpg": "not_stored",
    }
    dropped = [d["reason"] for r in build.records("extract") for d in decisions(build, r) if d["subject"] == "capture"]
    assert dropped == ["http_status"] * 4, "a redirect is a capture without a page, as before"


def decisions(build: Build, part: Any) -> list[dict[str, Any]]:
    table = build.stage("extract").table(part, DECISIONS) if DECISIONS in part.files else None
    return table.to_pylist() if table is not None else []


def test_opt_outs_in_the_headers_of_the_archive_hold(archives):
    build = archives(
        a=page(f"{SITE}/p", "/1.jpg", "/2.jpg", "/3.jpg")
        + record(f"{SITE}/1.jpg", PICTURES[1], {"Content-Type": "image/jpeg", "X-Robots-Tag": "noai"})
        + record(f"{SITE}/2.jpg", PICTURES[2], {"Content-Type": "image/jpeg", "tdm-reservation": "1"})
        + moved(f"{SITE}/3.jpg", "/4.jpg", X_Robots_Tag="noimageai")
        + jpeg(f"{SITE}/4.jpg", PICTURES[4])
    )
    assert outcomes(build) == dict.fromkeys([f"{SITE}/{number}.jpg" for number in (1, 2, 3)], "opt_out")


def test_bodies_are_read_without_their_encodings(archives):
    packed = gzip.compress(PICTURES[1])
    chunks = f"{len(packed):x}\r\n".encode() + packed + b"\r\n0\r\n\r\n"
    headers = {"Content-Type": "image/jpeg", "Content-Encoding": "gzip", "Transfer-Encoding": "chunked"}
    assert outcomes(archives(a=page(f"{SITE}/p", "/1.jpg") + record(f"{SITE}/1.jpg", chunks, headers))) == {
        f"{SITE}/1.jpg": PICTURES[1]
    }


def test_a_picture_without_a_type_is_known_by_its_bytes_and_an_answer_that_is_none_by_its_status(archives):
    build = archives(
        a=page(f"{SITE}/p", "/1.jpg", "/2.jpg")
        + record(f"{SITE}/1.jpg", PICTURES[1], {"Content-Type": "application/octet-stream"})
        + record(f"{SITE}/2.jpg", PICTURES[2], {"Content-Type": "image/jpeg"}, status="404 Not Found")
        + record(f"{SITE}/style.css", b"a {}", {"Content-Type": "text/css"})
    )
    assert outcomes(build) == {f"{SITE}/1.jpg": PICTURES[1], f"{SITE}/2.jpg": "not_stored"}
    [part] = build.records("extract")
    assert sorted(d["reason"] for d in decisions(build, part)) == ["http_status", "not_html"]


@pytest.mark.slow
@pytest.mark.parametrize("packed", [True, False])
def test_a_picture_above_the_limit_is_too_large_and_costs_no_more(archives, packed, monkeypatch):
    body = b"\xff\xd8\xff" + (b"\0" * 3_000_000 if packed else random.Random(0).randbytes(2_000_000))
    headers = {"Content-Type": "image/jpeg"} | ({"Content-Encoding": "gzip"} if packed else {})
    large = record(f"{SITE}/1.jpg", gzip.compress(body) if packed else body, headers)
    egress = {"network": "never", "max_image_bytes": 10_000, "max_page_bytes": 5_000}
    asked, read = list[int](), _archived_images.read_records

    def noted(places: Any, most: int) -> Any:
        asked.extend(length for _, (_, _, length) in places)
        return read(places, most)

    monkeypatch.setattr(_archived_images, "read_records", noted)
    build = archives(a=page(f"{SITE}/p", "/1.jpg") + large, spec={"egress": egress})
    assert outcomes(build) == {f"{SITE}/1.jpg": "too_large"}
    assert counts(build)["pages_dropped"] == 0
    assert len(asked) == packed, "a record that is larger itself is not read"


def test_a_file_that_breaks_off_in_a_picture_keeps_what_is_whole(archives):
    whole = page(f"{SITE}/p", "/1.jpg", "/2.jpg") + jpeg(f"{SITE}/1.jpg", PICTURES[1])
    cut = (whole + jpeg(f"{SITE}/2.jpg", PICTURES[2]))[:-900]
    build = archives(a=cut)
    assert outcomes(build) == {f"{SITE}/1.jpg": PICTURES[1], f"{SITE}/2.jpg": "not_stored"}
    assert counts(build)["pictures"] == 1


@pytest.mark.slow
def test_a_file_that_is_not_gzipped_has_places_too_and_one_gzipped_as_a_whole_says_that_it_has_none(archives, caplog):
    records = [page(f"{SITE}/p", "/1.jpg"), jpeg(f"{SITE}/1.jpg", PICTURES[1]), jpeg(f"{SITE}/2.jpg", PICTURES[2])]
    plain = b"".join(map(gzip.decompress, records))
    assert outcomes(archives(a=plain)) == {f"{SITE}/1.jpg": PICTURES[1]}
    with caplog.at_level(logging.WARNING):
        build = archives(b=gzip.compress(plain))
    assert outcomes(build) == {f"{SITE}/1.jpg": "not_stored"}
    assert "gzipped as a whole, so its 2 pictures cannot be read; decompress it" in caplog.text
    assert counts(build) == {"pages": 3, "pages_dropped": 2, "pictures": 0, "revisits": 0, "archived": 0}


@pytest.mark.parametrize("gone", [False, True])
def test_an_archive_that_changed_meanwhile_gives_no_other_picture(archives, tmp_path, monkeypatch, gone):
    records = [jpeg(f"{SITE}/{number}.jpg", PICTURES[1]) for number in (1, 2)]
    one, two, shown = map(gzip.decompress, (*records, page(f"{SITE}/p", "/1.jpg")))
    held = fetch.stored_images

    def changed(*given: Any) -> Any:
        (tmp_path / "a.warc.gz").write_bytes(two + one + shown)
        if gone:
            monkeypatch.setattr(_archived_images.Warc, "warcs", lambda self: [])
        return held(*given)

    monkeypatch.setattr(fetch, "stored_images", changed)
    assert outcomes(archives(a=one + two + shown)) == {f"{SITE}/1.jpg": "unreadable"}


def test_hostile_records_end_no_part(archives):
    odd = jpeg("http://[bad/1.jpg", PICTURES[1]) + revisit("http://[bad/1.jpg")
    odd += revisit(f"{SITE}/1.jpg", WARC_Refers_To_Target_URI="http://[bad/", WARC_Refers_To_Date="9" * 30)
    odd += moved(f"{SITE}/2.jpg", "http://[bad/") + jpeg(f"{SITE}/1.jpg", PICTURES[1])
    build = archives(a=odd + page(f"{SITE}/p", "/1.jpg"))
    assert outcomes(build) == {f"{SITE}/1.jpg": PICTURES[1]}
    assert counts(build) == {"pages": 3, "pages_dropped": 2, "pictures": 1, "revisits": 2, "archived": 1}


def test_images_of_other_sources_are_read_from_the_archive_too(archives, tmp_path):
    (tmp_path / "t.csv").write_text(f"url,caption\n{SITE}/1.jpg,山里的第一场雪\n", "utf-8")
    table = {"kind": "url_table", "name": "t", "source_kind": "library", "path": str(tmp_path / "t.csv")}
    table["columns"] = {"image_url": "url", "texts": {"caption": "caption"}}
    archive = {"kind": "warc", "name": "w", "source_kind": "news", "path": str(tmp_path / "a.warc.gz")}
    build = archives(a=jpeg(f"{SITE}/1.jpg", PICTURES[1]), spec={"sources": [table, archive]})
    assert outcomes(build) == {f"{SITE}/1.jpg": PICTURES[1]}


@pytest.mark.slow
def test_a_wacz_gives_what_its_warc_files_give(archives, tmp_path):
    pages = page(f"{SITE}/p", "/1.jpg", "/2.jpg")
    first, second = pages + jpeg(f"{SITE}/1.jpg", PICTURES[1]), jpeg(f"{SITE}/2.jpg", PICTURES[2])
    wacz(tmp_path / "x.wacz", {"a.warc.gz": first, "b.warc.gz": second})
    source = {"kind": "warc", "name": "w", "source_kind": "news", "path": str(tmp_path / "x.wacz")}
    packed = archives(spec={"sources": [source]})
    plain = archives(a=first, b=second)
    assert outcomes(packed) == outcomes(plain) == {f"{SITE}/1.jpg": PICTURES[1], f"{SITE}/2.jpg": PICTURES[2]}
    tables = [[b.stage("fetch").table(r).drop_columns("offset") for r in b.records("fetch")] for b in (packed, plain)]
    assert tables[0] == tables[1]


@pytest.mark.slow
def test_what_was_taken_down_is_not_read_by_a_redirect_either(archives):
    first = archives(a=page(f"{SITE}/q", "/9.jpg"))
    first.store.check()
    forget(first.store, [first], Request(domains=["b.cn"], exact=True))
    build = archives(
        a=page(f"{SITE}/p", "/1.jpg", "/2.jpg") + moved(f"{SITE}/1.jpg", "http://b.cn/x.jpg"),
        b=jpeg("http://b.cn/x.jpg", PICTURES[1]) + jpeg(f"{SITE}/2.jpg", PICTURES[2]),
    )
    assert outcomes(build) == {f"{SITE}/1.jpg": "forgotten", f"{SITE}/2.jpg": PICTURES[2]}


@pytest.mark.slow
def test_a_takedown_reaches_pictures_of_an_archive(archives):
    build = archives(
        a=page(f"{SITE}/p", "/1.jpg") + page(f"{SITE}/q", "/2.jpg"),
        b=jpeg(f"{SITE}/1.jpg", PICTURES[1]) + jpeg(f"{SITE}/2.jpg", PICTURES[2]),
    )
    build.store.check()
    assert forget(build.store, [build], Request(urls=[f"{SITE}/1.jpg"], exact=True))["matched"] >= 1
    assert outcomes(build) == {f"{SITE}/2.jpg": PICTURES[2]}
    stage = build.stage("extract")
    noted = pa.concat_tables([stage.table(part, ARCHIVED) for part in stage.records() if ARCHIVED in part.files])
    assert noted["fetch_id"].to_pylist() == [sha256_hex(f"{SITE}/2.jpg")]


def test_whether_sites_may_be_asked_is_part_of_the_stage(make_build):
    source = {"kind": "warc", "name": "w", "source_kind": "news", "path": "a.warc.gz"}
    never, allowed = (make_build(sources=[source], egress=egress) for egress in (NEVER, {}))
    assert (never.asks, allowed.asks) == (False, True)
    assert fetch.token(never) != fetch.token(allowed)


def test_times_are_read_as_far_as_they_are_times():
    assert [utc(time) for time in ("2026-01-02T03:04:05.678901Z", "2026-01-02T03:04:05+08:00", "2026-01-02")] == [
        "2026-01-02T03:04:05Z",
        "2026-01-01T19:04:05Z",
        "2026-01-02T00:00:00Z",
    ]
    assert [utc(time) for time in ("", "20", "0001-01-01T00:00:00+23:00", "9" * 40, "\0")] == [""] * 5
