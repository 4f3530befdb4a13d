"""Rows of a search index: one per sample, with all its fields except the vectors.

A part keeps its rows twice: as Parquet, which clip-retrieval, DuckDB and everything else reads, and as an uncompressed
Arrow file that is memory-mapped, so that a filter over a million rows reads only the columns it needs and a hit is read
without decoding its neighbours. The Arrow file has two columns more (`MAPPED`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from data_specs.shard import ContractError, Text

Flags = npt.NDArray[np.bool_]
"""[N] one flag per row."""

_TEXT = pa.struct([("kind", pa.string()), ("text", pa.string())])
_WHERE = pa.struct([("path", pa.string()), ("offset", pa.int64()), ("size", pa.int64()), ("sha256", pa.string())])

ROWS = pa.schema(
    [
        ("id", pa.string()),  # a sample's key, or whatever names an input that is not a sample; unique in the index
        ("has_image", pa.bool_()),  # whether the row of img_emb is a vector; zeros if not
        ("has_text", pa.bool_()),  # the same for text_emb
        ("caption", pa.string()),  # the primary text, which text_emb is of
        ("texts", pa.list_(_TEXT)),
        ("url", pa.string()),  # of the image
        ("page_url", pa.string()),
        ("sha256", pa.string()),  # of the image's bytes as fetched
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("source", pa.string()),
        ("license", pa.string()),
        ("split", pa.string()),
        ("image_leader", pa.string()),
        ("text_leader", pa.string()),
        ("boxes", pa.list_(pa.float32())),  # R x 4 flattened, pixels of the stored image
        ("where", _WHERE),  # the stored picture: a file and a range of it; sha256 of those bytes ("": as `sha256`)
        ("similarity", pa.float32()),  # cosine of the image with its own text; null where there is only one of them
    ]
)
"""Columns of a part's metadata. A writer may leave out any but `id`: they are then empty."""

MAPPED = pa.schema(
    [
        *ROWS,
        ("words", pa.string()),  # all texts of the row, cut into words (words.py)
        ("stamp", pa.uint64()),  # hash of what the row was made of, by which `embed` recognises it; 0: unknown
    ]
)
"""Columns of a part's Arrow file."""

FACETS = ("source", "license", "split")
"""Columns with few values, which filters choose from."""


@dataclass(frozen=True, slots=True)
class PictureLocation:
    """Location of a stored picture: `size` bytes of a file (path or URL) from `offset` on, and their sha256."""

    path: str
    offset: int
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Row:
    """One row of an index, as people and programs see it. `boxes`: x1 y1 x2 y2 in pixels of the stored image."""

    id: str
    has_image: bool
    has_text: bool
    caption: str
    texts: tuple[Text, ...]
    url: str
    page_url: str
    sha256: str
    width: int
    height: int
    source: str
    license: str
    split: str
    image_leader: str
    text_leader: str
    boxes: tuple[tuple[float, float, float, float], ...]
    where: PictureLocation | None
    similarity: float | None


@dataclass(frozen=True, slots=True)
class Filters:
    """Conditions on the rows to find; an empty or None field does not limit anything.

    source, license, split: any of these values. min_side, ..., max_height: pixels of the stored image. url: a part of
    the image's or the page's URL, without regard to case. min_similarity: cosine of the image with its own text.
    min_score: of the hit itself, calibrated: needs an index with a background. leader: rows of that image_leader or
    text_leader, by what is searched.
    """

    source: frozenset[str] = frozenset()
    license: frozenset[str] = frozenset()
    split: frozenset[str] = frozenset()
    min_side: int | None = None
    min_width: int | None = None
    max_width: int | None = None
    min_height: int | None = None
    max_height: int | None = None
    min_similarity: float | None = None
    min_score: float | None = None
    url: str = ""
    leader: str = ""

    def of_rows(self) -> bool:
        """True if a condition other than `min_score` is set."""
        return self != Filters(min_score=self.min_score)

    def mask(self, rows: pa.Table, target: Literal["image", "text"]) -> Flags:
        """[N] mask of the rows that pass; `target`: the searched modality."""
        passed = np.ones(rows.num_rows, np.bool_)
        for name in FACETS:
            if values := getattr(self, name):
                passed &= flags(pc.is_in(rows[name], pa.array(sorted(values), pa.string())))
        width, height = rows["width"], rows["height"]
        for bound, low, side in (
            (self.min_side, True, pc.min_element_wise(width, height)),
            (self.min_width, True, width),
            (self.max_width, False, width),
            (self.min_height, True, height),
            (self.max_height, False, height),
        ):
            if bound is not None:
                passed &= flags(pc.greater_equal(side, bound) if low else pc.less_equal(side, bound))
        if self.min_similarity is not None:
            passed &= flags(pc.fill_null(pc.greater_equal(rows["similarity"], pa.scalar(self.min_similarity)), False))
        if self.url:
            of_image, of_page = (pc.match_substring(rows[n], self.url, ignore_case=True) for n in ("url", "page_url"))
            passed &= flags(pc.or_(of_image, of_page))
        if self.leader:
            passed &= flags(pc.equal(rows[f"{target}_leader"], self.leader))
        return passed


def flags(column: pa.ChunkedArray) -> Flags:
    """A column of booleans without nulls."""
    values: Flags = column.to_numpy()
    return values.astype(np.bool_, copy=False)


def with_words(rows: pa.Table, words: Sequence[str]) -> pa.Table:
    """Complete rows, which may have a column `stamp`, with their words: the columns of MAPPED."""
    stamps = rows["stamp"] if "stamp" in rows.column_names else pa.array(np.zeros(rows.num_rows, np.uint64))
    columns = [rows[name] for name in ROWS.names]
    return pa.table([*columns, pa.array(words, pa.string()), stamps], schema=MAPPED).combine_chunks()


def complete(rows: pa.Table, name: str) -> pa.Table:
    """The rows with every column of ROWS, in its order, and their `stamp`. Raises ContractError that names the part."""
    unknown = sorted(set(rows.column_names) - {*ROWS.names, "stamp"})
    if unknown or "id" not in rows.column_names:
        problem = f"unknown columns: {', '.join(unknown)}" if unknown else "rows of an index need the column id"
        raise ContractError(f"{name}: {problem}")
    count, columns = rows.num_rows, []
    for field in ROWS:
        given = field.name in rows.column_names
        column = rows[field.name].combine_chunks().cast(field.type) if given else pa.nulls(count, field.type)
        columns.append(column if field.name in ("where", "similarity") else _filled(column, field))
    table = pa.Table.from_arrays(columns, schema=ROWS)
    if pc.any(pc.equal(table["id"], "")).as_py() or pc.count_distinct(table["id"]).as_py() != count:
        raise ContractError(f"{name}: every row of an index needs a unique id")
    return table.append_column("stamp", rows["stamp"]) if "stamp" in rows.column_names else table


def _filled(column: pa.Array, field: pa.Field) -> pa.Array:
    """A column with empty values for nulls."""
    if not column.null_count:
        return column
    if pa.types.is_list(field.type):
        return pa.array([[] if value is None else value for value in column.to_pylist()], field.type)
    empty = "" if pa.types.is_string(field.type) else False if pa.types.is_boolean(field.type) else 0
    return pc.fill_null(column, pa.scalar(empty, field.type))


def write_mapped(path: Path, rows: pa.Table) -> None:
    """Write the Arrow file of a part: one record batch, uncompressed."""
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, rows.schema) as writer:
        writer.write_table(rows, max_chunksize=max(1, rows.num_rows))


def read_mapped(path: Path) -> pa.Table:
    """The rows of a part, memory-mapped. Raises OSError, pa.ArrowInvalid."""
    with pa.memory_map(str(path)) as source:
        return pa.ipc.open_file(source).read_all()


def record(rows: pa.Table, row: int) -> Row:
    raw: dict[str, Any] = rows.slice(row, 1).select(ROWS.names).to_pylist()[0]
    flat = [float(number) for number in raw.pop("boxes")]
    boxes = tuple((flat[i], flat[i + 1], flat[i + 2], flat[i + 3]) for i in range(0, len(flat) - 3, 4))
    texts = tuple(Text(text["kind"], text["text"]) for text in raw.pop("texts"))
    where = raw.pop("where")
    return Row(boxes=boxes, texts=texts, where=None if where is None else PictureLocation(**where), **raw)
