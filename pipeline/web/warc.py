"""Reads captures from WARC files, bounded in memory (ISO 28500; readers of records: fastwarc and warcio).

Captures are `response` records, `resource` records of a web address, which count as a response of status 200, and
`revisit` records, which lack a body and name the capture that has it. A body is read up to a limit, after chunked,
gzip, deflate, Brotli and zstd encodings are undone, so that a small record that unpacks to gigabytes costs no more than
the limit. Headers are bounded too.

A sound gzipped file is read by fastwarc (`_warc_sound`), which takes a third of the time. A member that fastwarc
refuses, and a record that is not plain (encodings, odd headers, a body above the limit), are read by warcio
(`_warc_members`): a record that cannot be read costs its member, or in a file that is not gzipped what lies before the
next record, and reading goes on there. Each such place is a Decision with its weight.

Each capture has the place of its record, by which `capture_of` reads it again.

Limits: a file that cannot be read from any position ends at its first damage; a file gzipped as a whole has no places.
"""

from __future__ import annotations

import io
import re
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from pipeline.errors import OURS, BrokenFile, SourceError, evidence
from pipeline.files import wacz
from pipeline.files.damage import Hole, size_of
from pipeline.files.inputs import faults, no_damage, reason, writable
from pipeline.rows.account import Named, Units
from pipeline.rows.decisions import Decision, DropReason, drop_capture
from pipeline.rows.records import NO_PLACE, Capture
from pipeline.sources import PageRange, unreadable_part
from pipeline.urls import without_userinfo
from pipeline.web import policy
from pipeline.web._warc_members import BLOCK, MAX_BETWEEN, Members, records
from pipeline.web._warc_ranges import fetch_ranges
from pipeline.web._warc_sound import CAPTURES, SoundRun, other_record
from pipeline.web.bodies import Undecodable, unpacked

T = TypeVar("T")


def read_captures(
    url: str, max_body: int, info: dict[str, Any] | None = None, account: Units | None = None, must_hold: bool = True
) -> Iterator[Capture | Decision]:
    """The captures of one WARC file in its order; for a page above `max_body` bytes a Decision (without a source).

    url: a path or URL, or an address within a WACZ file (`pipeline.files.wacz`). Of what is not a page, a body is cut
    behind `max_body` bytes; the place of a capture is that in `wacz.file_of(url)`.

    A record on which a parser fails is a Decision with its URL; a part of the file without a record that can be read,
    its cut end among them, is one without a URL and with its weight. The size of the file is added to `info["bytes"]`.
    account: gets the records that were read and the damaged parts; those that are not captures by `other_record`.
    Raises BrokenFile for one that is not a WARC file or (with `must_hold`) without a single record, SourceError for one
    that is missing.
    """
    others = Counter[str]()
    try:
        with wacz.opened(url) as (f, start):
            reader = _FileReader(url, f, max_body)
            try:
                for entry in reader.entries():
                    if isinstance(entry, str):
                        others[entry] += 1
                    else:
                        yield _shift_place(entry, start) if start and isinstance(entry, Capture) else entry
            finally:
                if info is not None:
                    info["bytes"] = info.get("bytes", 0) + reader.size
    except faults() as e:
        raise SourceError(url, f"cannot be read ({reason(e)})") from None
    if account is not None:
        account.met += reader.records + reader.holes
        for kind, count in others.items():
            if isinstance(kind, Named):
                account.named[kind] += count
            else:
                account.miss(f"{_file_name(url)}: records of type {writable(kind)[:40] or 'none'} ({count:,})")
    if not reader.records and must_hold:
        raise BrokenFile(url, "not a WARC file (it contains no records)")


def _shift_place(capture: Capture, by: int) -> Capture:
    """The capture with its place in the file that holds the WARC file."""
    offset, length = capture.place
    return replace(capture, place=(offset + by, length)) if capture.place != NO_PLACE else capture


MAX_REREADS = 4
"""How often a damaged file may be read again as a whole."""


class _FileReader:
    """One file while it is read: by fastwarc as long as it is sound, by `_warc_members` where it is not.

    fastwarc raises at the first damage and holds nothing back, so whatever it met stands in front of the place where
    the other reader goes on. That one reads the next member with a record, and hands the file back.
    """

    def __init__(self, url: str, file: BinaryIO, max_body: int) -> None:
        self._url, self._file, self._max_body = url, file, max_body
        self._members = Members(file)
        self._budget = MAX_REREADS * size_of(file) + (8 << 20)  # bytes that may be read again after damages
        self.records = self.holes = 0

    @property
    def size(self) -> int:
        """Bytes of the file, of a stream those that were read."""
        return size_of(self._file, self._members.file_position)

    def entries(self) -> Iterator[Capture | Decision | str]:
        """One entry for each record and hole: see `read_captures`; for what is not a capture its `other_record`."""
        if not self._members.is_gzip or not _can_be_read_again(self._file):
            yield from self._by_members(None)
            return
        start: int | None = 0
        while start is not None:
            run = SoundRun(self._file, start, self._max_body, self._by_warcio)
            yield from run.captures()
            self.records += run.records
            self._members.go_to(run.start)
            start = yield from self._by_members(run)

    def _by_warcio(self, record: bytes) -> Capture | Decision | str:
        members = Members(io.BytesIO(record))
        members.next()
        return _entry(next(records(members)), self._max_body)

    def _by_members(self, run: SoundRun | None) -> Generator[Capture | Decision | str, None, int | None]:
        """Entries of the next members, without the first `run.to_skip` records; those of all members without a run.

        Returns where the member begins that is read next, None at the end of the file.
        """
        members, to_skip = self._members, run.to_skip if run is not None else 0
        new = 0
        while (run is None or not new) and members.next():
            pending: Capture | Decision | str | None = None  # the last one, until its place and end are known
            record_at, is_read = -1, False  # where that record begins; whether it was read to its end
            try:
                for record in records(members):
                    if pending is not None:
                        yield pending
                        pending = None
                    if to_skip:
                        to_skip -= 1
                        _read_to_end(record)
                        continue
                    record_at, is_read = members.record_at, False
                    pending = _entry(record, self._max_body)
                    if isinstance(pending, Decision):
                        _read_to_end(record)  # raises where not a parser but the record is at fault
                    elif isinstance(pending, Capture) and not members.is_gzip:
                        pending = replace(pending, place=(record_at, members.tell() - record_at))
                    self.records, new, is_read = self.records + 1, new + 1, True
                if (
                    isinstance(pending, Capture) and members.is_gzip and members.record_count == 1
                ):  # of one record: it has a place
                    pending = replace(pending, place=(members.start, members.next_start - members.start))
                if pending is not None:
                    yield pending
            except no_damage(*OURS):
                raise
            except Exception as e:
                start = members.damaged_at
                if is_read and not members.is_gzip and self._is_doubtful(record_at, start):
                    if self._resume_behind(record_at, start):
                        yield from () if pending is None else (pending,)
                        continue
                    start, pending, self.records = record_at, None, self.records - 1
                if is_read and pending is not None:  # whole by itself; its member is not
                    yield pending
                    pending = None
                hole = self._skip_damage(start, reason(e))
                yield replace(pending, lost=hole.lost) if isinstance(pending, Decision) else hole
                if not self._recovered:
                    return None
        return members.next_start if new and run is not None else None

    def _is_doubtful(self, record_at: int, start: int) -> bool:
        """True if the record at `record_at` may have another length than it says, since no line end is at its end."""
        if record_at < 0 or self._members.is_behind_record or record_at == start or start - record_at > self._budget:
            return False
        self._budget -= start - record_at
        return True

    def _resume_behind(self, record_at: int, end: int) -> bool:
        """Go on behind the record at `record_at`, if it swallowed no other and has only a few bytes too many behind."""
        following = self._members.recover(record_at)
        if following < 0:
            self._members.go_to(self.size)
        return 0 <= (following if following >= 0 else self.size) - end <= MAX_BETWEEN

    def _skip_damage(self, start: int, why: str) -> Decision:
        """Go on behind a damage at `start`; the Decision about it. Raises BrokenFile for what is not a WARC file.

        A file in which each record says to be as long as what is left is not read to its end.
        """
        self._budget -= max(min(BLOCK, self.size - start), self._members.tell() - self._members.record_at)
        following = self._members.recover(start) if self._budget >= 0 else -1
        self._recovered = following >= 0
        if not self._recovered and not self.records:
            raise BrokenFile(self._url, f"not a WARC file ({why})") from None
        stop = following if self._recovered else self.size
        self.holes += 1
        return unreadable_part(_file_name(self._url), Hole(start, max(0, stop - start), why))


def _file_name(url: str) -> str:
    """The name of a file, as people may see it."""
    return writable(without_userinfo(url)).rpartition("/")[2]


def _can_be_read_again(file: BinaryIO) -> bool:
    """True if reading can go back. A stream of a web server without ranges says that it can, and fails to."""
    try:
        if file.seekable():
            file.seek(0)
            return True
    except (OSError, ValueError, NotImplementedError):
        pass
    return False


def read_ranges(ranges: Iterable[PageRange | Decision], max_body: int) -> Iterator[Capture | Decision]:
    """The captures that lie at some places of WARC files, in their order; a Decision for each place without one.

    What is a Decision already is passed on. A record that is larger than `max_body`, packed, is not read. Raises
    SourceError for a file that is missing or cannot be read.
    """
    sized = (_too_large(r.url, max_body) if isinstance(r, PageRange) and r.length > max_body else r for r in ranges)
    requests = ((r, (r.file, r.offset, r.length) if isinstance(r, PageRange) else None) for r in sized)
    for item, member in fetch_ranges(requests):
        yield item if isinstance(item, Decision) else _capture_at(item, member, max_body)


def read_records(places: Iterable[tuple[T, tuple[str, int, int]]], max_body: int) -> Iterator[tuple[T, Capture | None]]:
    """Each item with the capture at its place (file, offset, length), as `capture_of` reads it. Raises SourceError."""
    for item, member in fetch_ranges(places):
        yield item, capture_of(member, max_body)


def _capture_at(place: PageRange, member: bytes, max_body: int) -> Capture | Decision:
    """The capture in the bytes of a range; a Decision if there is none."""
    where = f"{place.file.rpartition('/')[2]} at {place.offset}"
    try:
        capture = _first_capture(member, max_body, with_revisits=False)
        fault = "no response"
    except Exception as e:
        capture, fault = None, evidence(e, f"{place.url}, {where}")
    return capture or drop_capture(place.url, "", "extract", DropReason.UNREADABLE, f"{where}: {fault}")


def _too_large(url: str, max_body: int) -> Decision:
    return drop_capture(url, "", "extract", DropReason.TOO_LARGE, f"more than {max_body} bytes")


def capture_of(member: bytes, max_body: int) -> Capture | None:
    """The response in one record of a WARC file; None if the bytes are not such a record or a page is too large."""
    try:
        capture = _first_capture(member, max_body)
    except Exception:  # whatever it is: the page is asked for again
        return None
    return capture if isinstance(capture, Capture) else None


def _first_capture(member: bytes, max_body: int, with_revisits: bool = True) -> Capture | Decision | None:
    """The first capture in bytes of a WARC file, or the Decision about it. Raises what its parsers raise."""
    members = Members(io.BytesIO(member))
    while members.next():
        for record in records(members):
            capture = _read_record(record, max_body)
            if isinstance(capture, Decision) or (capture and (with_revisits or capture.refers_to is None)):
                _check_end(members)
                return capture
    return None


def _check_end(members: Members) -> None:
    """Read the end of a member behind its only record: its checksum. Raises zlib.error, EOFError, ValueError."""
    behind = 0
    while part := members.read(BLOCK):
        behind += len(part)
        if behind > BLOCK:
            raise ValueError("a gzip member with more than its record")


def _is_capture(record: Any) -> bool:
    has_headers = record.http_headers is not None
    return record.rec_type in CAPTURES and (record.rec_type != "response" or has_headers)


def _read_to_end(record: Any) -> None:
    """Read what remains of a record. Raises EOFError where its file, or its gzip member, ends before it does."""
    raw = record.raw_stream
    while raw.read(BLOCK):
        pass
    if getattr(raw, "limit", 0):
        raise EOFError("the last record is truncated")


def _read_record(record: Any, max_body: int) -> Capture | Decision | None:
    """The capture of one record, read to its end; None if it is not one; a Decision if that cannot be read."""
    url = ""
    try:
        url = _url_of(record)
        capture = _capture(record, max_body) if _is_capture(record) else None
        _read_to_end(record)
        return capture
    except no_damage(*OURS):
        raise
    except Exception as e:
        if not url.startswith(("http://", "https://")):
            raise
        return drop_capture(url, "", "extract", DropReason.UNREADABLE, evidence(e, url))


def _entry(record: Any, max_body: int) -> Capture | Decision | str:
    """`_read_record`, or what the record is instead."""
    kind = record.rec_type or ""
    return _read_record(record, max_body) or other_record(kind, _url_of(record) if kind in CAPTURES else "")


def _url_of(record: Any) -> str:
    url = record.rec_headers.get_header("WARC-Target-URI") or ""
    return without_userinfo(url.strip("<> "))


def _capture(record: Any, max_body: int) -> Capture | Decision | None:
    """The capture of one record; None for what is not of the web (dns:, whois:, urn:)."""
    url, header = _url_of(record), record.rec_headers.get_header
    if not url.startswith(("http://", "https://")):
        return None
    status, kind, headers = _head(record)
    refers_to, body = None, b""
    if record.rec_type == "revisit":
        target = without_userinfo((header("WARC-Refers-To-Target-URI") or url).strip("<> "))
        refers_to = target, header("WARC-Refers-To-Date") or ""
    else:
        body = _body(record, max_body + 1)
        if len(body) > max_body and policy.is_html(kind, body):
            return _too_large(url, max_body)
    date, digest = header("WARC-Date") or "", header("WARC-Payload-Digest") or ""
    return Capture(url, status, date, kind, body, headers, digest=digest, refers_to=refers_to)


def _head(record: Any) -> tuple[int, str, tuple[tuple[str, str], ...]]:
    """(status, Content-Type, headers) of a capture; a resource is a response of status 200 without headers."""
    if record.rec_type == "resource":
        return 200, record.rec_headers.get_header("Content-Type") or "", ()
    http = record.http_headers
    if http is None:  # of a revisit
        return 0, "", ()
    headers = tuple((str(name), str(value)) for name, value in http.headers)
    status = http.get_statuscode()
    number = int(status) if re.fullmatch(r"[0-9]{1,4}", status) else 0
    return number, http.get_header("Content-Type") or "", headers


def _body(record: Any, size: int) -> bytes:
    """Up to `size` bytes of the body of a response, without its transfer and content encodings."""
    http = record.http_headers  # of a resource there are none
    encoding = ((http.get_header("Content-Encoding") if http is not None else "") or "").strip().lower()
    if encoding not in ("br", "zstd"):
        return _read(record.content_stream(), size)
    record.http_headers.remove_header("Content-Encoding")  # warcio's Brotli reader is unbounded, and it lacks zstd
    packed = _read(record.content_stream(), size + BLOCK)  # what is larger packed is larger unpacked
    record.http_headers.add_header("Content-Encoding", encoding)
    try:
        return unpacked(packed, encoding, size, whole=False)  # damaged: what came before is the body, as with gzip
    except Undecodable:
        return b""


def _read(stream: Any, size: int) -> bytes:
    """Up to `size` bytes of a stream of warcio, which returns a block at a time."""
    parts, remaining = [], size
    while remaining > 0 and (part := stream.read(min(remaining, 1 << 16))):
        parts.append(part)
        remaining -= len(part)
    return b"".join(parts)


def copy_without(source: Path, target: Path, is_removed: Callable[[str], bool]) -> dict[str, int] | None:
    """Copy a WARC file without the records whose URL `is_removed` takes; None, and no file, if it has none.

    Returns where each remaining record now begins: {old offset as a string: new offset}. Bytes are copied as they are.
    """
    from warcio.archiveiterator import ArchiveIterator

    places: list[tuple[int, int]] = []
    any_removed = False
    with source.open("rb") as f:
        records = ArchiveIterator(f)
        for record in records:
            url = (record.rec_headers.get_header("WARC-Target-URI") or "").strip("<> ")
            drop = bool(url) and is_removed(url)
            length = records.get_record_length()  # reads the record to its end
            any_removed = any_removed or drop
            if not drop:
                places.append((records.get_record_offset(), length))
    if not any_removed:
        return None
    offsets = {}
    with source.open("rb") as f, target.open("wb") as out:
        for offset, length in places:
            offsets[str(offset)] = out.tell()
            f.seek(offset)
            for remaining in range(length, 0, -(1 << 20)):
                out.write(f.read(min(remaining, 1 << 20)))
    return offsets
