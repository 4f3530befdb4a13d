"""Flat files of named NumPy arrays, read only as far as they are used.

The file: array after array, each on a border of 64 bytes, then their names, types, shapes and offsets as JSON, then the
length of that JSON as int64 and MAGIC. On a disk it is mapped into memory; behind a URL a file of up to SMALL bytes is
read at once, and of a larger one an array is one ranged read.
"""

from __future__ import annotations

import json
import mmap
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from pipeline.errors import StoreError
from pipeline.files.folder import SMALL, Folder

MAGIC = b"wenlan\x00\x01"

_ALIGNED = 64
_TAIL = 8 + len(MAGIC)


class ArrayWriter:
    """Writes arrays to an open file, one by one; `finish` makes the file readable."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._at = file, 0
        self._arrays: dict[str, Any] = {}

    def add(self, name: str, array: npt.NDArray[Any]) -> None:
        """Append an array under a unique name."""
        self._write(b"\x00" * (-self._at % _ALIGNED))
        self._arrays[name] = [array.dtype.str, list(array.shape), self._at]
        self._write(np.ascontiguousarray(array).tobytes())

    def finish(self) -> None:
        """Append the list of arrays."""
        names = json.dumps(self._arrays).encode()
        self._write(names + len(names).to_bytes(8, "little") + MAGIC)

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self._at += len(data)


class Arrays:
    """The arrays of a file, read-only. Use as a context manager; an array is good until its end, or `give_back`.

    Raises StoreError for a file that is not there or not whole.
    """

    def __init__(self, folder: Folder, name: str) -> None:
        self._folder, self._name = folder, name
        self._map: mmap.mmap | bytes | None = None
        self._known: dict[str, npt.NDArray[Any]] = {}

    def __enter__(self) -> Arrays:
        if self._folder.is_local:
            try:
                with Path(self._folder.at(self._name)).open("rb") as file:
                    self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            except (OSError, ValueError) as e:
                raise self._incomplete_error() from e
        else:
            with self._folder.opened(self._name) as remote:
                size = remote.seek(0, 2)
                if size <= SMALL:
                    self._map = self._read_range(0, size)
                else:
                    self._arrays = self._read_directory(size, lambda start, stop: self._read_range(start, stop - start))
        if self._map is not None:
            read = self._map.__getitem__
            self._arrays = self._read_directory(len(self._map), lambda start, stop: read(slice(start, stop)))
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        self._known, self._map = {}, None  # what still looks at an array keeps the map

    def __getitem__(self, name: str) -> npt.NDArray[Any]:
        if name not in self._known:
            kind, shape, at = self._arrays[name]
            count = int(np.prod(shape))
            if not count:
                self._known[name] = np.zeros(shape, kind)
            elif self._map is not None:
                self._known[name] = np.frombuffer(self._map, kind, count, at).reshape(shape)
            else:
                raw = self._read_range(at, count * np.dtype(kind).itemsize)
                self._known[name] = np.frombuffer(raw, kind).reshape(shape)
        return self._known[name]

    def give_back(self) -> None:
        """Let go of what was read: of a map its pages, which are read again where they are looked at again."""
        self._known = {}
        if isinstance(self._map, mmap.mmap):
            self._map.madvise(mmap.MADV_DONTNEED)

    def _read_range(self, offset: int, size: int) -> bytes:
        raw = self._folder.read_range(self._name, offset, size)
        if len(raw) != size:
            raise self._incomplete_error()
        return raw

    def _read_directory(self, size: int, read: Any) -> dict[str, Any]:
        tail = read(max(0, size - _TAIL), size)
        if len(tail) < _TAIL or not tail.endswith(MAGIC):
            raise self._incomplete_error()
        length = int.from_bytes(tail[:8], "little")
        if length > size - _TAIL:
            raise self._incomplete_error()
        try:
            arrays: dict[str, Any] = json.loads(read(size - _TAIL - length, size - _TAIL))
        except ValueError:
            raise self._incomplete_error() from None
        return arrays

    def _incomplete_error(self) -> StoreError:
        return StoreError(self._folder.at(self._name), "missing or incomplete; delete it to have it recreated")
