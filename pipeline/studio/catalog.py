"""The catalog: every candidate of a place, counted, chosen, searched and listed without reading it into memory.

DuckDB queries the Parquet files that the build's records name, column by column: facets of a million decisions are
counted from four columns. A candidate's place is a number, `pos`: the number of its file (what was kept first, then
what each stage dropped, from the last stage to the first) and its row in that file. A page of a listing reads the row
groups that hold its rows, and no others.

Columns that need a join are NULL until `pipeline.studio.prepared` has made its index; then that answers instead.

Limits: one process; DuckDB keeps within MEMORY and spills beyond it. A search reads all texts, file by file.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from data_specs.shard import ShardFiles
from pipeline.errors import StoreError
from pipeline.files.folder import Folder
from pipeline.records import sha256_hex
from pipeline.store.build import Build, shard_files
from pipeline.store.frames import SAMPLES, Frames, Part
from pipeline.studio.facets import SORTS, Facet, Filters, facets

MEMORY = "450MB"
"""What DuckDB may take: with the process itself, less than 1 GB for any number of candidates."""

SEARCHES = 8
"""Searches whose results are kept: 8 bytes for each candidate found."""

PAGE = 120
"""Most rows of one listing."""

PREPARED_COLUMNS = (
    ("kind", "VARCHAR"), ("split", "VARCHAR"), ("width", "INTEGER"), ("height", "INTEGER"), ("sharpness", "FLOAT"),
    ("entropy", "FLOAT"), ("blankness", "FLOAT"), ("cluster", "INTEGER"), ("new", "VARCHAR"),
)  # fmt: skip

SHOWN = ("subject", "id", "fetch_id", "source", "page_url", "url", "stage", "kept", "reason", "reasons", "evidence",
         "duplicate_of", "text")  # fmt: skip


@dataclass(frozen=True)
class Source:
    """A file of decisions. build: None for samples of a release whose build is not at hand. shard: where the samples
    that it decides on are stored, of stage `shard`."""

    part: Part
    build: Build | None
    stage: str
    shard: tuple[Folder, ShardFiles] | None = None

    @property
    def of_samples(self) -> bool:
        return self.build is None


@dataclass(frozen=True)
class Counts:
    """total: candidates and pages of the place. matching: those that the filters choose. facets: counts by value."""

    total: int
    matching: int
    facets: dict[str, list[tuple[str, int]]]


def sources_of_place(frames: Frames) -> tuple[Source, ...]:
    """The files that hold a row for each candidate, what was kept first."""
    builds = {build.build_id: build for build in frames.builds}
    sources = []
    for part in frames.parts("decisions"):
        record, build = part.record, builds[part.build]
        assert record is not None
        own = (build.shards, shard_files(record)) if record.stage == "shard" and "tar" in record.files else None
        sources.append(Source(part, build, record.stage, own))
    order = {name: -number for number, name in enumerate(next(iter(builds.values())).stages)} if builds else {}
    sources.sort(key=lambda source: order[source.stage])  # stable: builds and partitions stay in their order
    if frames.dataset is not None:
        shards = zip(frames.shards, frames.parts(SAMPLES), strict=True)
        sources += [Source(part, None, "shard", own) for own, part in shards if part.build not in builds]
    return tuple(sources)


class Catalog:
    """The candidates of a place. Safe for several threads.

    scratch: a local folder for what does not fit into memory. scores: names of the filters whose scores are columns.
    """

    def __init__(self, frames: Frames, scratch: Path, scores: Sequence[str] = ()) -> None:
        import duckdb

        self.frames, self.scores = frames, tuple(scores)
        self.sources = sources_of_place(frames)
        self.facets: dict[str, Facet] = facets(scores, several=len({source.part.build for source in self.sources}) > 1)
        self.ready = False
        self._lock = threading.Lock()
        self._searches: OrderedDict[str, str] = OrderedDict()
        self._files: OrderedDict[str, pq.ParquetFile] = OrderedDict()
        self._reading = threading.Lock()
        self._db = duckdb.connect(config=settings(scratch))
        use_file_systems(self._db, [source.part.url for source in self.sources])
        self._db.execute("CREATE TABLE sources (number UBIGINT, build VARCHAR)")
        if self.sources:
            numbered = [(number, source.part.build) for number, source in enumerate(self.sources)]
            table = pa.table({"number": [n for n, _ in numbered], "build": [b for _, b in numbered]})
            self._db.register("numbered", table)
            self._db.execute("INSERT INTO sources SELECT number, build FROM numbered")
            self._db.unregister("numbered")
        self.decisions_sql = self._decisions()
        self._db.execute(f"CREATE VIEW decisions AS {self.decisions_sql}")
        absent = [f"NULL::{kind} AS {name}" for name, kind in self.columns]
        self._db.execute(f"CREATE VIEW c AS SELECT {self.columns_sql}, {', '.join(absent)} FROM decisions")

    columns_sql = ""
    """SQL of the columns that follow from the decisions alone."""

    def close(self) -> None:
        self._db.close()

    @property
    def columns(self) -> tuple[tuple[str, str], ...]:
        """Name and SQL type of the columns that need the index."""
        return (*PREPARED_COLUMNS, *((name, "FLOAT") for name in self.facets if name.startswith("score_")))

    @property
    def digest(self) -> str:
        """Of the files that it consists of: another one after a takedown, or when a build went on."""
        names = [(s.part.url, s.part.bytes, s.part.record.attempt if s.part.record else "") for s in self.sources]
        return hashlib.sha256(repr(names).encode()).hexdigest()[:16]

    def use(self, index: str) -> None:
        """Answer from now on with the columns of an index (path of a DuckDB file with the table `prepared`)."""
        with self._lock:
            self._db.execute(f"ATTACH '{quoted(index)}' AS index (READ_ONLY)")
            self._db.execute("CREATE OR REPLACE VIEW c AS SELECT * FROM index.prepared")
            self.ready = True

    def query(self, sql: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Rows of a query, on a connection of the calling thread's own."""
        with contextlib.closing(self._db.cursor()) as cursor:
            rows: list[tuple[Any, ...]] = cursor.execute(sql, list(values)).fetchall()
            return rows

    def counts(self, filters: Filters, names: Sequence[str] = ()) -> Counts:
        """Counts of the facets `names` (all that there are yet), each over what the other facets choose."""
        where, values = self._where(filters)
        total = self._total()
        matching = self.query(f"SELECT count(*) FROM c WHERE {where}", values)[0][0] if where != "true" else total
        counted: dict[str, list[tuple[str, int]]] = {}
        for name in names or self.facets:
            facet = self.facets[name]
            if facet.prepared and not self.ready:
                continue
            where, values = self._where(filters.without(name))
            sql = f"SELECT {facet.expression} AS value, count(*) FROM c WHERE {where} GROUP BY value ORDER BY 2 DESC, 1"
            rows = self.query(f"{sql} LIMIT 200", values)
            counted[name] = self._ordered(facet, rows)
        return Counts(total, matching, counted)

    def _total(self) -> int:
        return int(self.query("SELECT count(*) FROM c")[0][0])

    def _ordered(self, facet: Facet, rows: list[tuple[Any, ...]]) -> list[tuple[str, int]]:
        counted = [(str(value), int(count)) for value, count in rows]
        if facet.order == "count":
            return counted
        stages = list(self.frames.builds[0].stages) if self.frames.builds else []
        given = ["kept", "dropped", "known", "new", "seen", "train", "dev", "val", *stages, *map(str, range(100))]
        return sorted(counted, key=lambda own: given.index(own[0]) if own[0] in given else len(given))

    def positions(self, filters: Filters, offset: int, limit: int) -> list[int]:
        """Places of the candidates [offset, offset + limit) of a listing."""
        where, values = self._where(filters)
        order = SORTS[filters.sort if self.ready or filters.sort == "random" else ""][0]
        if where == "true" and order == "pos" and not self.ready:
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

    def _where(self, filters: Filters) -> tuple[str, list[Any]]:
        """SQL of what the filters choose, and its values."""
        clauses, values = [], list[Any]()
        for name, chosen in filters.values.items():
            clauses.append(f"{self.facets[name].expression} IN ({', '.join('?' * len(chosen))})")
            values += chosen
        if filters.leader:
            clauses.append("leader = ?")
            values.append(int(filters.leader[:16], 16))
        if filters.words:
            clauses.append(f"pos IN (SELECT pos FROM {self._found(filters.words)})")
        return " AND ".join(clauses) or "true", values

    def _found(self, words: str) -> str:
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
        columns = ("text", "url", "page_url", "evidence")
        each = [" OR ".join(_contains(column, v) for v in own for column in columns) for own in terms]
        values = [_spelled(v) for own in terms for v in own for _ in columns]
        yield f"SELECT pos FROM decisions WHERE {' AND '.join(f'({one})' for one in each)}", values
        texts = [part.url for part in self.frames.parts("candidates")]
        if texts:  # the decisions have the primary text only, and cut
            each = [" OR ".join(_contains("x.text", v) for v in own) for own in terms]
            holds = " AND ".join(f"list_bool_or(list_transform(texts, lambda x: {one}))" for one in each)
            values = [_spelled(v) for own in terms for v in own]
            ids = f"SELECT {_head('candidate_id')} FROM {parquet(texts)} WHERE {holds}"
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

    def at(self, candidate_ids: Sequence[str]) -> dict[str, int]:
        """Places of candidates by id: of one that was decided twice where it was kept, else the first."""
        heads = {int(name[:16], 16): name for name in candidate_ids if re.fullmatch("[0-9a-f]{64}", name)}
        if not heads:
            return {}
        sql = f"SELECT cid, min(pos) FROM c WHERE cid IN ({', '.join('?' * len(heads))}) GROUP BY cid"
        return {heads[int(cid)]: int(pos) for cid, pos in self.query(sql, list(heads))}

    def rows(self, positions: Sequence[int]) -> list[dict[str, Any]]:
        """The rows at these places, in their order: columns SHOWN, with `pos` and `build`."""
        by_file: dict[int, list[int]] = {}
        for pos in positions:
            by_file.setdefault(pos >> 32, []).append(pos & 0xFFFFFFFF)
        found: dict[int, dict[str, Any]] = {}
        for number, numbers in by_file.items():
            if number >= len(self.sources):
                continue
            for at, row in self._take(number, sorted(set(numbers))):
                found[(number << 32) | at] = {**row, "pos": (number << 32) | at}
        return [found[pos] for pos in positions if pos in found]

    def _take(self, number: int, numbers: Sequence[int]) -> Iterator[tuple[int, dict[str, Any]]]:
        """Rows of one file, from the row groups that hold them."""
        source, first = self.sources[number], 0
        with self._reading:
            file = self._file(number)
            for group in range(file.num_row_groups):
                count = file.metadata.row_group(group).num_rows
                here = [n - first for n in numbers if first <= n < first + count]
                if here:
                    columns = SAMPLE_COLUMNS if source.of_samples else SHOWN
                    table = file.read_row_group(group, columns=list(columns)).take(pa.array(here))
                    for at, row in zip(here, table.to_pylist(), strict=True):
                        shown = as_decision(row) if source.of_samples else row
                        yield first + at, {**shown, "build": source.part.build}
                first += count

    def _rows_of(self, number: int) -> int:
        with self._reading:
            return int(self._file(number).metadata.num_rows)

    def _file(self, number: int) -> pq.ParquetFile:
        """An open file; a few stay open. Raises StoreError if it is gone."""
        part = self.sources[number].part
        if part.url in self._files:
            self._files.move_to_end(part.url)
            return self._files[part.url]
        try:
            opened = pq.ParquetFile(fsspec.open(part.url, "rb").open())
        except (OSError, pa.ArrowInvalid) as e:
            raise StoreError(part.url, f"cannot be read ({type(e).__name__}); the build may have changed") from None
        while len(self._files) >= 64:
            self._files.popitem(last=False)[1].close()
        self._files[part.url] = opened
        return opened

    def _decisions(self) -> str:
        """SQL of all decisions, with `pos` and `build`."""
        own = [s.part.url for s in self.sources if not s.of_samples]
        samples = [s.part.url for s in self.sources if s.of_samples]
        selects = []
        if own:
            selects.append(
                f"SELECT (file_index::UBIGINT << 32) | file_row_number::UBIGINT AS pos, file_index AS number, "
                f"subject, id, fetch_id, source, page_url, url, stage, kept, reason, evidence, duplicate_of, text "
                f"FROM {parquet(own)}"
            )
        if samples:
            selects.append(
                f"SELECT ((file_index + {len(own)})::UBIGINT << 32) | file_row_number::UBIGINT, file_index + {len(own)}, "
                "'candidate', candidate_id, sha256(image_url), source, page_url, image_url, 'shard', true, '', '', '', "
                f"texts[1].text FROM {parquet(samples)}"
            )
        if not selects:
            nothing = [f"NULL::{kind} AS {name}" for name, kind in _NOTHING]
            selects.append(f"SELECT {', '.join(nothing)} WHERE false")
        return f"SELECT d.*, s.build FROM ({' UNION ALL '.join(selects)}) d JOIN sources s USING (number)"


_NOTHING = (("pos", "UBIGINT"), ("number", "UBIGINT"), *((n, "BOOLEAN" if n == "kept" else "VARCHAR")
            for n in SHOWN if n != "reasons"))  # fmt: skip

_FATE = "CASE WHEN kept THEN 'kept' WHEN reason = 'known' THEN 'known' ELSE 'dropped' END AS fate"


def _head(column: str) -> str:
    """The first 64 bits of an id."""
    return f"TRY_CAST('0x' || substr({column}, 1, 16) AS UBIGINT)"


Catalog.columns_sql = (
    f"pos, {_head('id')} AS cid, CASE WHEN duplicate_of = '' THEN {_head('id')} ELSE {_head('duplicate_of')} END AS "
    f"leader, subject, source, build, stage, kept, reason, {_FATE}"
)

SAMPLE_COLUMNS = ("candidate_id", "source", "page_url", "image_url", "texts")


def as_decision(row: dict[str, Any]) -> dict[str, Any]:
    """A row of a shard's table as the decision that kept it."""
    return {
        "subject": "candidate", "id": row["candidate_id"], "fetch_id": sha256_hex(row["image_url"]),
        "source": row["source"], "page_url": row["page_url"], "url": row["image_url"], "stage": "shard", "kept": True,
        "reason": "", "reasons": [], "evidence": "", "duplicate_of": "", "text": row["texts"][0]["text"],
    }  # fmt: skip


def settings(scratch: Path) -> dict[str, Any]:
    """DuckDB's settings: bounded memory, no extension from the network, nothing written but in `scratch`."""
    return {
        "memory_limit": MEMORY,
        "temp_directory": str(scratch / "spill"),
        "threads": 2,
        "autoinstall_known_extensions": False,
        "autoload_known_extensions": False,
    }


def use_file_systems(db: Any, urls: Sequence[str]) -> None:
    """Let DuckDB open URLs through fsspec, as everything of the pipeline does."""
    for scheme in {url.partition("://")[0] for url in urls if "://" in url}:
        db.register_filesystem(fsspec.filesystem(scheme))


def quoted(path: str) -> str:
    """A path within SQL quotes."""
    return path.replace("'", "''")


def parquet(urls: Sequence[str]) -> str:
    """SQL that reads these files as one table, with `file_row_number`."""
    names = ", ".join(f"'{quoted(url)}'" for url in urls)
    return f"read_parquet([{names}], file_row_number=true)"


def variants(term: str) -> list[str]:
    """A term in both Chinese scripts, itself first."""
    spelled = dict.fromkeys([term])
    if re.search(r"[\u3400-\u9fff]", term):
        with contextlib.suppress(ImportError):
            import opencc

            spelled |= dict.fromkeys(str(opencc.OpenCC(way).convert(term)) for way in ("t2s", "s2t"))
    return list(spelled)


def _contains(column: str, term: str) -> str:
    """SQL of whether a term stands in a column; letters in either case."""
    return f"contains(lower({column}), ?)" if _cased(term) else f"contains({column}, ?)"


def _spelled(term: str) -> str:
    return term.lower() if _cased(term) else term


def _cased(term: str) -> bool:
    return term.lower() != term.upper()
