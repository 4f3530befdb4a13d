"""Files that DuckDB reads by URL, with sizes known from records, which saves requests.

DuckDB opens a file at each query, and a store would be asked for its size each time. Committed files never change under
their names, so that the size of a record holds, and so does what was read of a footer. A small file is read whole by
one request, once while KEPT has room, of a larger one the ranges that a query needs.

Limits: reading alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import fsspec
from fsspec.spec import AbstractBufferedFile, AbstractFileSystem

from pipeline.files.folder import SMALL

if TYPE_CHECKING:
    from pipeline.store.frames import TableFile

KEPT = 64 << 20
"""Bytes of small files that are kept for later queries."""


class RecordedFiles:
    """The files that a DuckDB connection can open by URL, beside those that it can open already."""

    def __init__(self, db: Any) -> None:
        self._db, self._schemes = db, dict[str, _Recorded]()

    def add(self, parts: Iterable[TableFile]) -> None:
        """Lets the connection open these files."""
        for part in parts:
            scheme, separator, _ = part.url.partition("://")
            if separator and scheme not in self._schemes:
                self._schemes[scheme] = _Recorded(scheme)
                self._db.register_filesystem(self._schemes[scheme])
            if separator:
                self._schemes[scheme].sizes[part.url] = part.bytes


class _Recorded(AbstractFileSystem):  # type: ignore[misc]
    """Files of one scheme. sizes: bytes by URL. small: content of small files, of which `room` bytes more fit."""

    cachable = False  # one per connection: fsspec would give the same to all

    def __init__(self, scheme: str) -> None:
        super().__init__()
        self.protocol, self.sizes = scheme, dict[str, int]()
        self.small, self.room = dict[str, bytes](), KEPT
        self._below = fsspec.filesystem(scheme)

    def info(self, path: str, **options: Any) -> dict[str, Any]:
        """Name, size and type. The store is asked, once, for the size of a file that was not added."""
        if path not in self.sizes:
            self.sizes[path] = int(self._below.size(path))
        return {"name": path, "size": self.sizes[path], "type": "file"}

    def modified(self, path: str) -> datetime:
        """One time for all: a committed file never changes."""
        return datetime.fromtimestamp(0, UTC)

    def glob(self, path: str, **options: Any) -> list[str]:
        """The file itself: names are not patterns here."""
        return [path]

    def read(self, path: str, start: int, end: int) -> bytes:
        """Bytes of a file, by one request at most."""
        if path in self.small:
            return self.small[path][start:end]
        data = bytes(self._below.cat_file(path, start=start, end=end))
        if start == 0 and len(data) == self.sizes[path] <= min(SMALL, self.room):
            self.small[path] = data
            self.room -= len(data)
        return data

    def _open(self, path: str, mode: str = "rb", **options: Any) -> _File:
        size = self.info(path)["size"]
        return _File(self, path, mode, SMALL, cache_type="all" if size <= SMALL else "readahead", size=size)

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return path


class _File(AbstractBufferedFile):  # type: ignore[misc]
    def _fetch_range(self, start: int, end: int) -> bytes:
        return bytes(self.fs.read(self.path, start, end))
