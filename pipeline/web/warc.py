"""Reads captures from WARC files, bounded in memory (ISO 28500; parser of records: warcio).

Only `response` records are pages. A body is read up to a limit, after chunked, gzip, deflate and Brotli encodings are
undone, so that a small record that unpacks to gigabytes costs no more than the limit. Headers are bounded too.

Members of a gzipped file are unpacked here and not by warcio, which takes a damaged member for the end of the file: a
record that cannot be read costs its member, and reading goes on at the next member that begins a record. A file that
was gzipped as a whole is one member with all records, and is read like any other up to its first damage.

Limits: Brotli bodies are unpacked only where `brotli` 1.2 or newer is installed; `revisit` records carry no body and
are left out; a file that is not gzipped, or that cannot be read from any position, ends at its first damage.
"""

from __future__ import annotations

import io
import logging
import re
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from pipeline.errors import SourceError
from pipeline.files.inputs import FAULTS, NO_DAMAGE, reason
from pipeline.records import Capture, Decision, DropReason, drop_capture
from pipeline.unreadable import OURS, evidence
from pipeline.urls import without_userinfo

log = logging.getLogger("wenlan")

MAX_HEADERS = 1 << 20
"""Bytes of the WARC and HTTP headers of one record together."""

_BLOCK = 1 << 16
_GZIP = b"\x1f\x8b\x08"
_FORMATS = (b"WARC/", b"filedesc://")
"""What a file of records begins with: WARC, or the older ARC."""


def read_captures(
    url: str, max_body: int, info: dict[str, Any], must_hold: bool = True
) -> Iterator[Capture | Decision]:
    """The captures of one WARC file in its order; for a body above `max_body` bytes a Decision (without a source).

    A record on which a parser fails is a Decision with its URL. Where no record can be read, `info["damaged"]` counts
    the places and the bytes that were passed over. What comes before the end of a truncated file is read, and
    `info["truncated"]` then says where it ends.
    Raises SourceError for a file that is missing, no WARC at all, or (with `must_hold`) without a single record.
    """
    import fsspec

    records = 0
    try:
        with fsspec.open(url, "rb") as f:
            members = _Members(f)
            while members.next():
                try:
                    for record in _records(members):
                        capture = _read_record(record, max_body)
                        if capture is not None:
                            yield capture
                        if isinstance(capture, Decision):
                            _read_to_end(record)  # raises where not a parser but the record is at fault
                        records += 1
                except (*OURS, *NO_DAMAGE):
                    raise
                except Exception as e:
                    fault = reason(e)
                    passed = members.recover()
                    if not passed and not records:
                        raise SourceError(url, f"is not a WARC file ({fault})") from None
                    if not passed:
                        info["truncated"] = f"after {records} records: {fault}"
                        log.warning("%s: breaks off after %d records (%s); going on with those", url, records, fault)
                        break
                    damaged = info.setdefault("damaged", {"places": 0, "bytes": 0, "first": fault})
                    damaged["places"] += 1
                    damaged["bytes"] += passed
    except FAULTS as e:
        raise SourceError(url, f"cannot be read ({reason(e)})") from None
    if damaged := info.get("damaged"):
        said = (url, damaged["places"], damaged["bytes"], records, damaged["first"])
        log.warning("%s: %d damaged places, %d bytes passed over, %d records read (first fault: %s)", *said)
    if not records and must_hold:
        raise SourceError(url, "is not a WARC file (it holds no record)")


def capture_of(member: bytes, max_body: int) -> Capture | None:
    """The page in one record of a WARC file; None if the bytes are no such record or the page is too large."""
    members = _Members(io.BytesIO(member))
    try:
        while members.next():
            for record in _records(members):
                if _is_page(record):
                    capture = _capture(record, max_body)
                    return capture if isinstance(capture, Capture) else None
                _read_to_end(record)
    except Exception:  # whatever it is: the page is asked for again
        return None
    return None


class _Members:
    """The unpacked bytes of a file, one gzip member at a time; a file that is not gzipped is one member.

    It is what warcio reads a record from: `read`, `readline` and `tell`. Each member is unpacked by blocks.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._packed = file.read(_BLOCK)  # bytes of the file that are not unpacked yet
        self._position = len(self._packed)  # in the file, after them
        self._is_gzip = self._packed.startswith(_GZIP)
        self._start = 0  # of the member, in the file
        self._machine: Any = None
        self._buffer, self._at = b"", 0  # unpacked bytes, and how many of them were read
        self._told = 0
        self._is_first = True
        self.headers_left = MAX_HEADERS
        """Bytes that `readline` may still return: a header line without an end would be held whole."""

    def next(self) -> bool:
        """Go to the next member; False at the end of the file."""
        if not self._is_gzip:
            is_first, self._is_first = self._is_first, False
            return is_first and bool(self._packed)
        if self._machine is not None:
            self._packed = self._machine.unused_data or self._more()
        if not self._packed:
            return False
        self._start = self._position - len(self._packed)
        self._machine, self._buffer, self._at = zlib.decompressobj(zlib.MAX_WBITS | 16), b"", 0
        return True

    def recover(self) -> int:
        """After a damage, make the next member that begins a record the next one; bytes passed over, 0 for none."""
        if not self._is_gzip:
            return 0
        try:
            self._file.seek(self._start + 1)
            begins = self._start + 1
            window = b""
            while block := self._file.read(1 << 20):
                window += block
                at = window.find(_GZIP)
                while at >= 0:
                    if at + _BLOCK > len(window):  # enough for a verdict, unless the file ends
                        window += self._file.read(_BLOCK)
                    if _begins_record(window[at : at + _BLOCK]):
                        self._machine, self._packed = None, window[at:]
                        self._position = begins + len(window)
                        return begins + at - self._start
                    at = window.find(_GZIP, at + 1)
                begins, window = begins + len(window) - 2, window[-2:]  # a magic number may lie across two blocks
        except (OSError, ValueError, NotImplementedError):  # a stream that cannot be read again
            return 0
        return 0

    def read(self, size: int) -> bytes:
        """Up to `size` bytes of the member; none at its end. Raises zlib.error and EOFError for a damaged one."""
        if self._at == len(self._buffer) and not self._fill():
            return b""
        data = self._buffer[self._at : self._at + size]
        self._at += len(data)
        self._told += len(data)
        return data

    def readline(self, size: int | None = None) -> bytes:
        """A line, with its end, of at most `size` bytes. Raises ValueError where headers take more than MAX_HEADERS."""
        parts, remaining = [], self.headers_left + 1 if size is None else min(size, self.headers_left + 1)
        while remaining > 0 and (self._at < len(self._buffer) or self._fill()):
            end = self._buffer.find(b"\n", self._at, self._at + remaining) + 1
            part = self.read(end - self._at if end else min(remaining, len(self._buffer) - self._at))
            parts.append(part)
            remaining -= len(part)
            if end:
                break
        line = b"".join(parts)
        self.headers_left -= len(line)
        if self.headers_left < 0:
            raise ValueError(f"headers of more than {MAX_HEADERS} bytes")
        return line

    def tell(self) -> int:
        return self._told

    def _fill(self) -> bool:
        """Unpack the next bytes of the member into the buffer; False at its end."""
        self._buffer, self._at = b"", 0
        if not self._is_gzip:
            self._buffer, self._packed = self._packed or self._more(), b""
            return bool(self._buffer)
        while not self._buffer and not self._machine.eof:
            packed = self._machine.unconsumed_tail or self._packed or self._more()
            self._packed = b""
            if not packed:
                raise EOFError("the last record is cut off")
            self._buffer = self._machine.decompress(packed, _BLOCK)
        return bool(self._buffer)

    def _more(self) -> bytes:
        data = self._file.read(_BLOCK)
        self._position += len(data)
        return bytes(data)


def _begins_record(packed: bytes) -> bool:
    """Whether packed bytes are the beginning of a gzip member that holds a record."""
    try:
        return zlib.decompressobj(zlib.MAX_WBITS | 16).decompress(packed, 32).startswith(_FORMATS)
    except zlib.error:
        return False


def _records(members: _Members) -> Iterator[Any]:
    """The records of one member, parsed by warcio. Each must be read to its end before the next one."""
    from warcio.exceptions import ArchiveLoadFailed
    from warcio.recordloader import ArcWarcRecordLoader
    from warcio.statusandheaders import StatusAndHeadersParserException

    loader, known_format, is_first = ArcWarcRecordLoader(verify_http=False, arc2warc=False), None, True
    while True:
        members.headers_left = MAX_HEADERS
        line = members.readline()
        if not is_first and line.strip() and not line.startswith(_FORMATS[0]):
            line = members.readline()  # a line too many behind a record, which other readers pass over as well
        while line and not line.strip():
            line = members.readline()
        if not line:
            return
        try:
            record = loader.parse_record_stream(members, line, known_format)
        except AttributeError:  # warcio takes it for granted
            raise ValueError("a record without WARC-Target-URI") from None
        except (ArchiveLoadFailed, StatusAndHeadersParserException) as e:
            raise ValueError(" ".join(str(e).split())[:200]) from None
        if record.format == "warc" and record.length is None:
            raise ValueError("a record without Content-Length")
        known_format, is_first = record.format, False
        members.headers_left = 1 << 62  # lines of a chunked body are none of a header
        yield record


def _is_page(record: Any) -> bool:
    return record.rec_type == "response" and record.http_headers is not None


def _read_to_end(record: Any) -> None:
    """Read what remains of a record. Raises EOFError where its file, or its gzip member, ends before it does."""
    raw = record.raw_stream
    while raw.read(_BLOCK):
        pass
    if getattr(raw, "limit", 0):
        raise EOFError("the last record is cut off")


def _read_record(record: Any, max_body: int) -> Capture | Decision | None:
    """The capture of one record, read to its end; None if it is no page; a Decision if that cannot be read."""
    url = ""
    try:
        url = _url_of(record)
        capture = _capture(record, max_body) if _is_page(record) else None
        _read_to_end(record)
        return capture
    except (*OURS, *NO_DAMAGE):
        raise
    except Exception as e:
        if not url.startswith(("http://", "https://")):
            raise
        return drop_capture(url, "", "extract", DropReason.UNREADABLE, evidence(e, url))


def _url_of(record: Any) -> str:
    url = record.rec_headers.get_header("WARC-Target-URI") or ""
    return without_userinfo(url.strip("<> "))


def _capture(record: Any, max_body: int) -> Capture | Decision | None:
    """The capture of one response record; None for what is no page of the web (dns:, whois:)."""
    url = _url_of(record)
    if not url.startswith(("http://", "https://")):
        return None
    body = _body(record, max_body + 1)
    if len(body) > max_body:
        return drop_capture(url, "", "extract", DropReason.TOO_LARGE, f"more than {max_body} bytes")
    headers = tuple((str(name), str(value)) for name, value in record.http_headers.headers)
    status = record.http_headers.get_statuscode()
    return Capture(
        url=url,
        status=int(status) if re.fullmatch(r"[0-9]{1,4}", status) else 0,
        fetched_at=record.rec_headers.get_header("WARC-Date") or "",
        content_type=record.http_headers.get_header("Content-Type") or "",
        body=body,
        headers=headers,
    )


def _body(record: Any, size: int) -> bytes:
    """Up to `size` bytes of the body of a response, without its transfer and content encodings."""
    encoding = (record.http_headers.get_header("Content-Encoding") or "").strip().lower()
    if encoding != "br":
        return _read(record.content_stream(), size)
    record.http_headers.remove_header("Content-Encoding")  # warcio's own Brotli reader has no bound and raises
    stream = record.content_stream()
    record.http_headers.add_header("Content-Encoding", encoding)
    try:
        import brotli
    except ImportError:
        return _read(stream, size)
    machine, parts, remaining = brotli.Decompressor(), [], size
    packed = stream.read(_BLOCK)
    while remaining > 0 and not machine.is_finished() and (packed or not machine.can_accept_more_data()):
        # within the bound: 16 kB of Brotli may unpack to gigabytes. What is not out yet comes on the next call
        try:
            part = machine.process(packed if machine.can_accept_more_data() else b"", output_buffer_limit=_BLOCK)
        except brotli.error:  # damaged: what came before is the body, as with gzip
            break
        parts.append(part[:remaining])
        remaining -= len(parts[-1])
        if machine.can_accept_more_data():
            packed = stream.read(_BLOCK)
    return b"".join(parts)


def _read(stream: Any, size: int) -> bytes:
    """Up to `size` bytes of a stream of warcio, which returns a block at a time."""
    parts, remaining = [], size
    while remaining > 0 and (part := stream.read(min(remaining, 1 << 16))):
        parts.append(part)
        remaining -= len(part)
    return b"".join(parts)


def copy_without(source: Path, target: Path, removed: Callable[[str], bool]) -> dict[str, int] | None:
    """Copy a WARC file without the records of the pages that are `removed`, by URL; None, and no file, if it has none.

    Returns where each remaining record now begins: {old offset as a string: new offset}. Bytes are copied as they are.
    """
    from warcio.archiveiterator import ArchiveIterator

    places: list[tuple[int, int]] = []
    any_removed = False
    with source.open("rb") as f:
        records = ArchiveIterator(f)
        for record in records:
            url = (record.rec_headers.get_header("WARC-Target-URI") or "").strip("<> ")
            goes = bool(url) and removed(url)
            length = records.get_record_length()  # reads the record to its end
            any_removed = any_removed or goes
            if not goes:
                places.append((records.get_record_offset(), length))
    if not any_removed:
        return None
    moved = {}
    with source.open("rb") as f, target.open("wb") as out:
        for offset, length in places:
            moved[str(offset)] = out.tell()
            f.seek(offset)
            for remaining in range(length, 0, -(1 << 20)):
                out.write(f.read(min(remaining, 1 << 20)))
    return moved
