"""Reproducible tars: their bytes follow from their members alone. And a file that is hashed while it is written.

Each member has one ustar header with fixed owner, mode and time, and two empty blocks end the archive. The fetch stage,
the shard stage and takedowns write through here.

    block 0         header of member 1 (512 bytes)
    blocks 1 ... n  its data, padded with zeros to a whole block
    block n + 1     header of member 2 ...

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
    """Destination of a tar: a file, or a HashedFile."""

    def write(self, data: bytes | memoryview, /) -> Any: ...


@dataclass
class TarWriter:
    """Writes a reproducible tar: ustar, mode 0644, owner 0, time 0. `offset` is the number of bytes written."""

    file: Writable
    offset: int = field(default=0)

    def add(self, name: str, data: bytes | memoryview) -> int:
        """Append one member; returns the offset of its data in the tar."""
        size = len(data)
        self.file.write(ustar_header(name, size))
        at = self.offset + BLOCK  # the header is one block
        self.file.write(data)
        self.file.write(_PADS[-size % BLOCK])  # zeros up to the next multiple of BLOCK
        self.offset = padded(at + size)
        return at

    def copy(self, members: bytes) -> int:
        """Append whole members of another tar, headers and padding included; returns the offset at which they begin."""
        assert len(members) % BLOCK == 0
        self.file.write(members)
        self.offset += len(members)
        return self.offset - len(members)

    def close(self) -> None:
        """End the archive: two empty blocks."""
        self.file.write(bytes(2 * BLOCK))


_PADS = tuple(bytes(n) for n in range(BLOCK))
"""Zeros by their number: a slice of one would be copied for each member."""


def padded(end: int) -> int:
    """Offset of the next member after one whose data ends at `end`: the next multiple of BLOCK."""
    return end + -end % BLOCK


def ustar_header(name: str, size: int) -> bytes:
    """The header block of a member [512 bytes]: what tarfile writes, in a tenth of the time and always the same.

    (Versions of Python have written the empty device numbers in two ways.)

    POSIX.1-1988 ustar: name 100, mode 8, uid 8, gid 8, size 12, mtime 12, checksum 8, type 1, then magic and zeros.
    """
    field = name.encode("ascii")
    assert len(field) <= 100
    assert size < 8 << 30  # eleven octal digits
    # name, mode, uid, gid, size, mtime: 148 bytes; numbers are octal text that ends with a zero byte
    head = b"%b0000644\0000000000\0000000000\000%011o\000%011o\000" % (field.ljust(100, b"\0"), size, 0)
    return b"%b%06o\0 %b" % (head, sum(head) + _REST_SUM, _REST)


_REST = (b"0" + bytes(100) + b"ustar\00000").ljust(BLOCK - 156, b"\0")
"""From the type (a regular file) to the end of the block: bytes 156 to 511."""

_REST_SUM = sum(_REST) + 8 * ord(" ")  # the checksum's own field, bytes 148 to 155, counts as spaces


BATCH, BEHIND = 1 << 20, 4
"""Bytes that are handed to the thread together, and batches that may wait for it."""


class HashedFile:
    """A new file, written and hashed by a separate thread; `sha256` is set once it is closed.

    Pieces are joined into batches before they are written and hashed: the thread then takes Python's lock once per
    megabyte, not once per piece, and seldom waits for the thread that packs. Memory is about BATCH * BEHIND bytes.
    Raises OSError from `write` or when it is closed, as a file does.
    """

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        self._digest = hashlib.sha256()
        self._thread = ThreadPoolExecutor(1)
        self._pieces: list[bytes | memoryview] = []
        self._bytes = 0
        self._pending: deque[Future[None]] = deque()
        self.sha256 = ""

    def __enter__(self) -> HashedFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        try:
            if e is None:
                self._hand_over()
                while self._pending:
                    self._pending.popleft().result()
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
        if len(self._pending) >= BEHIND:
            self._pending.popleft().result()  # raises what the thread raised
        self._pending.append(self._thread.submit(self._write_pieces, self._pieces))
        self._pieces, self._bytes = [], 0

    def _write_pieces(self, pieces: list[bytes | memoryview]) -> None:
        data = b"".join(pieces)
        remaining = memoryview(data)
        while remaining:  # a write may stop short, on a full disk or a signal; the next one raises the reason
            remaining = remaining[os.write(self._fd, remaining) :]
        self._digest.update(data)
