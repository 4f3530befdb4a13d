"""Search in an index folder: by vector, with filters, near-copies shown once, scores calibrated.

`SearchIndex.open` maps files and reads only index.json. A query's answer is one ranking, of which `limit` and `offset`
cut a page: pages of one query never overlap, and miss nothing.

    by vector     cosine, best first, ties by row
    filters       decide which rows are searched, so that a filter yields every hit that there is
    near-copies   of rows with the same leader (image_leader for images, text_leader for texts) the best is shown, and
                  says how many others stand behind it; `copies=True` shows all
    score         the place of the cosine in the index's background (None without one)
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from data_specs.search import rows as rows_of
from data_specs.search.index import EMBEDDINGS, About, IndexFault, IndexFile, Modality, read_index
from data_specs.search.rows import LOOKUPS, Filters, Flags, Row
from data_specs.search.scan import Floats, Rows, Stack, best

__all__ = ["Filters", "Hit", "Query", "Results", "Row", "SearchIndex"]

MOST = 1_000_000
"""Largest limit + offset."""


@dataclass(frozen=True)
class Query:
    """What is searched. vector_D: float32 [D], of any length but 0; None: by words only.

    exact: True: every row is looked at; None: where an approximate index lies beside large ones, it is used.
    copies: show near-copies too. weight: of the words against the vector in the ranking, 0 to 1.
    """

    vector_D: npt.NDArray[np.float32] | None = None
    words: str = ""
    target: Modality = "image"
    limit: int = 20
    offset: int = 0
    filters: Filters = field(default_factory=Filters)
    exact: bool | None = None
    copies: bool = False
    weight: float = 0.5


@dataclass(frozen=True)
class Hit:
    """One row of an answer. row: its number in the index of this revision. cosine: None where only words were asked.

    score: of the cosine, by the background. words_score: BM25, None where no word is in it. copies: other rows with
    the same leader that pass the filters.
    """

    row: int
    record: Row
    cosine: float | None
    score: float | None
    words_score: float | None
    copies: int

    @property
    def id(self) -> str:
        return self.record.id

    @property
    def caption(self) -> str:
        return self.record.caption


@dataclass(frozen=True)
class Results:
    """A page of an answer. exact: whether every allowed row was looked at. more: whether another page follows.

    allowed: how many rows pass the filters and have what is asked for.
    """

    hits: tuple[Hit, ...]
    exact: bool
    more: bool
    allowed: int


class SearchIndex:
    """An open index. Any thread may search; `reload_if_changed` swaps what all later calls see."""

    def __init__(self, folder: Path, state: _State) -> None:
        self.folder, self._state = folder, state

    @staticmethod
    def open(folder: Path) -> SearchIndex:
        """Map an index folder. Raises IndexFault for what is no index, or is damaged."""
        return SearchIndex(folder, _State.open(folder))

    @property
    def about(self) -> About:
        return self._state.index.about

    @property
    def rows(self) -> int:
        return self._state.index.rows

    @property
    def width(self) -> int:
        """D of the vectors."""
        return self._state.index.about.width

    @property
    def revision(self) -> int:
        return self._state.index.revision

    def search(self, query: Query) -> Results:
        """A page of the ranking. Raises IndexFault for a query that does not fit the index."""
        return self._state.search(query)

    def row(self, id: str) -> Row | None:
        """The row of an id; None if there is none."""
        number = self._state.number(id)
        return None if number is None else self._state.record(number)

    def at(self, row: int) -> Row | None:
        """The row of a number (`Hit.row`); None if there is none."""
        return self._state.record(row) if 0 <= row < self.rows else None

    def counts(self) -> dict[Modality, int]:
        """How many rows have a vector of each modality."""
        return {m: int(np.count_nonzero(flags)) for m, flags in self._state.present.items()}

    def vector(self, id: str, modality: Modality) -> npt.NDArray[np.float32] | None:
        """float32 [D] of a row; None where the row has no such vector. Raises IndexFault for an unknown id."""
        state = self._state
        number = state.number(id)
        if number is None:
            raise IndexFault(f"{self.folder}: has no row {id}")
        if modality not in state.stacks or not state.present[modality][number]:
            return None
        vector_D: npt.NDArray[np.float32] = state.stacks[modality].take(np.array([number]))[0].astype(np.float32)
        return vector_D

    def facets(self) -> dict[str, dict[str, int]]:
        """How many rows each value of source, license and split has."""
        return self._state.facets()

    def picture(self, id: str) -> tuple[bytes, str]:
        """(bytes, media type) of a row's stored picture, checked against its sha256. Raises IndexFault."""
        number = self._state.number(id)
        if number is None:
            raise IndexFault(f"{self.folder}: has no row {id}")
        return _picture(self._state.record(number))

    def reload_if_changed(self) -> bool:
        """Map the index anew if a takedown has rewritten it; whether it had."""
        if read_index(self.folder).revision == self._state.index.revision:
            return False
        self._state = _State.open(self.folder)
        return True


@dataclass(frozen=True)
class _State:
    """One revision of an index, mapped. `starts` [parts + 1]: the first row of each part."""

    folder: Path
    index: IndexFile
    tables: tuple[pa.Table, ...]
    stacks: dict[Modality, Stack]
    present: dict[Modality, Flags]
    starts: Rows

    @staticmethod
    def open(folder: Path) -> _State:
        index = read_index(folder)
        try:
            tables = tuple(rows_of.read_mapped(folder / part.files["rows"].path) for part in index.parts)
            stacks = {
                modality: Stack(
                    [np.load(folder / p.files[EMBEDDINGS[modality]].path, mmap_mode="r") for p in index.parts],
                    index.about.width,
                )
                for modality in index.about.modalities
            }
        except (OSError, ValueError, KeyError, pa.ArrowInvalid) as e:
            raise IndexFault(f"{folder}: the index is damaged ({e}); embed it again") from None
        starts = np.concatenate([[0], np.cumsum([part.rows for part in index.parts], dtype=np.int64)])
        present = {
            m: np.concatenate([t[f"has_{m}"].to_numpy() for t in tables]) if tables else np.empty(0, np.bool_)
            for m in index.about.modalities
        }
        return _State(folder, index, tables, stacks, present, starts)

    def search(self, query: Query) -> Results:
        if query.vector_D is None and not query.words:
            return self._browsed(query)
        query_D = self._checked(query)
        allowed_N = self._allowed(query)
        stack = self.stacks[query.target]
        products = stack.products(query_D, allowed_N)
        wanted, count = query.offset + query.limit + 1, query.offset + query.limit + 1
        while True:
            rows, cosines = best(stack, query_D, products, count)
            if query.filters.min_score is not None:
                passed = self._scores(cosines) >= query.filters.min_score
                rows, cosines = rows[passed], cosines[passed]
            first = self._leading(rows, query)
            if len(first) >= wanted or len(rows) < count:
                break
            count *= 4
        page = first[query.offset : query.offset + query.limit]
        hits = self._hits(rows[page], cosines[page], query, allowed_N)
        return Results(tuple(hits), True, len(first) > query.offset + query.limit, int(np.count_nonzero(allowed_N)))

    def _browsed(self, query: Query) -> Results:
        """Rows in their order."""
        allowed_N = self._allowed(query)
        rows = np.flatnonzero(allowed_N)
        first = self._leading(rows, query)
        page = rows[first[query.offset : query.offset + query.limit]]
        hits = self._hits(page, np.zeros(len(page), np.float32), query, allowed_N)
        return Results(
            tuple(Hit(hit.row, hit.record, None, None, None, hit.copies) for hit in hits),
            True,
            len(first) > query.offset + query.limit,
            len(rows),
        )

    def _checked(self, query: Query) -> npt.NDArray[np.float32]:
        about = self.index.about
        if query.target not in about.modalities:
            raise IndexFault(f"{self.folder}: has no {query.target}s to search")
        if query.limit < 1 or query.offset < 0 or query.limit + query.offset > MOST:
            raise IndexFault(f"limit {query.limit}, offset {query.offset}: at least 1 and 0, together at most {MOST:,}")
        if query.filters.min_score is not None and about.background is None:
            raise IndexFault(f"{self.folder}: has no scores to filter by: its checkpoint was not calibrated")
        if query.vector_D is None:
            raise IndexFault("a query needs a vector")
        query_D = np.asarray(query.vector_D, np.float32)
        length = float(np.linalg.norm(query_D.astype(np.float64))) if query_D.shape == (about.width,) else 0.0
        if not length > 0 or not np.isfinite(length):
            raise IndexFault(f"a query of this index is a vector of {about.width} finite numbers, not all 0")
        return (query_D / length).astype(np.float32)

    def _allowed(self, query: Query) -> Flags:
        allowed = self.present[query.target]
        if query.filters.of_rows():
            allowed = allowed & np.concatenate([query.filters.mask(table) for table in self.tables])
        return allowed

    def _scores(self, cosines: Floats) -> Floats:
        background = self.index.about.background
        assert background is not None
        return background.score(cosines)

    def _leading(self, rows: Rows, query: Query) -> npt.NDArray[np.intp]:
        """Positions of the rows that are shown: of each group of near-copies the first."""
        if query.copies:
            return np.arange(len(rows))
        groups = self._groups(rows, query.target)
        _, first = np.unique(groups, return_index=True)
        shown = np.zeros(len(rows), np.bool_)
        shown[first] = True
        return np.flatnonzero(shown | (groups == 0))

    def _groups(self, rows: Rows, target: Modality) -> rows_of.Groups:
        """[n] the group of near-copies of each row, 0 for none."""
        groups = np.zeros(len(rows), np.uint64)
        of = np.searchsorted(self.starts, rows, "right") - 1
        for part in np.unique(of).tolist():
            here = of == part
            groups[here] = self.tables[part][f"{target}_hash"].to_numpy()[rows[here] - self.starts[part]]
        return groups

    def _hits(self, rows: Rows, cosines: Floats, query: Query, allowed_N: Flags) -> Iterator[Hit]:
        scores = None if self.index.about.background is None else self._scores(cosines)
        groups = self._groups(rows, query.target)
        copies = np.zeros(len(rows), np.int64)
        for table, start in zip(self.tables, self.starts.tolist(), strict=False):
            for n, same in enumerate(rows_of.rows_with(table, query.target, groups)):
                copies[n] += np.count_nonzero(allowed_N[start + same]) if groups[n] else 0
        for n, row in enumerate(rows.tolist()):
            score = None if scores is None else float(scores[n])
            others = int(copies[n]) - 1 if groups[n] else 0
            yield Hit(row, self.record(row), float(cosines[n]), score, None, others)

    def record(self, row: int) -> Row:
        part = int(np.searchsorted(self.starts, row, "right")) - 1
        return rows_of.record(self.tables[part], row - int(self.starts[part]))

    def number(self, id: str) -> int | None:
        """Number of the row of an id."""
        hashes = np.array([rows_of.hash_of(id)], np.uint64)
        for table, start in zip(self.tables, self.starts.tolist(), strict=False):
            for row in next(rows_of.rows_with(table, LOOKUPS["id"], hashes)).tolist():
                if table["id"][row].as_py() == id:
                    return int(start) + int(row)
        return None

    def facets(self) -> dict[str, dict[str, int]]:
        counts: dict[str, Counter[str]] = {name: Counter() for name in ("source", "license", "split")}
        for table in self.tables:
            for name, counter in counts.items():
                for pair in table[name].value_counts().to_pylist():
                    counter[pair["values"]] += pair["counts"]
        return {name: dict(counter.most_common()) for name, counter in counts.items()}


_MEDIA = {b"\xff\xd8": "image/jpeg", b"\x89PNG": "image/png", b"GIF8": "image/gif", b"BM": "image/bmp"}


def _picture(record: Row) -> tuple[bytes, str]:
    if record.where is None:
        raise IndexFault(f"{record.id}: the index does not say where its picture lies")
    data = _range(record.where.path, record.where.offset, record.where.size)
    if hashlib.sha256(data).hexdigest() != (record.where.sha256 or record.sha256):
        raise IndexFault(f"{record.id}: {record.where.path}: is no longer the picture that was embedded (sha256)")
    return data, media_type(data)


def media_type(data: bytes) -> str:
    """The media type of a picture by its first bytes."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "image/webp"
    if data[4:8] == b"ftyp":
        return "image/avif" if data[8:12] in (b"avif", b"avis") else "image/heic"
    return next((kind for start, kind in _MEDIA.items() if data.startswith(start)), "application/octet-stream")


def _range(path: str, offset: int, size: int) -> bytes:
    import fsspec

    try:
        fs, name = fsspec.url_to_fs(path)
        return bytes(fs.cat_file(name, start=offset, end=offset + size))
    except OSError as e:
        raise IndexFault(f"{path}: cannot be read ({e.strerror or type(e).__name__})") from None
