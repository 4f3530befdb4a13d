"""Tables of a build or of a dataset: candidates, decisions, measures, samples and regions.

Everything that reads these Parquet files as tables does it here: the report and its drift, the Python interface
(`wenlan.py`), the difference of datasets. A table is a list of committed files (`TableFile`) of one schema. They are
those that records or a manifest name, never what a listing shows. Columns and filters are pushed down to Parquet by
pyarrow, so that of a file on an object store only what is asked for is read.

    candidates   extract      CANDIDATE_SCHEMA   one row per image URL with its texts, as the pages had it
    decisions    every stage  DECISION_SCHEMA    what became of each candidate, and of pages that were dropped
    measures     measure      FEATURE_SCHEMA     one row per distinct image that was fetched
    samples      shard        SHARD_SCHEMA       one row per sample, with PAIR_SCORE where a spec asked for scores
    regions/ID   shard        REGION_SCHEMA      boxes of a detector, row by row those of the samples

A release has samples and regions of its own. The other tables are those of its builds, as far as they are accessible.

Limits: `gc` deletes candidates and measures of old builds; `lacking` says of which.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import fsspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pf
import pyarrow.parquet as pq

from data_specs.shard import (
    MANIFEST,
    PAIR_SCORE,
    REGION_SCHEMA,
    SHARD_SCHEMA,
    SPLITS,
    ContractError,
    FileDigest,
    ShardFiles,
)
from pipeline.errors import StoreError
from pipeline.files.folder import SMALL, Folder
from pipeline.rows.decisions import DECISION_SCHEMA
from pipeline.rows.records import CANDIDATE_SCHEMA, FEATURE_SCHEMA
from pipeline.store import build_json
from pipeline.store.build import REGIONS, Build, Stages, shard_files
from pipeline.store.commits import DECISIONS, Record
from pipeline.store.dataset import Dataset
from pipeline.store.partitions import small_file
from pipeline.store.store import Store
from pipeline.store.takedowns import NO_TAKEDOWNS, Takedowns

if TYPE_CHECKING:  # pyarrow.dataset imports pandas: half a second that no command should cost which reads no table
    import pandas
    import pyarrow.dataset

SAMPLES = "samples"
OF_STAGE = {"candidates": ("extract", CANDIDATE_SCHEMA), "measures": ("measure", FEATURE_SCHEMA)}
"""Tables that one stage writes, by name: the stage and the schema."""

TABLES = (*OF_STAGE, "decisions", SAMPLES, "regions/DETECTOR")

BUILD = "build"
"""Column that a whole table has besides those of its files: the id of the build that a row comes from."""

ROWS = 10_000

Filters = Any
"""An expression of pyarrow.dataset, or tuples as pandas and pyarrow take them: [("width", ">=", 256), ...]."""


@dataclass(frozen=True, slots=True)
class TableFile:
    """One committed Parquet file of a table.

    bytes: its size by the record (or manifest, `listed_by`) that names it. build: the id of the build that made it.
    schema: its columns. A row may also be asked for BUILD. record: of the partition, if one commits it.
    """

    folder: Folder
    name: str
    bytes: int
    build: str
    schema: pa.Schema = field(repr=False)
    listed_by: Literal["record", "manifest"] = "record"
    record: Record | None = field(default=None, repr=False)

    @property
    def url(self) -> str:
        return self.folder.at(self.name)

    def table(self, columns: Sequence[str] | None = None, filters: Filters = None) -> pa.Table:
        """The whole file, or some columns and rows of it. Raises StoreError if it is missing or incomplete."""
        batches, schema = list(self.batches(columns, filters, 1 << 20)), _with_build(self.schema)
        names = self.schema.names if columns is None else columns
        return pa.Table.from_batches(batches, pa.schema([schema.field(name) for name in names]))

    def batches(
        self, columns: Sequence[str] | None = None, filters: Filters = None, rows: int = ROWS
    ) -> Iterator[pa.RecordBatch]:
        """The same in batches of at most `rows` rows, in the order of the file; memory is a row group and a batch."""
        wanted, schema = as_expression(filters), _with_build(self.schema)
        names = self.schema.names if columns is None else _known_columns(columns, schema, self.url)
        try:
            if wanted is None and self.folder.is_local and BUILD not in names:
                self.check()
                with pq.ParquetFile(
                    self.url, pre_buffer=False
                ) as file:  # of a small file a pyarrow dataset takes twice the time
                    if self._has_columns(file.schema_arrow, names):
                        yield from self._in_order(file.iter_batches(rows, columns=names, use_threads=False), names)
                        return
            # group by group: pyarrow would read ahead, up to the whole file
            for group in self._checked_fragment().split_by_row_group(wanted, schema):
                for batch in group.to_batches(schema, names, wanted, rows, use_threads=False):
                    if batch.num_rows:
                        yield batch
        except (OSError, pa.ArrowInvalid) as e:
            raise StoreError(self.url, f"cannot be read ({_first_line(e)})") from None

    def _has_columns(self, schema: pa.Schema, names: Sequence[str]) -> bool:
        """True if a file has these columns, of these types."""
        return all(name in schema.names and schema.field(name).type == self.schema.field(name).type for name in names)

    def _in_order(self, batches: Iterable[pa.RecordBatch], names: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Batches with their columns in the order in which they were asked for."""
        schema = pa.schema([self.schema.field(name) for name in names])
        for batch in batches:
            if batch.num_rows:
                yield pa.RecordBatch.from_arrays([batch.column(name) for name in names], schema=schema)

    def check(self) -> None:
        """Raise StoreError that names the file if it is missing or its size differs from its record."""
        self._compare(self.folder.size(self.name))

    def _compare(self, size: int) -> None:
        if size != self.bytes:
            fault = "missing" if size < 0 else f"{size} bytes, but {self.bytes} in its {self.listed_by}"
            todo = "delete the stage's folder to rebuild it"
            if self.listed_by == "manifest":
                todo = "wenlan-data verify lists all damaged files"
                if size >= 0:
                    todo = f"a takedown may have rewritten it for a newer release; if not, {todo}"
            raise StoreError(self.url, f"{fault}; {todo}")

    def _checked_fragment(self) -> pyarrow.dataset.ParquetFileFragment:
        """Like `fragment`, for a file that was checked. A small one of an object store is read by one request."""
        if self.folder.is_local or self.bytes > SMALL:
            self.check()
            return self.fragment()
        data = small_file(self.folder, self.name)
        self._compare(-1 if data is None else len(data))
        return _format().make_fragment(pa.py_buffer(data), partition_expression=pc.field(BUILD) == self.build)

    def fragment(self) -> pyarrow.dataset.ParquetFileFragment:
        """The file as a part of a pyarrow dataset; every row of it has the build's id as BUILD."""
        fs, path = _filesystem(self.url)
        return _format().make_fragment(path, fs, partition_expression=pc.field(BUILD) == self.build)


def _with_build(schema: pa.Schema) -> pa.Schema:
    return schema.append(pa.field(BUILD, pa.string()))


def _known_columns(columns: Sequence[str], schema: pa.Schema, where: str) -> list[str]:
    """Returns the columns. Raises StoreError for one that the schema does not have."""
    for name in columns:
        if name not in schema.names:
            raise StoreError(where, f"no column {name!r}; columns: {', '.join(schema.names)}")
    return list(columns)


@functools.cache
def _format() -> pyarrow.dataset.ParquetFileFormat:
    from pyarrow.dataset import ParquetFileFormat

    return ParquetFileFormat()


@dataclass(frozen=True)
class Frames:
    """The tables of a build or of a dataset.

    place: what was opened, for messages. builds: those accessible, oldest first. shards: the files of each shard and
    the folder they lie in, in the order of the dataset. absent: why a build of a release is not accessible, by its id.
    """

    place: str
    builds: tuple[Build, ...]
    shards: tuple[tuple[Folder, ShardFiles], ...]
    absent: dict[str, str] = field(default_factory=dict)
    dataset: Dataset | None = None
    """The manifest that was opened; None for a build that is not published."""

    @staticmethod
    def of(build: Build, packed: Iterable[Record] | None = None) -> Frames:
        """The tables of a build as its records have them, published or not. packed: records of some shards, not all."""
        records = packed if packed is not None else build.packed()
        return Frames(build.out, (build,), tuple((build.shards, shard_files(record)) for record in records))

    @staticmethod
    def of_dataset(dataset: Dataset, builds: Sequence[Build] = (), absent: dict[str, str] | None = None) -> Frames:
        """The tables of a published dataset, with those of the builds that are given."""
        shards = tuple((dataset.folder_of(shard), shard) for shard in dataset.manifest.shards)
        place = dataset.build.url if dataset.build is not None else dataset.path
        return Frames(place, tuple(builds), shards, absent or {}, dataset)

    @staticmethod
    def open(place: str, stages: Stages) -> Frames:
        """The tables of a build's folder, of its manifest, of a release or of a copy of one; `stages` as builds have.

        Raises ContractError or StoreError for anything else.
        """
        folder = Folder(place)
        if not folder.url.endswith(".json") and folder.exists(build_json.NAME):
            build = build_json.reopen(place, stages)
            if not folder.exists(f"shards/{MANIFEST}"):
                return Frames.of(build)
            return Frames.of_dataset(Dataset.open(place), [build])
        dataset, builds, absent = Dataset.open(place), list[Build](), dict[str, str]()
        for build_id, out in _outs(dataset):
            try:
                build = build_json.reopen(out, stages)
            except (StoreError, ContractError) as e:
                absent[build_id] = str(e)
                continue
            if build.build_id == build_id:
                builds.append(build)
            else:
                absent[build_id] = f"{out} now contains {build.build_id}"
        if dataset.manifest.builds and not any(out for _, out in _outs(dataset)):
            absent = dict.fromkeys((own.build_id for own in dataset.manifest.builds), "a copy contains samples only")
        return Frames.of_dataset(dataset, builds, absent)

    @functools.cached_property
    def detectors(self) -> tuple[str, ...]:
        """Ids of the detectors whose regions there are, the default one first."""
        if self.dataset is not None:
            return self.dataset.manifest.detectors
        return tuple(dict.fromkeys(name for _, shard in self.shards for name in shard.regions))

    def detector(self, name: str = "") -> str:
        """The id of the one detector with that id or name; the first one for "". Raises StoreError."""
        matching = [d for d in self.detectors if not name or name in (d, d.rpartition("-")[0])]
        if not matching or (name and len(matching) > 1):
            detectors = ", ".join(self.detectors) or "none"
            raise StoreError(self.place, f"no detector or several named {name!r}; detectors: {detectors}")
        return matching[0]

    @functools.cached_property
    def takedowns(self) -> Takedowns:
        """All takedowns of the STORE that the dataset belongs to: what they name must not be shown or passed on."""
        place = self.builds[0].store.url if self.builds else self.dataset.store if self.dataset is not None else ""
        return Store(place).takedowns() if place else NO_TAKEDOWNS

    def schema(self, table: str) -> pa.Schema:
        """Columns of a table's files. Raises StoreError for an unknown name."""
        if table.startswith(REGIONS):
            return REGION_SCHEMA
        schemas = {"decisions": DECISION_SCHEMA, SAMPLES: self._samples, **{n: s for n, (_, s) in OF_STAGE.items()}}
        if table not in schemas:
            raise StoreError(self.place, f"no table {table!r}; tables: {', '.join(TABLES)}")
        return schemas[table]

    @functools.cached_property
    def _samples(self) -> pa.Schema:
        """Columns of samples; of builds that are not accessible the first shard tells whether they were scored."""
        scored = any(build.spec.pair_score is not None for build in self.builds)
        if not self.builds and self.shards:
            folder, shard = self.shards[0]
            # the reader of the rows says what is wrong with a file
            with contextlib.suppress(StoreError, pa.ArrowException), folder.opened(shard.parquet.path) as file:
                scored = PAIR_SCORE.name in pq.read_schema(file).names
        return SHARD_SCHEMA.append(PAIR_SCORE) if scored else SHARD_SCHEMA

    def of_split(self, split: str = "") -> Iterator[tuple[Folder, ShardFiles]]:
        """Shards of a split, or of all. Raises StoreError for an unknown name."""
        if split and split not in SPLITS:
            raise StoreError(self.place, f"no split {split!r}; splits: {', '.join(SPLITS)}")
        return (own for own in self.shards if not split or own[1].split == split)

    def parts(self, table: str, split: str = "") -> Iterator[TableFile]:
        """The files of a table, in its order. split: of samples and regions, those of one split only."""
        schema = self.schema(table)
        if table == SAMPLES or table.startswith(REGIONS):
            named = table != SAMPLES and bool(self.shards)  # a build that keeps nothing is without regions
            detector = self.detector(table.removeprefix(REGIONS)) if named else ""
            for folder, shard in self.of_split(split):
                file: FileDigest | None = shard.regions.get(detector) if detector else shard.parquet
                if file is None:
                    raise StoreError(folder.at(shard.tar.path), f"no regions of detector {detector}")
                listed_by: Literal["record", "manifest"] = "record" if self.dataset is None else "manifest"
                yield TableFile(folder, file.path, file.bytes, shard.build or self._only_build, schema, listed_by)
            return
        if split:
            raise StoreError(self.place, f"{table} do not have splits: dedup assigns them to kept pairs")
        for build in self.builds:
            for folder, record, suffix in _committed(build, table):
                ref = record.files[suffix]
                yield TableFile(folder, ref.name, ref.bytes, build.build_id, schema, record=record)

    @property
    def _only_build(self) -> str:
        return self.dataset.manifest.build_id if self.dataset is not None else self.builds[0].build_id

    def missing_reasons(self, table: str) -> dict[str, str]:
        """Returns why rows of a build are missing from a table, by the build's id; empty if none are."""
        self.schema(table)
        if table == SAMPLES or table.startswith(REGIONS):
            return {}
        lacking = dict(self.absent)
        for build in self.builds:
            stages = build.lasting_passes() if table == "decisions" else [OF_STAGE[table][0]]
            unfinished = [name for name in stages if name not in build.fingerprints]
            gone = [name for name in stages if name in build.fingerprints and not build.stage(name).finished()]
            if unfinished:
                lacking[build.build_id] = f"stage {unfinished[0]} is not finished yet"
            elif gone:
                lacking[build.build_id] = f"the output of stage {gone[0]} no longer exists; gc deletes it in old builds"
        return lacking

    def paths(self, table: str, split: str = "") -> list[str]:
        """Paths or URLs of the files of a table, for other tools that read Parquet."""
        return [part.url for part in self.parts(table, split)]

    def batches(
        self,
        table: str,
        columns: Sequence[str] | None = None,
        filters: Filters = None,
        split: str = "",
        rows: int = ROWS,
    ) -> Iterator[pa.RecordBatch]:
        """A table in batches of at most `rows` rows, file by file, whatever its size. Raises StoreError."""
        for part in self.parts(table, split):
            yield from part.batches(columns, filters, rows)

    def tables(
        self, table: str, columns: Sequence[str] | None = None, filters: Filters = None, split: str = ""
    ) -> Iterator[pa.Table]:
        """A table file by file: one file (a partition of a stage, or a shard) is in memory at a time."""
        for part in self.parts(table, split):
            yield part.table(columns, filters)

    def arrow_dataset(self, table: str, split: str = "") -> pyarrow.dataset.Dataset:
        """A table as one pyarrow dataset, which DuckDB, Polars and pyarrow query without reading it into memory.

        It has the column BUILD besides those of its files.
        """
        from pyarrow.dataset import FileSystemDataset

        parts = list(self.parts(table, split))
        schema = _with_build(self.schema(table))
        fs = _filesystem(parts[0].url)[0] if parts else pf.LocalFileSystem()
        return FileSystemDataset([part.fragment() for part in parts], schema, _format(), fs)

    def frame(
        self, table: str, columns: Sequence[str] | None = None, filters: Filters = None, split: str = ""
    ) -> pandas.DataFrame:
        """A table as a DataFrame. Raises StoreError for a missing file and an unknown column."""
        whole = self.arrow_dataset(table, split)
        names = None if columns is None else _known_columns(columns, whole.schema, f"{self.place}: {table}")
        try:
            rows = whole.to_table(names, as_expression(filters))
        except (OSError, pa.ArrowInvalid) as e:
            for part in self.parts(table, split):
                part.check()  # names the file
            raise StoreError(self.place, f"{table}: {_first_line(e)}") from None
        frame: pandas.DataFrame = rows.to_pandas()
        return frame


def present(parts: Iterable[TableFile]) -> list[TableFile]:
    """The files that are there: gc, a takedown or a person may have deleted some. Those of an object store are not
    asked for one by one."""
    return [part for part in parts if not part.folder.is_local or Path(part.url).is_file()]


def as_expression(filters: Filters) -> pyarrow.dataset.Expression | None:
    return pq.filters_to_expression(filters) if isinstance(filters, (list, tuple)) else filters


def _committed(build: Build, table: str) -> Iterator[tuple[Folder, Record, str]]:
    """(folder, record, suffix) of a build's files of a table, in the order of its stages and their partitions."""
    names, suffix = ([OF_STAGE[table][0]], "parquet") if table in OF_STAGE else (list(build.fingerprints), DECISIONS)
    for name in names:
        for record in build.records(name):
            if suffix in record.files:
                yield build.stage(name).folder, record, suffix


def _outs(dataset: Dataset) -> list[tuple[str, str]]:
    """(build_id, BUILD) of the builds of a dataset, with those whose folder is known."""
    manifest = dataset.manifest
    if manifest.builds:
        return [(own.build_id, own.out) for own in manifest.builds if own.out]
    parent = Folder(dataset.shards.url.rpartition("/")[0])
    return [(manifest.build_id, parent.url)] if parent.exists(build_json.NAME) else []


def _filesystem(url: str) -> tuple[pf.FileSystem, str]:
    """The file system of a path or URL as pyarrow takes it, and the path within."""
    fs, path = fsspec.url_to_fs(url)
    return (pf.PyFileSystem(pf.FSSpecHandler(fs)) if "://" in url else pf.LocalFileSystem()), path


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
