"""common_crawl: of a local copy of Common Crawl's layout, index and WARC files, the pages of one language are read."""

from __future__ import annotations

import contextlib
import gzip
import random
import re
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from pipeline.errors import SourceError
from pipeline.report.unreadable import read_damage
from pipeline.rows.account import Account, Named
from pipeline.rows.decisions import Decision
from pipeline.rows.records import Capture
from pipeline.sources import PageRange
from pipeline.sources._look import Budget, Count
from pipeline.sources.common_crawl import CommonCrawl
from pipeline.stages.extract import STAGE, reduce
from pipeline.web import _warc_ranges
from pipeline.web.frontier import record_of
from pipeline.web.warc import read_ranges
from tests.stages import run_stage

CHINESE = "<html lang=zh><h1>雪后的黄山第{n}景</h1><p>山上的雪还没有化。<img src=/{n}.jpg alt=黄山第{n}峰>"
ENGLISH = "<html lang=en><h1>Snow on the mountain</h1><img src=/{n}.jpg alt=peak>"
LANGUAGES = ("eng", "zho", "eng,zho", "zho,eng", None, "jpn", "deu,eng")
SCHEMA = pa.schema([
    ("url_surtkey", pa.string()), ("url", pa.string()), ("url_host_name", pa.string()), ("fetch_status", pa.int16()),
    ("content_mime_type", pa.string()), ("content_mime_detected", pa.string()), ("content_charset", pa.string()),
    ("content_languages", pa.string()), ("warc_filename", pa.string()), ("warc_record_offset", pa.int32()),
    ("warc_record_length", pa.int32()), ("warc_segment", pa.string()),
])  # fmt: skip
"""Columns of Common Crawl's index by name and type (cc-index-table, cc-index-schema-flat), those of use here."""


@pytest.fixture
def crawl(tmp_path: Path) -> Path:
    """A crawl: 3 WARC files of 40 pages, 2 files of the index with 4 row groups each, one of another subset."""
    rows: list[dict[str, Any]] = []
    for number in range(3):
        name = f"crawl-data/CC-MAIN-2026-30/segments/17.{number}/warc/CC-MAIN-{number:05d}.warc.gz"
        path = tmp_path / name
        path.parent.mkdir(parents=True)
        with path.open("wb") as f:
            for page in range(40):
                n = 40 * number + page
                language = LANGUAGES[n % len(LANGUAGES)]
                html = (CHINESE if "zho" in (language or "") else ENGLISH).format(n=n).encode()
                url, status = f"http://h{n % 5}.test/{n}.html", 404 if n % 13 == 12 else 200
                headers = (("Content-Type", "text/html"),)
                start = f.tell()
                f.write(record_of(Capture(url, status, "2026-07-01T00:00:00Z", "text/html", html, headers)))
                rows.append({
                    "url_surtkey": f"test,h{n % 5})/{n}", "url": url, "url_host_name": f"h{n % 5}.test",
                    "fetch_status": status, "content_mime_type": "text/html",
                    "content_mime_detected": "application/pdf" if n == 1 else "text/html", "content_charset": "UTF-8",
                    "content_languages": language, "warc_filename": name, "warc_record_offset": start,
                    "warc_record_length": f.tell() - start, "warc_segment": f"17.{number}",
                })  # fmt: skip
    rows.sort(key=lambda row: row["url_surtkey"])
    for number in range(2):
        write(tmp_path, rows[60 * number : 60 * number + 60], f"part-{number:05d}.gz.parquet")
    write(tmp_path, rows[:5], "part-00000.gz.parquet", "robotstxt")
    return tmp_path


def write(folder: Path, rows: list[dict[str, Any]], name: str, subset: str = "warc", group: int = 15) -> None:
    path = folder / f"cc-index/table/cc-main/warc/crawl=CC-MAIN-2026-30/subset={subset}" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, SCHEMA), path, row_group_size=group, compression="gzip")


INDEX = "cc-index/table/cc-main/warc/*/*/*.parquet"


def source(folder: Path, **options: Any) -> CommonCrawl:
    given = {"path": INDEX, "prefix": f"{folder}/", **options}
    return CommonCrawl.model_validate({"name": "cc", "source_kind": "news", "base": str(folder), **given})


def expected(first: bool = False, languages: tuple[str, ...] = ("zho",)) -> set[str]:
    """URLs of the pages to be taken, by the rules of the fixture and not by the index."""
    urls = set()
    for n in range(120):
        own = (LANGUAGES[n % len(LANGUAGES)] or "").split(",")
        if set(own[:1] if first else own) & set(languages) and n % 13 != 12 and n != 1:
            urls.add(f"http://h{n % 5}.test/{n}.html")
    return urls


def taken(made: CommonCrawl) -> list[PageRange | Decision]:
    return [place for part in range(made.parts()) for place in made.opened(part, Account())[1]]


@pytest.mark.slow
@pytest.mark.parametrize("rows_per_part", [7, 10_000])
@pytest.mark.parametrize(("first", "languages"), [(False, ("zho",)), (True, ("eng",)), (False, ("jpn", "deu"))])
def test_pages_of_the_language_are_found_however_the_index_is_divided(crawl, rows_per_part, first, languages):
    made = source(crawl, rows_per_part=rows_per_part, first_language=first, languages=languages)
    places = taken(made)
    assert [place for place in places if isinstance(place, Decision)] == []
    assert sorted(place.url for place in places) == sorted(expected(first, languages))
    assert places == taken(made)


def test_what_lies_at_a_place_is_the_page(crawl):
    captures = list(read_ranges(taken(source(crawl)), 1 << 20))
    assert {capture.url for capture in captures} == expected()
    assert all(isinstance(capture, Capture) and "雪后的黄山" in capture.body.decode() for capture in captures)


@pytest.mark.slow
def test_a_build_reads_it_on_any_number_of_parts_alike(crawl, make_build):
    found = []
    for rows in (13, 10_000):
        options = {"path": INDEX, "prefix": f"{crawl}/", "rows_per_part": rows}
        spec = {"kind": "common_crawl", "name": "cc", "source_kind": "news", **options}
        build = make_build(sources=[spec], out=f"build-{rows}")
        build.spec.__dict__["base"] = str(crawl)
        partitions = run_stage(build, "extract")
        stage = build.stage("extract")
        tables = [stage.table(stage.record(partition)) for partition in partitions]
        found.append(sorted((row["page_url"], row["image_url"]) for t in tables for row in t.to_pylist()))
        assert sum(stage.record(partition).counts["pages"] for partition in partitions) == len(expected())
    assert found[0] == found[1]
    assert {page for page, _ in found[0]} == expected()
    assert STAGE.name == "extract"


@pytest.fixture
def ranged() -> Iterator[Callable[[Path], Any]]:
    """A server of a folder that answers requests for ranges; `asked` holds (path, range) of each."""
    servers = []

    def start(root: Path, failures: int = 0) -> Any:
        asked: list[tuple[str, str]] = []
        left = [failures]

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                data, span = (root / self.path[1:]).read_bytes(), self.headers.get("Range", "")
                asked.append((self.path, span))
                if left[0]:
                    left[0] -= 1
                    self.send_response(503)
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                first, last = map(int, re.fullmatch(r"bytes=(\d+)-(\d+)", span).groups()) if span else (0, len(data))
                part = data[first : last + 1]
                self.send_response(206 if span else 200)
                self.send_header("Content-Length", str(len(part)))
                self.send_header("Accept-Ranges", "bytes")
                if span:
                    self.send_header("Content-Range", f"bytes {first}-{first + len(part) - 1}/{len(data)}")
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(part)

            do_HEAD = do_GET

            def log_message(self, format: str, *args: Any) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        servers.append(server)
        threading.Thread(target=lambda: server.serve_forever(poll_interval=0.02), daemon=True).start()
        return f"http://127.0.0.1:{server.server_port}/", asked

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.mark.slow
def test_over_http_one_request_reads_one_record_and_nothing_else(crawl, ranged):
    url, asked = ranged(crawl)
    files = [str(path.relative_to(crawl)) for path in sorted(crawl.glob(INDEX))]
    (crawl / "cc-index-table.paths.gz").write_bytes(gzip.compress("\n".join(files).encode()))
    made = source(crawl, path=(), path_list="cc-index-table.paths.gz", prefix=url)
    places = taken(made)
    assert {place.url for place in places} == expected()
    asked.clear()
    captures = list(read_ranges(places, 1 << 20))
    assert [capture.url for capture in captures] == [place.url for place in places]
    assert sorted(asked) == sorted(
        (place.file.removeprefix(url[:-1]), f"bytes={place.offset}-{place.offset + place.length - 1}")
        for place in places
    )


def test_a_busy_server_is_asked_again_and_a_missing_file_is_named(crawl, ranged, monkeypatch):
    monkeypatch.setattr(_warc_ranges, "PAUSES_S", (0.0, 0.0, 0.0))
    places = taken(source(crawl))
    url, asked = ranged(crawl, failures=2)
    there = [PageRange(p.url, p.file.replace(f"{crawl}/", url), p.offset, p.length) for p in places[:1]]
    assert [capture.url for capture in read_ranges(there, 1 << 20)] == [places[0].url]
    assert len(asked) == 3
    (crawl / "none").mkdir()
    with pytest.raises(SourceError, match=r"none/x\.warc\.gz.*cannot be read"):
        list(read_ranges([PageRange("http://a.test/", str(crawl / "none/x.warc.gz"), 0, 9)], 1 << 20))


@contextlib.contextmanager
def answering(status, body, asked):
    """A server with one answer; the connection is closed behind it."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.headers["Range"])
            self.send_response(status)
            self.end_headers()
            with contextlib.suppress(OSError):
                for part in body:
                    self.wfile.write(part)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        threading.Thread(target=lambda: server.serve_forever(poll_interval=0.02), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/a.warc.gz"
        server.shutdown()


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410])
def test_what_is_forbidden_is_asked_for_once(status):
    asked: list[str] = []
    with answering(status, [], asked) as url, pytest.raises(SourceError, match="cannot be read"):
        list(read_ranges([PageRange("http://a.test/", url, 7, 9)], 1 << 20))
    assert asked == ["bytes=7-15"]


def test_an_answer_without_an_end_costs_what_was_asked_for(crawl):
    place = taken(source(crawl))[0]
    record = Path(place.file).read_bytes()[place.offset : place.offset + place.length]
    sent: list[int] = []

    def endless():
        yield record
        while True:
            sent.append(1 << 20)
            yield bytes(1 << 20)

    with answering(206, endless(), []) as url:
        [capture] = read_ranges([PageRange(place.url, url, place.offset, place.length)], 1 << 20)
    assert capture.url == place.url
    assert sum(sent) < 64 << 20, "what the sockets hold"


def test_a_server_without_ranges_and_a_range_behind_the_end(crawl):
    place = taken(source(crawl))[0]
    with (
        answering(200, [b"the whole file"], []) as url,
        pytest.raises(SourceError, match="does not support range requests"),
    ):
        list(read_ranges([PageRange(place.url, url, 5, 9)], 1 << 20))
    with answering(416, [], []) as url:
        [decision] = read_ranges([PageRange(place.url, url, 1 << 30, 9)], 1 << 20)
    assert decision.reason == "unreadable"


def test_what_is_wrong_with_one_record_is_a_decision(crawl):
    first, second, third, *_ = taken(source(crawl))
    bad = [
        PageRange(first.url, first.file, first.offset + 1, first.length),
        PageRange(second.url, second.file, second.offset, second.length // 2),
        PageRange(third.url, third.file, 1 << 40, 100),
        PageRange(third.url, third.file, third.offset, 2 << 20),
        first,
    ]
    *faults, sound = read_ranges(bad, 1 << 20)
    assert [(fault.url, fault.reason) for fault in faults] == [
        (first.url, "unreadable"),
        (second.url, "unreadable"),
        (third.url, "unreadable"),
        (third.url, "too_large"),
    ]
    assert sound.url == first.url


@pytest.mark.parametrize(
    "change",
    [
        {"warc_filename": "../../etc/passwd"},
        {"warc_filename": "/etc/passwd"},
        {"warc_filename": "file:///etc/passwd"},
        {"warc_filename": None},
        {"warc_filename": "a/%2e%2e/%2e%2e/b.warc.gz"},
        {"warc_filename": "x::/etc/passwd"},
        {"warc_filename": "a\0b"},
        {"warc_record_offset": 1 << 50},
        {"warc_record_offset": -1},
        {"warc_record_length": 0},
        {"warc_record_offset": None},
    ],
)
def test_a_row_that_names_no_place_below_the_prefix_is_a_decision(tmp_path, change):
    row = {
        "url": "http://u:pw@a.test/1", "fetch_status": 200, "content_mime_detected": "text/html",
        "content_languages": "zho", "warc_filename": "a.warc.gz", "warc_record_offset": 0, "warc_record_length": 9,
    }  # fmt: skip
    path = tmp_path / "cc-index/table/cc-main/warc/crawl=x/subset=warc/part-00000.parquet"
    path.parent.mkdir(parents=True)
    schema = SCHEMA.set(SCHEMA.get_field_index("warc_record_offset"), pa.field("warc_record_offset", pa.int64()))
    pq.write_table(pa.Table.from_pylist([row | change], schema), path)
    [decision] = taken(source(tmp_path))
    assert (decision.url, decision.reason, decision.subject) == ("http://a.test/1", "bad_row", "capture")


def test_a_name_that_is_not_utf_8_costs_no_part(tmp_path):
    """Parquet readers do not check what a column says to be text."""
    row = {
        "url": b"http://a.test/\xff", "fetch_status": 200, "content_mime_detected": b"text/html",
        "content_languages": b"zho", "warc_filename": b"a.warc.gz", "warc_record_offset": 0, "warc_record_length": 9,
    }  # fmt: skip
    table = pa.Table.from_pylist([row])
    buffers = table["url"].chunk(0).buffers()
    said_to_be_text = table.set_column(0, "url", pa.StringArray.from_buffers(1, *buffers[1:]))
    for number, written in enumerate((table, said_to_be_text)):
        pq.write_table(written, tmp_path / f"{number}.parquet")
        [place] = taken(source(tmp_path, path=f"{number}.parquet"))
        assert (place.url, place.offset) == ("http://a.test/\ufffd", 0)


def test_rows_that_are_no_page_are_counted(tmp_path):
    base = {
        "url": "http://a.test/", "fetch_status": 200, "content_mime_detected": "text/html", "warc_filename": "a",
        "warc_record_offset": 0, "warc_record_length": 9,
    }  # fmt: skip
    write(tmp_path, [base | {"content_languages": language} for language in ("eng,zho", "jpn")], "part-00000.parquet")
    account = Account()
    assert list(source(tmp_path, first_language=True).opened(0, account)[1]) == []
    records = account["records"]
    assert (records.met, records.named) == (2, {Named.OTHER_PAGE: 2})


@pytest.mark.slow
@pytest.mark.parametrize("rows_per_part", [7, 10_000])
def test_a_damaged_row_group_costs_its_own_rows_and_a_broken_file_nothing_else(crawl, rows_per_part, make_build):
    """What the other row groups and files name is read, and the account adds up to all rows of the footers."""
    first, second = sorted((crawl / INDEX.partition("*")[0]).glob("*/subset=warc/*"))
    group = pq.read_metadata(first).row_group(1)
    column = next(c for c in map(group.column, range(group.num_columns)) if c.path_in_schema == "content_languages")
    start = column.dictionary_page_offset
    data = bytearray(first.read_bytes())
    data[start : start + 40] = b"\xff" * 40
    first.write_bytes(data)
    (second.parent / "part-00002.parquet").write_bytes(second.read_bytes()[:-9])
    (second.parent / "part-00003.parquet").write_bytes(b"")
    (second.parent / "part-00004.parquet").symlink_to(crawl / "gone")
    lost = set(pq.read_table(second.parent / first.name, columns=["url"])["url"].to_pylist()[15:30])
    spec = {"kind": "common_crawl", "name": "cc", "source_kind": "news", "rows_per_part": rows_per_part}
    build = make_build(sources=[{**spec, "path": f"{crawl}/{INDEX}", "prefix": f"{crawl}/"}])
    partitions = run_stage(build, "extract")
    stage = build.stage("extract")
    pages = {row["page_url"] for name in partitions for row in stage.table(stage.record(name)).to_pylist()}
    assert pages == expected() - lost
    account = reduce(build)["cc"]
    assert (account["records"]["met"], account["records"]["unaccounted"]) == (120, 0)
    assert account["records"]["decisions"] >= 15
    assert (account["broken files"]["met"], account["broken files"]["decisions"]) == (3, 3)
    damage = read_damage(build)["cc"]
    assert (damage.input_files, damage.lost_files) == (5, 3)
    assert damage.lost_parts == (3 if rows_per_part == 7 else 1)
    size = sum(group.column(n).total_compressed_size for n in range(group.num_columns))
    assert damage.lost_bytes == pytest.approx(size + second.stat().st_size - 9, abs=2)
    assert damage.input_bytes == first.stat().st_size + 2 * second.stat().st_size - 9
    warnings = "; ".join(source(crawl).look(Budget(seconds=60)).warnings)
    assert "cannot read 3 of 5 files: part-00002.parquet (not a readable" in warnings
    assert "part-00003.parquet (an empty file), part-00004.parquet (a link to a file that does not exist)" in warnings
    assert re.search(r"part-00000\.gz\.parquet: [^;]* with 15 rows cannot be read \(rows 16 to 30: ", warnings)


def test_its_look_counts_pages_and_bytes_and_estimates_a_large_index(crawl):
    look = source(crawl).look(Budget(seconds=60))
    places = taken(source(crawl))
    assert look.counts == (Count("files of the index", 2), Count("pages", len(places)))
    assert (look.bytes, look.pages) == (sum(place.length for place in places), len(expected()))
    about = source(crawl, rows_per_part=15).look(Budget(seconds=0))
    assert about.counts[1].exactness == "about"
    assert 0.3 * len(places) < about.pages < 3 * len(places)
    assert source(crawl, languages=("xxx",)).look(Budget()).warnings


def test_names_that_fail_are_one_line(tmp_path):
    with pytest.raises(ValidationError, match="path or path_list is required"):
        source(tmp_path, path=())
    with pytest.raises(ValidationError, match="Chinese is zho"):
        source(tmp_path, languages=("zh",))
    with pytest.raises(SourceError, match="no file matches"):
        source(tmp_path).parts()
    write(tmp_path, [], "part-00000.parquet", "robotstxt")
    with pytest.raises(SourceError, match="subset=warc"):
        source(tmp_path).parts()
    pq.write_table(pa.table({"url": ["a"]}), tmp_path / "x.parquet")
    with pytest.raises(SourceError, match=r"x\.parquet.*no column 'warc_filename'"):
        source(tmp_path, path="x.parquet").parts()
    (tmp_path / "y.parquet").write_bytes(random.Random(0).randbytes(1000))
    with pytest.raises(SourceError, match=r"y\.parquet.*not a readable Parquet file"):
        source(tmp_path, path="y.parquet").parts()


def test_its_token_follows_the_index(crawl):
    made = source(crawl)
    before = made.token()
    assert before == source(crawl, languages=("jpn",)).token()
    write(crawl, [], "part-00001.gz.parquet")
    assert made.token() != before
