"""No input ends a build: what it does to a parser is a Decision about it, and everything else goes on."""

from __future__ import annotations

import json
import logging
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from data_specs.build import BuildSpec
from pipeline import unreadable
from pipeline.errors import StoreError
from pipeline.pages import linked_data, page, walk
from pipeline.report import gates
from pipeline.report.funnel import Funnel
from pipeline.sources import folder, microblog, url_table, webdataset
from pipeline.stages import STAGES, crawl, extract
from pipeline.store.build import Build
from pipeline.store.partitions import DECISIONS
from pipeline.store.store import Store
from pipeline.web import crawler, frontier, links, page_visitor, policy, sitemaps
from tests.pipeline.stages.test_extract import warc

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
    (links, "read_markup", lambda body, *_: b"odd page" in body),
    (policy, "opt_outs", lambda headers, *_: ("X-Odd", "1") in list(headers)),
    (policy, "follows_links", lambda headers, *_: ("X-Odd", "1") in list(headers)),
    (page_visitor, "unpacked", lambda body, *_: b"odd page" in body),
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
        "/odd.html": (200, {"X-Odd": "1"}, b"<p>odd page"),
        "/b.html": b"<p>b",
    }
    build = make_build(web, sources=site_of(web))
    crawl.run_partition(build, "s")
    assert build.stage("crawl").record("s").counts["kept"] == 2
    assert decisions(build, "crawl", "s") == [(web.url("/odd.html"), "unreadable", "TypeError: a parser of ours")]
    captures = extract._read(build, extract.sources_of(build.spec)[0], 0, extract.Counter(), {})
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
    (extract, "decode"),
    (extract, "parse"),
    (extract, "rule_of"),
    (extract, "not_chinese"),
    (extract, "canonical_url"),
    (extract.policy, "is_html"),
    (extract.policy, "opt_outs"),
    (page.linked_data, "read"),
    (linked_data, "_walk"),
    (walk.Walk, "_place"),
    (page._Meta, "of"),
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


@pytest.mark.parametrize(
    ("module", "name", "error"),
    [(*parser, ERRORS[0]) for parser in PAGE_PARSERS] + [(extract, "parse", error) for error in ERRORS[1:]],
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
    import io
    import tarfile

    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for number, row in enumerate(ROWS):
            for name, data in ((f"{number}.jpg", b"x"), (f"{number}.txt", row["t"].encode())):
                member = tarfile.TarInfo(name)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return {"kind": "webdataset", "path": "x.tar"}


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


# the log and the evidence


def test_the_log_has_a_traceback_per_kind_and_the_evidence_is_one_line(caplog, monkeypatch):
    monkeypatch.setattr(unreadable, "_logged", set())

    def of(error: Exception) -> str:
        try:
            raise error
        except Exception as e:
            return unreadable.evidence(e, "http://a.test/")

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
    assert issubclass(StoreError, unreadable.OURS)


# the gate


def judged(publish: dict[str, Any], candidates: dict[Any, int], captures: dict[Any, int]) -> list[gates.Gate]:
    source = {"kind": "site", "name": "a", "source_kind": "news", "start": ["http://a.test/"]}
    value = {"name": "t", "contact": "a@b.cn", "sources": [source], "publish": publish}
    found = gates.judge(BuildSpec.model_validate(value), STAGES, Funnel(candidates), Funnel(captures))
    return [gate for gate in found if gate.name == "max_unreadable"]


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


def test_the_option_changes_no_digest_of_a_spec_that_does_not_set_it():
    def digest(**publish: Any) -> str:
        source = {"kind": "warc", "name": "a", "source_kind": "news", "path": "w"}
        value = {"name": "t", "contact": "a@b.cn", "sources": [source], "publish": publish}
        return BuildSpec.model_validate(value).digest

    assert digest() == digest(max_unreadable=0.01) == "c842d17dab163977b7a24d0e95fd61c5274f70596c4a56de1a859cb4ced2658a"
    assert digest(max_unreadable=0.5) != digest()
