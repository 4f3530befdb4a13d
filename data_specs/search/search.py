"""Search in an index folder: by vector, by words or by both, with filters, near-copies shown once, scores calibrated.

`SearchIndex.open` maps files and reads none but index.json. A query's answer is one ranking (`ranking.py`), of which
`offset` and `limit` cut a page: pages of one query never overlap, and miss nothing.

    filters       decide which rows are searched, so that a filter yields every hit that there is
    near-copies   of rows with the same leader (image_leader for images, text_leader for texts) the best is shown, and
                  says how many others stand behind it; `copies=True` shows all
    score         the place of a cosine in the index's background (None without one)
    approximate   where the index has it (`approximate.py`) and the filters leave more rows than an exact search does at
                  once, unless the query asks for `exact`

Limits: flags of all rows in memory, one bit a modality; a filter reads the columns that it needs of all rows.
"""

from __future__ import annotations

import sqlite3
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from data_specs.search import rows as rows_of
from data_specs.search.approximate import FROM, Cells
from data_specs.search.folder import EMBEDDINGS, INDEX, About, IndexFault, IndexFile, Modality, read_index
from data_specs.search.pictures import read_picture
from data_specs.search.ranking import ByBoth, ByVector, Listed, Ranking
from data_specs.search.rows import LOOKUPS, Filters, Flags, Row
from data_specs.search.scan import Floats, Rows, Stack, cosines_of
from data_specs.search.words import WordSearch

__all__ = ["Filters", "Hit", "Query", "Results", "Row", "SearchIndex"]

MOST = 100_000
"""Largest limit + offset."""

_TRIES = 5
"""How often an index that is being rewritten is opened again."""


@dataclass(frozen=True)
class Query:
    """What is searched. vector_D: float [D], of any length but 0; None: by words only, and without those either all
    rows in their order.

    of: what the vector is of, where that is known. The background is that of images with texts, so hits of the same
    kind have no score then. exact: True: every row is looked at; False: the approximate search wherever there is one;
    None: as the module says.
    copies: show near-copies too. weight: of the words against the vector where both are given, 0 to 1.
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
    of: Modality | None = None

    @property
    def is_scored(self) -> bool:
        """Whether a cosine of it has a place in the background of an index."""
        return self.vector_D is not None and self.of != self.target


@dataclass(frozen=True)
class Hit:
    """One row of an answer. row: its number in the index of this revision. cosine: None where only words were asked.

    score: of the cosine, by the background. words_score: BM25, None where none of the words is in it. copies: other
    rows with the same leader that pass the filters.
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

    allowed: how many rows have what is asked for and pass the filters, `min_score` aside.
    """

    hits: tuple[Hit, ...]
    exact: bool
    more: bool
    allowed: int


class SearchIndex:
    """An open index. Any thread may search; `reload_if_changed` swaps what all later calls see."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._reloading = threading.Lock()
        self._seen = _signature(folder)
        self._state = _opened(folder)

    @staticmethod
    def open(folder: Path) -> SearchIndex:
        """Map an index folder. Raises IndexFault for what is no index, or is damaged."""
        return SearchIndex(folder)

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
        """How many takedowns have rewritten it."""
        return self._state.index.revision

    @property
    def has_words(self) -> bool:
        """Whether it can be searched by words."""
        return self._state.words is not None

    def at(self, row: int) -> Row | None:
        """The row of a number (`Hit.row`); None if there is none."""
        state = self._state
        return state.record(row) if 0 <= row < state.index.rows else None

    def counts(self) -> dict[Modality, int]:
        """How many rows have an image, and how many a text."""
        present = self._state.present
        both: tuple[Modality, ...] = ("image", "text")
        return {m: int(np.count_nonzero(present[m])) if m in present else 0 for m in both}

    def search(self, query: Query) -> Results:
        """A page of the ranking. Raises IndexFault for a query that does not fit the index."""
        return self._state.search(query)

    def row(self, id: str) -> Row | None:
        """The row of an id; None if there is none."""
        state = self._state
        number = state.number(id)
        return None if number is None else state.record(number)

    def vector(self, id: str, modality: Modality) -> npt.NDArray[np.float32] | None:
        """float32 [D] of a row; None where the row has no such vector. Raises IndexFault for an unknown id."""
        state = self._state
        number = state.must(id)
        if modality not in state.stacks or not state.present[modality][number]:
            return None
        vector_D: npt.NDArray[np.float32] = state.stacks[modality].take(np.array([number]))[0].astype(np.float32)
        return vector_D

    def facets(self) -> dict[str, dict[str, int]]:
        """How many rows each value of source, license and split has, most frequent first."""
        return self._state.facets()

    def picture(self, id: str) -> tuple[bytes, str]:
        """(bytes, media type) of a row's stored picture, checked against its sha256. Raises IndexFault."""
        state = self._state
        return read_picture(state.record(state.must(id)))

    def reload_if_changed(self) -> bool:
        """Map the index anew if a takedown has rewritten it; whether it had. Costs one stat where it had not."""
        with self._reloading:
            seen = _signature(self.folder)
            if seen == self._seen:
                return False
            self._state, self._seen = _opened(self.folder), seen
            return True


def _signature(folder: Path) -> tuple[int, int, int]:
    """What changes when index.json is replaced."""
    try:
        status = (folder / INDEX).stat()
    except OSError:
        return (0, 0, 0)  # `read_index` says what is wrong
    return (status.st_ino, status.st_mtime_ns, status.st_size)


@dataclass(frozen=True)
class _State:
    """One revision of an index, mapped. `starts` [parts + 1]: the first row of each part."""

    folder: Path
    index: IndexFile
    tables: tuple[pa.Table, ...]
    stacks: dict[Modality, Stack]
    present: dict[Modality, Flags]
    words: WordSearch | None
    cells: dict[Modality, Cells]
    starts: Rows

    def search(self, query: Query) -> Results:
        self._check(query)
        allowed_N = self._allowed(query)
        allowed = int(np.count_nonzero(allowed_N))
        query_D = None if query.vector_D is None else self._unit(query.vector_D)
        least = self._least(query.filters.min_score)
        found, bm25 = self._by_words(query, allowed_N)
        if query_D is None:
            ranking: Ranking = Listed(found if query.words else np.flatnonzero(allowed_N))
        else:
            stack = self.stacks[query.target]
            by_vector = ByVector(stack, query_D, allowed_N, self._cells(query, allowed), least)
            if least > -2 and len(found):
                stays = cosines_of(stack.take(found), query_D) >= least
                found, bm25 = found[stays], bm25[stays]
            ranking = ByBoth(by_vector, found, query.weight) if query.words else by_vector
        rows, more = self._page(ranking, query)
        hits = self._hits(rows, query, query_D, allowed_N, dict(zip(found.tolist(), bm25.tolist(), strict=True)))
        return Results(tuple(hits), ranking.exact, more, allowed)

    def _page(self, ranking: Ranking, query: Query) -> tuple[Rows, bool]:
        """The rows that are shown, and whether more follow."""
        end = query.offset + query.limit
        count = end + 1
        while True:
            rows = ranking.first(count)
            shown = rows[self._leading(rows, query)]
            if len(shown) > end or len(rows) < count:
                return shown[query.offset : end], len(shown) > end
            count *= 4  # near-copies: look further

    def _check(self, query: Query) -> None:
        about = self.index.about
        if query.target not in about.modalities:
            raise IndexFault(f"{self.folder}: has no {query.target}s to search")
        if query.limit < 1 or query.offset < 0 or query.limit + query.offset > MOST:
            raise IndexFault(f"limit {query.limit}, offset {query.offset}: at least 1 and 0, together at most {MOST:,}")
        if query.filters.min_score is not None and (about.background is None or not query.is_scored):
            what = f"{self.folder}: its vectors have"
            if not query.is_scored:
                what = f"a search {f'of {query.of}s by {query.of}s' if query.of else 'without a vector'} has"
            raise IndexFault(f"{what} no scores to filter by (min_score)")
        if not 0 <= query.weight <= 1:
            raise IndexFault(f"weight {query.weight}: of the words, between 0 and 1")

    def _unit(self, vector_D: npt.NDArray[np.float32]) -> Floats:
        """A query of length 1. Raises IndexFault."""
        whole, width = np.asarray(vector_D, np.float64), self.index.about.width
        length = float(np.linalg.norm(whole)) if whole.shape == (width,) else 0.0
        if not length > 0 or not np.isfinite(length):
            raise IndexFault(f"a query of this index is a vector of {width} finite numbers, not all 0")
        unit: Floats = (whole / length).astype(np.float32)
        return unit

    def _allowed(self, query: Query) -> Flags:
        allowed = self.present[query.target]
        if query.filters.of_rows() and self.tables:
            allowed = allowed & np.concatenate([query.filters.mask(table, query.target) for table in self.tables])
        return allowed

    def _cells(self, query: Query, allowed: int) -> Cells | None:
        """The approximate search where it is wanted."""
        small = 2 * self.index.about.width * allowed <= FROM // 4
        return None if query.exact or (query.exact is None and small) else self.cells.get(query.target)

    def _by_words(self, query: Query, allowed_N: Flags) -> tuple[Rows, Floats]:
        if not query.words:
            return np.empty(0, np.int64), np.empty(0, np.float32)
        if self.words is None:
            raise IndexFault(f"{self.folder}: cannot be searched by words")
        try:
            return self.words.ranked(query.words, allowed_N)
        except sqlite3.Error as e:
            raise IndexFault(f"{self.folder}: the index of its words is damaged ({e}); embed it again") from None

    def _least(self, min_score: float | None) -> float:
        """The least float32 cosine with that score; below every cosine without one."""
        background = self.index.about.background
        return -2.0 if min_score is None or background is None else background.least(min_score)

    def _leading(self, rows: Rows, query: Query) -> npt.NDArray[np.intp]:
        """Positions of the rows that are shown: of each group of near-copies the first."""
        if query.copies:
            return np.arange(len(rows))
        groups = self._groups(rows, query.target)
        _, first = np.unique(groups, return_index=True)
        shown = groups == 0
        shown[first] = True
        return np.flatnonzero(shown)

    def _groups(self, rows: Rows, target: Modality) -> rows_of.Groups:
        """[n] the group of near-copies of each row, 0 for none."""
        groups = np.zeros(len(rows), np.uint64)
        of = np.searchsorted(self.starts, rows, "right") - 1
        for part in np.unique(of).tolist():
            here = of == part
            known = rows_of.numbers(self.tables[part], f"{target}_hash")
            groups[here] = known[rows[here] - self.starts[part]]
        return groups

    def _hits(
        self, rows: Rows, query: Query, query_D: Floats | None, allowed_N: Flags, bm25: dict[int, float]
    ) -> Iterator[Hit]:
        cosines = None if query_D is None else cosines_of(self.stacks[query.target].take(rows), query_D)
        background = self.index.about.background
        scores = None
        if cosines is not None and background is not None and query.is_scored:
            scores = background.score(cosines)
        groups = self._groups(rows, query.target)
        copies = np.zeros(len(rows), np.int64)
        for table, start in self._parts():
            for n, same in enumerate(rows_of.rows_with(table, query.target, groups)):
                copies[n] += np.count_nonzero(allowed_N[start + same]) if groups[n] else 0
        for n, row in enumerate(rows.tolist()):
            yield Hit(
                row,
                self.record(row),
                None if cosines is None else float(cosines[n]),
                None if scores is None else float(scores[n]),
                bm25.get(row),
                int(copies[n]) - 1 if groups[n] else 0,
            )

    def _parts(self) -> Iterator[tuple[pa.Table, int]]:
        """(rows of a part, number of the first)."""
        yield from zip(self.tables, self.starts.tolist(), strict=False)  # one start more than parts

    def record(self, row: int) -> Row:
        part = int(np.searchsorted(self.starts, row, "right")) - 1
        return rows_of.record(self.tables[part], row - int(self.starts[part]))

    def number(self, id: str) -> int | None:
        """Number of the row of an id; None if there is none."""
        hashes = np.array([rows_of.hash_of(id)], np.uint64)
        for table, start in self._parts():
            for row in next(rows_of.rows_with(table, LOOKUPS["id"], hashes)).tolist():
                if table["id"][row].as_py() == id:
                    return start + int(row)
        return None

    def must(self, id: str) -> int:
        """The same. Raises IndexFault if there is none."""
        number = self.number(id)
        if number is None:
            raise IndexFault(f"{self.folder}: has no row {id}")
        return number

    def facets(self) -> dict[str, dict[str, int]]:
        counts: dict[str, Counter[str]] = {name: Counter() for name in ("source", "license", "split")}
        for table in self.tables:
            for name, counter in counts.items():
                for pair in table[name].value_counts().to_pylist():
                    counter[pair["values"]] += pair["counts"]
        return {name: dict(counter.most_common()) for name, counter in counts.items()}


def _opened(folder: Path) -> _State:
    """The newest revision. A takedown may delete files of the one whose index.json was just read: then once more."""
    index = read_index(folder)
    for _ in range(_TRIES):
        try:
            return _mapped(folder, index)
        except (OSError, RuntimeError, ValueError, KeyError, pa.ArrowInvalid) as e:  # RuntimeError: faiss's own
            newest = read_index(folder)
            if newest.revision == index.revision:
                problem = getattr(e, "strerror", None) or " ".join(str(e).split())[:200]
                raise IndexFault(f"{folder}: the index is damaged ({problem}); embed it again") from None
            index = newest
    raise IndexFault(f"{folder}: is being rewritten all the time; try again later")


def _mapped(folder: Path, index: IndexFile) -> _State:
    """Raises what `_opened` catches for a file that is not there or not whole, or that does not fit the others."""
    for own in index.files():
        if (size := (folder / own.path).stat().st_size) != own.bytes:
            raise ValueError(f"{own.path}: {size:,} bytes, not {own.bytes:,}")
    tables = tuple(rows_of.read_mapped(folder / part.files["rows"].path) for part in index.parts)
    counts = [part.rows for part in index.parts]
    if [table.num_rows for table in tables] != counts or sum(counts) != index.rows:
        raise ValueError("its parts have other numbers of rows than index.json says")
    stacks: dict[Modality, Stack] = {}
    for modality in index.about.modalities:
        files = [part.files[EMBEDDINGS[modality]].path for part in index.parts]
        vectors = [np.load(folder / file, mmap_mode="r") for file in files]
        for file, vector_ND, count in zip(files, vectors, counts, strict=True):
            if vector_ND.shape != (count, index.about.width) or vector_ND.dtype != np.float16:
                raise ValueError(f"{file}: {vector_ND.dtype} {list(vector_ND.shape)}")
        stacks[modality] = Stack(vectors, index.about.width)
    present = {
        m: np.concatenate([np.empty(0, np.bool_), *(t[f"has_{m}"].to_numpy() for t in tables)])
        for m in index.about.modalities
    }
    return _State(
        folder=folder,
        index=index,
        tables=tables,
        stacks=stacks,
        present=present,
        words=None if index.words is None else WordSearch(folder / index.words.path),
        cells={m: Cells(folder / file.path) for m, file in index.approximate.items()},
        starts=np.concatenate([[0], np.cumsum(counts, dtype=np.int64)]),
    )
