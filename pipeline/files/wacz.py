"""WACZ files: zips of WARC files, as written by Browsertrix and ArchiveWeb.page, read in place.

A WARC file in a WACZ has an address: the path or URL of the WACZ, `#`, and its name in the zip. The zip stores it as it
is (WACZ 1.1.1, "Zip Format"), so it is a window of the WACZ: nothing is unpacked, and a record has a place in the WACZ.

Limits: a WARC file that the zip has compressed is refused, since its records cannot be read by their places. Indexes
and page lists in the WACZ are not read: the records themselves say what they are.
"""

from __future__ import annotations

import contextlib
import functools
import io
import struct
import zipfile
from collections.abc import Iterator
from typing import Any, BinaryIO, cast

import fsspec

from pipeline.errors import BrokenFile, SourceError
from pipeline.files.inputs import faults, reason

MAX_DIRECTORY = 8 << 20
"""Bytes of a zip's directory at most: about 100,000 names, where a WACZ has some dozen."""

SUFFIX = ".wacz"
_REFUSALS = (zipfile.BadZipFile, ValueError, NotImplementedError, struct.error, OverflowError)
"""Exceptions of `zipfile`, and ours, whose cause is the file."""

_HEADER = struct.Struct("<4s22xHH")
"""Local header of a member of a zip: its mark, and the lengths of its name and of its extra field."""


def file_of(address: str) -> str:
    """The file in which an address lies: the WACZ, or the address itself where it is that of a file."""
    at = address.lower().rfind(f"{SUFFIX}#")
    return address if at < 0 else address[: at + len(SUFFIX)]


def warcs_in(file: str, source: str, mark: str = "") -> list[str]:
    """Addresses of the WARC files of a WACZ, by name; of any other file that file itself. Raises SourceError.

    mark: changes with the file, whose directory is read once for each.
    """
    return [f"{file}#{name}" for name in _member_names(file, source, mark)] if is_wacz(file) else [file]


def is_wacz(file: str) -> bool:
    return file.lower().endswith(SUFFIX)


@functools.lru_cache(maxsize=4096)
def _member_names(file: str, source: str, mark: str) -> tuple[str, ...]:
    try:
        with fsspec.open(file, "rb") as f:
            names = tuple(sorted(name for name in _members(f) if _is_warc(name)))
    except _REFUSALS as e:
        raise BrokenFile(file, f"source {source}: not a readable WACZ file ({reason(e)})") from None
    except faults() as e:
        raise SourceError(file, f"source {source}: not a readable WACZ file ({reason(e)})") from None
    if not names:
        raise BrokenFile(file, f"source {source}: contains no WARC file below archive/")
    return names


@contextlib.contextmanager
def opened(address: str) -> Iterator[tuple[BinaryIO, int]]:
    """A WARC file by its path, URL or address within a WACZ, open for reading, and where it begins in `file_of` it.

    Raises SourceError for a WACZ that does not hold it as it is, and what fsspec raises.
    """
    file = file_of(address)
    if file == address and is_wacz(file):
        raise BrokenFile(file, "not a readable WACZ file, or one without a WARC file below archive/")
    with fsspec.open(file, "rb") as f:
        if file == address:
            yield f, 0
            return
        try:
            start, size = _member_range(f, address[len(file) + 1 :])
        except _REFUSALS as e:
            raise SourceError(address, f"not a readable WACZ file ({reason(e)})") from None
        yield cast(BinaryIO, _FileRange(f, start, size)), start


def _is_warc(name: str) -> bool:
    return name.startswith("archive/") and name.lower().endswith((".warc", ".warc.gz"))


def _members(file: Any) -> dict[str, zipfile.ZipInfo]:
    """Members of a zip by name. Raises _REFUSALS."""
    with zipfile.ZipFile(_BoundedDirectory(file)) as archive:
        return {member.filename: member for member in archive.infolist()}


def _member_range(file: Any, name: str) -> tuple[int, int]:
    """Position and size of a member of a zip. Raises _REFUSALS, also for one that is not stored as is."""
    member = _members(file).get(name)
    if member is None:
        raise ValueError(f"contains no {name}")
    if member.compress_type != zipfile.ZIP_STORED or member.flag_bits & 1:
        raise ValueError(f"{name} is compressed or encrypted in the zip; pack the WACZ again with zip -0")
    file.seek(member.header_offset)
    mark, name_length, extra_length = _HEADER.unpack(file.read(_HEADER.size))
    if mark != b"PK\3\4":
        raise ValueError(f"{name} is not where the zip's directory says")
    return member.header_offset + _HEADER.size + name_length + extra_length, member.file_size


class _BoundedDirectory:
    """A zip's file for `zipfile`, which reads the whole directory at once, however large it says it is."""

    def __init__(self, file: Any) -> None:
        self.seek, self.tell, self.seekable, self._read = file.seek, file.tell, file.seekable, file.read

    def read(self, size: int = -1) -> bytes:
        data = bytes(self._read(MAX_DIRECTORY + 1 if size < 0 else min(size, MAX_DIRECTORY + 1)))
        if len(data) > MAX_DIRECTORY:
            raise ValueError(f"a directory of more than {MAX_DIRECTORY:,} bytes")
        return data


class _FileRange(io.RawIOBase):
    """A part of a file as a file of its own."""

    def __init__(self, file: Any, start: int, size: int) -> None:
        self._file, self._start, self._size, self._at = file, start, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        begin = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        self._at = max(0, begin + offset)
        return self._at

    def readinto(self, buffer: Any) -> int:
        self._file.seek(self._start + self._at)
        data = self._file.read(max(0, min(len(buffer), self._size - self._at)))
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)
