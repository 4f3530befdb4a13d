"""Search in an index folder: by vector, by words or by both, with filters, near-copies shown once, scores calibrated.

`SearchIndex.open` maps files and reads none but index.json. A query's answer is one ranking (`ranking.py`), of which
`offset` and `limit` cut a page: pages of one query never overlap, and miss nothing.

    filters       decide which rows are searched, so that a filter yields every hit that there is
    near-copies   of rows with the same leader (image_leader for images, text_leader for texts) the best is shown, and
                  says how many others stand behind it; `copies=True` shows all
    score, chance the place of a cosine in the index's background, and the false-discovery rate that it means among so
                  many rows (None without a background)
    approximate   where the index has it (`vectors.py`) and the filters leave more rows than an exact search does at
                  once, unless the query asks for `exact`

Limits: a look-up by id, a filter and the count of near-copies scan a column of all rows: 10 to 30 ms a million each.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from data_specs.search import rows as rows_of
from data_specs.search.folder import (
    EMBEDDINGS,
    INDEX,
    IndexFault,
    IndexFile,
    IndexInfo,
    Modality,
    check_sizes,
    damaged,
    read_index,
)
from data_specs.search.pictures import read_picture
from data_specs.search.rows import FACETS, MAPPED, Filters, Flags, Row
from data_specs.search.vectors import (
    DEEP,
    FROM,
    Approximate,
    Floats,
    Rows,
    Stack,
    VectorRanking,
    append_ranking,
    fuse_rankings,
)
from data_specs.search.words import WordSearch

__all__ = ["Filters", "Hit", "Query", "Results", "Row", "SearchIndex"]

MOST = 100_000
"""Largest limit + offset."""

_TRIES = 5
"""Number of times that an index that is being rewritten is opened again."""


@dataclass(frozen=True)
class Query:
    """A search. vector_D: float [D], of any length but 0; None: by words only, and without those either all
    rows in their order.

    of: what the vector is of, where that is known. The background is that of images with texts, so hits of the same
    kind get no score then. exact: True: every row is looked at; False: the approximate search wherever there is one;
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
        """True if its cosines can be compared with the background of an index."""
        return self.vector_D is not None and self.of != self.target


@dataclass(frozen=True)
class Hit:
    """One row of an answer. row: its number in the index of this revision. cosine: None for a search by words only.

    score: of the cosine, by the background. chance: of the rows that are at least as near, the share that unrelated
    ones make by chance. words_score: BM25, None where none of the words is in it. copies: other
    rows with the same leader that pass the filters.
    """

    row: int
    record: Row
    cosine: float | None
    score: float | None
    chance: float | None
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
    """A page of an answer. exact: whether every allowed row was compared. more: whether another page follows.

    allowed: how many rows have what is asked for and pass the filters, `min_score` aside.
    """

    hits: tuple[Hit, ...]
    exact: bool
    more: bool
    allowed: int


class SearchIndex:
    """An open index. Any thread may search; `reload_if_changed` updates it for all later calls."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._reloading = threading.Lock()
        self._seen = _signature(folder)
        self._state = _open_newest(folder)

    @staticmethod
    def open(folder: Path) -> SearchIndex:
        """Map an index folder. Raises IndexFault for what is not an index, or is damaged."""
        return SearchIndex(folder)

    @property
    def about(self) -> IndexInfo:
        return self._state.index.about

    @property
    def rows(self) -> int:
        return self._state.index.rows

    @property
    def width(self) -> int:
        return self._state.index.about.width

    @property
    def revision(self) -> int:
        """Number of times that the searched rows have changed."""
        return self._state.index.revision

    def at(self, row: int) -> Row | None:
        state = self._state
        return state.record(row) if 0 <= row < state.index.rows else None

    def counts(self) -> dict[Modality, int]:
        """Number of rows with an image, and number of rows with a text."""
        present = self._state.present
        both: tuple[Modality, ...] = ("image", "text")
        return {m: int(np.count_nonzero(present[m])) if m in present else 0 for m in both}

    def search(self, query: Query) -> Results:
        """A page of the ranking. Raises IndexFault for a query that does not fit the index."""
        return self._state.search(query)

    def row(self, id: str) -> Row | None:
        state = self._state
        number = state.number(id)
        return None if number is None else state.record(number)

    def vector(self, id: str, modality: Modality) -> npt.NDArray[np.float32] | None:
        """float32 [D] of a row; None where the row lacks such a vector. Raises IndexFault for an unknown id."""
        state = self._state
        number = state.require_number(id)
        if modality not in state.stacks or not state.present[modality][number]:
            return None
        vector_D: npt.NDArray[np.float32] = state.stacks[modality].take(np.array([number]))[0].astype(np.float32)
        return vector_D

    def facets(self) -> dict[str, dict[str, int]]:
        """Number of rows by each value of source, license and split, most frequent first."""
        counts = {name: self._state.rows[name].value_counts().to_pylist() for name in FACETS}
        return {
            name: {one["values"]: one["counts"] for one in sorted(own, key=lambda one: -one["counts"])}
            for name, own in counts.items()
        }

    def picture(self, id: str) -> tuple[bytes, str]:
        """(bytes, media type) of a row's stored picture, checked against its sha256. Raises IndexFault."""
        state = self._state
        return read_picture(state.record(state.require_number(id)))

    def reload_if_changed(self) -> bool:
        """Map the index again if a takedown or an update has changed it; whether it had. Costs one stat otherwise."""
        with self._reloading:
            seen = _signature(self.folder)
            if seen == self._seen:
                return False
            before = self._state
            if before.index.revision != read_index(self.folder).revision:  # else only parts wait
                self._state = _open_newest(self.folder)
            self._seen = seen
            return self._state is not before


def _signature(folder: Path) -> tuple[int, int, int]:
    """Changes when index.json is replaced."""
    try:
        status = (folder / INDEX).stat()
    except OSError:
        return (0, 0, 0)  # `read_index` says what is wrong
    return (status.st_ino, status.st_mtime_ns, status.st_size)


@dataclass(frozen=True)
class _Revision:
    """One revision of an index, mapped. rows: of all parts, one behind another, as vectors and words number them."""

    folder: Path
    index: IndexFile
    rows: pa.Table
    stacks: dict[Modality, Stack]
    present: dict[Modality, Flags]
    words: WordSearch
    approximate: dict[Modality, Approximate]

    def search(self, query: Query) -> Results:
        self._check(query)
        allowed_N = self._allowed_rows(query)
        allowed = int(np.count_nonzero(allowed_N))
        found, bm25 = self._by_words(query, allowed_N)
        query_D = None if query.vector_D is None else self._unit_vector(query.vector_D)
        if query_D is None:
            exact, listed, ranked = True, found if query.words else np.flatnonzero(allowed_N), None
            rows, more = self._page(query, lambda count: listed[:count])
        else:
            approximate = self._approximate(query, allowed)
            exact = approximate is None
            stack = self.stacks[query.target]
            by_vector = VectorRanking(
                stack, query_D, allowed_N, approximate, lambda cosines: self._has_min_score(query, cosines)
            )
            first, ranked = by_vector.top_rows, by_vector.top_rows(DEEP)
            if query.words:
                if query.filters.min_score is not None:
                    stays = self._has_min_score(query, stack.cosines(found, query_D))
                    found, bm25 = found[stays], bm25[stays]
                both = fuse_rankings(ranked, found, query.weight)
                first = lambda count: append_ranking(both, by_vector.top_rows, count)  # noqa: E731
            rows, more = self._page(query, first)
        hits = self._hits(
            rows, ranked, query, query_D, allowed_N, dict(zip(found.tolist(), bm25.tolist(), strict=True))
        )
        return Results(hits, exact, more, allowed)

    def _page(self, query: Query, first: Callable[[int], Rows]) -> tuple[Rows, bool]:
        """The rows of a ranking that are shown, and whether more follow."""
        end = query.offset + query.limit
        count = end + 1
        while True:
            rows = first(count)
            shown = rows[self._first_of_groups(rows, query)]
            if len(shown) > end or len(rows) < count:
                return shown[query.offset : end], len(shown) > end
            count *= 4  # near-copies: look further

    def _check(self, query: Query) -> None:
        about = self.index.about
        if query.target not in about.modalities:
            raise IndexFault(f"{self.folder}: does not contain {query.target}s")
        if query.limit < 1 or query.offset < 0 or query.limit + query.offset > MOST:
            problem = f"limit must be at least 1, offset at least 0, and their sum at most {MOST:,}"
            raise IndexFault(f"limit {query.limit}, offset {query.offset}: {problem}")
        if query.filters.min_score is not None and (about.background is None or not query.is_scored):
            what = f"{self.folder}: its vectors do"
            if not query.is_scored:
                what = f"a search {f'of {query.of}s by {query.of}s' if query.of else 'without a vector'} does"
            raise IndexFault(f"{what} not have scores, which min_score needs")
        if not 0 <= query.weight <= 1:
            raise IndexFault(f"weight {query.weight}: the weight of the words must be between 0 and 1")

    def _unit_vector(self, vector_D: npt.NDArray[np.float32]) -> Floats:
        """The query's vector, scaled to length 1. Raises IndexFault."""
        whole, width = np.asarray(vector_D, np.float64), self.index.about.width
        length = float(np.linalg.norm(whole)) if whole.shape == (width,) else 0.0
        if not length > 0 or not np.isfinite(length):
            raise IndexFault(f"a query must be a vector of {width} finite numbers, not all 0")
        unit: Floats = (whole / length).astype(np.float32)
        return unit

    def _allowed_rows(self, query: Query) -> Flags:
        present = self.present[query.target]
        return present & query.filters.mask(self.rows, query.target) if query.filters.of_rows() else present

    def _approximate(self, query: Query, allowed: int) -> Approximate | None:
        small = 2 * self.index.about.width * allowed <= FROM // 4
        return None if query.exact or (query.exact is None and small) else self.approximate.get(query.target)

    def _by_words(self, query: Query, allowed_N: Flags) -> tuple[Rows, Floats]:
        if not query.words:
            return np.empty(0, np.int64), np.empty(0, np.float32)
        try:
            return self.words.ranked(query.words, allowed_N)
        except sqlite3.Error as e:
            raise damaged(self.folder, f"{self.index.words and self.index.words.path}: {e}") from None

    def _has_min_score(self, query: Query, cosines: Floats) -> Flags:
        """[n] flags: which cosines reach the query's `min_score`."""
        least, background = query.filters.min_score, self.index.about.background
        if least is None or background is None:
            return np.ones(len(cosines), np.bool_)
        return background.score(cosines) >= least

    def _first_of_groups(self, rows: Rows, query: Query) -> npt.NDArray[np.intp]:
        """Positions of the rows that are shown: of each group of near-copies the first."""
        if query.copies:
            return np.arange(len(rows))
        leaders = self._leaders(rows, query.target)
        seen = dict[str, int]()
        return np.array([n for n, own in enumerate(leaders) if not own or seen.setdefault(own, n) == n], np.intp)

    def _leaders(self, rows: Rows, target: Modality) -> list[str]:
        """The group of near-copies of each row, "" for none."""
        found: list[str] = self.rows[f"{target}_leader"].take(pa.array(rows)).to_pylist()
        return found

    def _hits(
        self,
        rows: Rows,
        ranked: Rows | None,
        query: Query,
        query_D: Floats | None,
        allowed_N: Flags,
        bm25: dict[int, float],
    ) -> tuple[Hit, ...]:
        cosines = None if query_D is None else self.stacks[query.target].cosines(rows, query_D)
        background = self.index.about.background
        scores = chances = None
        if cosines is not None and background is not None and query.is_scored:
            assert query_D is not None
            assert ranked is not None
            best = self.stacks[query.target].cosines(ranked, query_D)
            scores = background.score(cosines)
            chances = background.rates(cosines, best, int(np.count_nonzero(allowed_N)))
        leaders = self._leaders(rows, query.target)
        others = self._group_sizes({leader for leader in leaders if leader}, query.target, allowed_N)
        return tuple(
            Hit(
                row,
                self.record(row),
                None if cosines is None else float(cosines[n]),
                None if scores is None else float(scores[n]),
                None if chances is None else float(chances[n]),
                bm25.get(row),
                others.get(leaders[n], 1) - 1,
            )
            for n, row in enumerate(rows.tolist())
        )

    def _group_sizes(self, leaders: set[str], target: Modality, allowed_N: Flags) -> dict[str, int]:
        """Number of allowed rows in each group of near-copies."""
        if not leaders:
            return {}
        column = self.rows[f"{target}_leader"]
        members = rows_of.flags(pc.is_in(column, pa.array(sorted(leaders), pa.string()))) & allowed_N
        counts = column.take(pa.array(np.flatnonzero(members))).value_counts().to_pylist()
        return {one["values"]: one["counts"] for one in counts}

    def record(self, row: int) -> Row:
        return rows_of.record(self.rows, row)

    def number(self, id: str) -> int | None:
        try:
            row = pc.index(self.rows["id"], pa.scalar(id, pa.string())).as_py()
        except UnicodeEncodeError:  # half of a surrogate pair: no id has one
            return None
        return None if row < 0 else int(row)

    def require_number(self, id: str) -> int:
        """Number of the row with an id. Raises IndexFault for an unknown one."""
        number = self.number(id)
        if number is None:
            raise IndexFault(f"{self.folder}: row {id} does not exist")
        return number


def _open_newest(folder: Path) -> _Revision:
    """Opens the newest revision; tries again if its files are replaced while they are opened."""
    index = read_index(folder)
    for _ in range(_TRIES):
        try:
            return _map_files(folder, index)
        except (OSError, RuntimeError, ValueError, KeyError, pa.ArrowInvalid) as e:  # RuntimeError: faiss's own
            newest = read_index(folder)
            if newest.revision == index.revision:
                raise (e if isinstance(e, IndexFault) else damaged(folder, e)) from None
            index = newest
    raise IndexFault(f"{folder}: keeps being rewritten; try again later")


def _map_files(folder: Path, index: IndexFile) -> _Revision:
    """Maps the files that an index.json names. Raises what `_open_newest` catches for a missing or damaged one."""
    check_sizes(folder, index.searched())
    tables = [rows_of.read_mapped(folder / part.files["rows"].path) for part in index.parts]
    counts = [part.rows for part in index.parts]
    if [table.num_rows for table in tables] != counts or sum(counts) != index.rows:
        raise ValueError("the row counts of its parts differ from index.json")
    rows = pa.concat_tables([MAPPED.empty_table(), *tables])
    stacks: dict[Modality, Stack] = {}
    for modality in index.about.modalities:
        files = [part.files[EMBEDDINGS[modality]].path for part in index.parts]
        vectors = [np.load(folder / file, mmap_mode="r") for file in files]
        for file, vector_ND, count in zip(files, vectors, counts, strict=True):
            if vector_ND.shape != (count, index.about.width) or vector_ND.dtype != np.float16:
                raise ValueError(f"{file}: {vector_ND.dtype} {list(vector_ND.shape)}")
        stacks[modality] = Stack(vectors, index.about.width)
    assert index.words is not None
    return _Revision(
        folder=folder,
        index=index,
        rows=rows,
        stacks=stacks,
        present={m: rows_of.flags(rows[f"has_{m}"]) for m in index.about.modalities},
        words=WordSearch(folder / index.words.path),
        approximate={m: Approximate(folder / file.path) for m, file in index.approximate.items()},
    )
