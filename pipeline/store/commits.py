"""Commits of partitions: an attempt writes its files, and a small record that names them makes them visible.

Files carry the attempt in their name, so that an attempt that was killed leaves only files that no record names, and
two attempts at one partition cannot mix.

A record holds a summary of the partition's decisions (`DecisionCounts`): a page that shows a build needs these few
numbers first (`pipeline.studio.catalog`), so that a build of ten million candidates opens without reading one of them.
"""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import pyarrow as pa
from pydantic import BaseModel, ConfigDict

from data_specs.storage.whole_files import sha256_of
from pipeline.files.folder import Folder
from pipeline.files.parquet import read_parquet, write_parquet
from pipeline.rows.decisions import Decision, decision_rows
from pipeline.rows.records import USERINFO

DECISIONS = "decisions.parquet"
"""Suffix of a partition's decisions, in every stage that drops something."""

APART = ("decisions", "boxes", "provenance", "images", "texts", "placeholders", "merged", "shown")
"""Kinds of files whose rows are not the stage's own rows: each kind lies in a folder of its own (`file_name`)."""

ROWS_DIGEST = "rows"
"""In a record's `info`: digest of the ids of its rows (`rows_digest`), of a table that column files belong to, and of
each of these files."""

REMOVED_LATER = "forgotten"
"""Count of a record: candidates that takedowns have removed since it was committed. Its other counts stay the same."""

MARK = 16
"""Hex digits of a fingerprint by which its records' folder is named."""


class FileRef(BaseModel):
    """A committed file: name within its folder, bytes, sha256."""

    model_config = ConfigDict(frozen=True)
    name: str
    bytes: int
    sha256: str


class Fate(NamedTuple):
    """Key by which decisions are counted."""

    subject: str
    source: str
    stage: str
    kept: bool
    reason: str


FATE_COLUMNS = list(Fate._fields)


class DecisionCounts(BaseModel):
    """Decisions of one partition, counted when they are written. of: sha256 of the file of decisions, where a takedown
    may put another in its place. rows: fates, each with how many decisions have it."""

    model_config = ConfigDict(frozen=True)
    of: str
    rows: tuple[tuple[Fate, int], ...]

    @property
    def counts(self) -> Counter[Fate]:
        """The same by fate."""
        return Counter(dict(self.rows))


def count_decisions(path: Path, sha256: str) -> DecisionCounts:
    """Counts the decisions of a file on this disk, by fate."""
    return DecisionCounts(of=sha256, rows=tuple(sorted(count(read_parquet(path, FATE_COLUMNS)).items())))


def count(decisions: pa.Table) -> Counter[Fate]:
    """Decisions by fate; the table has FATE_COLUMNS."""
    grouped = decisions.select(FATE_COLUMNS).group_by(FATE_COLUMNS).aggregate([([], "count_all")]).to_pydict()
    return Counter(
        {Fate(*values): n for *values, n in zip(*(grouped[name] for name in (*FATE_COLUMNS, "count_all")), strict=True)}
    )


class Record(BaseModel):
    """The commit of one partition. `files` maps a suffix to the file; `counts` is what the pass counted; `decided` is
    counted of its decisions; `peak_bytes` is the most memory of its worker, 0 where that is unknown; `gpu_seconds` are
    seconds of models on GPUs times the share of a GPU that each had."""

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
    gpu_seconds: float = 0.0
    peak_bytes: int = 0
    decided: DecisionCounts | None = None

    @property
    def fates(self) -> DecisionCounts | None:
        """`decided`, where it is of the decisions that the record names."""
        ref = self.files.get(DECISIONS)
        return self.decided if self.decided is not None and ref is not None and self.decided.of == ref.sha256 else None


def file_name(partition: str, attempt: str, suffix: str) -> str:
    """A committed file's name: each attempt has its own, so that two attempts at one partition cannot mix.

    A file of a kind in APART is named with its folder, so that it is in no glob of the stage's rows.
    """
    name = f"{partition}-{attempt}.{suffix}"
    kind = suffix.removesuffix(".parquet").removesuffix(".bin").rpartition(".")[2]
    return f"_{kind}/{name}" if kind in APART else name


def begin_peak() -> None:
    """Let `peak_bytes` count from what is in memory now. Without effect but on Linux."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def peak_bytes() -> int:
    """The most bytes that this process had in memory at once since the count began, as the kernel counts; 0 where
    unknown. What runs in one process at the same time is counted together."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return 0


@dataclass
class _Clock:
    """Cost of a running partition so far. began, cpu: the clocks when it began."""

    began: float = field(default_factory=time.monotonic)
    cpu: float = field(default_factory=time.process_time)
    gpu: float = 0.0


_CLOCK: ContextVar[_Clock | None] = ContextVar("clock", default=None)


@contextlib.contextmanager
def timed() -> Iterator[None]:
    """Start the clock of a partition: an attempt that is opened within the block counts time and memory from here."""
    begin_peak()
    token = _CLOCK.set(_Clock())
    try:
        yield
    finally:
        _CLOCK.reset(token)


def on_gpu(seconds: float) -> None:
    """Count GPU seconds of the running partition."""
    clock = _CLOCK.get()
    if clock is not None:
        clock.gpu += seconds


def rows_digest(ids: Iterable[str]) -> str:
    """Digest of the ids of rows in their order."""
    return hashlib.sha256("\n".join(ids).encode()).hexdigest()[:MARK]


class Attempt:
    """One try at a partition: write files to `path(suffix)`, then `commit`. Without commit nothing remains.

    Use as a context manager. `final` is a fixed name instead of an attempt-unique one: only for files that
    do not depend on the writer.

    add: makes a record visible, in place of an earlier one if it may, and returns the one that is.
    """

    def __init__(
        self, folder: Folder, stage: str, partition: str, fingerprint: str, add: Callable[[Record, bool], Record]
    ) -> None:
        self._folder, self._stage, self._partition, self._fingerprint = folder, stage, partition, fingerprint
        self._add = add
        self.attempt = uuid.uuid4().hex[:8]
        self._final: dict[str, str] = {}
        self._fixed = False
        self._clock = _CLOCK.get() or _Clock()
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
        self._fixed |= bool(final)
        self._final[suffix] = final or file_name(self._partition, self.attempt, suffix)
        return self._scratch / suffix.replace("/", "_")

    def hashed(self, suffix: str, sha256: str) -> None:
        """Note the sha256 of a file that was hashed while it was written, and is not written to any more."""
        self._hashed[suffix] = sha256

    def folder(self, name: str) -> Path:
        """A local folder for temporary files of the attempt; deleted with it."""
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

        If another attempt has committed it meanwhile, that stays, and its record is returned; unless files have fixed
        names, since this one's are in the place of the other's.
        kept: files of an earlier record, by suffix, that are part of this one as they are.
        """
        if self._decisions:
            self.write_table(DECISIONS, pa.concat_tables(self._decisions))
        files, own = dict(kept or {}), None
        for suffix, name in self._final.items():
            local = self._scratch / suffix.replace("/", "_")
            digest = self._hashed.get(suffix) or sha256_of(local)
            files[suffix] = FileRef(name=name, bytes=local.stat().st_size, sha256=digest)
            if suffix == DECISIONS:
                own = count_decisions(local, digest)
            self._folder.take(local, name, suffix == USERINFO)
        record = Record(
            stage=self._stage,
            partition=self._partition,
            fingerprint=self._fingerprint,
            attempt=self.attempt,
            files=files,
            counts=counts,
            info=info or {},
            seconds=round(time.monotonic() - self._clock.began, 3),
            cpu_seconds=round(time.process_time() - self._clock.cpu, 3),
            gpu_seconds=round(self._clock.gpu, 3),
            peak_bytes=peak_bytes(),
            decided=own,
        )
        return self._add(record, self._fixed)
