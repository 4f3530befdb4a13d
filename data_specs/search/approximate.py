"""Approximate search over millions of vectors: faiss's inverted lists of RaBitQ codes, ranked anew by the exact cosine.

Vectors are rotated (so that no coordinate matters more than another), put into the cell of the nearest of about sqrt(N)
centroids, and kept there as one bit per coordinate (Gao and Long, RaBitQ, arXiv 2405.12497): a tenth of the
float16 vectors' size, memory-mapped. A query looks into PROBED of the cells and returns the rows with the best
estimates; whoever asks computes their cosines from the vectors themselves. DECISIONS.md has the figures of what else
was tried.

Limits: a centroid is the mean of vectors that it was trained on, and stays when some of them are removed; one whose
rows are all gone is set to zero.
"""

from __future__ import annotations

import errno
import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data_specs.search.scan import Floats, Rows, Stack

FROM = 1 << 30
"""Bytes of one modality's vectors from which on an index gets an approximate search: an exact one takes 0.1 s there."""

LEAST = 1_000
"""Rows below which there are too few to train centroids on."""

PROBED = 1 / 16
"""Share of the cells that a query looks into, and at least FEWEST of them."""
FEWEST = 32

_SAMPLES = 40
"""Rows per centroid that it is trained on."""
_BATCH = 16_384
_SEED = 1234


def cells(rows: int) -> int:
    """How many cells: a power of two near sqrt(rows), and each trains on enough rows.

    Twice as many would take four times as long to train.
    """
    return int(2 ** max(2, min(round(math.log2(math.sqrt(rows))), int(math.log2(rows / _SAMPLES)))))


def write(path: Path, stack: Stack, present: Rows) -> None:
    """Write the search over the rows of a stack that have a vector, at least LEAST, to a path. Raises OSError."""
    faiss, count = _faiss(), cells(len(present))
    index = faiss.index_factory(stack.width, f"HR,IVF{count},RaBitQ", faiss.METRIC_INNER_PRODUCT)
    inner = faiss.downcast_index(faiss.extract_index_ivf(index))
    inner.cp.seed = _SEED
    rng = np.random.default_rng(_SEED)
    sample = np.sort(rng.choice(present, min(len(present), _SAMPLES * count), replace=False))
    index.train(stack.take(sample).astype(np.float32))
    for low in range(0, len(present), _BATCH):
        rows = present[low : low + _BATCH]
        index.add_with_ids(stack.take(rows).astype(np.float32), rows)
    _write(index, path)


def write_without(path: Path, before: Path, kept_N: npt.NDArray[np.bool_]) -> None:
    """Write the search of another file without the rows that are not kept; the others are numbered anew."""
    faiss = _faiss()
    index = faiss.read_index(str(before))
    inner = faiss.downcast_index(faiss.extract_index_ivf(index))
    gone = np.flatnonzero(~kept_N).astype(np.int64)
    filled = [cell for cell in range(inner.nlist) if inner.get_list_size(cell)]
    inner.remove_ids(faiss.IDSelectorBatch(gone))
    index.ntotal = inner.ntotal
    numbers = np.cumsum(kept_N) - 1  # [N] of each kept row among the kept
    flat = faiss.downcast_index(inner.quantizer)
    centroids = faiss.rev_swig_ptr(flat.get_xb(), inner.nlist * inner.d).reshape(inner.nlist, inner.d)
    for cell in filled:
        size = inner.get_list_size(cell)
        if not size:
            centroids[cell] = 0
            continue
        ids = faiss.rev_swig_ptr(inner.invlists.get_ids(cell), size)
        ids[:] = numbers[ids]
    _write(index, path)


def _write(index: Any, path: Path) -> None:
    try:
        _faiss().write_index(index, str(path))
    except RuntimeError as e:  # so faiss calls a full disk
        raise OSError(errno.EIO, "faiss: write error") from e


class Cells:
    """The approximate search of one modality, memory-mapped."""

    def __init__(self, path: Path) -> None:
        faiss = _faiss()
        self._index = faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)
        self._inner = faiss.downcast_index(faiss.extract_index_ivf(self._index))

    def candidates(self, query_D: Floats, allowed_N: npt.NDArray[np.bool_] | None, count: int) -> Rows:
        """At most `count` rows that are likely the best of those allowed (None: all), in no order."""
        faiss = _faiss()
        probed = min(self._inner.nlist, max(FEWEST, math.ceil(self._inner.nlist * PROBED)))
        few: dict[str, Any] = {}
        if allowed_N is not None:
            bits = np.packbits(allowed_N, bitorder="little")
            few["sel"] = faiss.IDSelectorBitmap(bits)
        wanted = faiss.SearchParametersPreTransform(
            index_params=faiss.IVFRaBitQSearchParameters(nprobe=probed, qb=self._inner.qb, **few)
        )
        _, found = self._index.search(query_D[None], count, params=wanted)
        rows: Rows = found[0][found[0] >= 0].astype(np.int64)
        return rows


def _faiss() -> Any:
    """The module faiss, whose own stubs know nothing of what it adds to its classes."""
    import faiss

    return faiss
