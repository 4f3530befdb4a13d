"""Partitions and their records: how finished work becomes visible.

Work is cut into partitions. A partition is committed by writing one small record that names its files with their
sizes and sha256 (`pipeline.store.commits`); readers trust records, never listings.

    FOLDER/<stage>/_records/<fingerprint>/<partition>.json    one record: the commit
    FOLDER/<stage>/_records/<fingerprint>/records.parquet     copies of them in one file (`Committed`)
    FOLDER/<stage>/<partition>-<attempt>.<suffix>             what it names: the stage's rows, and archives
    FOLDER/<stage>/_<kind>/<partition>-<attempt>.<suffix>     its other tables, for example `_decisions/`
    FOLDER/<stage>/_reduced/<fingerprint>.json                what the driver made of them, where a pass reduces
    FOLDER/<stage>/_stage.json                                written when all of a fingerprint are committed

Readers of all records read the one file, so that 215,000 partitions are listed by one request; readers of one record
read that. While a pass runs the file has most records, and those that it lacks are listed and read one by one. It is
deleted before a record that it may have changes; the takedown that changed it writes it again.

The Parquet files at the top of a stage's folder have one schema: `FOLDER/<stage>/*.parquet` is a table. What pandas,
pyarrow, Spark and Ray Data read of a folder leaves out names that begin with an underscore.
"""

from __future__ import annotations

import contextlib
import itertools
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from data_specs.shard import canonical_json
from data_specs.storage.whole_files import sha256_of
from pipeline.errors import StoreError
from pipeline.files.folder import SMALL, Folder
from pipeline.files.parquet import read_parquet
from pipeline.rows.records import USERINFO
from pipeline.store.commits import APART, DECISIONS, MARK, Attempt, FileRef, Record, count_decisions, file_name

_ANEW = "delete the stage's folder to rebuild it"
"""Advice for a damaged file."""

_RECORDS, _FINISHED, _COMPACTED = "_records", "_stage.json", "records.parquet"

_BATCH = 5_000
"""Records of a compacted file that are in memory at a time."""

_COMPLETE = {b"wenlan": b"complete"}
"""Metadata of a compacted file that has the records of all partitions."""

REDUCED = "_reduced"
"""Folder, within a pass's, of what the driver made of its partitions, by the fingerprint's mark."""


def _is_complete(file: pq.ParquetFile) -> bool:
    """True for a compacted file that has the records of all partitions."""
    return _COMPLETE.items() <= (file.schema_arrow.metadata or {}).items()


READ_AT_ONCE = 16

Item = TypeVar("Item")
Result = TypeVar("Result")


def read_at_once(read: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """Results of `read` in the order of `items`, READ_AT_ONCE at a time: in an object store each is a request."""
    items = iter(items)
    with ThreadPoolExecutor(READ_AT_ONCE, "wenlan-read") as threads:
        while some := list(itertools.islice(items, READ_AT_ONCE)):
            yield from threads.map(read, some)


REMEMBERED = 20_000
"""Most records that `remembering` keeps, of a few kB each; those of larger builds are read again each time."""

REMEMBERED_BYTES = 64 << 20
"""Bytes of small files of an object store that `remembering` keeps at most."""


@dataclass
class _Memory:
    """Memory of `remembering`: records by the URL of their folder and by partition, and small files of an object store
    by theirs."""

    room: int  # for bytes
    records: dict[str, dict[str, Record]] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)


_remembered: ContextVar[_Memory | None] = ContextVar("remembered", default=None)


@contextlib.contextmanager
def remembering() -> Iterator[None]:
    """Within this block the records of a stage are read only once and then cached.

    For readers of stages that are not being written, such as the report, whose sections ask for the same records, and
    for the same rows: in an object store each of them is a request.
    """
    token = _remembered.set(_Memory(REMEMBERED_BYTES))
    try:
        yield
    finally:
        _remembered.reset(token)


def small_file(folder: Folder, name: str) -> bytes | None:
    """The whole content of a small committed file of an object store, None if missing; see `remembering`."""
    memory, url = _remembered.get(), folder.at(name)
    if memory is not None and url in memory.files:
        return memory.files[url]
    data = folder.find(name)
    if memory is not None and data is not None and len(data) <= memory.room:
        memory.files[url] = data
        memory.room -= len(data)
    return data


def _read(source: Path | pa.NativeFile, columns: list[str] | None, filters: Any) -> pa.Table:
    if filters is not None:
        return pq.read_table(source, columns=columns, filters=filters, memory_map=False)
    return read_parquet(source, columns)


@dataclass(frozen=True, slots=True)
class _Reading:
    """The pass that runs, and the passes whose records it may open."""

    name: str
    allowed: frozenset[str]


_reading: ContextVar[_Reading | None] = ContextVar("reading", default=None)


@contextlib.contextmanager
def reading(name: str, reads: Iterable[str]) -> Iterator[None]:
    """Within this block the pass `name` runs: opening records of a pass that is neither itself nor in `reads` fails.

    So what a fingerprint is made of is all that a pass can depend on.
    """
    token = _reading.set(_Reading(name, frozenset({name, *reads})))
    try:
        yield
    finally:
        _reading.reset(token)


@dataclass(frozen=True)
class StageDir:
    """Folder of a pass, seen at one fingerprint. How it is laid out on disk is known here and nowhere else."""

    folder: Folder
    name: str
    fingerprint: str

    @property
    def mark(self) -> str:
        """The fingerprint as folders of records are named by it: its first 16 hex digits."""
        return self.fingerprint[:MARK]

    @property
    def _records(self) -> Folder:
        reader = _reading.get()
        assert reader is None or self.name in reader.allowed, (
            f"pass {reader.name} does not declare that it reads {self.name}"
        )
        return self.folder / _RECORDS / self.mark

    def at(self, fingerprint: str) -> StageDir:
        """The same folder at another fingerprint (or its mark)."""
        return replace(self, fingerprint=fingerprint)

    def attempt(self, partition: str) -> Attempt:
        return Attempt(self.folder, self.name, partition, self.fingerprint, self._commit)

    def record(self, partition: str) -> Record:
        """The record of a committed partition. Raises StoreError."""
        folder, memory = self._records, _remembered.get()
        if memory is not None and (known := memory.records.get(folder.url, {}).get(partition)) is not None:
            return known
        return self._parsed(partition, folder.read(f"{partition}.json"))

    def find_record(self, partition: str) -> Record | None:
        """The record of a partition, None if it is not committed. Raises StoreError."""
        data = self._records.find(f"{partition}.json")
        return None if data is None else self._parsed(partition, data)

    def _parsed(self, partition: str, data: bytes | str) -> Record:
        try:
            return Record.model_validate_json(data)
        except ValueError:
            # as long as the stage counts as finished nothing of it is done again
            noted = [self.folder.at(_FINISHED)] if self.finished_at().startswith(self.mark) else []
            copies = [self._records.at(_COMPACTED)] if self._records.exists(_COMPACTED) else []
            todo = f"delete {' and '.join(['it', *copies, *noted])} to redo its partition"
            raise StoreError(self._records.at(f"{partition}.json"), f"not a record; {todo}") from None

    def partitions(self) -> list[str]:
        """Names of the committed partitions, sorted."""
        with self._compacted() as file:
            if file is not None and _is_complete(file):
                names: list[str] = file.read(["partition"])["partition"].to_pylist()
                return names
        return self._listed()

    def _listed(self) -> list[str]:
        return [name.removesuffix(".json") for name in self._records.names() if name.endswith(".json")]

    def records(self) -> Iterator[Record]:
        """Records of all committed partitions; in order of their names, where the stage is finished."""
        folder, memory = self._records, _remembered.get()
        if memory is not None and folder.url in memory.records:
            yield from list(memory.records[folder.url].values())
            return
        room = 0 if memory is None else REMEMBERED - sum(map(len, memory.records.values()))
        read = dict[str, Record]()
        for record in (self._parsed(*line) for line in self.lines()):
            if len(read) < room:
                read[record.partition] = record
            else:
                room, read = 0, {}
            yield record
        if memory is not None and room:
            memory.records[folder.url] = read

    def lines(self) -> Iterator[tuple[str, str]]:
        """Records of all committed partitions as JSON, each with the partition's name; see `records`."""
        compacted = set[str]()
        with self._compacted() as file:
            if file is not None:
                for batch in file.iter_batches(_BATCH):
                    names = batch["partition"].to_pylist()
                    yield from zip(names, batch["record"].to_pylist(), strict=True)
                    compacted.update(names)
                if _is_complete(file):
                    return
        folder, others = self._records, [name for name in self._listed() if name not in compacted]
        for name, data in zip(others, read_at_once(lambda name: folder.read(f"{name}.json"), others), strict=True):
            yield name, self._parsed(name, data).model_dump_json()

    @contextlib.contextmanager
    def _compacted(self) -> Iterator[pq.ParquetFile | None]:
        """The compacted file, open; None if there is none. Raises StoreError."""
        data = self._records.find(_COMPACTED)
        if data is None:
            yield None
            return
        try:
            with pq.ParquetFile(pa.BufferReader(data)) as file:
                yield file
        except (OSError, pa.ArrowException) as e:
            raise StoreError(self._records.at(_COMPACTED), f"cannot be read ({e}); delete it") from None

    def compact_again(self) -> None:
        """Write the compacted file of a finished stage whose records were changed since."""
        if self.finished_at().startswith(self.mark) and not self._records.exists(_COMPACTED):
            self.compact(self.lines(), complete=True)

    def compact(self, lines: Iterable[tuple[str, str]], complete: bool) -> None:
        """Write the compacted file. complete: it has the records of all partitions, in order of their names."""
        lines = iter(lines)
        schema = pa.schema([("partition", pa.string()), ("record", pa.string())], _COMPLETE if complete else None)
        with (
            self._records.making(_COMPACTED) as out,
            pq.ParquetWriter(out, schema, compression="zstd", use_dictionary=False) as file,
        ):
            while some := list(itertools.islice(lines, _BATCH)):
                file.write_table(pa.table([*zip(*some, strict=True)], schema=schema))

    def _commit(self, record: Record, replaces: bool) -> Record:
        """Add the record of an attempt, unless an earlier one has committed the partition and may not be replaced;
        returns the record that is there."""
        first = self.find_record(record.partition)
        if first is None:
            self._add_record(record)
        elif replaces:
            self.write_record(record)
        return record if first is None or replaces else first

    def _add_record(self, record: Record) -> None:
        """The commit itself, of a partition that was not committed."""
        self._records.write(f"{record.partition}.json", record.model_dump_json(indent=1).encode() + b"\n")

    def write_record(self, record: Record) -> None:
        """Change the record of a committed partition."""
        self._records.delete_files([_COMPACTED])
        self._add_record(record)

    def adopt(self, partition: str, **info: Any) -> Record | None:
        """Commit a partition again that another fingerprint committed from the same input, without doing it again.

        `info` names the input: a record whose own info holds all of it, and whose files are there, is taken.
        """
        for other in self.of_other_fingerprints():
            if partition not in other.partitions():
                continue
            record = other.record(partition)
            if info.items() <= record.info.items() and self.has_files(record, record.files):
                adopted = record.model_copy(update={"fingerprint": self.fingerprint})
                self._add_record(adopted)
                return adopted
        return None

    def amend(
        self,
        record: Record,
        files: Mapping[str, Path],
        counts: dict[str, int] | None = None,
        info: dict[str, Any] | None = None,
    ) -> Record:
        """Commit a partition again with some of its files replaced by local ones. Replaced files stay until `sweep`.

        For a takedown, the one case in which committed bytes change.
        """
        attempt, refs, own = uuid.uuid4().hex[:8], dict(record.files), record.decided
        for suffix, path in files.items():
            name = file_name(record.partition, attempt, suffix)
            refs[suffix] = FileRef(name=name, bytes=path.stat().st_size, sha256=sha256_of(path))
            if suffix == DECISIONS:
                own = count_decisions(path, refs[suffix].sha256)
            self.folder.take(path, name, suffix == USERINFO)
        update = {"files": refs, "attempt": attempt, "counts": counts or record.counts, "decided": own}
        update["info"] = record.info if info is None else info
        amended = record.model_copy(update=update)
        self.write_record(amended)
        return amended

    def of_all_fingerprints(self) -> list[StageDir]:
        """This stage's folder at each fingerprint that has committed something; fingerprints are cut to their mark."""
        return [self.at(name) for name in (self.folder / _RECORDS).names() if not name.startswith(".")]

    def of_other_fingerprints(self) -> list[StageDir]:
        """Like `of_all_fingerprints`, but without this fingerprint."""
        return [other for other in self.of_all_fingerprints() if other.mark != self.mark]

    def has_files(self, record: Record, suffixes: Iterable[str]) -> bool:
        """True if a record names files of these suffixes, and they are there."""
        return all(suffix in record.files and self.folder.exists(record.files[suffix].name) for suffix in suffixes)

    def reduced(self) -> Any:
        """JSON value that the driver made of all partitions (`Pass.reduce`). Raises StoreError if it is not there."""
        value = self.find_reduced()
        if value is None:
            raise StoreError(self.folder.at(f"{REDUCED}/{self.mark}.json"), f"missing; {_ANEW}")
        return value

    def find_reduced(self) -> Any:
        """Like `reduced`, None if it is not there."""
        _ = self._records  # held to what the running pass may read
        return self.folder.find_json(f"{REDUCED}/{self.mark}.json", None)

    def write_reduced(self, value: Any) -> None:
        self.folder.write(f"{REDUCED}/{self.mark}.json", canonical_json(value))

    def finished(self) -> bool:
        """True if every partition of this fingerprint is committed."""
        return self.finished_at() == self.fingerprint

    def finished_at(self) -> str:
        """The fingerprint of which every partition is committed, whichever it is; "" for none."""
        fingerprint: str = self.folder.find_json(_FINISHED, {"fingerprint": ""})["fingerprint"]
        return fingerprint

    def finish(self, partitions: Sequence[str], version: int) -> None:
        self.folder.write_json(
            _FINISHED, {"fingerprint": self.fingerprint, "partitions": len(partitions), "version": version}
        )

    def unfinish(self) -> None:
        """Take back what `finish` noted, at whatever fingerprint."""
        self.folder.delete(_FINISHED)

    def delete_record(self, partition: str) -> None:
        """Make a partition uncommitted; its files go with the next `sweep`."""
        self._records.delete_files([_COMPACTED])
        self._records.delete(f"{partition}.json")

    def uncommit(self, partition: str) -> None:
        """Like `delete_record`, for a partition that the next `build` makes again: the pass is no longer finished."""
        if self.finished_at().startswith(self.mark):
            self.unfinish()
        self.delete_record(partition)

    def delete_records(self) -> None:
        """Make every partition of this fingerprint uncommitted; its files go with the next `sweep`."""
        if self.finished_at().startswith(self.mark):
            self.unfinish()
        self.folder.delete(self.records_name)

    @property
    def records_name(self) -> str:
        """Name of the folder of this fingerprint's records, within the stage's folder, to report or to measure."""
        return f"{_RECORDS}/{self.mark}"

    def stray(self) -> list[str]:
        """Names of files that no record names: what killed attempts left, and what `amend` replaced."""
        named = {
            ref.name
            for stage in self.of_all_fingerprints()
            for record in stage.records()
            for ref in record.files.values()
        }
        return [name for name in self.committable() if name not in named]

    def committable(self) -> list[str]:
        """Names of all files in the folder that a record may name, named or not.

        Other names that begin with an underscore belong to the stage's own state and are not among them.
        """
        there = self.folder.names()
        names = [name for name in there if not name.startswith("_")]
        for kind in (kind for kind in APART if f"_{kind}" in there):
            names += [f"_{kind}/{name}" for name in (self.folder / f"_{kind}").names()]
        return names

    def sweep(self) -> list[str]:
        """Delete what is `stray`; returns the names. Nothing may be running in the build.

        Not for stages whose files have fixed names: `retire`.
        """
        names = self.stray()
        self.folder.delete_files(names)
        return names

    def retire(self, partitions: Set[str], reusable: Callable[[Record], Set[str]]) -> None:
        """Make room for `partitions` in a folder whose files have fixed names, which two fingerprints share.

        Removes, in this order, so that what remains never looks finished if this is killed: the note that a
        fingerprint is finished; other fingerprints' records; records of ours outside `partitions`; files that no
        remaining record names. reusable(record) returns the suffixes of another fingerprint's files that this one may
        take over; its record stays until its partition is committed here.
        """
        self.unfinish()
        done = set(self.partitions())
        for partition in done - partitions:
            self.delete_record(partition)
        named = {ref.name for record in self.records() for ref in record.files.values()}
        for other in self.of_other_fingerprints():
            for record in other.records():
                suffixes = reusable(record) if record.partition in partitions - done else set()
                if suffixes:
                    named |= {record.files[suffix].name for suffix in suffixes if suffix in record.files}
                else:
                    other.delete_record(record.partition)
            if not other.partitions():
                self.folder.delete(other.records_name)
        of_passes = {name for name in self.folder.names() if name.startswith("_") and name[1:] not in APART}
        self._delete_unnamed("", named, of_passes)

    def _delete_unnamed(self, place: str, named: Set[str], keep: Set[str]) -> None:
        """Delete what lies in a place (a prefix "", or ending in a slash), but for `named` and what leads there."""
        for name in (self.folder / place.rstrip("/") if place else self.folder).names():
            path = place + name
            if path in named or path in keep:
                continue
            if any(other.startswith(f"{path}/") for other in named):
                self._delete_unnamed(f"{path}/", named, keep)
            else:
                self.folder.delete(path)

    @contextlib.contextmanager
    def file(self, record: Record, suffix: str) -> Iterator[Path]:
        """Local path of a committed file. Raises StoreError if it is missing or incomplete."""
        ref = record.files[suffix]
        with self.folder.local(ref.name) as path:
            self._compare(ref, path.stat().st_size if path.exists() else -1)
            yield path

    def check(self, record: Record, suffix: str) -> None:
        """Raises StoreError if a committed file is missing or its size differs from its record."""
        ref = record.files[suffix]
        self._compare(ref, self.folder.size(ref.name))

    def _compare(self, ref: FileRef, size: int) -> None:
        if size != ref.bytes:
            fault = "missing" if size < 0 else f"{size} bytes, but {ref.bytes} in its record"
            raise StoreError(self.folder.at(ref.name), f"{fault}; {_ANEW}")

    def table(
        self, record: Record, suffix: str = "parquet", columns: list[str] | None = None, filters: Any = None
    ) -> pa.Table:
        """One committed Parquet file; `filters` as pyarrow takes them, pushed down to row groups. Raises StoreError."""
        ref = record.files[suffix]
        try:
            if not self.folder.is_local and ref.bytes <= SMALL:
                data = small_file(self.folder, ref.name)
                self._compare(ref, -1 if data is None else len(data))
                return _read(pa.BufferReader(data), columns, filters)
            with self.file(record, suffix) as path:
                return _read(path, columns, filters)
        except (OSError, pa.ArrowInvalid) as e:
            first = str(e).partition("\n")[0]
            raise StoreError(self.folder.at(ref.name), f"cannot be read ({first}); {_ANEW}") from None

    def column(self, record: Record, suffix: str, name: str) -> pa.ChunkedArray:
        """One column of a committed Parquet file; of an object store no more than that is read."""
        with self.folder.opened(record.files[suffix].name) as file, pq.ParquetFile(file) as table:
            return table.read(columns=[name])[name]
