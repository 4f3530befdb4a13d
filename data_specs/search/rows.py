"""Rows of a search index: one per sample, with all that is known of it beside its vectors.

A part keeps its rows twice: as Parquet, which is what clip-retrieval and everybody else reads, and as an uncompressed
Arrow file that is memory-mapped, so that a filter over a million rows reads the columns it needs and a hit is read
without decoding its neighbours. The Arrow file also has what makes look-ups quick (`LOOKUPS`): 64 bits of each id and
leader, and the order that sorts them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
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

Groups = npt.NDArray[np.uint64]
"""[N] the first 64 bits of a sha256, 0 for none."""

_TEXT = pa.struct([("kind", pa.string()), ("text", pa.string())])
_WHERE = pa.struct([("path", pa.string()), ("offset", pa.int64()), ("size", pa.int64()), ("sha256", pa.string())])

ROWS = pa.schema(
    [
        ("id", pa.string()),  # a sample's key, or whatever names an input that is no sample; unique in the index
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

_REPEATING = ("source", "license", "split")
"""Columns with few values: Arrow keeps them as codes, so that a filter compares numbers."""

LOOKUPS = {"id": "id", "image": "image_leader", "text": "text_leader"}
"""Columns that rows are looked up by: NAME_hash (uint64) and NAME_order (int32, which sorts the hashes) of each."""

WORDS = "words"
"""Column of the Arrow file: all texts of a row cut into words (`words.cut_rows`)."""


@dataclass(frozen=True, slots=True)
class Where:
    """Where a stored picture lies: `size` bytes of a file (path or URL) from `offset` on, and their sha256."""

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
    where: Where | None
    similarity: float | None


@dataclass(frozen=True, slots=True)
class Filters:
    """Which rows a search may find; what is empty or None limits nothing.

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
        """Whether any of them looks at the rows, as `min_score` does not."""
        return self != Filters(min_score=self.min_score)

    def mask(self, rows: pa.Table, target: Literal["image", "text"]) -> Flags:
        """[n] which rows of a part pass; `target`: what is searched."""
        passed = np.ones(rows.num_rows, np.bool_)
        for name in _REPEATING:
            if values := getattr(self, name):
                passed &= _flags(pc.is_in(rows[name], pa.array(sorted(values), pa.string())))
        width, height = (numbers(rows, name) for name in ("width", "height"))
        for bound, low, side in (
            (self.min_side, True, np.minimum(width, height) if self.min_side is not None else width),
            (self.min_width, True, width),
            (self.max_width, False, width),
            (self.min_height, True, height),
            (self.max_height, False, height),
        ):
            if bound is not None:
                passed &= side >= bound if low else side <= bound
        if self.min_similarity is not None:
            passed &= _flags(pc.fill_null(pc.greater_equal(rows["similarity"], pa.scalar(self.min_similarity)), False))
        if self.url:
            of_image, of_page = (pc.match_substring(rows[n], self.url, ignore_case=True) for n in ("url", "page_url"))
            passed &= _flags(pc.or_(of_image, of_page))
        if self.leader:
            passed &= numbers(rows, f"{target}_hash") == hash_of(self.leader)
        return passed


def _flags(column: pa.ChunkedArray) -> Flags:
    flags: Flags = column.to_numpy()
    return flags.astype(np.bool_, copy=False)


def complete(rows: pa.Table, name: str) -> pa.Table:
    """The rows with every column of ROWS, in its order. Raises ContractError, which names the part."""
    unknown = sorted(set(rows.column_names) - set(ROWS.names))
    if unknown or "id" not in rows.column_names:
        raise ContractError(f"{name}: rows of an index have an id and know no {', '.join(unknown) or 'others'}")
    count, columns = rows.num_rows, []
    for field in ROWS:
        if field.name in rows.column_names:
            column = rows[field.name].combine_chunks().cast(field.type)
            if column.null_count and field.name not in ("where", "similarity"):
                column = _filled(column, field)
        elif field.name in ("where", "similarity"):
            column = pa.nulls(count, field.type)
        else:
            column = _filled(pa.nulls(count, field.type), field)
        columns.append(column)
    table = pa.Table.from_arrays(columns, schema=ROWS)
    ids = table["id"]
    if pc.any(pc.equal(ids, "")).as_py() or pc.count_distinct(ids).as_py() != count:
        raise ContractError(f"{name}: every row of an index needs an id of its own")
    return table


def _filled(column: pa.Array, field: pa.Field) -> pa.Array:
    """A column with empty values for nulls."""
    if pa.types.is_list(field.type):
        return pa.array([[] if value is None else value for value in column.to_pylist()], field.type)
    empty = "" if pa.types.is_string(field.type) else False if pa.types.is_boolean(field.type) else 0
    return pc.fill_null(column, pa.scalar(empty, field.type))


def mapped_form(rows: pa.Table, words: Sequence[str]) -> pa.Table:
    """The rows as the Arrow file keeps them: repeated strings as codes, WORDS, and LOOKUPS."""
    table = rows
    for name in _REPEATING:
        at = table.column_names.index(name)
        table = table.set_column(at, name, rows[name].combine_chunks().dictionary_encode())
    table = table.append_column(WORDS, pa.array(words, pa.string()))
    for name, column in LOOKUPS.items():
        hashes = _hashes(rows[column].to_pylist())
        table = table.append_column(f"{name}_hash", pa.array(hashes))
        table = table.append_column(f"{name}_order", pa.array(np.argsort(hashes, kind="stable").astype(np.int32)))
    return table.combine_chunks()


def plain_form(mapped: pa.Table) -> pa.Table:
    """The columns of ROWS, as they were before `mapped_form`."""
    return mapped.select(ROWS.names).cast(ROWS)


def write_mapped(path: Path, mapped: pa.Table) -> None:
    """Write the Arrow file of a part: one record batch, uncompressed."""
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, mapped.schema) as writer:
        writer.write_table(mapped, max_chunksize=max(1, mapped.num_rows))


def read_mapped(path: Path) -> pa.Table:
    """The rows of a part, memory-mapped. Raises OSError, pa.ArrowInvalid."""
    with pa.memory_map(str(path)) as source:
        return pa.ipc.open_file(source).read_all()


def numbers(part: pa.Table, name: str) -> npt.NDArray[Any]:
    """A column of numbers of a part: a view of the file."""
    view: npt.NDArray[Any] = part[name].chunk(0).to_numpy()
    return view


def hash_of(name: str) -> int:
    """The first 64 bits of a name's sha256; 0 for none."""
    return int.from_bytes(hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest()[:8], "big") if name else 0


def _hashes(names: Sequence[str]) -> Groups:
    return np.fromiter((hash_of(name) for name in names), np.uint64, len(names))


def rows_with(part: pa.Table, lookup: str, hashes: Groups) -> Iterator[npt.NDArray[np.int64]]:
    """For each hash the rows of a part that have it, in no order."""
    order, known = numbers(part, f"{lookup}_order"), numbers(part, f"{lookup}_hash")
    first, last = (np.searchsorted(known, hashes, side, sorter=order) for side in ("left", "right"))
    for low, high in zip(first.tolist(), last.tolist(), strict=True):
        yield order[low:high].astype(np.int64)


def record(part: pa.Table, row: int) -> Row:
    """One row of a part."""
    raw = {name: part[name][row].as_py() for name in ROWS.names}
    flat = [float(number) for number in raw.pop("boxes")]
    boxes = tuple((flat[i], flat[i + 1], flat[i + 2], flat[i + 3]) for i in range(0, len(flat) - 3, 4))
    texts = tuple(Text(text["kind"], text["text"]) for text in raw.pop("texts"))
    where = raw.pop("where")
    return Row(boxes=boxes, texts=texts, where=None if where is None else Where(**where), **raw)
