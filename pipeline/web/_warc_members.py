"""The records of a WARC file, one gzip member after the other: the robust reader for damaged files (parser: warcio).

Members are unpacked here and not by warcio, which takes a damaged member for the end of the file: a record that cannot
be read costs its member, and reading goes on at the next member that begins a record. A file that was gzipped as a
whole is one member with all records, and is read like any other up to its first damage.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import Any, BinaryIO

MAX_HEADERS = 1 << 20
"""Bytes of the WARC and HTTP headers of one record together."""

BLOCK = 1 << 16
_GZIP = b"\x1f\x8b\x08"
_FORMATS = (b"WARC/", b"filedesc://")
"""First bytes of a file of records: WARC, or the older ARC."""


class Members:
    """The unpacked bytes of a file, one gzip member at a time; a file that is not gzipped is one member.

    It is what warcio reads a record from: `read`, `readline` and `tell`. Each member is unpacked by blocks.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._packed = file.read(BLOCK)  # bytes of the file that are not unpacked yet
        self._position = len(self._packed)  # in the file, after them
        self.is_gzip = self._packed.startswith(_GZIP)
        self._start = 0  # of the member, in the file
        self._machine: Any = None
        self._buffer, self._at = b"", 0  # unpacked bytes, and how many of them were read
        self._told = 0
        self._is_first = True
        self.headers_left = MAX_HEADERS
        """Bytes that `readline` may still return: a header line without an end would be held whole."""
        self.record_at = 0
        """Position of the last record that began, among all unpacked bytes: in the file, if that is not gzipped."""

    def next(self) -> bool:
        """Go to the next member; False at the end of the file."""
        if not self.is_gzip:
            is_first, self._is_first = self._is_first, False
            return is_first and bool(self._packed)
        if self._machine is not None:
            self._packed = self._machine.unused_data or self._more()
        if not self._packed:
            return False
        self._start = self._position - len(self._packed)
        self._machine, self._buffer, self._at = zlib.decompressobj(zlib.MAX_WBITS | 16), b"", 0
        return True

    def go_to(self, start: int) -> None:
        """Make the member that begins there in the file the next one."""
        self._file.seek(start)
        self._machine, self._packed, self._position, self._start = None, b"", start, start
        self._packed = self._more()

    @property
    def start(self) -> int:
        """Position in the file of this member."""
        return self._start

    @property
    def behind(self) -> int:
        """Position in the file of the next member, once this one was read to its end."""
        unread = self._machine.unused_data if self._machine is not None else self._packed
        return self._position - len(unread)

    def recover(self) -> int:
        """After a damage, make the next member that begins a record the next one; bytes passed over, 0 for none."""
        if not self.is_gzip:
            return 0
        try:
            self._file.seek(self._start + 1)
            begins = self._start + 1
            window = b""
            while block := self._file.read(1 << 20):
                window += block
                at = window.find(_GZIP)
                while at >= 0:
                    if at + BLOCK > len(window):  # enough for a verdict, unless the file ends
                        window += self._file.read(BLOCK)
                    if _begins_record(window[at : at + BLOCK]):
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
        if not self.is_gzip:
            self._buffer, self._packed = self._packed or self._more(), b""
            return bool(self._buffer)
        while not self._buffer and not self._machine.eof:
            packed = self._machine.unconsumed_tail or self._packed or self._more()
            self._packed = b""
            if not packed:
                raise EOFError("the last record is truncated")
            self._buffer = self._machine.decompress(packed, BLOCK)
        return bool(self._buffer)

    def _more(self) -> bytes:
        data = self._file.read(BLOCK)
        self._position += len(data)
        return bytes(data)


def _begins_record(packed: bytes) -> bool:
    """True if packed bytes are the beginning of a gzip member that holds a record."""
    try:
        return zlib.decompressobj(zlib.MAX_WBITS | 16).decompress(packed, 32).startswith(_FORMATS)
    except zlib.error:
        return False


def records(members: Members) -> Iterator[Any]:
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
        members.record_at = members.tell() - len(line)
        try:
            record = loader.parse_record_stream(members, line, known_format)
        except AttributeError:  # warcio takes it for granted
            raise ValueError("a record without WARC-Target-URI") from None
        except (ArchiveLoadFailed, StatusAndHeadersParserException) as e:
            raise ValueError(" ".join(str(e).split())[:200]) from None
        if record.format == "warc" and record.length is None:
            raise ValueError("a record without Content-Length")
        known_format, is_first = record.format, False
        members.headers_left = 1 << 62  # lines of a chunked body are not headers
        yield record
