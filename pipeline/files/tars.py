"""Tars whose bytes follow from their members alone, and a file that is hashed while it is written.

One ustar header with fixed owner, mode and time for each member, and nothing after the data but the two empty blocks
that end a tar. The fetch stage, the shard stage and takedowns write through here.

Limits: names in a ustar tar have at most 100 bytes (a key and its suffix have 37), members at most 8 GiB.
"""

from __future__ import annotations

import hashlib
import os
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

BLOCK = 512


class Writable(Protocol):
    """What a tar is written to."""

    def write(self, data: bytes | memoryview, /) -> Any: ...


@dataclass
class TarWriter:
    """Writes a tar whose bytes follow from its members alone: ustar, mode 0644, owner 0, time 0."""

    file: Writable
    offset: int = field(default=0)

    def add(self, name: str, data: bytes | memoryview) -> int:
        """Append one member; returns the offset of its data in the tar."""
        size = len(data)
        self.file.write(ustar_header(name, size))
        at = self.offset + BLOCK
        self.file.write(data)
        self.file.write(_PADS[-size % BLOCK])
        self.offset = padded(at + size)
        return at

    def copy(self, members: bytes) -> int:
        """Append whole members as another tar holds them, headers and padding included; returns where they begin."""
        assert len(members) % BLOCK == 0
        self.file.write(members)
        self.offset += len(members)
        return self.offset - len(members)

    def close(self) -> None:
        """End the archive: two empty blocks."""
        self.file.write(bytes(2 * BLOCK))


_PADS = tuple(bytes(n) for n in range(BLOCK))


def padded(end: int) -> int:
    """Where the next member begins after one that ends at `end`."""
    return end + -end % BLOCK


def ustar_header(name: str, size: int) -> bytes:
    """The header block of a member: what tarfile writes for it, in a tenth of the time, and in every version of Python
    (which have written the empty device numbers in two ways).

    POSIX.1-1988 ustar: name 100, mode 8, uid 8, gid 8, size 12, mtime 12, checksum 8, type 1, then magic and zeros.
    """
    field = name.encode("ascii")
    assert len(field) <= 100
    assert size < 8 << 30
    head = b"%b0000644\0000000000\0000000000\000%011o\000%011o\000" % (field.ljust(100, b"\0"), size, 0)
    return b"%b%06o\0 %b" % (head, sum(head) + _REST_SUM, _REST)


_REST = (b"0" + bytes(100) + b"ustar\00000").ljust(BLOCK - 156, b"\0")
_REST_SUM = sum(_REST) + 8 * ord(" ")  # the checksum's own field counts as spaces


BATCH, BEHIND = 1 << 20, 4
"""Bytes that are handed over together, and batches that may wait."""


class HashedFile:
    """A new file that is written and hashed by a thread of its own; `sha256` is there once it is closed.

    A batch is joined before it is written and hashed: the thread then takes Python's lock once a megabyte, not once a
    piece, and seldom waits for who packs. Memory is some BATCH * BEHIND bytes. Raises OSError from `write` or at the
    end, as a file does.
    """

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        self._digest = hashlib.sha256()
        self._thread = ThreadPoolExecutor(1)
        self._pieces: list[bytes | memoryview] = []
        self._bytes = 0
        self._flying: deque[Future[None]] = deque()
        self.sha256 = ""

    def __enter__(self) -> HashedFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        try:
            if e is None:
                self._hand_over()
                while self._flying:
                    self._flying.popleft().result()
                self.sha256 = self._digest.hexdigest()
        finally:
            self._thread.shutdown(wait=True, cancel_futures=True)
            os.close(self._fd)

    def write(self, data: bytes | memoryview) -> None:
        self._pieces.append(data)
        self._bytes += len(data)
        if self._bytes >= BATCH:
            self._hand_over()

    def _hand_over(self) -> None:
        if len(self._flying) >= BEHIND:
            self._flying.popleft().result()
        self._flying.append(self._thread.submit(self._put, self._pieces))
        self._pieces, self._bytes = [], 0

    def _put(self, pieces: list[bytes | memoryview]) -> None:
        data = b"".join(pieces)
        left = memoryview(data)
        while left:  # a write may stop short, of a full disk or a signal; the next one says why
            left = left[os.write(self._fd, left) :]
        self._digest.update(data)
