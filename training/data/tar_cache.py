"""Cache of remote tars on a local disk: fetched whole, ahead of their use, within a bound.

Samples of a window of shards are read in random order, so reading from the remote tar would take a request for every
sample of the dataset; fetching a tar takes one. A tar is fetched by the first process that needs it while the others on
the machine wait (a file lock), and a thread fetches those of the next window meanwhile. Copies that were used longest
ago are removed when the bound is passed; a process that has one open can still read it.

A copy is named by URL, size and a mark that changes with what is in the tar, so that an index is never read beside the
pictures of another tar.

Limits: the bound is checked after a fetch, so fetches under way may pass it.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import fsspec

from data_specs.shard import ContractError
from data_specs.storage.object_store import reason, storage_errors
from data_specs.storage.whole_files import exclusive

_BLOCK = 8 << 20
_AHEAD = 2
"""Tars that are fetched ahead at once."""


class TarCache:
    """Copies of remote tars in a folder that processes of one machine share."""

    def __init__(self, folder: Path, limit: int) -> None:
        """`limit`: bytes that the copies may take."""
        self.limit = limit
        self._folder = folder
        self._pool: ThreadPoolExecutor | None = None
        self._asked: set[str] = set()

    def open(self, url: str, size: int, mark: str = "") -> int:
        """File descriptor of the tar's copy, which is fetched if it is missing. Raises ContractError."""
        while True:
            path = self._path(url, size, mark)
            try:
                handle = os.open(path, os.O_RDONLY)
            except FileNotFoundError:
                self._fetch(url, size, path)
                continue
            os.utime(handle)  # not the path: another process may have removed it by now
            return handle

    def fetch_ahead(self, tars: Iterable[tuple[str, int, str]]) -> None:
        """Start fetching these (url, size, mark) in the background. A failure shows when the tar is opened."""
        if self._pool is None:  # not in __init__: a thread does not survive the fork of a worker
            self._pool = ThreadPoolExecutor(_AHEAD, thread_name_prefix="tars")
        wanted = list(tars)
        for url, size, mark in wanted:
            if url not in self._asked:
                self._pool.submit(self._quietly, url, size, mark)
        self._asked = {url for url, _, _ in wanted}

    def _quietly(self, url: str, size: int, mark: str) -> None:
        with suppress(ContractError, OSError):
            path = self._path(url, size, mark)
            if not path.exists():
                self._fetch(url, size, path)

    def _path(self, url: str, size: int, mark: str) -> Path:
        digest = hashlib.sha256(f"{url} {size} {mark}".encode()).hexdigest()
        return self._folder / f"{digest}.tar"

    def _fetch(self, url: str, size: int, path: Path) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        with exclusive(path.with_suffix(".lock")):
            if path.exists():
                return
            temporary = path.with_suffix(".part")
            try:
                got = _copy(url, temporary)
                if got != size:
                    raise ContractError(f"{url}: {got} bytes, expected {size}; the tar is truncated or was replaced")
                temporary.rename(path)
            finally:
                temporary.unlink(missing_ok=True)
        self._shrink()

    def _shrink(self) -> None:
        for part in self._folder.glob("*.part"):
            with suppress(BlockingIOError), exclusive(part.with_suffix(".lock"), wait_s=0):
                part.unlink(missing_ok=True)  # left by a process that was killed
        copies = []
        for path in self._folder.glob("*.tar"):
            with suppress(FileNotFoundError):  # another process was quicker
                about = path.stat()
                copies.append((about.st_mtime, about.st_size, path))
        total = sum(size for _, size, _ in copies)
        for _, size, path in sorted(copies)[:-1]:
            if total <= self.limit:
                break
            path.unlink(missing_ok=True)  # its lock stays: without it two processes could fetch into one file
            total -= size


def _copy(url: str, target: Path) -> int:
    """Bytes fetched; three attempts, since a connection may break in the middle of a gigabyte."""
    for attempt in range(3):
        try:
            with storage_errors(url), fsspec.open(url, "rb") as source, target.open("wb") as file:
                got = 0
                while block := source.read(_BLOCK):
                    got += file.write(block)
                return got
        except FileNotFoundError:
            raise ContractError(f"{url}: missing, but listed in the manifest") from None
        except Exception as e:  # what a store's client raises is its own
            if attempt == 2:
                raise ContractError(f"{url}: cannot be fetched ({reason(e)})") from None
            time.sleep(2.0**attempt)
    raise AssertionError
