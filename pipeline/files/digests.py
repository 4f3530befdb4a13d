"""sha256 digests in bulk: hex where people and the contract read them, 32 raw bytes where millions are compared.

Conversions between NumPy and Arrow go through the buffers of a column, so that no digest becomes a Python object. An
Arrow array may be a slice of a larger one: its buffers are then the whole array's, and `offset` is where it begins.
"""

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
    """[N, 32] from N strings of 64 hex digits."""
    return np.frombuffer(bytes.fromhex("".join(digests)), np.uint8).reshape(-1, 32)


def hexed(digests: Digests) -> pa.Array:
    """A string column: 64 hex digits per digest."""
    offsets = np.arange(len(digests) + 1, dtype=np.int32) * 64
    text = digests.tobytes().hex().encode()
    return pa.StringArray.from_buffers(len(digests), pa.py_buffer(offsets), pa.py_buffer(text))


def column_of(digests: Digests) -> pa.Array:
    raw = np.ascontiguousarray(digests)
    return pa.FixedSizeBinaryArray.from_buffers(DIGEST, len(raw), [None, pa.py_buffer(raw)])


def digests_of(column: Any) -> Digests:
    """[N, 32] from a DIGEST array or chunked array without nulls."""
    chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
    # buffers: validity, data; the data of fixed-size values is [rows, 32], of which the chunk is a range of rows
    parts = [
        np.frombuffer(c.buffers()[1], np.uint8).reshape(-1, 32)[c.offset : c.offset + len(c)] for c in chunks if len(c)
    ]
    return np.concatenate(parts) if parts else np.zeros((0, 32), np.uint8)


def bytes_of(column: pa.Array) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """(bytes of all rows end to end, start of each row in them [N + 1]) of a binary array: a view of its buffer."""
    _, offsets, raw = column.buffers()  # validity, offsets int32 [rows + 1], data
    if not len(column):
        return np.zeros(0, np.uint8), np.zeros(1, np.int64)
    bounds = np.frombuffer(offsets, np.int32)[column.offset : column.offset + len(column) + 1].astype(np.int64)
    data = np.frombuffer(raw, np.uint8) if raw is not None else np.zeros(0, np.uint8)
    return data[bounds[0] : bounds[-1]], bounds - bounds[0]  # offsets count from the start of the whole buffer


def rows_of(digests: Digests) -> list[bytes]:
    """Digests [N, 32] as N bytes objects, to be keys of dicts and sets."""
    flat: list[bytes] = np.ascontiguousarray(digests).view("V32").ravel().tolist()
    return flat
