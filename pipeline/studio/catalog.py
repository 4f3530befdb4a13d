"""The catalog: every candidate of a place, counted, chosen, searched and listed without reading it into memory.

What is shown first comes from the build's records alone, which say how many decisions of each kind there are
(`pipeline.store.commits`), and from the row groups of the first page: ten million candidates open as a thousand do.
Beyond that DuckDB queries the Parquet files that the records name, column by column.

A candidate's place is a number, `pos`: the number of its file (what was kept first, then what each stage dropped, from
the last stage to the first) and its row in that file. A page of a listing reads the row groups that hold its rows, and
no others.

Columns that need a join are NULL until `pipeline.studio.preparation` has made its index; then that answers instead.

Limits: one process; DuckDB keeps within MEMORY and spills beyond it. A search reads all texts, file by file.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import re
import threading
from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa

from data_specs.shard import ShardFiles
from pipeline.errors import StoreError
from pipeline.files.folder import Folder
from pipeline.rows.decisions import DropReason
from pipeline.rows.records import sha256_hex
from pipeline.store.build import Build, shard_files
from pipeline.store.frames import SAMPLES, Frames, TableFile, present
from pipeline.store.recorded_files import RecordedFiles
from pipeline.store.sql import head, parquet, quoted, settings
from pipeline.studio.facets import MOST_VALUES, SORTS, Facet, Filters, facets
from pipeline.studio.similar import ID_OF_INDEX, Similar
from pipeline.studio.words import contains, in_addresses, search_value, variants

SEARCHES = 8
"""Searches whose results are kept: 8 bytes for each candidate found."""

PAGE = 120
"""Most rows of one listing."""

PREPARED_COLUMNS = (
    ("kind", "VARCHAR"), ("split", "VARCHAR"), ("width", "INTEGER"), ("height", "INTEGER"), ("cluster", "INTEGER"),
    ("new", "VARCHAR"),
)  # fmt: skip
"""Name and SQL type of the columns that need the index."""

SHOWN = ("subject", "id", "fetch_id", "source", "page_url", "url", "stage", "kept", "reason", "reasons", "evidence",
         "duplicate_of", "text")  # fmt: skip

_TYPES = {"kept": "BOOLEAN", "reasons": "VARCHAR[]"}
_NOTHING = (("pos", "UBIGINT"), ("number", "UBIGINT"), *((name, _TYPES.get(name, "VARCHAR")) for name in SHOWN))

_FATE_OF_KEPT = (
    "'shard' AS stage, true AS kept, '' AS reason, []::VARCHAR[] AS reasons, '' AS evidence, '' AS duplicate_of"
)
SELECTED = {
    "decisions": ", ".join(SHOWN),
    "samples": "'candidate' AS subject, candidate_id AS id, sha256(image_url) AS fetch_id, source, page_url, "
    f"image_url AS url, {_FATE_OF_KEPT}, texts[1].text AS text",
    "index": f"'candidate' AS subject, {ID_OF_INDEX} AS id, "
    "sha256(coalesce(url, '')) AS fetch_id, coalesce(source, '') AS source, coalesce(page_url, '') AS page_url, "
    f"coalesce(url, '') AS url, {_FATE_OF_KEPT}, coalesce(caption, '') AS text, id AS row_id",
}
"""SQL of a row as the decision about it, by the file's layout."""


@dataclass(frozen=True)
class DecisionFile:
    """A file of decisions. layout: its columns: those of decisions, of samples of a release whose build is missing,
    or of a search index. shard: where the samples that it decides on are stored, of stage `shard`."""

    part: TableFile
    build: Build | None
    stage: str
    shard: tuple[Folder, ShardFiles] | None = None
    layout: Literal["decisions", "samples", "index"] = "decisions"


@dataclass(frozen=True)
class Counts:
    """total: candidates and pages of the place. matching: those that the filters choose. facets: counts by value."""

    total: int
    matching: int
    facets: dict[str, list[tuple[str, int]]]


def sources_of_place(frames: Frames) -> tuple[DecisionFile, ...]:
    """The files that hold a row for each candidate, what was kept first."""
    builds = {build.build_id: build for build in frames.builds}
    sources = []
    for part in frames.parts("decisions"):
        record, build = part.record, builds[part.build]
        assert record is not None
        own = (build.shards, shard_files(record)) if record.stage == "shard" and "tar" in record.files else None
        sources.append(DecisionFile(part, build, record.stage, own))
    order = {name: -number for number, name in enumerate(next(iter(builds.values())).stages)} if builds else {}
    sources.sort(key=lambda source: order[source.stage])  # stable: builds and partitions stay in their order
    if frames.dataset is not None:
        shards = zip(frames.shards, frames.parts(SAMPLES), strict=True)
        sources += [
            DecisionFile(part, None, "shard", own, "samples") for own, part in shards if part.build not in builds
        ]
    return tuple(sources)


def sources_of_index(similar: Similar) -> tuple[DecisionFile, ...]:
    """The files of a search index, of which each row is a kept sample."""
    from data_specs.search.folder import read_index
    from data_specs.search.rows import ROWS

    folder, found = Folder(str(similar.folder)), []
    for own in read_index(similar.folder).parts:
        file = own.files["metadata"]
        part = TableFile(folder, file.path, file.bytes, similar.index.about.name, ROWS, "manifest")
        found.append(DecisionFile(part, None, "shard", None, "index"))
    return tuple(found)


class Catalog:
    """The candidates of a place. Safe for several threads.

    scratch: a local folder for what does not fit into memory.
    """

    def __init__(self, frames: Frames, scratch: Path, sources: tuple[DecisionFile, ...] | None = None) -> None:
        import duckdb

        self.frames = frames
        listed = sources_of_place(frames) if sources is None else sources
        there = {part.url for part in present(source.part for source in listed)}
        self.sources = tuple(source for source in listed if source.part.url in there)
        self.missing = [source.part.url for source in listed if source.part.url not in there]
        self.facets: dict[str, Facet] = facets()
        self.ready = False
        self._codes: dict[str, dict[str, int]] = {}
        self._whole: dict[str, list[tuple[str, int]]] = {}
        self._lock = threading.Lock()
        self._searches: OrderedDict[str, str] = OrderedDict()
        self._sizes: dict[int, int] = {}
        self._fault = duckdb.Error
        self._db = duckdb.connect(config=settings(scratch))
        self._db.execute("SET parquet_metadata_cache = true")  # a page of a listing opens a few files of many
        RecordedFiles(self._db).add(source.part for source in self.sources)
        numbered = {"number": range(len(self.sources)), "build": [source.part.build for source in self.sources]}
        self.numbered = pa.table(numbered, schema=pa.schema([("number", pa.uint64()), ("build", pa.string())]))
        self._db.register("numbered", self.numbered)
        self._db.execute("CREATE TABLE sources AS SELECT * FROM numbered")
        self.decisions_sql = self._decisions()
        try:
            self._db.execute(f"CREATE VIEW decisions AS {self.decisions_sql}")
        except duckdb.Error as e:
            raise StoreError(frames.place, str(e).splitlines()[0][:300]) from None
        absent = [f"NULL::{kind} AS {name}" for name, kind in PREPARED_COLUMNS]
        self._db.execute(f"CREATE VIEW c AS SELECT {self.columns_sql}, {', '.join(absent)} FROM decisions")

    columns_sql = ""
    """SQL of the columns that follow from the decisions alone."""

    def close(self) -> None:
        self._db.close()

    @functools.cached_property
    def digest(self) -> str:
        """Digest of the catalog's files: it changes with a takedown, or when a build goes on."""
        names = [(s.part.url, s.part.bytes, s.part.record.attempt if s.part.record else "") for s in self.sources]
        return hashlib.sha256(repr(names).encode()).hexdigest()[:16]

    def use_index(self, index: str) -> None:
        """Answer from now on with the columns of an index (path of a DuckDB file with the table `prepared`)."""
        with self._lock:
            self._db.execute("DETACH DATABASE IF EXISTS index")  # a damaged one, in whose place this was made
            self._db.execute(f"ATTACH '{quoted(index)}' AS index (READ_ONLY)")
            codes: dict[str, dict[str, int]] = {name: {} for name in self.facets}
            whole: dict[str, list[tuple[str, int]]] = {name: [] for name in self.facets}
            for facet, value, code, count in self.query("SELECT facet, value, code, count FROM index.codes"):
                codes[facet][value] = code
                whole[facet].append((value, int(count)))
            self._db.execute("CREATE OR REPLACE VIEW c AS SELECT * FROM index.prepared")
            self._codes, self._whole, self.ready = codes, whole, True

    def query(self, sql: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Rows of a query, on a connection of the calling thread's own."""
        try:
            with contextlib.closing(self._db.cursor()) as cursor:
                rows: list[tuple[Any, ...]] = cursor.execute(sql, list(values)).fetchall()
                return rows
        except self._fault as e:  # a file that was damaged, or deleted since
            raise StoreError(self.frames.place, str(e).splitlines()[0][:300]) from None

    def counts(self, filters: Filters, names: Sequence[str] | None = None) -> Counts:
        """Counts of the facets `names` (all that there are yet), each over what the other facets choose."""
        counted = {}
        for name in self.facets if names is None else names:
            facet = self.facets[name]
            if self.ready or not facet.prepared:
                counted[name] = self._sort_values(facet, self._count_values(facet, filters.without_facet(name)))
        return Counts(sum(self._cube.values()), self._matching(filters), counted)

    def _matching(self, filters: Filters) -> int:
        if _in_cube(filters):
            return sum(count for values, count in self._cube.items() if _matches(filters, values))
        where, given = self._where_clause(filters)
        return int(self.query(f"SELECT count(*) FROM c WHERE {where}", given)[0][0])

    def _count_values(self, facet: Facet, filters: Filters) -> list[tuple[str, int]]:
        """Counts of the values of a facet, the most frequent first."""
        if facet.name in CUBE and _in_cube(filters):
            counts: Counter[str] = Counter()
            at = CUBE.index(facet.name)
            for values, count in self._cube.items():
                if _matches(filters, values):
                    counts[values[at]] += count
            return _most_frequent(counts.items())
        if self.ready and not (filters.values or filters.words or filters.leader):
            return _most_frequent(self._whole[facet.name])
        where, given = self._where_clause(filters)
        column = code_column(facet.name) if self.ready else facet.expression
        sql = f"SELECT {column} AS value, count(*) FROM c WHERE {where} GROUP BY value ORDER BY 2 DESC, 1"
        rows = self.query(f"{sql} LIMIT {MOST_VALUES}", given)
        if self.ready:
            value_of = {code: value for value, code in self._codes[facet.name].items()}
            rows = sorted(((value_of[code], count) for code, count in rows), key=lambda own: (-own[1], own[0]))
        return [(str(value), int(count)) for value, count in rows]

    @functools.cached_property
    def _cube(self) -> dict[tuple[str, ...], int]:
        """Counts of the decisions by the values of CUBE together.

        From records alone, except for files without counts there: samples, search indexes, and files that a takedown
        has rewritten.
        """
        cube, uncounted = Counter[tuple[str, ...]](), dict[tuple[str, str], list[str]]()
        for source in self.sources:
            record, build = source.part.record, source.part.build
            known = None if record is None else record.fates
            if known is None:
                uncounted.setdefault((source.layout, build), []).append(source.part.url)
                continue
            for own, number in known.counts.items():
                fate = "kept" if own.kept else "known" if own.reason == DropReason.KNOWN else "dropped"
                cube[(fate, own.reason, own.stage, own.source, build, own.subject)] += number
        for (layout, build), urls in uncounted.items():
            columns = ", ".join(name for name in CUBE if name not in ("fate", "build"))
            rows = f"SELECT {SELECTED[layout]} FROM {parquet(urls)}"
            sql = f"SELECT {_FATE}, {columns}, count(*) FROM ({rows}) GROUP BY ALL"
            for fate, reason, stage, own_source, subject, number in self.query(sql):
                cube[(fate, reason, stage, own_source, build, subject)] += number
        return dict(cube)

    def _sort_values(self, facet: Facet, counted: list[tuple[str, int]]) -> list[tuple[str, int]]:
        if facet.order == "count":
            return counted
        stages = list(self.frames.builds[0].stages) if self.frames.builds else []
        given = ["kept", "dropped", "known", "new", "seen", "train", "dev", "val", *stages, *map(str, range(100))]
        return sorted(counted, key=lambda own: given.index(own[0]) if own[0] in given else len(given))

    def positions(self, filters: Filters, offset: int, limit: int) -> list[int]:
        """Places of the candidates [offset, offset + limit) of a listing."""
        where, values = self._where_clause(filters)
        order = SORTS[filters.sort if self.ready or filters.sort == "random" else ""][0]
        if where == "true" and order == "pos":
            return self._in_order(offset, limit)
        sql = f"SELECT pos FROM c WHERE {where} ORDER BY {order} LIMIT {limit:d} OFFSET {offset:d}"
        return [int(row[0]) for row in self.query(sql, values)]

    def _in_order(self, offset: int, limit: int) -> list[int]:
        """The same of everything in the order of the files, from their numbers of rows alone."""
        found: list[int] = []
        for number in range(len(self.sources)):
            count = self._rows_of(number)
            if offset < count:
                found += [(number << 32) | row for row in range(offset, min(count, offset + limit - len(found)))]
            offset = max(0, offset - count)
            if len(found) == limit:
                break
        return found

    def _where_clause(self, filters: Filters) -> tuple[str, list[Any]]:
        """SQL of what the filters choose, and its values."""
        clauses, values = [], list[Any]()
        for name, chosen in filters.values.items():
            if self.ready:
                codes = [self._codes[name].get(value, -1) for value in chosen]
                clauses.append(f"{code_column(name)} IN ({', '.join(map(str, codes))})")
                continue
            clauses.append(f"{self.facets[name].expression} IN ({', '.join('?' * len(chosen))})")
            values += chosen
        if filters.leader:
            clauses.append("leader = ?")
            values.append(int(filters.leader[:16], 16))
        if filters.words:
            clauses.append(f"pos IN (SELECT pos FROM {self._search_table(filters.words)})")
        return " AND ".join(clauses) or "true", values

    def _search_table(self, words: str) -> str:
        """The table of the candidates in whose texts or addresses all words stand."""
        with self._lock:
            if words in self._searches:
                self._searches.move_to_end(words)
                return self._searches[words]
            name = f"found_{hashlib.sha256(words.encode()).hexdigest()[:16]}"
            with contextlib.closing(self._db.cursor()) as cursor:
                cursor.execute(f"CREATE OR REPLACE TABLE {name} (pos UBIGINT)")
                for sql, values in self._searching(words):
                    cursor.execute(f"INSERT INTO {name} {sql}", values)
                while len(self._searches) >= SEARCHES:
                    cursor.execute(f"DROP TABLE {self._searches.popitem(last=False)[1]}")
            self._searches[words] = name
            return name

    def _searching(self, words: str) -> Iterator[tuple[str, list[Any]]]:
        terms = [variants(term) for term in words.split()]
        each, values = list[str](), list[Any]()
        for own in terms:
            ways = [(contains(column, v), search_value(v)) for column in ("text", "evidence") for v in own]
            ways += [(f"contains({column}, ?)", v) for column in ("url", "page_url") for v in in_addresses(own)]
            each.append(" OR ".join(way for way, _ in ways))
            values += [value for _, value in ways]
        yield f"SELECT pos FROM decisions WHERE {' AND '.join(f'({one})' for one in each)}", values
        texts = [part.url for part in present(self.frames.parts("candidates"))]
        if texts:  # the decisions have the primary text only, and cut
            each = [" OR ".join(contains("x.text", v) for v in own) for own in terms]
            holds = " AND ".join(f"list_bool_or(list_transform(texts, lambda x: {one}))" for one in each)
            values = [search_value(v) for own in terms for v in own]
            ids = f"SELECT {head('candidate_id')} FROM {parquet(texts)} WHERE {holds}"
            yield f"SELECT pos FROM c WHERE cid IN ({ids})", values

    def find(self, urls: Sequence[str], fetch_ids: Sequence[str], prefix: str, limit: int) -> list[int]:
        """Places of what is named: addresses of pictures or pages, images, or the beginning of an id."""
        clauses, values = ["false"], list[Any]()
        if urls:
            marks = ", ".join("?" * len(urls))
            clauses.append(f"url IN ({marks}) OR page_url IN ({marks})")
            values += [*urls, *urls]
        images = [*fetch_ids, *map(sha256_hex, urls)]
        if images:
            clauses.append(f"fetch_id IN ({', '.join('?' * len(images))})")
            values += images
        if prefix:
            clauses.append("starts_with(id, ?) OR starts_with(fetch_id, ?)")
            values += [prefix, prefix]
        sql = f"SELECT pos FROM decisions WHERE {' OR '.join(clauses)} ORDER BY pos LIMIT {limit:d}"
        return [int(row[0]) for row in self.query(sql, values)]

    def positions_of(self, candidate_ids: Sequence[str]) -> dict[str, int]:
        """Places of candidates by id or key: of one that was decided twice where it was kept, else the first."""
        heads = {name: int(name[:16], 16) for name in candidate_ids if re.fullmatch("[0-9a-f]{32,64}", name)}
        if not heads:
            return {}
        sql = f"SELECT cid, min(pos) FROM c WHERE cid IN ({', '.join('?' * len(heads))}) GROUP BY cid"
        place_of = {int(cid): int(pos) for cid, pos in self.query(sql, list(heads.values()))}
        return {name: place_of[head] for name, head in heads.items() if head in place_of}

    def source(self, pos: int) -> DecisionFile:
        return self.sources[pos >> 32]

    def rows(self, positions: Sequence[int]) -> list[dict[str, Any]]:
        """The rows at these places, in their order: columns SHOWN, with `pos` and `build`."""
        by_file: dict[int, list[int]] = {}
        for pos in positions:
            by_file.setdefault(pos >> 32, []).append(pos & 0xFFFFFFFF)
        found: dict[int, dict[str, Any]] = {}
        for number, numbers in by_file.items():
            if number >= len(self.sources):
                continue
            source, among = self.sources[number], ", ".join(map(str, numbers))
            of_file = f"FROM {parquet([source.part.url])} WHERE file_row_number IN ({among})"
            for (row,) in self.query(
                f"SELECT d FROM (SELECT file_row_number AS pos, {SELECTED[source.layout]} {of_file}) d"
            ):
                row |= {"pos": (number << 32) | row["pos"], "build": source.part.build}
                found[row["pos"]] = row
        return [found[pos] for pos in positions if pos in found]

    def _rows_of(self, number: int) -> int:
        part = self.sources[number].part
        if part.record is not None and (known := part.record.fates) is not None:
            return sum(count for _, count in known.rows)
        if number not in self._sizes:
            self._sizes[number] = int(self.query(f"SELECT count(*) FROM {parquet([part.url])}")[0][0])
        return self._sizes[number]

    def _decisions(self) -> str:
        """SQL of all decisions, with `pos` and `build`."""
        selects, first = list[str](), 0
        for layout, columns in SELECTED.items():
            urls = [source.part.url for source in self.sources if source.layout == layout]
            if urls:
                number = f"file_index + {first}"
                pos = f"(({number})::UBIGINT << 32) | file_row_number::UBIGINT"
                selects.append(f"SELECT {pos} AS pos, {number} AS number, {columns} FROM {parquet(urls)}")
            first += len(urls)
        if not selects:
            nothing = [f"NULL::{kind} AS {name}" for name, kind in _NOTHING]
            selects.append(f"SELECT {', '.join(nothing)} WHERE false")
        return f"SELECT d.*, s.build FROM ({' UNION ALL BY NAME '.join(selects)}) d JOIN sources s USING (number)"


_FATE = "CASE WHEN kept THEN 'kept' WHEN reason = 'known' THEN 'known' ELSE 'dropped' END AS fate"


def code_column(facet: str) -> str:
    """The column of the index that has a facet's value as a small number, which is faster than text."""
    return f"is_{facet}"


CUBE = ("fate", "reason", "stage", "source", "build", "subject")
"""Facets that are counted together: those of the records."""


def _most_frequent(counted: Iterable[tuple[str, int]]) -> list[tuple[str, int]]:
    return sorted(counted, key=lambda own: (-own[1], own[0]))[:MOST_VALUES]


def _in_cube(filters: Filters) -> bool:
    return not filters.words and not filters.leader and set(filters.values) <= set(CUBE)


def _matches(filters: Filters, values: tuple[str, ...]) -> bool:
    return all(values[CUBE.index(name)] in chosen for name, chosen in filters.values.items())


Catalog.columns_sql = (
    f"pos, {head('id')} AS cid, CASE WHEN duplicate_of = '' THEN {head('id')} ELSE {head('duplicate_of')} END AS "
    f"leader, subject, source, build, stage, kept, reason, {_FATE}"
)
