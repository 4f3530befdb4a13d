"""Ranges of files, read a few at a time and in order: single records of remote WARC files.

Each range is one request, which takes tens of milliseconds wherever the files are, so some are on their way while the
first is parsed. A range that fails is asked for again, unless it is missing or forbidden; after that the file is at
fault, and the partition with it.

Limits: a web server must answer requests for ranges (RFC 9110, 14); what it sends beside them is not read.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import fsspec

from pipeline.errors import SourceError
from pipeline.files.inputs import faults, reason

AT_ONCE = 8
"""Requests on their way: Common Crawl asks not to be overrun, and a partition of `extract` is one of many."""

PAUSES_S = (1.0, 4.0, 15.0)
"""Before the second request for a range, the third and the fourth."""

_ASK_AGAIN = (408, 425, 429)
"""Statuses below 500 after which the same request may succeed."""

T = TypeVar("T")


def fetch_ranges(ranges: Iterable[tuple[T, tuple[str, int, int] | None]]) -> Iterator[tuple[T, bytes]]:
    """Each item with the bytes of its range (file, offset, length); b"" for one that has none. Raises SourceError."""
    pending: deque[tuple[T, Future[bytes] | None]] = deque()
    pool = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="ranges")
    try:
        for item, file_range in ranges:
            pending.append((item, pool.submit(_read, *file_range) if file_range is not None else None))
            while len(pending) > AT_ONCE:
                item, data = pending.popleft()
                yield item, data.result() if data is not None else b""
        for item, data in pending:
            yield item, data.result() if data is not None else b""
    finally:
        pool.shutdown(wait=False, cancel_futures=True)  # a fault is raised at once, whatever others still ask for


def _read(file: str, offset: int, length: int) -> bytes:
    """The bytes of a range, fewer where the file ends. Raises SourceError."""
    for pause in (*PAUSES_S, None):
        try:
            fs, path = fsspec.url_to_fs(file)
            if not file.startswith(("http://", "https://")):
                return bytes(fs.cat_file(path, start=offset, end=offset + length))
            return _read_http(fs, path, offset, length)
        except faults(ValueError) as e:
            if pause is None or _is_permanent(e):
                raise SourceError(file, f"cannot be read ({reason(e)})") from None
            time.sleep(pause)
    raise AssertionError


def _read_http(fs: Any, path: str, offset: int, length: int) -> bytes:
    """Like `_read`, from a web server: one request, and no more is read of its answer than was asked for."""
    headers = {"Range": f"bytes={offset}-{offset + length - 1}", "Accept-Encoding": "identity"}
    parts: list[bytes] = []
    try:  # with a size fsspec does not ask for it, without blocks the answer is a stream
        with fs.open(path, "rb", block_size=0, size=offset + length, headers=headers) as answer:
            if answer.r.status != 206 and offset:
                raise ValueError("the server does not support range requests")
            while length > 0 and (part := answer.read(length)):
                parts.append(part)
                length -= len(part)
    except faults() as e:
        if _status(e) != 416:  # the file ends before the range begins
            raise
    return b"".join(parts)


def _is_permanent(e: Exception) -> bool:
    """True if the same request would fail again: what is missing, forbidden, or no answer to it."""
    is_refusal = 400 <= _status(e) < 500 and _status(e) not in _ASK_AGAIN
    return is_refusal or isinstance(e, (FileNotFoundError, PermissionError, IsADirectoryError, ValueError))


def _status(e: Exception) -> int:
    """The status of an HTTP response that is raised; 0 for another exception."""
    status = getattr(e, "status", 0)
    return status if isinstance(status, int) else 0
