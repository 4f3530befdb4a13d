"""Texts as dedup compares them: ids and sketches, in memory and as a Parquet column.

Sketches cost more to make than to compare: `pipeline.dedup.signatures` makes them in parallel, and everything after
it, STORE's identities included, reads them as they are: arrays over the buffers of the file, no Python object per text.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from data_specs.shard import canonical_json
from data_specs.text.folding import folding_digest, text_id
from data_specs.text.variants import variants
from pipeline.files.digests import DIGEST, Digests, bytes_of, column_of, digests_of, unhex
from pipeline.matching.sketches import SHINGLES, Sketches, bands, sketch

FIELDS = pa.struct(
    [
        ("id", DIGEST),
        ("numerals", pa.uint64()),  # digest of the digits
        ("parity", pa.uint64()),
        ("keys", pa.binary()),  # uint32 each, little-endian
        ("shingles", pa.binary()),  # uint32 each, little-endian
    ]
)
"""A text in a Parquet column: its id and its sketch, field by field as in `Sketches`."""

VERSION = 1
"""Raised when the same text gets another sketch."""


def sketch_id(threshold: float) -> str:
    """Name of all that a sketch depends on; sketches of other names are not compared."""
    return canonical_json([VERSION, SHINGLES, *bands(threshold), folding_digest()]).decode()


def token(threshold: float) -> list[Any]:
    """The same for a fingerprint: versions that the folding table follows from instead of its digest."""
    return [VERSION, SHINGLES, *bands(threshold), variants().opencc, unicodedata.unidata_version]


@dataclass(frozen=True)
class TextRows:
    """Texts [N]: ids [N, 32], each the sha256 of the normal form, and sketches."""

    ids: Digests
    sketches: Sketches

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, rows: Sequence[int] | npt.NDArray[np.int64] | slice) -> TextRows:
        if isinstance(rows, slice):
            return self if rows == slice(None) else self.take(np.arange(len(self))[rows])
        at = np.asarray(rows, np.int64)
        return TextRows(self.ids[at], self.sketches.take(at))

    @staticmethod
    def concat(several: Sequence[TextRows]) -> TextRows:
        """Concatenates the texts of several batches."""
        bands = np.concatenate([one.sketches.keys for one in several])
        own = replace(Sketches.concat(*(one.sketches for one in several)), keys=bands)
        return TextRows(np.concatenate([one.ids for one in several]), own)

    def columns(self) -> pa.StructArray:
        own, size = self.sketches, len(self)
        width = own.keys.shape[1]
        values = [
            column_of(self.ids),
            pa.array(own.numerals, pa.uint64()),
            pa.array(own.parity, pa.uint64()),
            _binary(own.keys.reshape(-1), np.arange(size + 1) * width),
            _binary(own.shingles, own.starts),
        ]
        return pa.StructArray.from_arrays(values, fields=list(FIELDS))


def make_text_rows(normal_texts: Sequence[str], threshold: float) -> TextRows:
    """Computes ids and sketches of normalised texts, to be compared at the threshold."""
    return TextRows(unhex(text_id(text) for text in normal_texts), sketch(normal_texts, threshold))


def read(column: Any) -> TextRows:
    """The texts of a column of FIELDS, array or chunked array."""
    rows = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if isinstance(rows, pa.ChunkedArray):
        rows = pa.array([], FIELDS)
    fields = dict(zip(FIELDS.names, rows.flatten(), strict=True))
    shingles, starts = _words(fields["shingles"])
    keys, ends = _words(fields["keys"])
    numerals, parity = (fields[name].to_numpy(zero_copy_only=False) for name in ("numerals", "parity"))
    width = int(ends[1] - ends[0]) if len(rows) else 0  # all texts have as many keys
    return TextRows(
        digests_of(fields["id"]), Sketches(shingles, starts, numerals, parity, keys.reshape(-1, width or 1))
    )


def _binary(words: npt.NDArray[np.uint32], starts: npt.NDArray[np.int64]) -> pa.Array:
    """A binary array [N] over words laid end to end; starts [N + 1] in words, Arrow's offsets in bytes."""
    raw = np.ascontiguousarray(words, "<u4")
    offsets = (starts * 4).astype(np.int32)
    return pa.BinaryArray.from_buffers(pa.binary(), len(starts) - 1, [None, pa.py_buffer(offsets), pa.py_buffer(raw)])


def _words(column: pa.Array) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.int64]]:
    """(words of all rows end to end, start of each row in them [N + 1]) of a binary array."""
    raw, starts = bytes_of(column)
    return raw.view("<u4"), starts // 4
