"""The records of a WARC file, one gzip member after the other: the robust reader for damaged files (parser: warcio).

Members are unpacked here and not by warcio, which takes a damaged member for the end of the file: a record that cannot
be read costs its member, and reading goes on at the next member that begins a record. Of a file that is not gzipped it
costs what lies between the end of the record before and the next line `WARC/1.0`, or of another version. A file that
was gzipped as a whole is one member with all records, and is read like any other up to its first damage.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator
from typing import Any, BinaryIO

from pipeline.files.damage import Beginning

MAX_HEADERS = 1 << 20
"""Bytes of the WARC and HTTP headers of one record together."""

MAX_BETWEEN = 32
"""Bytes that may stand between two records: two line ends, and a few more, too few for a record."""

BLOCK = 1 << 16
_GZIP = b"\x1f\x8b\x08"
_CONTROLS = bytes({*range(32)} - {*b"\t\n\v\f\r"})
_FORMATS = (b"WARC/", b"filedesc://")
"""First bytes of a file of records: WARC, or the older ARC."""


class Members:
    """The unpacked bytes of a file, one gzip member at a time; a file that is not gzipped is one member.

    It is what warcio reads a record from: `read`, `readline` and `tell`. Each member is unpacked by blocks.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._packed = file.read(BLOCK)  # bytes of the file that are not unpacked yet
        self.file_position = len(self._packed)
        """Position in the file up to which bytes were taken, some of which may not be unpacked yet."""
        self.is_gzip = self._packed.startswith(_GZIP)
        self.start = 0
        """Position in the file of this member."""
        self._machine: Any = None
        self._buffer, self._at = b"", 0  # unpacked bytes, and how many of them were read
        self._position = 0
        self._is_first = True
        self.headers_left = MAX_HEADERS
        """Bytes that `readline` may still return: a header line without an end would be held whole."""
        self.record_at = 0
        """Position of the last record that began, or of the end of the one before where none has begun behind it.

        It is one among all unpacked bytes: in the file, if that is not gzipped.
        """
        self.is_strict = False
        """True if a line that is read without a size must be free of control characters: a damage within the headers of
        a record may reach to those of another one, whose length it then has."""
        self.record_count = 0
        """Records of this member that began."""
        self.is_behind_record = False
        """True if it stands where the record before it should end; then that one has the length that it says."""

    def next(self) -> bool:
        """Go to the next member; False at the end of the file."""
        if not self.is_gzip:
            is_first, self._is_first = self._is_first, False
            return is_first and bool(self._packed)
        if self._machine is not None:
            self._packed = self._machine.unused_data or self._read_block()
        self.record_count = 0
        if not self._packed:
            return False
        self.start = self.file_position - len(self._packed)
        self._machine, self._buffer, self._at = zlib.decompressobj(zlib.MAX_WBITS | 16), b"", 0
        return True

    def go_to(self, start: int) -> None:
        """Make the member that begins there in the file the next one."""
        self._file.seek(start)
        self._machine, self._packed, self.file_position, self.start = None, b"", start, start
        self._packed = self._read_block()
        if not self.is_gzip:
            self._is_first, self._position, self._buffer, self._at = True, start, b"", 0

    @property
    def next_start(self) -> int:
        """Position in the file of the next member, once this one was read to its end."""
        unread = self._machine.unused_data if self._machine is not None else self._packed
        return self.file_position - len(unread)

    def recover(self, start: int) -> int:
        """After a damage at `start`, go on at the next record behind it; returns its position in the file, -1 for none.

        Of a gzipped file it is that of a member which begins a record.
        """
        try:
            following = (_GZIP_RECORD if self.is_gzip else _PLAIN_RECORD).after(self._file, start + 1)
        except (OSError, ValueError, NotImplementedError):  # a stream that cannot be read again
            return -1
        if following >= 0:
            self.go_to(following)
        return following

    @property
    def damaged_at(self) -> int:
        """Position in the file from which on a damage, which was met just now, may lie: the record, or its member.

        Of a member with several records it is the last block that was read.
        """
        if not self.is_gzip:
            return self.record_at
        return max(self.start, self.file_position - BLOCK) if self.record_count > 1 else self.start

    def read(self, size: int) -> bytes:
        """Up to `size` bytes of the member; none at its end. Raises zlib.error and EOFError for a damaged one."""
        if self._at == len(self._buffer) and not self._fill():
            return b""
        data = self._buffer[self._at : self._at + size]
        self._at += len(data)
        self._position += len(data)
        return data

    def readline(self, size: int | None = None) -> bytes:
        """A line, with its end, of at most `size` bytes.

        Raises ValueError where headers take more than MAX_HEADERS, or are odd while it `is_strict`.
        """
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
        if self.is_strict and size is None:
            _check_line(line)
        return line

    def tell(self) -> int:
        return self._position

    def has_plain_head(self) -> bool:
        """True if the next headers are unpacked already and have no control characters: no line needs a check."""
        end = self._buffer.find(b"\r\n\r\n", self._at, self._at + 4096)
        return end >= 0 and not _has_controls(self._buffer[self._at : end])

    def skip_line_ends(self) -> bool:
        """Go behind the two line ends of a record, if they and then another record come next: a short cut."""
        is_next = self._buffer.startswith(b"\r\n\r\nWARC/", self._at)
        if is_next:
            self._at, self._position = self._at + 4, self._position + 4
        return is_next

    def _fill(self) -> bool:
        """Unpack the next bytes of the member into the buffer; False at its end."""
        self._buffer, self._at = b"", 0
        if not self.is_gzip:
            self._buffer, self._packed = self._packed or self._read_block(), b""
            return bool(self._buffer)
        while not self._buffer and not self._machine.eof:
            packed = self._machine.unconsumed_tail or self._packed or self._read_block()
            self._packed = b""
            if not packed:
                raise EOFError("the last record is truncated")
            self._buffer = self._machine.decompress(packed, BLOCK)
        return bool(self._buffer)

    def _read_block(self) -> bytes:
        data = self._file.read(BLOCK)
        self.file_position += len(data)
        return bytes(data)


def _has_controls(head: bytes) -> bool:
    return len(head.translate(None, _CONTROLS)) != len(head)


def _check_line(line: bytes) -> None:
    """Raise ValueError for a line of headers with control characters."""
    if _has_controls(line):
        raise ValueError("control characters in the headers of a record")


def _begins_record(packed: memoryview) -> bool:
    """True if packed bytes are the beginning of a gzip member that holds a record."""
    try:
        return zlib.decompressobj(zlib.MAX_WBITS | 16).decompress(packed, 32).startswith(_FORMATS)
    except zlib.error:
        return False


_GZIP_RECORD = Beginning(_GZIP, 0, BLOCK, _begins_record)
_ARC = re.compile(rb"[a-z]{2,20}:\S+ ")  # a record of ARC begins with its URL
_VERSION = re.compile(rb"WARC/[01]\.[0-9]{1,2}\r?\n[A-Za-z-]{1,40}:")
_PLAIN_RECORD = Beginning(b"WARC/", 0, 64, lambda head: _VERSION.match(head) is not None)


def records(members: Members) -> Iterator[Any]:
    """The records of one member, parsed by warcio. Each must be read to its end before the next one."""
    from warcio.exceptions import ArchiveLoadFailed
    from warcio.recordloader import ArcWarcRecordLoader
    from warcio.statusandheaders import StatusAndHeadersParserException

    loader, known_format = ArcWarcRecordLoader(verify_http=False, arc2warc=False), None
    while line := _first_line(members, known_format):
        members.record_at, members.record_count = members.tell() - len(line), members.record_count + 1
        if not members.is_gzip:  # which has a checksum
            _check_line(line)
            members.is_strict = not members.has_plain_head()
        try:
            record = loader.parse_record_stream(members, line, known_format)
        except AttributeError:  # warcio takes it for granted
            raise ValueError("a record without WARC-Target-URI") from None
        except (ArchiveLoadFailed, StatusAndHeadersParserException) as e:
            raise ValueError(" ".join(str(e).split())[:200]) from None
        if record.format == "warc" and record.length is None:
            raise ValueError("a record without Content-Length")
        known_format = record.format
        members.headers_left = 1 << 62  # lines of a chunked body are not headers
        yield record


def _first_line(members: Members, known_format: str | None) -> bytes:
    """The first line of the next record; none at the end. Raises ValueError for more than MAX_BETWEEN bytes before it.

    A line too many behind a record is passed over in a gzip member, as other readers do. Elsewhere it may be what is
    left of other records, and raises.
    """
    members.headers_left, members.is_strict, members.is_behind_record = MAX_HEADERS, False, known_format != "warc"
    if members.skip_line_ends():
        members.record_at, members.is_behind_record = members.tell(), True
        return members.readline()
    members.record_at = end = members.tell()
    line, blank = members.readline(), 0
    if members.is_gzip and known_format and line.strip() and not line.startswith(_FORMATS[0]):
        line, blank = members.readline(), -2
    while line and not line.strip() and members.tell() - end <= MAX_BETWEEN:
        line, blank = members.readline(), blank + 1
    skipped = members.tell() - end - len(line if line.strip() else b"")
    members.is_behind_record |= blank >= 2 or line.startswith(_FORMATS[0])
    is_padded = members.is_gzip and members.record_count == 1 and not line  # the only record of its member
    if skipped > MAX_BETWEEN and not is_padded:
        raise ValueError("bytes that are no record")
    if line and not line.startswith(_FORMATS[0]) and not _ARC.match(line):
        raise ValueError("neither a WARC nor an ARC record")
    return line
