"""How work becomes visible: records, stages of a build, and STORE. With `pipeline.cache` the only module that knows.

Work is cut into partitions. A partition is committed by writing one small record that names its files with their
sizes and sha256; readers trust records, never listings. Files carry the attempt in their name, so that an attempt that
was killed leaves only files that no record names, and two attempts at one partition cannot mix.

    FOLDER/<stage>/_records/<fingerprint>/<partition>.json    one record: the commit
    FOLDER/<stage>/<partition>-<attempt><suffix>              what it names
    FOLDER/<stage>/_stage.json                                written when all partitions of a fingerprint are committed

Limits: STORE's lock is a file lock, good for one machine or a shared disk that honours flock; an object store needs
one publisher at a time, which the scheduler must see to.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict

from data_specs.build import BuildSpec
from data_specs.shard import canonical_json
from pipeline.cache import Cache
from pipeline.errors import StoreError
from pipeline.folder import Folder, file_sha256
from pipeline.records import DECISION_SCHEMA, Decision, decision_rows

if TYPE_CHECKING:
    from pipeline.takedowns import Takedowns

STORE_VERSION = 2
"""2: identities are columns under a record (`pipeline.identities`); those of 1 are refused there."""

READ_AHEAD, GAP = 1 << 20, 64 << 10
"""Bytes of a tar that are read at once, and between two images that are read along rather than skipped."""


class FileRef(BaseModel):
    """A committed file: name within its folder, bytes, sha256."""

    model_config = ConfigDict(frozen=True)
    name: str
    bytes: int
    sha256: str


class Record(BaseModel):
    """The commit of one partition. `files` maps a suffix to the file; `counts` is what the stage counted."""

    model_config = ConfigDict(frozen=True)
    stage: str
    partition: str
    fingerprint: str
    attempt: str
    files: dict[str, FileRef]
    counts: dict[str, int]
    info: dict[str, Any] = {}
    seconds: float
    cpu_seconds: float


DECISIONS = "decisions.parquet"


def dictionary_columns(schema: pa.Schema) -> list[str]:
    """Columns that Parquet may write as a dictionary: words, that is. Digests, hashes and signatures are all different,
    and reading them back through a dictionary of all takes ten times as long."""
    return [field.name for field in schema if pa.types.is_string(field.type)]


def write_parquet(path: Path, table: pa.Table, row_group_size: int = 10_000) -> None:
    """Write a Parquet file as all stages do."""
    dictionary = dictionary_columns(table.schema)
    pq.write_table(table, path, compression="zstd", row_group_size=row_group_size, use_dictionary=dictionary)


_BEGAN: ContextVar[tuple[float, float] | None] = ContextVar("began", default=None)


@contextlib.contextmanager
def timed() -> Iterator[None]:
    """What is done inside is done for one partition: its attempt counts the time from here, not from when it opened."""
    token = _BEGAN.set((time.monotonic(), time.process_time()))
    try:
        yield
    finally:
        _BEGAN.reset(token)


class Attempt:
    """One try at a partition: write files to `path(suffix)`, then `commit`. Without commit nothing remains.

    Use as a context manager. `final` gives a suffix a fixed name instead of an attempt-unique one: only for files that
    are the same whoever writes them.
    """

    def __init__(self, folder: Folder, stage: str, partition: str, fingerprint: str) -> None:
        self._folder, self._stage, self._partition, self._fingerprint = folder, stage, partition, fingerprint
        self.attempt = uuid.uuid4().hex[:8]
        self._final: dict[str, str] = {}
        self._started, self._cpu = _BEGAN.get() or (time.monotonic(), time.process_time())
        self._decisions: list[pa.Table] = []
        self._hashed: dict[str, str] = {}

    def __enter__(self) -> Attempt:
        base = self._folder.url if self._folder.is_local else tempfile.gettempdir()
        Path(base).mkdir(parents=True, exist_ok=True)
        self._scratch = Path(tempfile.mkdtemp(prefix=f".tmp-{self._partition}-", dir=base))
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        shutil.rmtree(self._scratch, ignore_errors=True)

    def path(self, suffix: str, final: str = "") -> Path:
        """Local path to write one file to, e.g. suffix "tar" or "parquet"."""
        self._final[suffix] = final or f"{self._partition}-{self.attempt}.{suffix}"
        return self._scratch / suffix.replace("/", "_")

    def hashed(self, suffix: str, sha256: str) -> None:
        """Note the sha256 of a file that was hashed while it was written, and is not written to any more."""
        self._hashed[suffix] = sha256

    def folder(self, name: str) -> Path:
        """A local folder for what the attempt only needs itself; gone afterwards."""
        path = self._scratch / name
        path.mkdir()
        return path

    def write_table(self, suffix: str, table: pa.Table, row_group_size: int = 10_000) -> None:
        """Write one Parquet file of the partition."""
        write_parquet(self.path(suffix), table, row_group_size)

    def decide(self, decisions: Sequence[Decision] | pa.Table) -> None:
        """Add decisions; they are committed with the partition and become part of the union."""
        table = decisions if isinstance(decisions, pa.Table) else decision_rows(list(decisions))
        self._decisions.append(table)

    def commit(
        self, counts: dict[str, int], info: dict[str, Any] | None = None, kept: Mapping[str, FileRef] | None = None
    ) -> Record:
        """Make the partition visible: its files first, then the record that names them.

        kept: files of an earlier record, by suffix, that are part of this one as they are.
        """
        if self._decisions:
            self.write_table(DECISIONS, pa.concat_tables(self._decisions))
        files = dict(kept or {})
        for suffix, name in self._final.items():
            local = self._scratch / suffix.replace("/", "_")
            digest = self._hashed.get(suffix) or file_sha256(local)
            files[suffix] = FileRef(name=name, bytes=local.stat().st_size, sha256=digest)
            self._folder.take(local, name)
        record = Record(
            stage=self._stage,
            partition=self._partition,
            fingerprint=self._fingerprint,
            attempt=self.attempt,
            files=files,
            counts=counts,
            info=info or {},
            seconds=round(time.monotonic() - self._started, 3),
            cpu_seconds=round(time.process_time() - self._cpu, 3),
        )
        StageDir(self._folder, self._stage, self._fingerprint).write_record(record)
        return record


@dataclass(frozen=True)
class StageDir:
    """A stage's folder, seen at one fingerprint."""

    folder: Folder
    name: str
    fingerprint: str

    def attempt(self, partition: str) -> Attempt:
        return Attempt(self.folder, self.name, partition, self.fingerprint)

    def record(self, partition: str) -> Record:
        """The record of a committed partition. Raises StoreError."""
        name = f"_records/{self.fingerprint[:16]}/{partition}.json"
        return self._read_record(name)

    def _read_record(self, name: str) -> Record:
        try:
            return Record.model_validate_json(self.folder.read(name))
        except ValueError:
            raise StoreError(self.folder.at(name), "is not a record; delete it to do its partition again") from None

    def partitions(self) -> list[str]:
        """Names of the committed partitions, sorted."""
        return [n[:-5] for n in (self.folder / f"_records/{self.fingerprint[:16]}").names() if n.endswith(".json")]

    def records(self) -> list[Record]:
        """Records of all committed partitions, in order of their names."""
        return [self.record(partition) for partition in self.partitions()]

    def adopt(self, partition: str, **info: Any) -> Record | None:
        """Commit a partition again that another fingerprint committed from the same input, without doing it again.

        `info` tells the input: a record whose own info holds all of it, and whose files are there, is taken.
        """
        for other in (self.folder / "_records").names():
            name = f"_records/{other}/{partition}.json"
            if other == self.fingerprint[:16] or not self.folder.exists(name):
                continue
            record = self._read_record(name)
            if info.items() <= record.info.items() and all(self.folder.exists(f.name) for f in record.files.values()):
                found = record.model_copy(update={"fingerprint": self.fingerprint})
                self.write_record(found)
                return found
        return None

    def amend(self, record: Record, files: dict[str, Path], counts: dict[str, int] | None = None) -> Record:
        """Commit a partition again with some of its files replaced by local ones. What they replace is left: `sweep`.

        For a takedown, the one case in which committed bytes change.
        """
        attempt, refs = uuid.uuid4().hex[:8], dict(record.files)
        for suffix, path in files.items():
            name = f"{record.partition}-{attempt}.{suffix}"
            refs[suffix] = FileRef(name=name, bytes=path.stat().st_size, sha256=file_sha256(path))
            self.folder.take(path, name)
        found = record.model_copy(update={"files": refs, "attempt": attempt, "counts": counts or record.counts})
        self.write_record(found)
        return found

    def write_record(self, record: Record) -> None:
        """The commit itself."""
        name = f"_records/{self.fingerprint[:16]}/{record.partition}.json"
        self.folder.write(name, record.model_dump_json(indent=1).encode() + b"\n")

    def everyone(self) -> list[StageDir]:
        """This stage's folder at each fingerprint that has committed something."""
        return [replace(self, fingerprint=name) for name in (self.folder / "_records").names() if name[0] != "."]

    def sweep(self) -> list[str]:
        """Delete files that no record names: what killed attempts left, and what `amend` replaced. Gives their names.

        Nothing may be running in the build. Not for stages whose files have fixed names (shard, report).
        """
        named = {ref.name for stage in self.everyone() for record in stage.records() for ref in record.files.values()}
        stray = [name for name in self.folder.names() if not name.startswith("_") and name not in named]
        for name in stray:
            self.folder.delete(name)
        return stray

    def finished(self) -> bool:
        """Whether every partition of this fingerprint is committed."""
        if not self.folder.exists("_stage.json"):
            return False
        return bool(self.folder.read_json("_stage.json")["fingerprint"] == self.fingerprint)

    def finish(self, partitions: Sequence[str], version: int) -> None:
        self.folder.write_json(
            "_stage.json", {"fingerprint": self.fingerprint, "partitions": len(partitions), "version": version}
        )

    @contextlib.contextmanager
    def file(self, record: Record, suffix: str) -> Iterator[Path]:
        """Local path of a committed file. Raises StoreError if it is not there or not whole."""
        ref = record.files[suffix]
        with self.folder.local(ref.name) as path:
            size = path.stat().st_size if path.exists() else -1
            if size != ref.bytes:
                found = "is missing" if size < 0 else f"has {size} bytes, its record says {ref.bytes}"
                raise StoreError(self.folder.at(ref.name), f"{found}; delete the stage's folder to make it again")
            yield path

    def table(
        self, record: Record, suffix: str = "parquet", columns: list[str] | None = None, filters: Any = None
    ) -> pa.Table:
        """One committed Parquet file; `filters` as pyarrow takes them, pushed down to row groups."""
        with self.file(record, suffix) as path:
            return pq.read_table(path, columns=columns, filters=filters, memory_map=False)

    def column(self, record: Record, suffix: str, name: str) -> pa.ChunkedArray:
        """One column of a committed Parquet file; of an object store no more than that is read."""
        with self.folder.opened(record.files[suffix].name) as file, pq.ParquetFile(file) as table:
            return table.read(columns=[name])[name]


@dataclass(frozen=True)
class Build:
    """One build: its spec, its folder, its STORE, and the fingerprint of each stage. Sent to every Ray task."""

    spec: BuildSpec
    out: str
    store: Store
    build_id: str
    snapshot: str
    fingerprints: dict[str, str] = field(default_factory=dict)
    identities: tuple[str, ...] = ()
    """What it is deduplicated against: names in STORE/identity, as they were when the build was opened."""

    @property
    def folder(self) -> Folder:
        return Folder(self.out)

    def stage(self, name: str) -> StageDir:
        """A stage's folder at this build's fingerprint."""
        return StageDir(self.folder / STAGE_FOLDERS[name], name, self.fingerprints[name])

    def stages(self, name: str) -> list[StageDir]:
        """A stage's folder at each fingerprint that has committed something there, this build's or not."""
        return StageDir(self.folder / STAGE_FOLDERS[name], name, "").everyone()

    @property
    def identity_revision(self) -> str:
        """Digest of the identities that the build reads."""
        return hashlib.sha256(canonical_json(list(self.identities))).hexdigest()[:16]

    def images(self, partition: str, only: set[str] | None = None) -> Iterator[tuple[str, str, memoryview]]:
        """(fetch_id, sha256, bytes as fetched) of a fetch partition's images, in the order of its tar.

        only: if given, the sha256 of the images wanted. Neighbours are read together, READ_AHEAD at a time, and the
        bytes given are views of what was read.
        """
        fetch = self.stage("fetch")
        record = fetch.record(partition)
        columns = ["fetch_id", "sha256", "offset", "size"]
        rows = fetch.table(record, columns=columns, filters=[("ok", "==", True)]).sort_by("offset")
        places = [
            row for row in zip(*(rows[c].to_pylist() for c in columns), strict=True) if only is None or row[1] in only
        ]
        if not places:
            return
        with fetch.file(record, "tar") as path, path.open("rb", buffering=0) as f:
            for run in _runs(places):
                start = run[0][2]
                data = memoryview(os.pread(f.fileno(), run[-1][2] + run[-1][3] - start, start))
                for fetch_id, sha256, offset, size in run:
                    yield fetch_id, sha256, data[offset - start : offset - start + size]

    def decisions(self) -> Iterator[pa.Table]:
        """The union of the stages' decisions, one table a partition: memory stays that of one partition."""
        for name in self.fingerprints:
            stage = self.stage(name)
            for record in stage.records():
                if DECISIONS in record.files:
                    yield stage.table(record, DECISIONS).cast(DECISION_SCHEMA)


Place = tuple[str, str, int, int]
"""fetch_id, sha256, offset and size of an image in a tar."""


def _runs(places: Iterable[Place]) -> Iterator[list[Place]]:
    """Places cut into runs that one read covers: at most READ_AHEAD long, or a single image, and without large gaps."""
    run: list[Place] = []
    for place in places:
        _, _, offset, size = place
        if run and (offset + size - run[0][2] > READ_AHEAD or offset - run[-1][2] - run[-1][3] > GAP):
            yield run
            run = []
        run.append(place)
    if run:
        yield run


STAGE_FOLDERS = {
    "crawl": "captures",
    "extract": "candidates",
    "admit": "admitted",
    "fetch": "images",
    "measure": "features",
    "filter": "pairs",
    "rank": "ranked",
    "lead": "leaders",
    "dedup": "unique",
    "screen": "screened",
    "detect": "regions",
    "shard": "shards",
    "report": "report",
}
"""Where each stage writes within BUILD."""


@dataclass(frozen=True)
class Store:
    """STORE: what outlives a build. Nothing but `publish` writes identities; all builds may add to the caches."""

    url: str

    @property
    def folder(self) -> Folder:
        return Folder(self.url)

    def fetched(self) -> Cache:
        return Cache(self.folder / "fetched", "fetch_id")

    def features(self, feature_id: str) -> Cache:
        return Cache(self.folder / f"features/{feature_id}", "sha256")

    def regions(self, detector_id: str) -> Cache:
        return Cache(self.folder / f"regions/{detector_id}", "sha256")

    def takedowns(self) -> Takedowns:
        """What is never let in again."""
        from pipeline import takedowns

        folder = self.folder / "forgotten"
        names = [name for name in folder.names() if name.endswith(".json") and not name.startswith(".")]
        return takedowns.merged([folder.read_json(name) for name in names])

    def forgotten_revision(self) -> str:
        """Digest of the takedowns that a build reads."""
        found = self.takedowns()
        looks = sorted(look.signature.hex() for look in found.looks)
        value = [sorted(found.hashes), looks] if looks else sorted(found.hashes)
        return hashlib.sha256(canonical_json(value)).hexdigest()[:16]

    def register(self, build: Build, revision: int) -> None:
        """Note where a published build lies, for those who have to reach all of them (`forget`, `gc`)."""
        entry = {"build_id": build.build_id, "name": build.spec.name, "snapshot": build.snapshot}
        self.folder.write_json(f"builds/{build.build_id}.json", {**entry, "out": build.out, "revision": revision})

    def registered(self) -> list[dict[str, Any]]:
        """Published builds, oldest snapshot first: build_id, name, snapshot, out, revision."""
        folder = self.folder / "builds"
        found = [folder.read_json(name) for name in folder.names() if name.endswith(".json") and name[0] != "."]
        return sorted(found, key=lambda entry: (entry["snapshot"], entry["build_id"]))

    def caches(self) -> Iterator[tuple[str, Cache]]:
        """Every cache there is, with its place in STORE."""
        yield "fetched", self.fetched()
        for kind, one in (("features", self.features), ("regions", self.regions)):
            for name in (self.folder / kind).names():
                if not name.startswith("."):
                    yield f"{kind}/{name}", one(name)

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold STORE's lock. Raises StoreError after 60 seconds, naming the lock file."""
        self.check()
        if not self.folder.is_local:
            yield
            return
        path = Path(self.folder.at("_lock"))
        with path.open("a") as f:
            for _ in range(600):
                try:
                    fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    time.sleep(0.1)
            else:
                raise StoreError(str(path), "is held by another publish for more than 60 s; try again when it is done")
            yield

    def check(self) -> None:
        """Create the store or raise its version; refuse one of a newer version."""
        if self.version() != STORE_VERSION:
            self.folder.write_json("store.json", {"version": STORE_VERSION})

    def version(self) -> int:
        """The version of what is there, 0 if nothing is. Raises StoreError for a newer one."""
        if not self.folder.exists("store.json"):
            return 0
        version = int(self.folder.read_json("store.json")["version"])
        if version > STORE_VERSION:
            raise StoreError(self.url, f"is of version {version}, this wenlan knows {STORE_VERSION}; upgrade")
        return version
