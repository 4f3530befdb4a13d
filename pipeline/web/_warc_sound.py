"""A run of sound records of a gzipped WARC file, read by fastwarc.

Taken from it is only what can be nothing else: a record with a gzip member of its own, behind which the next one was
found. Resources, and captures with encodings or with headers beyond printable ASCII, are handed to warcio one by one;
whatever else is odd (a header twice, a body above the limit) ends the run as a damage does.

A record is held back until the next one was seen to begin, because only then its member is known to be whole (its
checksum stands at its end). The last record of a file is therefore never part of a run.

Limits: a file that was gzipped as a whole is read by warcio alone.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, BinaryIO

from pipeline.rows.account import Named
from pipeline.rows.decisions import Decision
from pipeline.rows.records import Capture
from pipeline.urls import without_userinfo

if TYPE_CHECKING:
    from fastwarc.warc import WarcRecord

_HEAD_BYTES = 1 << 16
_HEAD = re.compile(rb"HTTP/[0-9.]{1,8} ([0-9]{3})(?: [\t -~]*)?\r\n((?:[!#$%&'*+.^_`|~0-9A-Za-z-]+:[\t -~]*\r\n)*)\r\n")
_LINE = re.compile(r"([^:\r\n]+):([^\r\n]*)\r\n")
_URI = re.compile("https?://[!-;=?-~]+")
_DATE = re.compile("[0-9TZ:.+-]{0,40}")
_ENCODED = re.compile(rb"(?i)(?:content|transfer)-encoding")
_NEEDED = (
    *("warc-type", "warc-target-uri", "warc-date", "warc-payload-digest"),
    *("warc-refers-to-target-uri", "warc-refers-to-date", "content-type"),
)
"""Headers of a record that a capture is made of, beside its length."""

CAPTURES = ("response", "revisit", "resource")

_OTHERS = {
    **dict.fromkeys(("request", "metadata", "warcinfo", "arc_header"), Named.OTHER_RECORD),
    "conversion": Named.CONVERSION,
}
_OFF_WEB = ("dns:", "whois:", "urn:", "metadata:")


def other_record(kind: str, url: str) -> str:
    """Name of a record that is not a capture; its own type, and no Named, where nothing says that it has no page."""
    if kind in CAPTURES:
        return Named.OFF_WEB if url.lower().startswith(_OFF_WEB) else kind
    return _OTHERS.get(kind, kind)


class _NotPlain(Exception):
    """A record that is left to the other reader."""


class SoundRun:
    """Records from the member that begins at `start` on.

    by_warcio: reads one record, not gzipped, that is a capture but not a plain response.
    After `captures`: `records` is how many there were, and the next reader begins at the member at `start`, of which it
    skips the first `to_skip` records, returned already.
    """

    def __init__(
        self, file: BinaryIO, start: int, max_body: int, by_warcio: Callable[[bytes], Capture | Decision | str]
    ) -> None:
        self._file, self._max_body, self._by_warcio = file, max_body, by_warcio
        self.start, self.to_skip, self.records = start, 0, 0

    def captures(self) -> Iterator[Capture | Decision | str]:
        """The capture of each record, with its place; for one that is not a capture its `other_record`."""
        from fastwarc.warc import ArchiveIterator

        self._file.seek(self.start)
        iterator = iter(ArchiveIterator(self._file, parse_http=False))
        pending: tuple[int, Capture | Decision | str] | None = None
        while True:
            try:
                record = next(iterator, None)
            except Exception:  # the record that is held back may be the damaged one: the other reader finds out
                return
            if record is None or (pending is not None and record.stream_pos <= pending[0]):
                return  # the end, or two records in one member
            if pending is not None:
                self.records += 1
                self.start, self.to_skip = pending[0], 1
                entry = pending[1]
                place = pending[0], record.stream_pos - pending[0]
                yield replace(entry, place=place) if isinstance(entry, Capture) else entry
            try:
                pending = record.stream_pos, self._capture(record)
            except Exception:
                return

    def _capture(self, record: WarcRecord) -> Capture | Decision | str:
        """The capture of a record, or its `other_record`. Raises _NotPlain, and what fastwarc raises for damages."""
        headers: dict[str, str] = {}
        for name, value in record.headers.to_tuples():
            name = name.lower()
            if name in headers and (name in _NEEDED or name == "content-length"):
                raise _NotPlain
            headers[name] = value
        length = record.content_length
        if headers.get("content-length") != str(length):
            raise _NotPlain
        kind, url = headers.get("warc-type", ""), _without_brackets(headers.get("warc-target-uri", ""))
        if kind not in CAPTURES:
            return other_record(kind, url)
        date = headers.get("warc-date", "")
        if kind == "resource" and not url.lower().startswith(("http://", "https://")):
            return other_record(kind, url)
        if not (_URI.fullmatch(url) and _DATE.fullmatch(date) and 0 <= length <= self._max_body + _HEAD_BYTES):
            raise _NotPlain
        block = record.reader.read(length)
        if len(block) != length:
            raise _NotPlain
        head, refers_to = _HEAD.match(block), None
        if kind == "revisit":
            target = without_userinfo(_without_brackets(headers.get("warc-refers-to-target-uri", "") or url))
            refers_to = target, headers.get("warc-refers-to-date", "")
        is_encoded = head is not None and kind == "response" and _ENCODED.search(head.group())
        is_odd = refers_to is not None and not (_URI.fullmatch(refers_to[0]) and _DATE.fullmatch(refers_to[1]))
        if kind == "resource" or head is None or is_encoded or is_odd:
            warc = "".join(f"{name}: {headers[name]}\r\n" for name in _NEEDED if name in headers)
            return self._by_warcio(f"WARC/1.0\r\n{warc}Content-Length: {length}\r\n\r\n".encode() + block)
        body = block[head.end() :] if refers_to is None else b""
        if len(body) > self._max_body or head.end() > _HEAD_BYTES:
            raise _NotPlain
        pairs = tuple((name, value.strip(" \t")) for name, value in _LINE.findall(head.group(2).decode("ascii")))
        media_type = next((value for name, value in pairs if name.lower() == "content-type"), "")
        status, digest = int(head.group(1)), headers.get("warc-payload-digest", "")
        return Capture(without_userinfo(url), status, date, media_type, body, pairs, digest=digest, refers_to=refers_to)


def _without_brackets(url: str) -> str:
    """A URL without the angle brackets of early versions of the standard, and of wget."""
    return url[1:-1] if url.startswith("<") and url.endswith(">") else url
