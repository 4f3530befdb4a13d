"""extract: WARC files become candidates, wherever they lie, and the funnel adds up."""

from __future__ import annotations

import functools
import gzip
import http.server
import io
import json
import random
import threading
import uuid
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_specs.build import BuildSpec
from pipeline.errors import BrokenFile, SourceError
from pipeline.pages.lines import says_something
from pipeline.report import gates
from pipeline.report.funnel import read_funnels
from pipeline.report.unreadable import read_damage, unreadable
from pipeline.rows.decisions import Decision, Lost
from pipeline.rows.records import Candidate, Capture, candidates_of
from pipeline.sources._look import Budget
from pipeline.stages import STAGES, extract
from pipeline.stages._page_candidates import extract_page
from pipeline.store.build import Build
from pipeline.store.commits import DECISIONS
from pipeline.store.store import Store
from pipeline.web.warc import read_captures
from tests import archived
from tests.captured import ARTICLES, article, capture, trap
from tests.places import CORPUS, needs_corpus


def warc(*pages: tuple[str, str], encoding: str = "") -> bytes:
    """A WARC file written by hand after ISO 28500: one gzip member a record."""
    records = [("warcinfo", "", b"software: test\r\n")]
    for url, html in pages:
        body = gzip.compress(html.encode()) if encoding else html.encode()
        head = f"HTTP/1.1 200 OK\r\nContent-Type: text/html; charset=utf-8\r\nContent-Length: {len(body)}\r\n"
        head += f"Content-Encoding: {encoding}\r\n" if encoding else ""
        records.append(("response", url, head.encode() + b"\r\n" + body))
    data = b""
    for kind, url, block in records:
        content_type = "application/warc-fields" if kind == "warcinfo" else "application/http; msgtype=response"
        head = f"WARC/1.0\r\nWARC-Type: {kind}\r\nWARC-Record-ID: <urn:uuid:{uuid.uuid4()}>\r\n"
        head += f"WARC-Date: 2026-01-01T00:00:00Z\r\nContent-Type: {content_type}\r\nContent-Length: {len(block)}\r\n"
        head += f"WARC-Target-URI: {url}\r\n" if url else ""
        data += gzip.compress(head.encode() + b"\r\n" + block + b"\r\n\r\n")
    return data


def build_of(tmp_path: Path, *sources: dict[str, Any]) -> Build:
    spec = BuildSpec.model_validate({"name": "t", "contact": "a@b.cn", "sources": sources, "base": str(tmp_path)})
    store, marks = Store(str(tmp_path / "store")), {"extract": "e" * 64}
    return Build(spec, str(tmp_path / "out"), store, "t", "2026-01-01", marks, stages=STAGES)


def test_a_warc_goes_through_the_stage_and_its_funnel_adds_up(tmp_path):
    html = "<p>中文</p><img src=a.jpg alt=故宫雪景><img src=logo.png><img src=data:x>"
    (tmp_path / "x.warc.gz").write_bytes(
        warc(("http://a.test/1", html), ("http://a.test/2", "<p>English</p><img src=q.jpg>"))
    )
    build = build_of(tmp_path, {"kind": "warc", "name": "w", "source_kind": "news", "path": "x.warc.gz"})
    assert extract.partitions(build) == ["w-00000"]
    extract.run_partition(build, "w-00000")
    [record] = build.stage("extract").records()
    counts = record.counts
    assert (counts["seen"], counts["kept"], counts["dropped"], counts["pages"], counts["pages_dropped"]) == (
        3,
        1,
        2,
        2,
        1,
    )
    [candidate] = candidates_of(build.stage("extract").table(record))
    assert (candidate.image_url, candidate.texts[0].text) == ("http://a.test/a.jpg", "故宫雪景")
    decisions = build.stage("extract").table(record, DECISIONS).to_pylist()
    assert sorted((d["subject"], d["reason"]) for d in decisions) == [
        ("candidate", "data_uri"),
        ("candidate", "spacer"),
        ("capture", "not_chinese"),
    ]
    assert {d["source"] for d in decisions} == {"w"}


@pytest.mark.parametrize("url", ["http://[bad/1.html", "http://a\u2100.test/1.html"])
def test_a_page_whose_url_cannot_be_read_is_one_decision_and_ends_nothing(tmp_path, url):
    html = "<p>中文</p><img src=http://a.test/a.jpg alt=故宫雪景>"
    (tmp_path / "x.warc.gz").write_bytes(warc((url, html), ("http://a.test/2", html)))
    build = build_of(tmp_path, {"kind": "warc", "name": "w", "source_kind": "news", "path": "x.warc.gz"})
    extract.run_partition(build, "w-00000")
    [record] = build.stage("extract").records()
    [candidate] = candidates_of(build.stage("extract").table(record))
    assert candidate.page_url == "http://a.test/2"
    [decision] = build.stage("extract").table(record, DECISIONS).to_pylist()
    assert (decision["subject"], decision["reason"], decision["url"]) == ("capture", "bad_url", url)


def test_the_token_changes_with_the_file_and_with_nothing_else(tmp_path):
    (tmp_path / "x.warc.gz").write_bytes(warc(("http://a.test/1", "<p>中</p>")))
    build = build_of(tmp_path, {"kind": "warc", "name": "w", "source_kind": "news", "path": "x.warc.gz"})
    before = extract.token(build)
    assert json.dumps(before) == json.dumps(extract.token(build))
    (tmp_path / "x.warc.gz").write_bytes(warc(("http://a.test/1", "<p>中文</p>")))
    assert extract.token(build) != before


TABLE = {"kind": "url_table", "path": "*.csv", "columns": {"image_url": "url", "texts": {"alt": "zh"}}}
INPUTS: dict[str, tuple[dict[str, Any], str]] = {
    "table": ({**TABLE, "path": "in/*.csv"}, ".csv"),
    "warc": ({"kind": "warc", "path": "in/*.warc.gz"}, ".warc.gz"),
    "pictures": ({"kind": "folder", "path": "in", "images_per_part": 1}, ".jpg"),
}


@pytest.mark.parametrize("kind", INPUTS)
@pytest.mark.parametrize("change", ["comes", "goes"])
def test_a_file_that_comes_or_goes_between_two_parts_is_an_error_and_no_loss(tmp_path, kind, change):
    """Part 1 was file b, and is read again as part 2; c would never be read."""
    source, suffix = INPUTS[kind]
    content = {".csv": b"url,zh\nhttp://a.test/1.jpg,x\n", ".warc.gz": warc(("http://a.test/1", "x")), ".jpg": b"x"}

    def put(name: str) -> Path:
        (tmp_path / "in" / f"{name}{suffix}").write_bytes(content[suffix])
        return tmp_path / "in" / f"{name}{suffix}"

    (tmp_path / "in").mkdir()
    for name in "bc":
        put(name)
    build = build_of(tmp_path, {"name": "s", "source_kind": "news", **source})
    first, second = extract.partitions(build)
    extract.begin(build)
    extract.run_partition(build, first)
    if change == "comes":
        put("a")
    else:
        (tmp_path / "in" / f"b{suffix}").unlink()
    extract.sources_of(build.spec)[0].token()  # another process lists a folder anew
    for begun in (extract.partitions, lambda build: extract.run_partition(build, second)):
        with pytest.raises(SourceError, match=r"source s: files were added or removed .* run the same command again"):
            begun(build)
    assert build.stage("extract").partitions() == [first]
    again = replace(build, fingerprints={"extract": "f" * 64})
    for partition in extract.partitions(again):
        extract.run_partition(again, partition)
    assert len(again.stage("extract").partitions()) == (3 if change == "comes" else 1)


def test_a_warc_that_breaks_off_keeps_what_came_before(tmp_path):
    first = ("http://a.test/1", "<p>一</p>")
    dice = random.Random(1)
    second = ("http://a.test/2", "".join(chr(dice.randrange(0x4E00, 0x9FA5)) for _ in range(20_000)))
    whole, part = warc(first, second), len(warc(first))
    path = tmp_path / "cut.warc.gz"
    for cut in range(part + 500, len(whole) - 500, 5000):
        path.write_bytes(whole[:cut])
        entries = list(read_captures(str(path), 100_000))
        assert [c.url for c in entries if isinstance(c, Capture)] == ["http://a.test/1"]
        [hole] = [own.lost for own in entries if isinstance(own, Decision)]
        assert hole == Lost(bytes=pytest.approx(cut - part, abs=40))


@pytest.mark.parametrize("content", [b"", b"<html>no warc</html>", b"\x1f\x8bgarbage", gzip.compress(b"text", mtime=0)])
def test_a_file_that_is_no_warc_is_one_clear_error(tmp_path, content):
    path = tmp_path / "no.warc.gz"
    path.write_bytes(content)
    with pytest.raises(SourceError, match=r"no\.warc\.gz: not a WARC file"):
        list(read_captures(str(path), 1000, {}))


def test_a_missing_warc_names_its_path(tmp_path):
    with pytest.raises(SourceError, match=r"gone\.warc: cannot be read"):
        list(read_captures(str(tmp_path / "gone.warc"), 1000, {}))


def test_encoded_bodies_are_unpacked_but_not_beyond_the_limit(tmp_path):
    path = tmp_path / "x.warc.gz"
    path.write_bytes(warc(("http://a.test/1", "<p>中文</p>"), ("http://a.test/2", " " * 5_000_000), encoding="gzip"))
    one, two = read_captures(str(path), 100_000, {})
    assert isinstance(one, Capture)
    assert one.body == "<p>中文</p>".encode()
    assert isinstance(two, Decision)
    assert (two.reason, two.url) == ("too_large", "http://a.test/2")


@needs_corpus()
@pytest.mark.parametrize("form", ["plain", "lazy", "gb18030", "figure"])
def test_the_howtocook_site_gives_the_pairs_of_its_truth_file(form):
    site, root = CORPUS / "howtocook-site", "http://site.test/"
    truth = [json.loads(line) for line in (CORPUS / "howtocook-site.truth.jsonl").read_text().splitlines()]
    truth = [line for line in truth if line["form"] == form]
    candidates: dict[tuple[str, str], Candidate] = {}
    for page in sorted({line["page"] for line in truth}):
        for entry in extract_page(capture((site / page).read_bytes(), url=root + page), "s", "library").entries:
            if isinstance(entry, Candidate):
                candidates[page, entry.image_url.removeprefix(root)] = entry
    allowed = [line for line in truth if line["allowed"]]
    told = [line for line in allowed if says_something(line["near_text"], 1)]  # not 完成
    right = {"pair": 0, "near": 0}
    for line in allowed:
        candidate = candidates.get((line["page"], line["image"]))
        texts = {(t.kind, t.text) for t in candidate.texts} if candidate else set()
        wanted = {(kind, line[kind]) for kind in ("alt", "caption", "title") if line[kind]}
        right["pair"] += wanted <= texts
        right["near"] += line["near_text"] in {text for _, text in texts} and line in told
    assert right["pair"] >= 0.99 * len(allowed)
    # of the lazy pages two pictures stand in a list entry with words of its own: the truth is another entry's text
    assert right["near"] >= (0.92 if form == "lazy" else 0.95) * len(told)
    noai = {line["page"] for line in truth if not line["allowed"] and not line["page"].startswith("private/")}
    assert not {page for page, _ in candidates} & noai


@pytest.mark.slow
def test_warcs_behind_urls_give_what_they_give_on_a_disk(tmp_path):
    """Both ways to name them, from a real web server, as Common Crawl's are read."""
    web = tmp_path / "web"
    (web / "crawl-data").mkdir(parents=True)
    for n in range(2):
        html = f"<p>中文</p><img src={n}.jpg alt=故宫雪景{n}号>" + "<p>雪</p>" * 3000
        (web / f"crawl-data/{n}.warc.gz").write_bytes(warc((f"http://a.test/{n}", html)))
    (web / "warc.paths.gz").write_bytes(gzip.compress(b"crawl-data/0.warc.gz\ncrawl-data/1.warc.gz\n"))

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    handler = functools.partial(Quiet, directory=str(web))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        root = f"http://127.0.0.1:{server.server_address[1]}/"
        ways = {
            "disk": {"path": [f"{web}/crawl-data/{n}.warc.gz" for n in range(2)]},
            "urls": {"path": [f"{root}crawl-data/{n}.warc.gz" for n in range(2)]},
            "list": {"path_list": f"{root}warc.paths.gz", "prefix": root},
        }
        rows_of = {}
        for way, named in ways.items():
            build = build_of(tmp_path / way, {"kind": "warc", "name": "w", "source_kind": "news", **named})
            for partition in extract.partitions(build):
                extract.run_partition(build, partition)
            stage = build.stage("extract")
            rows_of[way] = [stage.table(record).to_pylist() for record in stage.records()]
        assert rows_of["disk"] == rows_of["urls"] == rows_of["list"]
        assert [rows[0]["image_url"] for rows in rows_of["disk"]] == ["http://a.test/0.jpg", "http://a.test/1.jpg"]
        missing = {"kind": "warc", "name": "w", "source_kind": "news", "path_list": f"{root}warc.paths.gz"}
        build = build_of(tmp_path / "gone", {**missing, "prefix": f"{root}nowhere/"})
        with pytest.raises(SourceError, match=r"nowhere/crawl-data/0\.warc\.gz.*404|cannot be read"):
            extract.run_partition(build, "w-00000")
        server.shutdown()


def jsonl(name: str) -> bytes:
    return json.dumps({"url": f"http://a.test/{name}.jpg", "zh": "图", "images": [], "text": "图"}).encode() + b"\n"


def parquet(name: str) -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.table({"url": [f"http://a.test/{name}.jpg"], "zh": ["图"]}), file)
    return file.getvalue()


def page(name: str) -> bytes:
    return warc((f"http://a.test/{name}", f"<h1>雪后的黄山</h1><img src={name}.jpg alt=雪后的黄山>"))


TABLE_OF = {"kind": "url_table", "columns": {"image_url": "url", "texts": {"alt": "zh"}}}


def index(name: str) -> bytes:
    """A file of Common Crawl's index, with a page of no place."""
    file, row = io.BytesIO(), {"url": f"http://a.test/{name}", "fetch_status": 200, "content_languages": "zho"}
    row |= {"content_mime_detected": "text/html", "warc_filename": "../x", "warc_record_offset": 0}
    pq.write_table(pa.Table.from_pylist([row | {"warc_record_length": 1}]), file)
    return file.getvalue()


BROKEN = b"\x1f\x8b of no kind \xff\xfe" * 90
FILES = {
    "warc": ({"kind": "warc"}, ".warc.gz", page),
    "csv": (TABLE_OF, ".csv.gz", lambda name: gzip.compress(f"url,zh\nhttp://a.test/{name}.jpg,图\n".encode())),
    "jsonl": (TABLE_OF, ".jsonl.gz", lambda name: gzip.compress(jsonl(name))),
    "parquet": (TABLE_OF, ".parquet", parquet),
    "index": ({"kind": "common_crawl"}, ".parquet", index),
    "posts": ({"kind": "microblog"}, ".jsonl.gz", lambda name: gzip.compress(jsonl(name))),
    "tar": ({"kind": "webdataset"}, ".tar", lambda name: archived.tar({f"{name}.jpg": "图", f"{name}.txt": "图"})),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", FILES)
def test_a_broken_file_of_several_is_a_decision_with_its_weight_and_a_single_one_is_an_error(tmp_path, kind):
    source, suffix, content = FILES[kind]
    for name in "ad":
        (tmp_path / f"{name}{suffix}").write_bytes(content(name))
    (tmp_path / f"b{suffix}").write_bytes(b"")
    (tmp_path / f"c{suffix}").write_bytes(BROKEN)
    build = build_of(tmp_path, {"name": "s", "source_kind": "news", **source, "path": f"*{suffix}"})
    for partition in extract.partitions(build):
        extract.run_partition(build, partition)
    records = list(build.stage("extract").records())
    seen = [record.counts["kept"] + record.counts["dropped"] + record.counts.get("pages", 0) for record in records]
    tables = [build.stage("extract").table(record, DECISIONS).to_pylist() for record in records]
    evidence = [row["evidence"] for table in tables for row in table if row["reason"] == "broken_file"]
    assert [own.partition(":")[0] for own in evidence] == [f"b{suffix}", f"c{suffix}"]
    assert min(seen) > 0, "none is silent"
    assert {record.counts["unaccounted"] for record in records} == {0}
    assert [record.counts.get("lost_files", 0) for record in records] == [0, 1, 1, 0]
    lost = [record.counts.get("lost_bytes", 0) for record in records]
    assert lost == [0, 0, pytest.approx(len(BROKEN), abs=20), 0]
    assert sum(record.counts["input_files"] for record in records) == 4
    assert [record.info["lost"] for record in records[1:3]] == evidence

    damage = read_damage(build)["s"]
    [of_bytes, of_files] = [own for own in unreadable("s", *read_funnels(build), damage, 1) if own.things != "pages"]
    assert (of_bytes.count, of_files.count, of_files.total) == (lost[2], 2, 4)

    lines = "\n".join(gates.in_words(build, gates.verdict(build, *read_funnels(build))))
    assert "gate max_unreadable: 2 of 4 files of s are unreadable (50.0%), the spec allows 1.0%" in lines
    assert f"2 x broken_file, for example {evidence[0]}" in lines

    [look] = [own.look(Budget(seconds=60)) for own in extract.sources_of(build.spec)]
    [warning] = [line for line in look.warnings if "cannot read" in line]
    assert warning.startswith(f"a build cannot read 2 of 4 files: b{suffix} (an empty file), c{suffix} (")

    single = build_of(tmp_path, {"name": "s", "source_kind": "news", **source, "path": f"c{suffix}"})
    with pytest.raises(BrokenFile, match=rf"^[^\n]*c\{suffix}: [^\n]+$"):
        _ = [extract.run_partition(single, partition) for partition in extract.partitions(single)]


@pytest.mark.slow
def test_a_table_without_the_columns_of_the_spec_is_broken_unless_no_file_has_them(tmp_path):
    """One odd file of a folder ends no build. Where all are odd the spec is at fault, and that is one line."""
    rows = "http://a.test/1.jpg,雪\n" * 3
    other = pa.BufferOutputStream()
    pq.write_table(pa.table({"u": ["http://a.test/1.jpg"], "c": ["雪"]}), other)
    odd = {
        "a.csv": b"<html><title>403 Forbidden</title>\n</html>\n",
        "b.csv.gz": gzip.compress(b""),
        "c.csv": b"\n",
        "d.csv": b"\xef\xbb\xbf",
        "e.csv": rows.encode(),
        "f.csv": bytes(5_000),
        "g.parquet": other.getvalue().to_pybytes(),
    }
    for name, content in odd.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "h.csv").symlink_to(tmp_path / "gone")
    options = {**TABLE_OF, "name": "s", "source_kind": "news", "rows_per_part": 1}
    build = build_of(tmp_path, {**options, "path": "*"})
    with pytest.raises(SourceError, match=r"^[^\n]*a\.csv: source s: no column 'url'; columns: <html>[^\n]*$"):
        extract.run_partition(build, "s-00000")
    with pytest.raises(SourceError, match=r"no column 'url'"):
        extract.sources_of(build.spec)[0].look(Budget(seconds=60))

    (tmp_path / "z.csv").write_text(f"url,zh\n{rows}")
    build = build_of(tmp_path, {**options, "path": "*"})
    for partition in extract.partitions(build):
        extract.run_partition(build, partition)
    records = [record for record in build.stage("extract").records() if record.counts["input_files"]]
    assert [record.counts.get("lost_files", 0) for record in records] == [1] * 8 + [0]
    damage = read_damage(build)["s"]
    assert (damage.lost_files, damage.lost_bytes) == (8, sum(map(len, odd.values())))
    said = [record.info["lost"].partition(": ") for record in records[:8]]
    assert [name for name, _, _ in said] == [*odd, "h.csv"]
    assert [why for _, _, why in said[2:]] == [
        "no column 'url'; columns: none (its first line is empty)",
        "no column 'url'; columns: none (its first line is empty)",
        "no column 'url'; columns: http://a.test/1.jpg, 雪",
        "no column 'url'; columns: none (its first line is not text)",
        "no column 'url'; columns: u, c",
        "a link to a file that does not exist",
    ]
    assert sum(record.counts["kept"] for record in build.stage("extract").records()) == 3
    [warning] = [line for line in extract.sources_of(build.spec)[0].look(Budget(seconds=60)).warnings if "read" in line]
    assert warning.startswith("a build cannot read 8 of 9 files: a.csv (no column 'url'; columns: <html>")


@pytest.mark.slow
def test_a_packed_table_that_breaks_off_keeps_its_rows_and_says_how_much_is_lost(tmp_path):
    dice = random.Random(4)
    texts = ["".join(chr(dice.randrange(0x4E00, 0x9FA5)) for _ in range(200)) for _ in range(2_000)]
    rows = [f"http://a.test/{n}.jpg,{text}" for n, text in enumerate(texts)]
    packed = gzip.compress("\n".join(["url,zh", *rows]).encode())
    (tmp_path / "a.csv.gz").write_bytes(packed[:-60_000])
    (tmp_path / "b.csv.gz").write_bytes(packed[: len(packed) // 2] + b"?" * 99 + packed[len(packed) // 2 + 99 :])
    (tmp_path / "c.csv.gz").write_bytes(packed)
    options = {**TABLE_OF, "path": "*.csv.gz", "rows_per_part": 500}
    build = build_of(tmp_path, {"name": "s", "source_kind": "news", **options})
    for partition in extract.partitions(build):
        extract.run_partition(build, partition)
    files: dict[str, Counter[str]] = {}
    for record in build.stage("extract").records():
        if record.counts["input_files"]:
            own = files[str(len(files))] = Counter()
        own.update({name: record.counts.get(name, 0) for name in ("kept", "lost_files", "lost_bytes")})
    cut, damaged, whole = files.values()
    assert cut["lost_files"] == damaged["lost_files"] == 1
    assert 1_500 < cut["kept"] < 2_000
    assert 800 < damaged["kept"] < 1_100
    assert 0 <= damaged["lost_bytes"] <= len(packed) // 2
    assert (whole["kept"], whole["lost_files"]) == (2_000, 0)


def test_a_page_that_is_not_read_is_a_decision_of_its_source(tmp_path):
    build = build_of(tmp_path, {"kind": "warc", "name": "w", "source_kind": "news", "path": "x.warc.gz"})
    page = " " * (build.spec.egress.max_page_bytes + 1)
    (tmp_path / "x.warc.gz").write_bytes(warc(("http://a.test/1", page), encoding="gzip"))
    extract.run_partition(build, "w-00000")
    [record] = build.stage("extract").records()
    [decision] = build.stage("extract").table(record, DECISIONS).to_pylist()
    assert (decision["reason"], decision["source"]) == ("too_large", "w")


# traps, and how many images there may be


@pytest.mark.slow
@pytest.mark.parametrize("rotates", [False, True], ids=["all", "some"])
def test_the_pictures_of_a_site_are_no_furniture_because_a_trap_shows_them(tmp_path, rotates):
    days = range(20 * ARTICLES if rotates else 20)
    traps = [trap(day, [day % ARTICLES, (day + 1) % ARTICLES] if rotates else list(range(ARTICLES))) for day in days]
    articles = [article(number) for number in range(ARTICLES)]
    (tmp_path / "x.warc.gz").write_bytes(warc(*articles, *traps))
    build = build_of(tmp_path, {"kind": "warc", "name": "w", "source_kind": "news", "path": "x.warc.gz"})
    extract.run_partition(build, "w-00000")
    [record] = build.stage("extract").records()
    kept = candidates_of(build.stage("extract").table(record))
    assert {c.image_url for c in kept} == {f"http://a.test/i/{number}.jpg" for number in range(ARTICLES)}
    assert {c.page_url for c in kept} == {url for url, _ in articles}
    decided = build.stage("extract").table(record, DECISIONS).to_pylist()
    assert {d["url"] for d in decided if d["reason"] == "trap"} == {url for url, _ in traps}
    assert {d["subject"] for d in decided if d["reason"] == "trap"} == {"capture"}
    assert {d["url"] for d in decided if d["reason"] == "spacer"} == {"http://a.test/top.jpg"}, "a logo is still one"
    assert record.counts["pages_dropped"] == len(traps)
    assert record.counts["seen"] == record.counts["kept"] + record.counts["dropped"] == 2 * ARTICLES


@pytest.mark.parametrize("page_texts", ["drop", "keep"])
def test_pictures_of_a_page_of_many_count_as_alone_where_the_texts_of_their_page_will_do(tmp_path, page_texts):
    page = "<h1>西葫芦蛋花汤</h1>" + "".join(f"<p><img src={i}.jpg></p>" for i in range(4))
    (tmp_path / "x.warc.gz").write_bytes(warc(("http://a.test/", page)))
    source = {"kind": "warc", "name": "w", "source_kind": "news", "path": "x.warc.gz", "page_texts": page_texts}
    build = build_of(tmp_path, source)
    extract.run_partition(build, "w-00000")
    [record] = build.stage("extract").records()
    shown = {c.shown for c in candidates_of(build.stage("extract").table(record))}
    assert shown == {"among" if page_texts == "drop" else "alone"}


def test_images_beyond_the_caps_of_a_page_and_a_host_are_decisions(tmp_path):
    html = (
        "<p>中文的页面</p>" + "".join(f"<img src={i}.jpg alt=第{i}张图>" for i in range(9)) + "<img src=0.jpg alt=又>"
    )
    words = ["故宫", "长城"]
    pages = [(f"http://{host}.test/{i}", html.replace("中文", words[i])) for host in "ab" for i in range(2)]
    (tmp_path / "x.warc.gz").write_bytes(warc(*pages))
    source = {"kind": "warc", "name": "w", "source_kind": "news", "path": "x.warc.gz"}
    build = build_of(tmp_path, {**source, "max_images_per_page": 5, "max_images_per_host": 7})
    extract.run_partition(build, "w-00000")
    [record] = build.stage("extract").records()
    kept = candidates_of(build.stage("extract").table(record))
    assert [sum(c.page_url == url for c in kept) for url, _ in pages] == [5, 2, 5, 2]
    reasons = [d["reason"] for d in build.stage("extract").table(record, DECISIONS).to_pylist()]
    assert {r: reasons.count(r) for r in reasons} == {"cap_per_page": 16, "cap_per_host": 6, "repeated_on_page": 4}
    assert record.counts["seen"] == 40
