"""sha256 digests in bulk: hex where people and the contract read them, 32 raw bytes where millions are compared."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

Digests = npt.NDArray[np.uint8]
"""[N, 32]"""

DIGEST = pa.binary(32)


def unhex(digests: Iterable[str]) -> Digests:
    """[N, 32] from hex."""
    return np.frombuffer(bytes.fromhex("".join(digests)), np.uint8).reshape(-1, 32)


def hexed(digests: Digests) -> pa.Array:
    """Strings of 64 hex digits."""
    offsets = np.arange(len(digests) + 1, dtype=np.int32) * 64
    text = digests.tobytes().hex().encode()
    return pa.StringArray.from_buffers(len(digests), pa.py_buffer(offsets), pa.py_buffer(text))


def column_of(digests: Digests) -> pa.Array:
    """A column of DIGEST."""
    raw = np.ascontiguousarray(digests)
    return pa.FixedSizeBinaryArray.from_buffers(DIGEST, len(raw), [None, pa.py_buffer(raw)])


def digests_of(column: Any) -> Digests:
    """[N, 32] of a DIGEST array or chunked array without nulls."""
    chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
    parts = [
        np.frombuffer(c.buffers()[1], np.uint8).reshape(-1, 32)[c.offset : c.offset + len(c)] for c in chunks if len(c)
    ]
    return np.concatenate(parts) if parts else np.zeros((0, 32), np.uint8)


def bytes_of(column: pa.Array) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """(bytes of all rows of a binary array, where each row starts [N + 1]): a view of its buffer."""
    _, offsets, raw = column.buffers()
    if not len(column):
        return np.zeros(0, np.uint8), np.zeros(1, np.int64)
    bounds = np.frombuffer(offsets, np.int32)[column.offset : column.offset + len(column) + 1].astype(np.int64)
    data = np.frombuffer(raw, np.uint8) if raw is not None else np.zeros(0, np.uint8)
    return data[bounds[0] : bounds[-1]], bounds - bounds[0]


def rows_of(digests: Digests) -> list[bytes]:
    """One bytes object each."""
    flat: list[bytes] = np.ascontiguousarray(digests).view("V32").ravel().tolist()
    return flat
