"""A run of sound records of a gzipped WARC file, read by fastwarc.

Taken from it is only what can be nothing else: a record with a gzip member of its own, behind which the next one was
found. Of the responses those with encodings, or with headers beyond printable ASCII, are handed to warcio one by one;
whatever else is odd (a header twice, a body above the limit) ends the run as a damage does.

A record is held back until the next one was seen to begin, because only then its member is known to be whole (its
checksum stands at its end). The last record of a file is therefore never part of a run.

Limits: a file that was gzipped as a whole is read by warcio alone.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, BinaryIO

from pipeline.records import Capture, Decision
from pipeline.urls import without_userinfo

if TYPE_CHECKING:
    from fastwarc.warc import WarcRecord

_HEAD_BYTES = 1 << 16
_HEAD = re.compile(rb"HTTP/[0-9.]{1,8} ([0-9]{3})(?: [\t -~]*)?\r\n((?:[!#$%&'*+.^_`|~0-9A-Za-z-]+:[\t -~]*\r\n)*)\r\n")
_LINE = re.compile(r"([^:\r\n]+):([^\r\n]*)\r\n")
_URI = re.compile("https?://[!-;=?-~]+")
_DATE = re.compile("[0-9TZ:.+-]{0,40}")
_ENCODED = re.compile(rb"(?i)(?:content|transfer)-encoding")
_NEEDED = frozenset(("warc-type", "warc-target-uri", "warc-date", "content-length"))


class _NotPlain(Exception):
    """A record that is left to the other reader."""


class SoundRun:
    """Records from the member that begins at `start` on.

    by_warcio: reads one record, not gzipped, that is a response with encodings or odd headers.
    After `captures`: `records` is how many there were, and the next reader begins at the member at `start`, of which it
    knows the first `known` records already.
    """

    def __init__(
        self, file: BinaryIO, start: int, max_body: int, by_warcio: Callable[[bytes], Capture | Decision | None]
    ) -> None:
        self._file, self._max_body, self._by_warcio = file, max_body, by_warcio
        self.start, self.known, self.records = start, 0, 0

    def captures(self) -> Iterator[Capture | Decision | None]:
        """The capture of each record, None for one that is not a page."""
        from fastwarc.warc import ArchiveIterator

        self._file.seek(self.start)
        iterator = iter(ArchiveIterator(self._file, parse_http=False))
        held: tuple[int, Capture | Decision | None] | None = None
        while True:
            try:
                record = next(iterator, None)
            except Exception:  # the record that is held back may be the damaged one: the other reader finds out
                return
            if record is None or (held is not None and record.stream_pos <= held[0]):
                return  # the end, or two records in one member
            if held is not None:
                self.records += 1
                self.start, self.known = held[0], 1
                yield held[1]
            try:
                held = record.stream_pos, self._capture(record)
            except Exception:
                return

    def _capture(self, record: WarcRecord) -> Capture | Decision | None:
        """The capture of a record; None if it is not a page. Raises _NotPlain, and what fastwarc raises for damages."""
        headers: dict[str, str] = {}
        for name, value in record.headers.to_tuples():
            name = name.lower()
            if name in _NEEDED and name in headers:
                raise _NotPlain
            headers[name] = value
        length = record.content_length
        if headers.get("content-length") != str(length):
            raise _NotPlain
        if headers.get("warc-type") != "response":
            return None
        url, date = headers.get("warc-target-uri", ""), headers.get("warc-date", "")
        if not (_URI.fullmatch(url) and _DATE.fullmatch(date) and 0 < length <= self._max_body + _HEAD_BYTES):
            raise _NotPlain
        block = record.reader.read(length)
        if len(block) != length:
            raise _NotPlain
        head = _HEAD.match(block)
        if head is None or _ENCODED.search(head.group()):
            warc = f"WARC/1.0\r\nWARC-Type: response\r\nWARC-Target-URI: {url}\r\nWARC-Date: {date}\r\n"
            return self._by_warcio(f"{warc}Content-Length: {length}\r\n\r\n".encode() + block)
        body = block[head.end() :]
        if len(body) > self._max_body or head.end() > _HEAD_BYTES:
            raise _NotPlain
        pairs = tuple((name, value.strip(" \t")) for name, value in _LINE.findall(head.group(2).decode("ascii")))
        kind = next((value for name, value in pairs if name.lower() == "content-type"), "")
        return Capture(without_userinfo(url), int(head.group(1)), date, kind, body, pairs)
