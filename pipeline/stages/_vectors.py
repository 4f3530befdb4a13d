"""What the stages `vectors`, `nearest` and `semantic_dedup` hand on to one another, and the columns that hold codes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.files.digests import DIGEST, bytes_of
from pipeline.matching.semantic import Codes

ALL = "all"
"""The one partition of stage `nearest`, which goes over all pairs in order."""

_KEPT = [("candidate_id", DIGEST), ("fetch_id", DIGEST), ("sha256", DIGEST), ("codes", pa.binary())]

KEPT_SCHEMA = pa.schema(_KEPT)
"""Kept pairs by rank, with the features of their images as int16 (`pipeline.matching.semantic`)."""

RANK = pa.binary(44)
"""Compares as bytes like the ranks of pairs: which build of the last generation kept it, the column, candidate_id."""

VECTOR_SCHEMA = pa.schema([("rank", RANK), *_KEPT])

NEAR_SCHEMA = pa.schema(
    [
        ("candidate_id", pa.string()),
        ("leader", pa.string()),  # candidate_id of the nearest pair that was kept before
        ("earlier", pa.bool_()),  # an earlier build kept it
        ("millionths", pa.int32()),  # cosine distance of their images
        ("dropped", pa.bool_()),  # else it lies just beyond the distance
    ]
)
"""Verdicts of `nearest`."""

NEAR, PLACED_NEAR_SCHEMA = "near.parquet", pa.schema([("order_key", pa.string()), *NEAR_SCHEMA])
"""Suffix of the file in which `semantic_dedup` keeps the verdicts of a partition, and its rows."""


CHUNK_BYTES = 1 << 30
"""Codes of one chunk of a column at most."""


def codes_column(codes: Codes) -> pa.ChunkedArray:
    """Codes [N, D] as a binary column, in chunks: an array counts its bytes in 32 bits."""
    width = codes.itemsize * codes.shape[1]
    rows = max(1, CHUNK_BYTES // max(1, width))
    chunks = [_codes_array(codes[start : start + rows], width) for start in range(0, len(codes), rows)]
    return pa.chunked_array(chunks, pa.binary())


def _codes_array(codes: Codes, width: int) -> pa.Array:
    offsets = np.arange(len(codes) + 1, dtype=np.int32) * np.int32(width)
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(np.ascontiguousarray(codes))]
    return pa.BinaryArray.from_buffers(pa.binary(), len(codes), buffers)


def codes_in(column: Any) -> Codes:
    """[N, D] of a binary column; D is 0 for one without rows."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if isinstance(array, pa.ChunkedArray):
        array = pa.concat_arrays(array.chunks)
    if not len(array):
        return np.zeros((0, 0), np.int16)
    data, _ = bytes_of(array)
    codes: Codes = np.frombuffer(data.tobytes(), np.int16).reshape(len(array), -1)
    return codes
