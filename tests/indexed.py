"""Small search indexes for tests: rows as dicts, vectors by a seed."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from data_specs.search.index import Background, IndexInfo, IndexWriter
from data_specs.search.rows import MAPPED

Vectors = npt.NDArray[np.float32]


def units(vectors: Any) -> Vectors:
    """float32 [n, D] of length 1."""
    raw = np.asarray(vectors, np.float64)
    scaled: Vectors = (raw / np.linalg.norm(raw, axis=1, keepdims=True)).astype(np.float32)
    return scaled


def random_units(count: int, width: int, seed: int = 0) -> Vectors:
    return units(np.random.default_rng(seed).standard_normal((count, width)))


def table(rows: Sequence[dict[str, Any]]) -> pa.Table:
    """Rows as `IndexWriter.add` takes them, with those columns that any of them has."""
    names = [name for name in MAPPED.names if any(name in row for row in rows)]
    columns = {name: pa.array([row.get(name) for row in rows], MAPPED.field(name).type) for name in names}
    return pa.table(columns)


def make(
    folder: Path,
    rows: Sequence[dict[str, Any]],
    image_ND: Vectors | None,
    text_ND: Vectors | None = None,
    *,
    parts: Sequence[int] = (),
    background: Background | None = None,
    approximate: bool | None = None,
) -> Path:
    """An index of these rows; `parts`: how many rows each of the first parts has, the last has the rest."""
    given = image_ND if image_ND is not None else text_ND
    assert given is not None
    about = IndexInfo(
        name="test",
        width=given.shape[1],
        images=image_ND is not None,
        texts=text_ND is not None,
        background=background,
    )
    bounds = [0, *np.minimum(np.cumsum(parts, dtype=int), len(rows)).tolist(), len(rows)]
    with IndexWriter.begin(folder, about) as writer:
        for low, high in pairwise(bounds):
            if low < high:
                of_part = (None if v is None else v[low:high] for v in (image_ND, text_ND))
                writer.add(table(rows[low:high]), *of_part)
        writer.finish(approximate=approximate)
    return folder


def named(count: int, **more: Any) -> list[dict[str, Any]]:
    """Rows that have an id and nothing else but what is given."""
    return [{"id": f"row-{n}", **more} for n in range(count)]


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder, by its path in it."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def of_shards(folder: Path, shards: Path, width: int = 16) -> Path:
    """An index of all samples of a published build, with random vectors."""
    rows: list[dict[str, Any]] = []
    for file in sorted(shards.glob("*.parquet")):
        tar = file.with_suffix(".tar").read_bytes()
        for sample in pq.read_table(file).to_pylist():
            start, size = sample["image_offset"], sample["image_size"]
            stored = hashlib.sha256(tar[start : start + size]).hexdigest()
            where = {"path": str(file.with_suffix(".tar")), "offset": start, "size": size, "sha256": stored}
            texts = [{"kind": text["kind"], "text": text["text"]} for text in sample["texts"]]
            own = {name: sample[name] for name in ("page_url", "sha256", "width", "height", "source", "split")}
            more = {"id": sample["key"], "url": sample["image_url"], "caption": texts[0]["text"], "texts": texts}
            rows.append({**own, **more, "image_leader": sample["image_leader"], "where": where})
    vectors = random_units(len(rows), width)
    return make(folder, rows, vectors, random_units(len(rows), width, seed=1), parts=[len(rows) // 2])
