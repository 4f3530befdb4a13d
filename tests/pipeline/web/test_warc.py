"""WARC files that are odd, damaged or hostile: what can be read is read, what cannot is counted, no build ends."""

from __future__ import annotations

import contextlib
import gzip
import io
import random
import re
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from pipeline.errors import SourceError
from pipeline.rows.account import Named, Units
from pipeline.rows.decisions import Decision
from pipeline.rows.records import NO_PLACE, Capture
from pipeline.sources import PageRange
from pipeline.web._warc_members import MAX_HEADERS
from pipeline.web._warc_sound import SoundRun
from pipeline.web.warc import MAX_REREADS, _FileReader, capture_of, copy_without, read_captures, read_ranges

PAGE = "<p>雪后的黄山</p>".encode()


def record(
    url: str = "http://a.test/1", body: bytes = PAGE, status: str = "200 OK", http: str = "", **warc: str
) -> bytes:
    """One response record, not gzipped. `warc`: headers of the record that replace the right ones; "" for none."""
    block = f"HTTP/1.1 {status}\r\nContent-Type: text/html\r\n{http}\r\n".encode() + body
    headers = {"WARC-Type": "response", "WARC-Target-URI": url, "Content-Length": str(len(block))}
    headers |= {name.replace("_", "-"): value for name, value in warc.items()}
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items() if value)
    return b"WARC/1.0\r\n" + lines.encode() + b"\r\n" + block + b"\r\n\r\n"


def holes(entries: list[Capture | Decision]) -> list[int]:
    """Bytes of each part of a file that was passed over."""
    return [entry.lost.bytes for entry in entries if isinstance(entry, Decision) and entry.lost is not None]


def read(path: Path, data: bytes, max_body: int = 100_000) -> tuple[list[Capture | Decision], list[int]]:
    """What is read of a file of these bytes, and `holes` of it."""
    path.write_bytes(data)
    info: dict[str, Any] = {}
    entries = list(read_captures(str(path), max_body, info))
    assert info == {"bytes": len(data)}
    return entries, holes(entries)


def pages(count: int) -> list[bytes]:
    """Gzip members, each with a page that no other has."""
    dice = random.Random(7)
    bodies = (bytes(dice.choices(b"abcdefghijklmnop", k=2_000)) for _ in range(count))
    return [gzip.compress(record(f"http://a.test/{i}", body)) for i, body in enumerate(bodies)]


@pytest.mark.slow
@pytest.mark.parametrize(("encoding", "codec"), [("br", "brotli"), ("zstd", "zstd")])
def test_a_body_in_brotli_or_zstd_is_unpacked_but_not_beyond_the_limit(
    tmp_path: Path, encoding: str, codec: str
) -> None:
    pack = pa.Codec(codec, 1)
    packed, bomb = (pack.compress(data, asbytes=True) for data in (PAGE, b"\0" * (200 << 20)))
    header = f"Content-Encoding: {encoding}\r\n"
    data = record(body=packed, http=header)
    chunks = f"{len(packed):x}\r\n".encode() + packed + b"\r\n0\r\n\r\n"
    data += record(body=chunks, http=header + "Transfer-Encoding: chunked\r\n")
    data += record("http://a.test/bomb", body=bomb, http=header)
    data += record("http://a.test/cut", body=packed[:-3], http=header)
    data += record("http://a.test/bad", body=b"\xff" * 90, http=header)
    tracemalloc.start()
    (one, two, large, cut, bad), info = read(tmp_path / "x.warc", data)
    assert tracemalloc.get_traced_memory()[1] < 20 << 20
    tracemalloc.stop()
    assert isinstance(one, Capture)
    assert isinstance(two, Capture)
    assert (one.body, two.body) == (PAGE, PAGE)
    assert dict(one.headers)["Content-Encoding"] == encoding
    assert isinstance(large, Decision)
    assert (large.reason, large.url) == ("too_large", "http://a.test/bomb")
    assert all(isinstance(damaged, Capture) for damaged in (cut, bad))
    assert info == []


@pytest.mark.parametrize("status", ["²00", "٢٠٠", "-1", "9" * 5000, "", "OK"])
def test_a_status_that_is_no_number_is_none(tmp_path: Path, status: str) -> None:
    (capture, after), info = read(tmp_path / "x.warc", record(status=status) + record("http://a.test/2"))
    assert isinstance(capture, Capture)
    assert isinstance(after, Capture)
    assert (capture.status, after.status, info) == (0, 200, [])


@pytest.mark.slow
@pytest.mark.parametrize(
    "bad",
    [
        b"WARC/1.0\nWARC-Type:response",
        record(Content_Length="9" * 30),
        record(Content_Length="9" * 5000),
        record(Content_Length=""),
        record(Content_Length="²"),
        record(Content_Length="-4"),
        record(WARC_Target_URI=""),
        record(http="X: " + "a" * (30 << 20) + "\r\n"),
        record(http="X: a\r\n" * 200_000),
        b"WARC/1.0\r\nX: " + b"a" * (30 << 20),
        b"\xff" * 300,
        b"",
    ],
    ids=lambda data: data[:60].decode("latin-1"),
)
def test_a_record_that_cannot_be_read_costs_itself_only(tmp_path: Path, bad: bytes) -> None:
    first, last = pages(2)
    tracemalloc.start()
    captures, _ = read(tmp_path / "x.warc.gz", first + gzip.compress(bad, 1) + last)
    assert tracemalloc.get_traced_memory()[1] < len(gzip.compress(bad, 1)) + (20 << 20)
    tracemalloc.stop()
    unreadable = [entry for entry in captures if isinstance(entry, Decision)]
    urls = [capture.url for capture in captures if capture not in unreadable]
    assert [urls[0], urls[-1]] == ["http://a.test/0", "http://a.test/1"]
    assert [decision.reason for decision in unreadable] in ([], ["unreadable"])
    assert len(unreadable) == (1 if bad and len(urls) == 2 else 0)


@pytest.mark.parametrize(
    "bad", [b"WARC/1.0\nWARC-Type:response", b"WARC/1.0\r\nX: " + b"a" * (3 << 20), b"\n" * 50, b""]
)
@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_a_file_of_nothing_else_is_no_warc_in_one_line(tmp_path: Path, bad: bytes, pack: Any) -> None:
    with pytest.raises(SourceError, match=r"x\.warc: not a WARC file \([^\n]+\)$"):
        read(tmp_path / "x.warc", pack(bad))


def test_an_empty_crawl_is_no_fault(tmp_path: Path) -> None:
    for data in (b"", gzip.compress(b"")):
        (tmp_path / "x.warc.gz").write_bytes(data)
        assert list(read_captures(str(tmp_path / "x.warc.gz"), 1000, {}, must_hold=False)) == []


def test_a_warc_gzipped_as_a_whole_is_read(tmp_path: Path) -> None:
    whole = b"".join(record(f"http://a.test/{i}") for i in range(300))
    plain, info = read(tmp_path / "x.warc", whole)
    assert (len(plain), info) == (300, [])
    packed, info = read(tmp_path / "x.warc.gz", gzip.compress(whole))
    assert (list(map(without_place, packed)), info) == (list(map(without_place, plain)), [])


@pytest.mark.slow
def test_fifty_flipped_bytes_cost_at_most_the_records_they_hit(tmp_path: Path) -> None:
    """Read by warcio alone, a file of 1,421 pages with 50 flipped bytes lost 844 of them."""
    members, dice = pages(1_421), random.Random(3)
    data = bytearray(b"".join(members))
    for at in dice.sample(range(len(data)), 50):
        data[at] ^= 0xFF
    captures, _ = read(tmp_path / "x.warc.gz", bytes(data))
    urls = [capture.url for capture in captures if isinstance(capture, Capture)]
    assert len(urls) >= 1_421 - 50
    assert len(set(urls)) == len(urls)
    assert 0 < len(holes(captures)) <= 50
    assert sum(holes(captures)) <= 50 * 2 * max(map(len, members))


def test_what_was_passed_over_is_a_decision_with_its_weight(tmp_path: Path) -> None:
    a, b, c, d = pages(4)
    entries, lost_bytes = read(tmp_path / "x.warc.gz", a + b[:300] + c + d[:-20])
    first, lost, third, cut = entries
    assert (first.url, third.url) == ("http://a.test/0", "http://a.test/2")
    assert isinstance(lost, Decision)
    assert (lost.subject, lost.url, lost.reason) == ("capture", "", "unreadable")
    assert lost.evidence.startswith(f"x.warc.gz: 300 bytes from byte {len(a):,} on cannot be read (")
    assert isinstance(cut, Decision)
    assert (cut.url, cut.evidence) == ("http://a.test/3", "EOFError: the last record is truncated")
    assert lost_bytes == [300, len(d) - 20]


def test_zeros_between_members_are_passed_over(tmp_path: Path) -> None:
    a, b = pages(2)
    entries, _ = read(tmp_path / "x.warc.gz", a + b"\0" * (3 << 20) + b)
    assert [isinstance(entry, Capture) for entry in entries] == [True, False, True]
    assert holes(entries) == [3 << 20]


RUBBISH = st.sampled_from(
    [b"\0" * 700, b"rubbish\r\n" * 90, b"\xff" * 3, b"WARC/9\r\n", b"<p>\r\n\r\n\r\nWARC/1.0 is a format"]
)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.none() | RUBBISH, min_size=2, max_size=9))
def test_rubbish_in_a_plain_file_costs_no_record(tmp_path: Path, between: list[bytes | None]) -> None:
    parts = [(record(f"http://a.test/{n}"), rubbish or b"") for n, rubbish in enumerate(between)]
    data = record("http://a.test/first") + b"".join(rubbish + whole for whole, rubbish in parts)
    entries, _ = read(tmp_path / "x.warc", data)
    captures = [entry for entry in entries if isinstance(entry, Capture)]
    assert [c.url for c in captures] == ["http://a.test/first", *(f"http://a.test/{n}" for n in range(len(between)))]
    assert [data[c.place[0] : sum(c.place)] for c in captures] == [record(c.url).rstrip(b"\r\n") for c in captures]
    assert len(holes(entries)) <= sum(rubbish is not None for rubbish in between)


HOLE = re.compile(r"x\.warc: ([\d,]+) bytes from byte ([\d,]+) on")
FILLS = {"zeros": lambda n, _: bytes(n), "newlines": lambda n, _: b"\n" * n, "noise": lambda n, dice: dice.randbytes(n)}


@pytest.mark.slow
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    fill=st.sampled_from([*FILLS]), first=st.integers(0, 16_000), size=st.integers(100, 9_000), dice=st.randoms(),
    in_order=st.booleans(),
)  # fmt: skip
def test_what_was_overwritten_in_a_plain_file_is_read_or_lies_in_a_hole(
    tmp_path: Path, fill: str, first: int, size: int, dice: random.Random, in_order: bool
) -> None:
    """Zeros over 84 of 400 pages were passed over without a word: as one line too many behind a record."""
    length = {} if in_order else {"WARC_Type": "response", "WARC_Date": "2026-01-01T00:00:00Z"}
    whole = [record(f"http://a.test/{n}", PAGE * (n % 7 + 3) + b"\n", **length) for n in range(60)]
    data, starts = bytearray(b"".join(whole)), [sum(map(len, whole[:n])) for n in range(60)]
    first = starts[1] + first % (len(data) - starts[1] - 100)
    size = min(size, len(data) - first)
    data[first : first + size] = FILLS[fill](size, dice)
    account = Units()
    (tmp_path / "x.warc").write_bytes(data)
    entries = list(read_captures(str(tmp_path / "x.warc"), 100_000, {}, account))
    read_at = {entry.place[0] for entry in entries if isinstance(entry, Capture)}
    spans = [(int(found[2].replace(",", "")), int(found[1].replace(",", ""))) for entry in entries
             if isinstance(entry, Decision) and (found := HOLE.match(entry.evidence))]  # fmt: skip
    assert holes(entries) == [length for _, length in spans]
    missing = 0
    for start, page in zip(starts, whole, strict=True):
        end = start + len(page) - 4
        missing += start not in read_at and not any(at < end and start < at + length for at, length in spans)
        assert start in read_at or (start < first + size and first < end + 4), "it is sound"
    assert missing <= account.unaccounted - len(entries) <= 1, "a record whose type or URL was overwritten"
    covered = sum(max(0, min(at + length, first + size) - max(at, first)) for at, length in spans)
    assert covered >= size - 2 * max(map(len, whole))


@pytest.mark.parametrize("behind", [b"abc", b"abc\r\n\r\n", b"abc\r\n\r\n" + record("http://a.test/2")])
def test_a_few_bytes_too_many_behind_a_record_cost_nothing(tmp_path: Path, behind: bytes) -> None:
    entries, lost = read(tmp_path / "x.warc", record().removesuffix(b"\r\n\r\n") + behind)
    assert [entry.url for entry in entries] == ["http://a.test/1", "http://a.test/2"][: 1 + (len(behind) > 20)]
    assert lost == []


def test_a_record_that_ends_within_the_last_line_of_another_one_is_a_hole(tmp_path: Path) -> None:
    good = [record(f"http://a.test/{n}", body=b"<p>" + b"x" * 500) for n in range(6)]
    own = re.search(rb"Content-Length: (\d+)", good[1])
    assert own is not None
    wrong = good[1].replace(own[0], b"Content-Length: %d" % (int(own[1]) + 2 * len(good[2]) - 12), 1)
    entries, lost = read(tmp_path / "x.warc", b"".join([good[0], wrong, *good[2:]]))
    assert [entry.url for entry in entries if isinstance(entry, Capture)] == [
        f"http://a.test/{n}" for n in (0, 2, 3, 4, 5)
    ]
    assert lost == [len(wrong)]


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
@pytest.mark.parametrize(
    ("kind", "url", "name"),
    [
        ("request", "http://a.test/", Named.OTHER_RECORD),
        ("metadata", "http://a.test/", Named.OTHER_RECORD),
        ("warcinfo", "", Named.OTHER_RECORD),
        ("arc_header", "filedesc://a.arc", Named.OTHER_RECORD),
        ("conversion", "http://a.test/", Named.CONVERSION),
        ("resource", "urn:pageinfo:1", Named.OFF_WEB),
        ("resource", "file:///srv/1.html", ""),
        ("continuation", "http://a.test/", ""),
        ("snapshot", "http://a.test/", ""),
    ],
)
def test_a_record_that_is_no_capture_has_the_name_of_its_type_or_is_unaccounted(
    tmp_path: Path, kind: str, url: str, name: str, pack: Any
) -> None:
    (tmp_path / "x.warc").write_bytes(pack(record(url, WARC_Type=kind)) * 3 + pack(record()))
    account = Units()
    [page] = read_captures(str(tmp_path / "x.warc"), 1_000, {}, account)
    account.decisions += 1  # of the page
    assert page.url == "http://a.test/1"
    assert (account.met, account.unaccounted, dict(account.named)) == (4, 0 if name else 3, {name: 3} if name else {})
    assert account.examples == ([] if name else [f"x.warc: records of type {kind} (3)"])


@pytest.mark.parametrize("length", [b"9", b"5000", b"90000000"])
def test_a_record_that_says_another_length_swallows_no_other(tmp_path: Path, length: bytes) -> None:
    good = [record(f"http://a.test/{n}", body=b"<p>" + b"line\r\n" * 60) for n in range(40)]
    own = re.search(rb"Content-Length: (\d+)", good[3])
    assert own is not None
    wrong = good[3].replace(own[0], b"Content-Length: " + length, 1)
    entries, _ = read(tmp_path / "x.warc", b"".join([*good[:3], wrong, *good[4:]]))
    urls = [entry.url for entry in entries if isinstance(entry, Capture)]
    assert urls == [f"http://a.test/{n}" for n in range(40) if n != 3]
    assert holes(entries) == [len(wrong)]


def test_records_that_all_say_to_be_longer_are_not_each_read_to_the_end(tmp_path: Path) -> None:
    whole = [record(f"http://a.test/{n}", b"x" * 5_000) for n in range(1_000)]
    longer = [re.sub(rb"Content-Length: \d+", b"Content-Length: 90000000", one, count=1) for one in whole[1:]]
    longer.insert(0, whole[0])
    (tmp_path / "x.warc").write_bytes(b"".join(longer))
    taken = 0

    class Counted(io.FileIO):
        def read(self, size: int = -1) -> bytes:
            nonlocal taken
            data = super().read(size)
            taken += len(data or b"")
            return data or b""

    with Counted(tmp_path / "x.warc") as f:
        list(_FileReader("x.warc", f, 1 << 20).entries())
    assert taken < (MAX_REREADS + 2) * sum(map(len, longer)) + (9 << 20)


_PARTS = st.sampled_from(
    [
        *pages(2),
        record(),
        b"WARC/1.0\r\n",
        b"\r\n",
        b"\x1f\x8b\x08",
        b"Content-Length: 9\r\n",
        b"filedesc://x 1 1 1 1\n",
    ]
)
_FILES = st.binary(max_size=300) | st.lists(_PARTS | st.binary(max_size=20), max_size=8).map(b"".join)


@pytest.mark.slow
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(_FILES | _FILES.map(gzip.compress) | _FILES.map(lambda data: gzip.compress(data)[:-9]))
@example(b"WARC/1.0\nWARC-Type:response")
@example(record(http="Transfer-Encoding: chunked\r\n", body=b"ffffffff\r\nx"))
def test_any_bytes_are_captures_or_a_source_error(tmp_path: Path, data: bytes) -> None:
    with contextlib.suppress(SourceError):
        read(tmp_path / "x.warc.gz", data)
    assert capture_of(data, 1000) is None or isinstance(capture_of(data, 1000), Capture)


class _NotSeekable(io.BytesIO):
    """A file that fastwarc is not asked to read."""

    def seekable(self) -> bool:
        return False


class _Stream(io.BytesIO):
    """A file of a web server without ranges, as fsspec opens it: it says that it is seekable and is not."""

    def seek(self, offset: int, whence: int = 0) -> int:
        raise ValueError("Cannot seek streaming HTTP file")


def test_a_stream_of_a_web_server_without_ranges_is_read_to_its_end() -> None:
    captures = list(_FileReader("x", _Stream(b"".join(pages(50))), 100_000).entries())
    assert [capture.url for capture in captures] == [f"http://a.test/{i}" for i in range(50)]


def by_warcio(data: bytes, max_body: int) -> tuple[list[Any], int]:
    """(entries, records) of the reader that nothing confuses, alone; of what is no WARC file its message."""
    captures: list[Any] = []
    reading = _FileReader("x", _NotSeekable(data), max_body)
    try:
        if not reading._members.is_gzip:
            return by_both(data, max_body)
        # it goes back for damages, as a file that can be read anywhere
        captures += reading._by_members(None)
    except SourceError as e:
        captures.append(str(e))
    return captures, reading.records


def by_both(data: bytes, max_body: int) -> tuple[list[Any], int]:
    """The same of fastwarc and the other reader together."""
    captures: list[Any] = []
    reading = _FileReader("x", io.BytesIO(data), max_body)
    try:
        captures += reading.entries()
    except SourceError as e:
        captures.append(str(e))
    return captures, reading.records


def without_place(entry: Any) -> Any:
    """A capture as it is wherever it lies: of a member with several records both readers disagree on the first one."""
    return replace(entry, place=NO_PLACE) if isinstance(entry, Capture) else entry


def flipped(data: bytes, at: int, by: int) -> bytes:
    return data[:at] + bytes((data[at] ^ by,)) + data[at + 1 :]


_HEADERS = st.sampled_from(
    [
        "", "X: 1\r\n", "X-Empty:\r\n", "Content-Encoding: gzip\r\n", "Transfer-Encoding: chunked\r\n", "NoColon\r\n",
        "A: b\r\n folded\r\n", " lead: x\r\n", "Café: 中\r\n", "Content-Type: text/plain\r\n", "X: 1\n", ": x\r\n",
        "Content-Encoding: br\r\n", "X:  a  \r\n", "A\tb: c\r\n", "X: " + "a" * 300 + "\r\n",
    ]
)  # fmt: skip
_WARC_HEADERS = st.sampled_from(
    [
        {}, {}, {}, {"WARC_Type": "request"}, {"WARC_Type": "metadata"}, {"WARC_Type": "Response"},
        {"WARC_Type": "revisit"}, {"WARC_Type": "revisit", "WARC_Refers_To_Date": "2026-01-01T00:00:00Z"},
        {"WARC_Type": "revisit", "WARC_Refers_To_Target_URI": "<http://b.test/>"},
        {"WARC_Type": "revisit", "WARC_Refers_To_Target_URI": "http://b.test/中é"},
        {"WARC_Type": "revisit", "WARC_Refers_To_Target_URI": "http://b.test/\r\n folded"},
        {"WARC_Payload_Digest": "sha1:X"},
        {"WARC_Type": "resource"}, {"WARC_Type": "resource", "Content_Type": "image/png"},
        {"WARC_Type": "resource", "WARC_Target_URI": "urn:x:1"}, {"WARC_Target_URI": "<http://a.test/1>"},
        {"WARC_Target_URI": "dns:a.test"},
        {"WARC_Target_URI": "http://a.test/ b"}, {"WARC_Target_URI": ""}, {"WARC_Target_URI": "http://a.test/中"},
        {"WARC_Target_URI": "http://a.test/\r\n folded"}, {"Content_Length": "9"}, {"Content_Length": "9999"},
        {"Content_Length": "-1"}, {"Content_Length": "x"}, {"Content_Length": ""}, {"Content_Length": "0"},
        {"WARC_Date": "2026-01-01T00:00:00Z"}, {"WARC_Date": "a\r\nContent-Length: 5"}, {"X_Y": "\r\n z"},
    ]
)  # fmt: skip
_BODIES = st.sampled_from([PAGE, b"", b"x" * 3_000, gzip.compress(PAGE), b"3\r\nabc\r\n0\r\n\r\n"])
_RECORDS = st.builds(
    lambda url, body, http, warc, end: record(f"http://a.test/{url}", body, http=http, **warc)[:-4] + end,
    st.integers(0, 9), _BODIES, _HEADERS, _WARC_HEADERS,
    st.sampled_from([b"\r\n\r\n", b"\r\n\r\n", b"", b"\n", b"\r\n" * 4]),
)  # fmt: skip
_MEMBERS = st.one_of(
    _RECORDS.map(gzip.compress),
    _RECORDS.map(gzip.compress),
    _RECORDS.map(gzip.compress),
    st.lists(_RECORDS, min_size=2, max_size=3).map(lambda records: gzip.compress(b"".join(records))),
    st.builds(
        lambda member, at, by: flipped(member, at % len(member), by),
        _RECORDS.map(gzip.compress),
        st.integers(0, 10_000),
        st.integers(1, 255),
    ),
    st.tuples(_RECORDS.map(gzip.compress), st.integers(1, 90)).map(lambda of: of[0][: -of[1]]),
    st.sampled_from([b"\0" * 50, b"junk", gzip.compress(b""), gzip.compress(b"no record"), b"\x1f\x8b\x08"]),
)


@pytest.mark.slow
@settings(max_examples=80, deadline=None)
@given(st.lists(_MEMBERS, min_size=1, max_size=7).map(b"".join))
@example(gzip.compress(record(body=b"x" * 3_000)) * 2)
@example(gzip.compress(record(WARC_Type="revisit", WARC_Refers_To_Target_URI="http://b.test/é\r\n \u0085中")) * 2)
@example(gzip.compress(record(WARC_Type="revisit", WARC_Refers_To_Date="a\x0bb\x1cc")) * 2)
@example(gzip.compress(record(http=f"X: {'a' * 70_000}\r\n")) * 2)
@example(gzip.compress(record() + record("http://a.test/2")) + gzip.compress(record("http://a.test/3")))
def test_fastwarc_changes_nothing_of_what_warcio_reads(data: bytes) -> None:
    captures, *rest = by_both(data, 2_000)
    expected, *others = by_warcio(data, 2_000)
    assert (list(map(without_place, captures)), rest) == (list(map(without_place, expected)), others)
    placed = [own for own in captures if isinstance(own, Capture) and own.place != NO_PLACE]
    for own in placed:
        start, length = own.place
        assert without_place(capture_of(data[start : start + length], 2_000)) == without_place(own)


@pytest.mark.parametrize(
    ("warc", "captures_of"),
    [
        ({}, 50),
        ({"WARC_Target_URI": "<http://a.test/1>"}, 50),
        ({"WARC_Type": "revisit"}, 50),
        ({"WARC_Type": "resource", "WARC_Target_URI": "urn:pageinfo:1"}, 0),
    ],
)
def test_a_sound_file_is_read_by_fastwarc(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, warc: dict[str, str], captures_of: int
) -> None:
    runs: list[int] = []
    read_run = SoundRun.captures

    def counted(run: SoundRun) -> Any:
        yield from read_run(run)
        runs.append(run.records)

    monkeypatch.setattr(SoundRun, "captures", counted)
    captures, info = read(tmp_path / "x.warc.gz", gzip.compress(record(**warc)) * 50)
    assert (len(captures), info) == (captures_of, [])
    assert runs == [49, 0], "the last record is the other reader's"


def test_a_revisit_is_no_page_of_a_range(tmp_path: Path) -> None:
    member = gzip.compress(record(WARC_Type="revisit"))
    (tmp_path / "x.warc.gz").write_bytes(member)
    [found] = read_ranges([PageRange("http://a.test/1", str(tmp_path / "x.warc.gz"), 0, len(member))], 1_000)
    assert isinstance(found, Decision)
    assert (found.reason, found.evidence) == ("unreadable", "x.warc.gz at 0: no response")


@pytest.mark.slow
def test_headers_are_bounded_but_lines_of_a_chunked_body_are_not(tmp_path: Path) -> None:
    body = b"".join(b"1\r\na\r\n" for _ in range(MAX_HEADERS // 3)) + b"0\r\n\r\n"
    [capture], info = read(tmp_path / "x.warc", record(body=body, http="Transfer-Encoding: chunked\r\n"), 1 << 20)
    assert isinstance(capture, Capture)
    assert (len(capture.body), info) == (MAX_HEADERS // 3, [])
    assert capture_of(io.BytesIO(gzip.compress(record())).read(), 1000) is not None


@pytest.mark.parametrize("behind", [b"", b"\r\n", b"WARC/1.0\r\n" + bytes(1 << 20)])
def test_a_page_that_is_read_alone_is_checked_up_to_its_checksum(tmp_path: Path, behind: bytes) -> None:
    sound = gzip.compress(record(body=bytes(200_000)) + behind)
    damaged = bytearray(sound)
    damaged[-8] ^= 1  # of the checksum
    for member, is_sound in ((sound, len(behind) < 1 << 20), (bytes(damaged), False)):
        (tmp_path / "x.warc.gz").write_bytes(member)
        place = PageRange("http://a.test/1", str(tmp_path / "x.warc.gz"), 0, len(member))
        [found] = read_ranges([place], 1 << 20)
        assert isinstance(found, Capture) == is_sound
        assert (capture_of(member, 1 << 20) is not None) == is_sound


def test_the_password_of_a_page_is_not_kept(tmp_path: Path) -> None:
    [capture], _ = read(tmp_path / "x.warc", record("http://user:pa55@a.test/1"))
    assert isinstance(capture, Capture)
    assert capture.url == "http://a.test/1"


def test_pages_leave_a_warc_and_the_others_stay_byte_for_byte(tmp_path: Path) -> None:
    from warcio.archiveiterator import ArchiveIterator
    from warcio.statusandheaders import StatusAndHeaders
    from warcio.warcwriter import WARCWriter

    source, target = tmp_path / "a.warc.gz", tmp_path / "b.warc.gz"
    with source.open("wb") as f:
        writer = WARCWriter(f, gzip=True)
        writer.write_record(writer.create_warcinfo_record("a.warc.gz", {"software": "test"}))
        for i in range(4):
            with io.BytesIO(f"page {i}".encode()) as body:
                headers = StatusAndHeaders("200 OK", [], protocol="HTTP/1.1")
                record = writer.create_warc_record(
                    f"https://a.example/{i}", "response", payload=body, length=6, http_headers=headers
                )
                writer.write_record(record)
    moved = copy_without(source, target, lambda url: url.endswith("/1"))
    assert moved is not None
    with target.open("rb") as f:
        records = ArchiveIterator(f)
        urls = {}
        for record in records:
            urls[record.rec_headers.get_header("WARC-Target-URI")] = record.content_stream().read()
    assert urls == {None: urls[None], **{f"https://a.example/{i}": f"page {i}".encode() for i in (0, 2, 3)}}
    data = target.read_bytes()
    for old, new in moved.items():
        assert gzip.decompress(data[new:])[:40] == gzip.decompress(source.read_bytes()[int(old) :])[:40]
    assert copy_without(source, target, lambda url: False) is None
