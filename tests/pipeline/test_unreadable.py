"""No input ends a build: what it does to a parser is a Decision about it, and everything else goes on."""

from __future__ import annotations

import gzip
import hashlib
import json
import logging
import sqlite3
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_specs.build import BuildSpec
from data_specs.shard import Text
from pipeline import errors
from pipeline.detectors.grid import Grid
from pipeline.errors import SourceError, StoreError
from pipeline.features._rows import FeatureRows
from pipeline.filters.han_share import HanShare
from pipeline.filters.image_blank import ImageBlank
from pipeline.filters.image_nsfw import ImageNsfw
from pipeline.filters.personal_data import PersonalData
from pipeline.pages import head, linked_data, page, walk
from pipeline.pictures import decode as pictures_decode
from pipeline.pictures.decode import decode
from pipeline.pictures.thumbs import THUMB, Views, fill
from pipeline.report import gates
from pipeline.report.funnel import Funnel, faults, read_funnels
from pipeline.report.unreadable import read_undetected
from pipeline.rows.account import Account
from pipeline.rows.records import Candidate, candidate_rows
from pipeline.sources import folder, microblog, url_table, webdataset
from pipeline.stages import STAGES, _page_candidates, admit, crawl, extract, fetch, shard
from pipeline.store import image_features
from pipeline.store.build import Build
from pipeline.store.commits import DECISIONS
from pipeline.store.store import Store
from pipeline.web import client, crawler, frontier, policy, readers, sitemaps
from pipeline.web import warc as warcs
from pipeline.web._warc_sound import SoundRun
from tests import archived
from tests.drawn import picture
from tests.pipeline.stages.test_extract import warc
from tests.stages import run_stage

PAGE = "<p>北京今天下了第一场雪</p><img src=a.jpg alt=故宫的雪>"


def boom(*_: Any, **__: Any) -> Any:
    raise TypeError("a parser of ours\nsecond line")


def decisions(build: Build, stage: str, partition: str) -> list[tuple[str, str, str]]:
    """(URL, reason, evidence) of what a stage dropped."""
    record = build.stage(stage).record(partition)
    if DECISIONS not in record.files:
        return []
    rows = build.stage(stage).table(record, DECISIONS).to_pylist()
    return [(row["url"], row["reason"], row["evidence"]) for row in rows]


def raising_for(monkeypatch: pytest.MonkeyPatch, module: Any, name: str, where: Any) -> None:
    """Make a function raise where its arguments satisfy `where`, and work everywhere else."""
    real = getattr(module, name)
    monkeypatch.setattr(module, name, lambda *a, **k: boom() if where(*a) else real(*a, **k))


# crawl


def site_of(web: Any) -> list[dict[str, Any]]:
    return [{"kind": "site", "name": "s", "source_kind": "news", "start": [web.url()]}]


CRAWL_PARSERS = [
    (readers, "read_markup", lambda body, *_: b"odd page" in body),
    (policy, "opt_outs", lambda headers, *_: ("X-Odd", "1") in list(headers)),
    (policy, "follows_links", lambda headers, *_: ("X-Odd", "1") in list(headers)),
    (client, "unpacked", lambda body, *_: True),
    (frontier, "record_of", lambda capture: b"odd page" in capture.body),
]


@pytest.mark.parametrize(("module", "name", "where"), CRAWL_PARSERS, ids=[name for _, name, _ in CRAWL_PARSERS])
def test_a_page_on_which_a_parser_of_the_crawl_fails_is_one_decision(
    serve, make_build, monkeypatch, module, name, where
):
    raising_for(monkeypatch, module, name, where)
    web = serve()
    web.pages = {
        "/": b"<a href=/odd.html>1</a><a href=/b.html>2</a>",
        "/odd.html": (200, {"X-Odd": "1", "Content-Encoding": "gzip"}, gzip.compress(b"<p>odd page")),
        "/b.html": b"<p>b",
    }
    build = make_build(web, sources=site_of(web))
    crawl.run_partition(build, "s")
    assert build.stage("crawl").record("s").counts["kept"] == 2
    assert decisions(build, "crawl", "s") == [(web.url("/odd.html"), "unreadable", "TypeError: a parser of ours")]
    captures = extract._read_part(build, extract.sources_of(build.spec)[0], 0, extract.Counter(), {}, {}, Account())
    assert list(captures) == [], "the WARC holds the pages that were kept, and can be read"


def test_a_sitemap_on_which_its_parser_fails_is_one_decision(serve, make_build, monkeypatch):
    raising_for(monkeypatch, sitemaps, "_entries", lambda body: b"odd" in body)
    web = serve()
    names = b"".join(b"Sitemap: %s\n" % web.url(p).encode() for p in ("/odd.xml", "/good.xml"))
    web.pages = {
        "/robots.txt": (200, {"Content-Type": "text/plain"}, b"User-agent: *\nAllow: /\n" + names),
        "/odd.xml": b"<urlset>odd</urlset>",
        "/good.xml": b"<urlset><url><loc>" + web.url("/b.html").encode() + b"</loc></url></urlset>",
        "/": b"<p>1",
        "/b.html": b"<p>b",
    }
    build = make_build(web, sources=site_of(web))
    crawl.run_partition(build, "s")
    assert build.stage("crawl").record("s").counts["kept"] == 2
    assert decisions(build, "crawl", "s") == [(web.url("/odd.xml"), "unreadable", "TypeError: a parser of ours")]


@pytest.mark.parametrize("name", ["_robots_of", "_tdm_of"])
def test_rules_on_which_their_parser_fails_forbid_their_host_only(serve, make_build, monkeypatch, name):
    """What a host forbids is not known then; pages of other hosts are taken."""
    web, odd = serve(), serve()
    raising_for(monkeypatch, policy, name, lambda status, body: b"odd" in body)
    web.pages = {"/": b"<a href=" + odd.url("/a.html").encode() + b">1</a><a href=" + odd.url().encode() + b">2</a>"}
    odd.pages = {p: (200, {}, b"odd") for p in ("/robots.txt", "/.well-known/tdmrep.json", "/", "/a.html")}
    sources = site_of(web)
    sources[0]["hosts"] = [odd.host]
    build = make_build(web, odd, sources=sources)
    crawl.run_partition(build, "s")
    file = "robots.txt" if name == "_robots_of" else "tdmrep.json"
    evidence = f"{file}: TypeError: a parser of ours"
    assert decisions(build, "crawl", "s") == [(odd.url(p), "unreadable", evidence) for p in ("/a.html", "/")]
    assert (odd.asked.count("/robots.txt"), len(odd.asked_tdm)) == (1, 1), "asked for once, as any other"


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), sqlite3.OperationalError("disk I/O error")])
def test_a_fault_of_our_own_is_no_pages(serve, make_build, monkeypatch, error):
    def fails(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(crawler.Frontier, "keep", fails)
    web = serve({"/": b"<p>1"})
    with pytest.raises(type(error)):
        crawl.run_partition(make_build(web, sources=site_of(web)), "s")


# extract: pages

PAGE_PARSERS = [
    (_page_candidates, "decode"),
    (_page_candidates, "parse"),
    (_page_candidates, "rule_of"),
    (_page_candidates, "not_chinese"),
    (_page_candidates, "canonical_url"),
    (_page_candidates.policy, "is_html"),
    (_page_candidates.policy, "opt_outs"),
    (page.linked_data, "read"),
    (linked_data, "_walk"),
    (walk.Walk, "_add_place"),
    (head.Meta, "read"),
]


def page_build(tmp_path: Path, *pages: tuple[str, str]) -> Build:
    (tmp_path / "w.warc.gz").write_bytes(warc(*pages))
    source = {"kind": "warc", "name": "w", "source_kind": "news", "path": "w.warc.gz"}
    return build_of(tmp_path, source)


def build_of(tmp_path: Path, source: dict[str, Any]) -> Build:
    spec = {"name": "t", "contact": "a@b.cn", "sources": [source], "base": str(tmp_path)}
    store, marks = Store(str(tmp_path / "store")), {"extract": "e" * 64}
    parsed = BuildSpec.model_validate(spec)
    return Build(parsed, str(tmp_path / "out"), store, "t", "2026-01-01", marks, stages=STAGES)


ERRORS = [TypeError("odd"), MemoryError(), RecursionError("deep"), UnicodeError("half"), KeyError("k")]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "name", "error"),
    [(*parser, ERRORS[0]) for parser in PAGE_PARSERS] + [(_page_candidates, "parse", error) for error in ERRORS[1:]],
)
def test_a_page_on_which_a_parser_fails_is_one_decision(tmp_path, monkeypatch, module, name, error):
    """Whatever it held up to there: no half of a page goes on."""
    real, calls = getattr(module, name), []

    def fails_first(*a: Any, **k: Any) -> Any:
        calls.append(a)
        if len(calls) == 1:
            raise error
        return real(*a, **k)

    monkeypatch.setattr(module, name, fails_first)
    ld = '<script type="application/ld+json">{"image": "http://a.test/b.jpg"}</script>'
    build = page_build(tmp_path, ("http://a.test/1", PAGE + ld), ("http://a.test/2", PAGE + ld))
    extract.run_partition(build, "w-00000")
    [(url, reason, evidence)] = [d for d in decisions(build, "extract", "w-00000") if d[1] == "unreadable"]
    assert (url, reason) == ("http://a.test/1", "unreadable")
    assert evidence == f"{type(error).__name__}: {error}".removesuffix(": ")
    pages = build.stage("extract").table(build.stage("extract").record("w-00000"))["page_url"].to_pylist()
    assert set(pages) == {"http://a.test/2"}


# extract: rows of tables

ROWS = [{"u": "http://a.test/1.jpg", "t": "odd"}, {"u": "http://a.test/2.jpg", "t": "云"}]


def table(tmp_path: Path) -> dict[str, Any]:
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    columns = {"image_url": "u", "texts": {"alt": "t"}}
    return {"kind": "url_table", "path": "t.jsonl", "columns": columns}


def posts(tmp_path: Path) -> dict[str, Any]:
    (tmp_path / "p.jsonl").write_text("\n".join(json.dumps({"text": r["t"], "images": [r["u"]]}) for r in ROWS))
    return {"kind": "microblog", "path": "p.jsonl"}


def pictures(tmp_path: Path) -> dict[str, Any]:
    for number, row in enumerate(ROWS):
        (tmp_path / f"{number}.jpg").write_bytes(b"x")
        (tmp_path / f"{number}.txt").write_text(row["t"])
    return {"kind": "folder", "path": "."}


def tars(tmp_path: Path) -> dict[str, Any]:
    members = dict[str, str | bytes]()
    for number, row in enumerate(ROWS):
        members |= {f"{number}.jpg": "x", f"{number}.txt": row["t"]}
    (tmp_path / "x.tar").write_bytes(archived.tar(members))
    return {"kind": "webdataset", "path": "x.tar"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "source"),
    [(url_table, table), (microblog, posts), (folder, pictures), (webdataset, tars)],
    ids=["url_table", "microblog", "folder", "webdataset"],
)
def test_a_row_on_which_a_parser_fails_is_one_decision(tmp_path, monkeypatch, module, source):
    raising_for(monkeypatch, module, "clean", lambda text: text == "odd")
    build = build_of(tmp_path, {"name": "x", "source_kind": "news", **source(tmp_path)})
    extract.run_partition(build, "x-00000")
    [(_, reason, evidence)] = decisions(build, "extract", "x-00000")
    assert reason == "unreadable"
    assert evidence.endswith("TypeError: a parser of ours")
    record = build.stage("extract").record("x-00000")
    assert (record.counts["seen"], record.counts["kept"]) == (2, 1)


def read(tmp_path: Path, source: dict[str, Any]) -> tuple[list[str], list[tuple[str, str]]]:
    """(image URLs that were kept, (reason, evidence) of what was dropped) of a source of one part."""
    build = build_of(tmp_path, {"name": "x", "source_kind": "news", **source})
    build.stage("extract").delete_record("x-00000")  # of another content of the same file
    extract.run_partition(build, "x-00000")
    record = build.stage("extract").record("x-00000")
    kept = build.stage("extract").table(record)["image_url"].to_pylist()
    assert record.counts["seen"] == record.counts["kept"] + record.counts["dropped"]
    return sorted(kept), [(reason, said) for _, reason, said in decisions(build, "extract", "x-00000")]


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "posts"])
def test_a_row_of_other_bytes_is_one_decision_and_a_file_of_them_an_error(tmp_path, suffix):
    lines = ['{"u": "http://a.test/%d.jpg", "t": "云%d"}', '{"images": ["http://a.test/%d.jpg"], "text": "云%d"}']
    line = {"jsonl": lines[0], "csv": "http://a.test/%d.jpg,云%d", "posts": lines[1]}[suffix]
    head = [b"u,t"] if suffix == "csv" else []
    columns = {"image_url": "u", "texts": {"alt": "t"}}
    source = {"kind": "url_table", "path": f"t.{suffix}", "columns": columns}
    if suffix == "posts":
        source = {"kind": "microblog", "path": "t.posts"}
    rows = [(line % (i, i)).encode("gb18030" if i == 2 else "utf-8") for i in range(5)]
    (tmp_path / f"t.{suffix}").write_bytes(b"\n".join(head + rows))
    kept, dropped = read(tmp_path, source)
    assert kept == [f"http://a.test/{i}.jpg" for i in (0, 1, 3, 4)]
    assert [reason for reason, _ in dropped] == ["unreadable"]
    assert "row 3: UnicodeError: contains bytes that are not" in dropped[0][1]
    if suffix != "posts":
        source["encoding"] = "utf-8"  # and not told by the bytes
    for count in (3, 300):
        rows = [(line % (i, i)).encode("gb18030") for i in range(count)]
        (tmp_path / f"t.{suffix}").write_bytes(b"\n".join(head + rows))
        with pytest.raises(SourceError, match=r"none of the first (3|10) non-ASCII rows"):
            read(tmp_path, source)


def test_a_parquet_row_that_python_cannot_hold_is_one_decision(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    raw = pa.array([b"a", b"\xff\xfe", b"c"])
    texts = pa.Array.from_buffers(pa.string(), 3, raw.buffers())  # a string that is no UTF-8, as other writers make
    urls = [f"http://a.test/{i}.jpg" for i in range(3)]
    days = pa.array([0, 0, 2**50], pa.timestamp("s"))
    pq.write_table(pa.table({"u": urls, "t": texts, "d": days}), tmp_path / "t.parquet")
    columns: dict[str, Any] = {"image_url": "u", "texts": {"alt": "t"}}
    kept, dropped = read(tmp_path, {"kind": "url_table", "path": "t.parquet", "columns": columns})
    assert (kept, [reason for reason, _ in dropped]) == ([urls[0], urls[2]], ["unreadable"])
    assert "t.parquet, row 2: UnicodeDecodeError" in dropped[0][1]
    columns["texts"] = {"alt": "d"}
    kept, dropped = read(tmp_path, {"kind": "url_table", "path": "t.parquet", "columns": columns})
    assert (kept, [reason for reason, _ in dropped]) == (urls[:2], ["unreadable"])


def test_a_table_row_of_wrong_types_is_read_or_one_decision(tmp_path):
    odd = [None, 3, 1e308, [], {}, [[[]]], True, {"a": [1]}, "\ud83d", "x" * 5000]
    rows = [{"u": value, "t": value} for value in odd] + [{"u": "http://a.test/1.jpg", "t": value} for value in odd]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    columns = {"image_url": "u", "page_url": "t", "id": "t", "bbox": "t", "texts": {"alt": "t"}}
    kept, dropped = read(tmp_path, {"kind": "url_table", "path": "t.jsonl", "columns": columns})
    assert len(kept) + len(dropped) == 20
    assert {reason for reason, _ in dropped} <= {"bad_url", "bad_row", "no_text", "unreadable"}


def test_a_row_of_a_captions_file_is_one_decision(tmp_path):
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / name).write_bytes(b"x")
    good = '{"file": "a.jpg", "alt": "云"}\n{"file": "b.jpg", "alt": "海"}\n'.encode()
    broken = b'{"file": 3}\n{\n[]\n{"file": "a.jpg", "alt": "\xff"}\n' + b"[" * 9000 + b"\n"
    (tmp_path / "t.jsonl").write_bytes(broken + good)
    kept, dropped = read(tmp_path, {"kind": "folder", "path": ".", "captions": "t.jsonl"})
    assert kept == ["folder:///x/a.jpg", "folder:///x/b.jpg"]
    assert [reason for reason, _ in dropped] == ["unreadable"] * 5
    (tmp_path / "t.jsonl").write_bytes(b'{"file": "\\ud83d.jpg", "alt": "x"}\n' + good)
    kept, dropped = read(tmp_path, {"kind": "folder", "path": ".", "captions": "t.jsonl"})
    assert (kept, [reason for reason, _ in dropped]) == (["folder:///x/a.jpg", "folder:///x/b.jpg"], ["unreadable"])
    (tmp_path / "t.csv").write_bytes(b"file,alt\na.jpg," + b"y" * 2_000_000 + "\nb.jpg,海\n".encode())
    kept, dropped = read(tmp_path, {"kind": "folder", "path": ".", "captions": "t.csv"})
    assert (kept, sorted(reason for reason, _ in dropped)) == (["folder:///x/b.jpg"], ["no_text", "unreadable"])


def test_a_tar_member_costs_its_sample_and_a_broken_header_its_member(tmp_path):
    import io
    import tarfile

    def add(tar: tarfile.TarFile, name: str, data: bytes = b"x", **more: Any) -> None:
        member = tarfile.TarInfo(name)
        member.size = len(data)
        for key, value in more.items():
            setattr(member, key, value)
        tar.addfile(member, io.BytesIO(data))

    with tarfile.open(tmp_path / "x.tar", "w", format=tarfile.GNU_FORMAT) as tar:
        add(tar, "1.jpg")
        add(tar, "1.txt", "云".encode())
        add(tar, "2.jpg")
        add(tar, "2.jpg")  # twice: webdataset refuses the second
        add(tar, "2.txt", "海".encode())
        add(tar, "3.jpg", type=tarfile.GNUTYPE_SPARSE)
        add(tar, "3.txt", "山".encode())
        add(tar, "4.jpg")
        add(tar, "4.txt", b"\xff")
        add(tar, "\udcff5.jpg")
        add(tar, "\udcff5.txt", "水".encode())
    whole = (tmp_path / "x.tar").read_bytes()
    kept, dropped = read(tmp_path, {"kind": "webdataset", "path": "x.tar"})
    assert kept == [f"webdataset:///x/x.tar/{name}.jpg" for name in ("%FF5", "1", "2")]
    reasons = [(reason, said.partition(":")[0]) for reason, said in dropped]
    assert ("unreadable", "x.tar, 3") in reasons
    assert ("bad_row", "x.tar, 4") in reasons
    assert ("unreadable", "x.tar, refused member 0") in reasons
    assert len(reasons) == 3
    (tmp_path / "x.tar").write_bytes(whole[:3072] + b"?" * 512 + whole[3584:])
    kept, dropped = read(tmp_path, {"kind": "webdataset", "path": "x.tar"})
    assert kept == [f"webdataset:///x/x.tar/{name}.jpg" for name in ("%FF5", "1", "2")]
    [hole] = [said for reason, said in dropped if "bytes from byte" in said]
    assert hole == "x.tar: 1,024 bytes from byte 3,072 on cannot be read (invalid header)"
    build = build_of(tmp_path, {"name": "x", "source_kind": "news", "kind": "webdataset", "path": "x.tar"})
    [source] = extract.sources_of(build.spec)
    assert source.read_image(kept[0]) == b"x"


# extract: WARC records

RECORD_PARSERS = [(warcs, "_capture"), (warcs, "_is_capture"), (warcs, "_body"), (warcs, "_read_to_end")]


@pytest.mark.parametrize(
    ("module", "name", "error"),
    [(*parser, error) for parser, error in zip(RECORD_PARSERS, ERRORS[1:], strict=True)],
    ids=[name for _, name in RECORD_PARSERS],
)
def test_a_record_on_which_a_parser_fails_costs_itself_only(tmp_path, monkeypatch, module, name, error):
    real, calls = getattr(module, name), []

    def fails_second(*a: Any) -> Any:
        calls.append(a)
        if len(calls) == 2:
            raise error
        return real(*a)

    monkeypatch.setattr(module, name, fails_second)
    monkeypatch.setattr(warcs, "_can_be_read_again", lambda file: False)  # warcio reads all of it
    build = page_build(tmp_path, *((f"http://a.test/{i}", PAGE.replace("雪", f"雪{i}")) for i in range(4)))
    extract.run_partition(build, "w-00000")
    record = build.stage("extract").record("w-00000")
    pages = build.stage("extract").table(record)["page_url"].to_pylist()
    assert len(pages) == 3
    [(url, reason, said)] = decisions(build, "extract", "w-00000")
    assert (url, reason) in [(f"http://a.test/{i}", "unreadable") for i in range(4)]
    assert said == f"{type(error).__name__}: {error}".removesuffix(": ")


def test_a_record_on_which_the_fast_reader_fails_is_read_by_the_other(tmp_path, monkeypatch):
    real, calls = SoundRun._capture, []

    def fails_second(*a: Any) -> Any:
        calls.append(a)
        if len(calls) == 2:
            raise MemoryError
        return real(*a)

    monkeypatch.setattr(SoundRun, "_capture", fails_second)
    build = page_build(tmp_path, *((f"http://a.test/{i}", PAGE.replace("雪", f"雪{i}")) for i in range(4)))
    extract.run_partition(build, "w-00000")
    record = build.stage("extract").record("w-00000")
    assert len(calls) >= 2
    assert len(build.stage("extract").table(record)["page_url"].to_pylist()) == 4
    assert decisions(build, "extract", "w-00000") == []


# admit to shard: texts and pictures


def fails_on(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, odd: Any, error: Exception) -> None:
    """Make a function raise where one of its arguments is odd, and work everywhere else."""
    real = getattr(owner, name)

    def raising(*a: Any, **k: Any) -> Any:
        if any(odd(value) for value in (*a, *k.values())):
            raise error
        return real(*a, **k)

    monkeypatch.setattr(owner, name, raising)


LATER = [RuntimeError("odd"), MemoryError(), RecursionError("deep")]


def candidate(image_url: str, text: str = "云") -> Candidate:
    return Candidate("t", "news", "http://a.test/", "http://a.test/", image_url, (Text("alt", text),))


def put_admitted(build: Build, *image_urls: str) -> None:
    with build.stage("admit").attempt("00000-of-00001") as attempt:
        attempt.write_table("parquet", candidate_rows([candidate(url) for url in image_urls], 0))
        attempt.commit({"seen": len(image_urls), "kept": len(image_urls), "dropped": 0})


def shown(got: Any, data: dict[str, bytes]) -> list[Any]:
    return [got(name, content, f"第{i}张图片") for i, (name, content) in enumerate(data.items())]


@pytest.mark.parametrize(("where", "error"), [*zip(["clean", "check", "rewrite"], LATER, strict=True)])
def test_a_text_on_which_a_filter_fails_goes_no_further(monkeypatch, where, error):
    def odd(value: Any) -> bool:
        return "奇怪" in str(getattr(value, "text", value))

    owner: Any = {"clean": admit, "check": HanShare, "rewrite": PersonalData}[where]
    fails_on(monkeypatch, owner, where, odd, error)
    source = {"kind": "warc", "name": "t", "source_kind": "news", "path": "w"}
    filters = [{"name": "han_share"}, {"name": "personal_data", "mobile": "mask"}]
    value = {"name": "t", "contact": "a@b.cn", "filters": filters, "sources": [source]}
    own = [candidate("http://a.test/0.jpg", "故宫的雪"), candidate("http://a.test/1.jpg", "奇怪的电话13812345678")]
    kept, dropped = admit.admit(own, BuildSpec.model_validate(value))
    assert [c.texts[0].text for c in kept] == ["故宫的雪"]
    [decision] = dropped
    assert (decision.reason, decision.url) == ("unreadable", "http://a.test/1.jpg")
    assert type(error).__name__ in decision.evidence
    assert where != "rewrite" or "13812345678" not in f"{decision}", "what was to be masked is written nowhere"


def all_stages(build: Build, *names: str) -> dict[str, tuple[str, str]]:
    """(reason, evidence) by the end of the image's URL, after the stages ran; the funnel adds up."""
    run_stage(build, *names)
    dropped: dict[str, tuple[str, str]] = {}
    for name in (name for name in names if name in build.passes):
        for partition in build.stage(name).partitions():
            record = build.stage(name).record(partition)
            if "seen" in record.counts:
                assert record.counts["seen"] == record.counts["kept"] + record.counts["dropped"]
            for url, why, said in decisions(build, name, partition):
                dropped |= {url.rpartition("/")[2]: (why, said)} if why else {}
    return dropped


TO_SHARD = ("measure", "filter", "dedup", "curate", "detect", "shard")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("owner", "name", "stage", "error"),
    [
        (image_features, "decode", "measure", LATER[1]),
        (FeatureRows, "_values", "measure", LATER[2]),
        (ImageBlank, "check", "filter", LATER[0]),
        (shard, "as_stored", "shard", LATER[1]),
        (shard, "encode_sample", "shard", LATER[0]),
    ],
    ids=["decode", "feature", "filter", "as_stored", "encode_sample"],
)
def test_a_picture_on_which_a_stage_fails_is_one_decision(fetched_build, got, monkeypatch, owner, name, stage, error):
    data = {f"{i}.jpg": picture(i) for i in range(5)}
    odd_sha = hashlib.sha256(data["3.jpg"]).hexdigest()
    square = np.empty((THUMB, THUMB, 4), np.uint8)
    fill(square, decode(data["3.jpg"], 10**8, 64))
    odd_level = Views(square[None]).thumbs[0]

    def odd(value: Any) -> bool:
        if isinstance(value, Views):
            return any((thumb == odd_level).all() for thumb in value.thumbs)
        if isinstance(value, bytes | memoryview):
            return bytes(value) == data["3.jpg"]
        return getattr(value, "sha256", "") == odd_sha

    build = fetched_build(shown(got, data), filters=[{"name": "image_blank"}])
    fails_on(monkeypatch, owner, name, odd, error)
    dropped = all_stages(build, *TO_SHARD)
    assert list(dropped) == ["3.jpg"]
    reason, said = dropped["3.jpg"]
    assert reason == "unreadable"
    assert type(error).__name__ in said
    rows = [row for r in build.packed() for row in build.stage("shard").table(r).to_pylist()]
    assert {row["image_url"].rpartition("/")[2] for row in rows} == set(data) - {"3.jpg"}
    assert not faults(build, read_funnels(build)[0])


@pytest.mark.slow
def test_a_picture_that_a_detector_cannot_take_is_kept_without_regions(fetched_build, got, monkeypatch):
    data = {f"{i}.jpg": picture(i) for i in range(5)}
    odd_pixels = decode(data["3.jpg"]).pixels

    real = Grid.detect

    def detect_of(self: Any, state: Any, pictures: Any) -> Any:
        if any(pixels.shape == odd_pixels.shape and (pixels == odd_pixels).all() for pixels in pictures):
            raise MemoryError
        return real(self, state, pictures)

    monkeypatch.setattr(Grid, "NEEDS_PIXELS", True)
    monkeypatch.setattr(Grid, "detect", detect_of)
    build = fetched_build(shown(got, data), filters=[], publish={"judged_from": 5})
    assert all_stages(build, *TO_SHARD) == {}
    [counts] = [build.stage("detect").record(p).counts for p in build.stage("detect").partitions()]
    assert (counts["kept"], counts["undecodable"]) == (5, 1)
    undetected = read_undetected(build)
    assert undetected == (1, 5)
    candidates, captures = read_funnels(build)
    judged = gates.judge_build(build, candidates, captures)
    [gate] = [gate for gate in judged if gate.name == "max_unreadable"]
    assert "1 of 5 images (by a detector) of all sources are unreadable (20.0%)" in gate.faults[0]


@pytest.mark.slow
def test_a_picture_that_a_model_of_screen_cannot_score_is_dropped(fetched_build, got, monkeypatch):
    data = {f"{i}.jpg": picture(i) for i in range(5)}
    odd_pixels = decode(data["3.jpg"]).pixels

    def score(self: Any, state: Any, pictures: Any) -> list[float]:
        if any(pixels.shape == odd_pixels.shape and (pixels == odd_pixels).all() for pixels in pictures):
            raise RuntimeError("odd")
        return [0.0 for _ in pictures]

    monkeypatch.setattr(ImageNsfw, "load", lambda self: None)
    monkeypatch.setattr(ImageNsfw, "NEEDS_SIDE", 0)
    monkeypatch.setattr(ImageNsfw, "score_id", "image_nsfw-of-the-test")
    monkeypatch.setattr(ImageNsfw, "score", score)
    build = fetched_build(shown(got, data), filters=[{"name": "image_nsfw"}])
    dropped = all_stages(build, *TO_SHARD)
    assert list(dropped) == ["3.jpg"]
    assert dropped["3.jpg"] == ("unreadable", "image_nsfw-of-the-test: RuntimeError: odd")


@pytest.mark.parametrize(("where", "error"), [*zip(["header", "opt_outs", "robots"], LATER, strict=True)])
def test_an_image_on_which_fetch_fails_is_one_decision(serve, make_build, monkeypatch, where, error):
    web = serve({f"/{i}.jpg": (200, {"Content-Type": "image/jpeg", "X-Odd": str(i)}, picture(i)) for i in range(4)})
    if where == "header":
        fails_on(monkeypatch, pictures_decode, "header", lambda value: value == picture(2), error)
    elif where == "opt_outs":
        fails_on(monkeypatch, policy, "opt_outs", lambda value: ("X-Odd", "2") in list(value), error)
    else:
        fails_on(monkeypatch, policy.Policy, "refusal", lambda value: str(value).endswith("/2.jpg"), error)
    source = {"kind": "site", "name": "t", "source_kind": "news", "start": ["http://a.cn/"]}
    build = make_build(web, sources=[source])
    put_admitted(build, *(web.url(f"/{i}.jpg") for i in range(4)))
    fetch.run_partition(build, "00000-of-00001")
    [(url, reason, said)] = decisions(build, "fetch", "00000-of-00001")
    assert (url, reason, said.split(":")[0]) == (web.url("/2.jpg"), "unreadable", type(error).__name__)


def test_a_picture_that_its_source_cannot_give_is_one_decision(make_build, monkeypatch, tmp_path):
    data = {f"{i}.jpg": picture(i) for i in range(3)}
    for name, content in data.items():
        (tmp_path / name).write_bytes(content)
    fails_on(monkeypatch, folder.FolderOfImages, "read_image", lambda v: str(v).endswith("/1.jpg"), RuntimeError("odd"))
    build = make_build(sources=[{"kind": "folder", "name": "t", "source_kind": "news", "path": str(tmp_path)}])
    put_admitted(build, *(f"folder:///t/{name}" for name in data))
    fetch.run_partition(build, "00000-of-00001")
    assert decisions(build, "fetch", "00000-of-00001") == [("folder:///t/1.jpg", "unreadable", "RuntimeError: odd")]


# the log and the evidence


def test_the_log_has_a_traceback_per_kind_and_the_evidence_is_one_line(caplog, monkeypatch):
    monkeypatch.setattr(errors, "_logged", set())

    def of(error: Exception) -> str:
        try:
            raise error
        except Exception as e:
            return errors.evidence(e, "http://a.test/")

    with caplog.at_level(logging.WARNING, "wenlan"):
        assert [of(TypeError("x\ny")), of(TypeError("z")), of(MemoryError())] == [
            "TypeError: x",
            "TypeError: z",
            "MemoryError",
        ]
    logged = [record.getMessage() for record in caplog.records]
    assert [text.count("Traceback (most recent call last)") for text in logged] == [1, 1]
    assert ["TypeError: x" in logged[0], "MemoryError" in logged[1]] == [True, True]
    assert of(ValueError("\ud83d" + "x" * 999)).encode()[:13] == b"ValueError: ?"
    assert caplog.text.encode(), "nothing that cannot be written is logged"
    assert not issubclass(StoreError, ValueError)
    assert issubclass(StoreError, errors.OURS)


# the gate


def judged(publish: dict[str, Any], candidates: dict[Any, int], captures: dict[Any, int]) -> list[gates.Gate]:
    source = {"kind": "site", "name": "a", "source_kind": "news", "start": ["http://a.test/"]}
    value = {"name": "t", "contact": "a@b.cn", "sources": [source], "publish": publish}
    judgements = gates.judge(BuildSpec.model_validate(value), STAGES, Funnel(candidates), Funnel(captures))
    return [gate for gate in judgements if gate.name == "max_unreadable"]


def test_a_build_in_which_our_own_fault_hits_everything_is_not_published():
    [gate] = judged({}, {("a", "shard", ""): 500}, {("a", "extract", "unreadable"): 11, ("a", "extract", ""): 989})
    assert not gate.holds
    assert "11 of 1,000 pages of a are unreadable (1.1%), the spec allows 1.0%" in gate.faults[0]
    [gate] = judged({}, {("a", "extract", "unreadable"): 100}, {})
    assert "100 of 100 candidates of a are unreadable" in gate.faults[0]


def test_a_few_odd_pages_stop_nothing_and_a_build_without_any_has_no_such_gate():
    [gate] = judged({}, {}, {("a", "extract", "unreadable"): 10, ("a", "extract", ""): 990})
    assert gate.holds
    assert judged({"max_unreadable": 0.02}, {}, {("a", "crawl", "unreadable"): 15, ("a", "extract", ""): 985})[0].holds
    assert judged({}, {}, {("a", "extract", "unreadable"): 1, ("a", "extract", ""): 50}) == [], "too few to judge"
    assert judged({}, {}, {("a", "extract", ""): 1000}) == []
