"""Damage in files that others wrote: holes with their size, and a search for the place where reading can go on.

A reader of tars, Parquet or WARC files that meets bytes it cannot read skips to the next place where an entry begins:
a tar header whose checksum is right, a row group by the file's own metadata, a record of a WARC file or the gzip member
with one. What lies before it is one Hole. Its weight is what it swallowed, in bytes and, where metadata state them, in
rows: one hole may be three quarters of a file, and `publish.max_unreadable` weighs it as that.

Limits: damage that leaves entries formally intact (a flipped byte in a picture) is found by the reader of the
entry, not here. An entry within another one (a tar in a tar) may be taken for one of the file's own behind a hole.
"""

from __future__ import annotations

import gzip
import lzma
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import IO

MAX_SEARCH = 1 << 28
"""Bytes that are searched for the next entry at most: a sparse file of a terabyte takes no room and holds nothing."""

_FIRST_BLOCK, _BLOCK = 1 << 13, 1 << 20
"""Bytes that are read at a time: few at first, since of many small holes each ends soon."""


@dataclass(frozen=True, slots=True)
class Hole:
    """A part of a file that cannot be read. start: its position in bytes; rows: 0 where nothing states them."""

    start: int
    bytes: int
    why: str
    rows: int = 0

    def __str__(self) -> str:
        lost = f"{self.bytes:,} bytes from byte {self.start:,} on"
        return f"{lost}{f' with {self.rows:,} rows' if self.rows else ''} cannot be read ({self.why})"[:280]


@dataclass(frozen=True, slots=True)
class Beginning:
    """Mark by which the beginning of an entry is found in a file format.

    mark: bytes that stand `before` bytes behind its beginning. begins: tells of up to `ahead` bytes from the beginning
    on whether they are those of an entry.
    """

    mark: bytes
    before: int
    ahead: int
    begins: Callable[[memoryview], bool]

    def after(self, file: IO[bytes], start: int, most: int = MAX_SEARCH) -> int:
        """The position of the first entry of a file from `start` on; -1 for none within `most` bytes, or a block more.

        Raises what the file raises, where it cannot be read from any position.
        """
        file.seek(start)
        window, base, size = b"", start, _FIRST_BLOCK
        while base - start < most and (block := file.read(size)):
            window, size = window + block, min(2 * size, _BLOCK)
            at = window.find(self.mark)
            while at >= 0:
                begin = at - self.before
                if begin >= 0:
                    if begin + self.ahead > len(window):
                        window += file.read(begin + self.ahead - len(window))
                    if self.begins(memoryview(window)[begin : begin + self.ahead]):
                        return base + begin
                at = window.find(self.mark, at + 1)
            passed = max(0, len(window) - self.before - len(self.mark) + 1)  # a mark may lie across two blocks
            window, base = window[passed:], base + passed
        return -1


def is_damage(error: Exception) -> bool:
    """True if a reader raised it about a file's bytes: what a disk or a server raises has a number or another class."""
    unpacking = (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile)
    return isinstance(error, unpacking) or (type(error) is OSError and error.errno is None)


def size_of(file: IO[bytes], otherwise: int = 0) -> int:
    """Bytes of an open file, which then stands where it stood; `otherwise` for a stream that cannot go back."""
    try:
        here = file.tell()
        size = file.seek(0, 2)
        file.seek(here)
    except (OSError, ValueError, NotImplementedError):
        return otherwise
    return max(size, otherwise)
