"""Ranges of files, read a few at a time and in order: single records of WARC files that lie far away.

Each range is one request, which takes tens of milliseconds wherever the files are, so some are on their way while the
first is parsed. A range that fails is asked for again; after that the file is at fault, and the partition with it.

Limits: a web server must answer requests for ranges (RFC 9110, 14); what it sends beside them is not read.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import fsspec

from pipeline.errors import SourceError
from pipeline.files.inputs import FAULTS, reason

AT_ONCE = 8
"""Requests on their way: Common Crawl asks not to be overrun, and a partition of `extract` is one of many."""

PAUSES_S = (1.0, 4.0, 15.0)
"""Before the second request for a range, the third and the fourth."""

T = TypeVar("T")


def in_order(wanted: Iterable[tuple[T, tuple[str, int, int] | None]]) -> Iterator[tuple[T, bytes]]:
    """Each thing with the bytes of its range (file, offset, length); b"" for one that has none. Raises SourceError."""
    pending: deque[tuple[T, Future[bytes] | None]] = deque()
    pool = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="ranges")
    try:
        for thing, place in wanted:
            pending.append((thing, pool.submit(_read, *place) if place is not None else None))
            while len(pending) > AT_ONCE:
                first, data = pending.popleft()
                yield first, data.result() if data is not None else b""
        for first, data in pending:
            yield first, data.result() if data is not None else b""
    finally:
        pool.shutdown(wait=False, cancel_futures=True)  # a fault is raised at once, whatever others still ask for


def _read(file: str, offset: int, length: int) -> bytes:
    """The bytes of a range, fewer where the file ends. Raises SourceError."""
    for pause in (*PAUSES_S, None):
        try:
            fs, path = fsspec.url_to_fs(file)
            if not file.startswith(("http://", "https://")):
                return bytes(fs.cat_file(path, start=offset, end=offset + length))
            with fs.open(path, "rb", size=offset + length, cache_type="none") as f:  # with a size nobody asks for it
                f.seek(offset)
                return bytes(f.read(length))
        except (FileNotFoundError, ValueError, *FAULTS) as e:
            if pause is None or isinstance(e, (FileNotFoundError, ValueError)):
                raise SourceError(file, f"cannot be read ({reason(e)})") from None
            time.sleep(pause)
    raise AssertionError
