"""SQL over a build: DuckDB views of the Parquet files that its records name. Everything that counts rows asks here.

    candidates     what the pages had: one row for each image URL, with its texts
    decisions      what became of each candidate, and of pages that were dropped
    placed         the same with `file` and `row`, by which a few of them are read without all others
    samples        one row per stored sample, with `position` in its shard
    regions        boxes of each sample, by `detector`
    removed        texts that were taken off candidates that stayed, by `stage`
    fetched        one row per image URL that was asked for
    measures       one row per image, a second time where two partitions fetched it
    pairs          what packing starts from, with the measures of the image
    scored         pairs with `units`, their score in ten-thousandths, and whether the filters of scores `kept` them
    marked         pictures that were compared with the mark of their host, and whether they were `kept`
    near           pairs whose image lies near one that was kept before, with the verdict
    balanced       frequent entries of the word list in each pair that balance kept

A view is made when a query first names it. Those of a second build have its name in front: `trial.decisions`. Only this
module knows the files and the joins; a view of what a build does not have is empty.

Memory is bounded by MEMORY; what does not fit spills into a temporary folder. URLs are read through fsspec
(`pipeline.store.recorded_files`), and nothing is downloaded: DuckDB's own extensions are neither installed nor loaded.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar
from urllib.parse import urlsplit

import pyarrow as pa

from data_specs.shard import PAIR_SCORE, REGION_SCHEMA
from pipeline.errors import StoreError
from pipeline.rows.records import DEDUP_SCHEMA, FEATURE_SCHEMA, FETCH_SCHEMA, LOOKS, REMOVED, WITH_REMOVED_SCHEMA
from pipeline.store.build import REGIONS, Build
from pipeline.store.frames import SAMPLES, Frames, TableFile, present
from pipeline.store.pair_scores import UNITS
from pipeline.store.pairs import PAIRS, SCORES, SELECTION
from pipeline.store.recorded_files import RecordedFiles

MEMORY = "450MB"
"""Memory that DuckDB may take: with the process itself less than 1 GB for any number of candidates."""

MOST_THREADS = 4
"""Threads of DuckDB at most: each of them needs a share of MEMORY."""

Row = dict[str, Any]
T = TypeVar("T")


def threads() -> int:
    """CPUs of the task, which Ray says in OMP_NUM_THREADS; elsewhere those of the process."""
    own = os.environ.get("OMP_NUM_THREADS", "")
    return min(MOST_THREADS, int(own) if own.isdigit() else len(os.sched_getaffinity(0))) or 1


def settings(scratch: Path) -> dict[str, Any]:
    """DuckDB's settings: bounded memory, no extension from the network, nothing written but in `scratch`."""
    return {
        "memory_limit": MEMORY,
        "temp_directory": str(scratch / "spill"),
        "threads": threads(),
        "autoinstall_known_extensions": False,
        "autoload_known_extensions": False,
    }


def quoted(text: str) -> str:
    return text.replace("'", "''")


def escape_path(url: str) -> str:
    """Escapes a path for DuckDB, which reads it as a pattern. A URL is returned unchanged (`recorded_files`)."""
    return url if "://" in url else re.sub(r"[*?\[]", r"[\g<0>]", url)


def parquet(urls: Sequence[str], by_name: bool = False) -> str:
    """SQL that reads these files as one table, with `file_row_number`. by_name: some may lack a column."""
    names = ", ".join(f"'{quoted(escape_path(url))}'" for url in urls)
    return f"read_parquet([{names}], file_row_number=true, union_by_name={str(by_name).lower()})"


def head(column: str) -> str:
    """SQL of the first 64 bits of an id."""
    return f"TRY_CAST('0x' || substr({column}, 1, 16) AS UBIGINT)"


def host(url: str) -> str:
    """SQL of the host of a URL in lower case, "" if it has none."""
    plain = f"regexp_extract({url}, '^https?://([a-z0-9.-]+)(?:[/?#]|$)', 1)"
    return f"CASE WHEN {plain} <> '' THEN {plain} ELSE host_of_any({url}) END"


def _hosts(urls: pa.Array) -> pa.Array:
    def one(url: str | None) -> str:
        try:
            return urlsplit(url or "").hostname or ""
        except ValueError:
            return ""

    return pa.array(map(one, urls.to_pylist()), pa.string())


def in_order(
    paths: Sequence[Path], schema: pa.Schema, by: Sequence[str], block: int, spill: Path
) -> Iterator[pa.Table]:
    """Rows of local Parquet files of one schema, sorted by columns, about `block` at a time. spill: a folder for what
    does not fit into memory."""
    import duckdb

    if not paths:
        return
    columns, order = (", ".join(f'"{name}"' for name in names) for names in (schema.names, by))
    with duckdb.connect(config=settings(spill)) as db:
        rows = db.sql(f"SELECT {columns} FROM {parquet([str(path) for path in paths])} ORDER BY {order}")
        for batch in rows.to_arrow_reader(block):
            yield pa.Table.from_batches([batch]).cast(schema)


class Tables:
    """The views of a build or a dataset, and of others under their names: `Tables.of(build, trial=other)`.

    Use as a context manager, or close it. Raises StoreError that names the file for one that is missing or damaged.
    only_present: read what there is, where `gc`, a takedown or a person has deleted files since.
    """

    def __init__(self, frames: Frames, others: Mapping[str, Frames] | None = None, only_present: bool = False) -> None:
        import duckdb

        self._places, self._only_present = {"": frames, **(others or {})}, only_present
        self._scratch = tempfile.TemporaryDirectory(prefix="wenlan-sql-")
        self._duckdb = duckdb
        self._db = duckdb.connect(config=settings(Path(self._scratch.name)))
        self._db.execute("SET parquet_metadata_cache = true")  # of hundreds of files that each query opens
        self._remote = RecordedFiles(self._db)
        self._made, self._defined = dict[tuple[str, str], list[TableFile]](), set[str]()
        self.define("host_of_any", _hosts, ["VARCHAR"], "VARCHAR")

    @staticmethod
    def of(build: Build, /, **others: Build) -> Tables:
        """The views of a build, finished or not."""
        return Tables(Frames.of(build), {name: Frames.of(other) for name, other in others.items()})

    def __enter__(self) -> Tables:
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self._db.close()
        self._scratch.cleanup()

    def rows(self, sql: str, values: Sequence[Any] = ()) -> list[Row]:
        """The rows of a query by the names of their columns. values: those of its question marks."""
        return self._ask(sql, values, lambda result: [
            dict(zip([column[0] for column in result.description], row, strict=True)) for row in result.fetchall()
        ])  # fmt: skip

    def row(self, sql: str, values: Sequence[Any] = ()) -> Row:
        [row] = self.rows(sql, values)
        return row

    def column(self, sql: str, values: Sequence[Any] = ()) -> list[Any]:
        return self._ask(sql, values, lambda result: [row[0] for row in result.fetchall()])

    def pairs(self, sql: str, values: Sequence[Any] = ()) -> dict[Any, Any]:
        """The first two columns of a query, as a mapping from the one to the other."""
        return self._ask(sql, values, lambda result: {row[0]: row[1] for row in result.fetchall()})

    def execute(self, sql: str) -> None:
        """Make a view or a temporary table of the connection's own."""
        self._ask(sql, (), lambda result: None)

    def interrupt(self) -> None:
        """End the query that another thread has asked, which fails there."""
        self._db.interrupt()

    def open_files(self, parts: Iterable[TableFile]) -> None:
        """Let queries read these files by their URLs."""
        self._remote.add(parts)

    def put(self, name: str, table: pa.Table) -> None:
        """Let queries read an Arrow table under a name."""
        self._db.register(name, table)

    def define(self, name: str, function: Callable[..., pa.Array], given: list[Any], result: Any) -> None:
        """Let queries call a function of Arrow arrays, unless they can. given, result: types as DuckDB names them."""
        if name in self._defined:
            return
        self._defined.add(name)
        create: Any = self._db.create_function  # its stubs know no function of Arrow arrays
        create(name, function, given, result, type="arrow", null_handling="special")

    def _ask(self, sql: str, values: Sequence[Any], read: Callable[[Any], T]) -> T:
        named = set(_NAMED.findall(sql))
        try:
            for place, view in sorted(named):
                if (place, view) not in self._made and (not place or place in self._places):
                    self._make(place, view)
            return read(self._db.execute(sql, list(values)))
        except (self._duckdb.ParserException, self._duckdb.CatalogException):
            raise  # a fault of ours
        except self._duckdb.Error as e:
            for part in (part for key in named for part in self._made.get(key, ())):
                part.check()  # names the file
            raise StoreError(self._places[""].place, str(e).splitlines()[0][:300]) from None

    def _make(self, place: str, view: str) -> None:
        frames = self._places[place]
        sources = _Sources(self._db, frames, self._remote, self._only_present)
        sql = VIEWS[view](sources)
        self._made[place, view] = sources.parts
        if place:
            self._db.execute(f"CREATE SCHEMA IF NOT EXISTS {place}")
        self._db.execute(f"CREATE VIEW {place + '.' if place else ''}{view} AS {sql}")


class _Sources:
    """The files of a place as SQL; remembers those that were asked for. The views of passes are of one build."""

    def __init__(self, db: Any, frames: Frames, remote: RecordedFiles, only_present: bool) -> None:
        self._db, self.frames, self._remote, self._only_present = db, frames, remote, only_present
        self.parts = list[TableFile]()

    @property
    def build(self) -> Build:
        [build] = self.frames.builds
        return build

    def table(self, name: str) -> str:
        """A table of `Frames`. Of several builds, only some may have scored their samples: columns go by name."""
        return self.files(self.frames.parts(name), self.frames.schema(name), by_name=len(self.frames.builds) != 1)

    def stage(self, name: str, suffixes: Iterable[str], schema: pa.Schema) -> str:
        """Files of a stage's partitions."""
        found = list[TableFile]()
        for build in self.frames.builds:
            for record in build.records(name):
                refs, folder = [record.files[own] for own in suffixes if own in record.files], build.stage(name).folder
                found += [TableFile(folder, ref.name, ref.bytes, build.build_id, schema) for ref in refs]
        return self.files(found, schema)

    def has(self, name: str) -> bool:
        """True if a pass has committed anything."""
        return name in self.build.fingerprints and bool(self.build.stage(name).partitions())

    def pairs(self, *names: str) -> str:
        """The pairs that dedup kept, with the column files of passes beside them row by row."""
        own = [self._aligned(name, names[0] if names else PAIRS) for name in (PAIRS, *names)]
        return " POSITIONAL JOIN ".join(f"(SELECT {ALL} FROM {of})" for of in own)

    def _aligned(self, name: str, partitions_of: str) -> str:
        """Rows or columns of a pass, in the partitions that another pass has done, in their order."""
        schema = DEDUP_SCHEMA if name == PAIRS else self.build.passes[name].files[0].schema
        assert schema is not None
        stage = self.build.stage(name)
        records = [stage.record(partition) for partition in self.build.stage(partitions_of).partitions()]
        refs = [record.files["parquet"] for record in records]
        return self.files((TableFile(stage.folder, r.name, r.bytes, self.build.build_id, schema) for r in refs), schema)

    def files(self, parts: Iterable[TableFile], schema: pa.Schema, by_name: bool = False) -> str:
        """Files of one schema; an empty table where there is none."""
        parts = present(parts) if self._only_present else list(parts)
        self.parts += parts
        self._remote.add(parts)
        urls = [part.url for part in parts]
        if urls:
            return parquet(urls, by_name)
        name = f"empty_{abs(hash(tuple(schema.names)))}"
        own = pa.schema([*schema, ("file_row_number", pa.int64()), ("filename", pa.string())])
        self._db.register(name, own.empty_table())
        return name


ALL = "* EXCLUDE (file_row_number)"
"""SQL of the columns that a file has."""


def _regions(sources: _Sources) -> str:
    files = {name: sources.table(REGIONS + name) for name in sources.frames.detectors}
    files = files or {"": sources.files((), REGION_SCHEMA)}
    return " UNION ALL ".join(f"SELECT '{quoted(name)}' AS detector, {ALL} FROM {of}" for name, of in files.items())


def _removed(sources: _Sources) -> str:
    return " UNION ALL ".join(
        f"SELECT '{name}' AS stage, candidate_id, r.* FROM (SELECT candidate_id, unnest({REMOVED}) AS r FROM "
        f"{sources.stage(name, ['parquet'], WITH_REMOVED_SCHEMA)})"
        for name in ("extract", "admit")
    )


def _pairs(sources: _Sources) -> str:
    if sources.has(SELECTION):
        own = f"{sources.pairs(SELECTION)} WHERE kept"
    else:
        own = sources.pairs() if sources.has(PAIRS) else sources.files((), DEDUP_SCHEMA)
    measures = ", ".join(name for name in FEATURE_SCHEMA.names if name not in LOOKS)
    return f"SELECT candidate_id, source, texts[1].text AS text, {measures} FROM {own}"


def _scored(sources: _Sources) -> str:
    judged = ["curate.pair_score"] if sources.has("curate.pair_score") else []
    kept = "coalesce(len(reasons) = 0, false)" if judged else "true"
    units = f"round({PAIR_SCORE.name}::DOUBLE * {UNITS})::INTEGER"
    columns = (
        f"candidate_id, fetch_id, source, page_url, image_url, texts[1].text AS text, {PAIR_SCORE.name} AS score, "
        f"{units} AS units, {kept} AS kept"
    )
    if not sources.has(SCORES):
        return f"SELECT {columns} FROM {sources.files((), DEDUP_SCHEMA.append(PAIR_SCORE))}"
    return f"SELECT {columns} FROM {sources.pairs(*judged, SCORES)} WHERE {PAIR_SCORE.name} IS NOT NULL"


def _marked(sources: _Sources) -> str:
    of_url = host("image_url")
    columns = (
        "candidate_id, fetch_id, source, page_url, image_url, texts[1].text AS text, sha256, "
        f"CASE WHEN {of_url} <> '' THEN {of_url} ELSE source END AS host, width, height, correlation, "
        "len(reasons) = 0 AS kept"
    )
    if not sources.has("curate.watermark"):
        judged = [pa.field("correlation", pa.float32()), _JUDGED.field("reasons")]
        return f"SELECT {columns} FROM {sources.files((), pa.schema([*DEDUP_SCHEMA, *judged]))}"
    return f"SELECT {columns} FROM {sources.pairs('curate.watermark')} WHERE correlation IS NOT NULL"


def _near(sources: _Sources) -> str:
    names = "candidate_id, leader, earlier, millionths, len(reasons) > 0 AS dropped"
    if not sources.has("curate.semantic_dedup"):
        return f"SELECT {names} FROM {sources.files((), _JUDGED)}"
    return f"SELECT {names} FROM {sources.pairs('curate.semantic_dedup')} WHERE leader IS NOT NULL"


def _balanced(sources: _Sources) -> str:
    if not sources.has("curate.balance"):
        return f"SELECT entry FROM {sources.files((), _JUDGED)}"
    return f"SELECT unnest(frequent) AS entry FROM {sources.pairs('curate.balance')} WHERE len(reasons) = 0"


_JUDGED = pa.schema(
    [
        ("candidate_id", pa.string()),
        ("leader", pa.string()),
        ("earlier", pa.bool_()),
        ("millionths", pa.int32()),
        ("reasons", pa.list_(pa.string())),
        ("entry", pa.int32()),
    ]
)
"""Columns of the views of a build that asks no such judge."""


VIEWS: dict[str, Callable[[_Sources], str]] = {
    "candidates": lambda sources: f"SELECT {ALL} FROM {sources.table('candidates')}",
    "decisions": lambda sources: f"SELECT {ALL} FROM {sources.table('decisions')}",
    "placed": lambda sources: (
        f"SELECT {ALL}, filename AS file, file_row_number AS row FROM {sources.table('decisions')}"
    ),
    SAMPLES: lambda sources: (
        f"SELECT {ALL}, texts[1].text AS text, texts[1].kind AS kind, file_row_number AS position "
        f"FROM {sources.table(SAMPLES)}"
    ),
    "regions": _regions,
    "removed": _removed,
    "fetched": lambda sources: f"SELECT {ALL} FROM {sources.stage('fetch', ['parquet'], FETCH_SCHEMA)}",
    "measures": lambda sources: f"SELECT {ALL} FROM {sources.table('measures')}",
    "pairs": _pairs,
    "scored": _scored,
    "marked": _marked,
    "near": _near,
    "balanced": _balanced,
}

_NAMED = re.compile(rf"\b(?:FROM|JOIN)\s+(?:(\w+)\.)?({'|'.join(VIEWS)})\b")
