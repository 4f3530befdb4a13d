"""A cache of rows keyed by a sha256, on disk, shared by all builds: fetch outcomes, features, scores, regions.

    FOLDER/<time>-<id>.parquet         one commit: rows sorted by key; never changed, except by a takedown
    FOLDER/_index/<level>-<id>.arrow   which commit holds which key; naming a commit there is what makes it visible

The cost of a lookup follows from the number of keys asked for, not from the size of the cache: each index file is a
sorted array of the first 64 bits of keys, mapped into memory and searched, and only commits that seem to hold one of
the keys are opened. A build's partition asks for the images of one range of `order_key`, which an earlier build
committed together, so these are few. Sixteen index files of one level are merged into one of the next, so that there
are few of them whatever the number of commits.


Limits: rows that are spread over many commits (builds of other seeds) cost the opening of each; on an object store a
process copies an index file once, 12 bytes per row.
"""

from __future__ import annotations

import contextlib
import functools
import json
import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.errors import StoreError
from pipeline.files.folder import Folder
from pipeline.files.parquet import read_parquet

FAN_IN = 16
"""Index files of one level that are merged into one of the next."""

MOST_KEYS = 8_000_000
"""No index file larger than this is made by merging: 100 MB, and a merge holds a few times that."""

ALONE_S = 600.0
"""Seconds to wait for another process that removes rows."""


ROW_GROUP = 1_000


class Cache:
    """Rows by key. A key may be in several commits; the latest one wins.

    Safe for concurrent builds: commits are never changed, and an index file that a merge removes has been replaced by
    one with the same entries.
    """

    def __init__(self, folder: Folder, key: str) -> None:
        self.folder, self.key = folder, key
        self._index = folder / "_index"

    def get(self, keys: Iterable[str]) -> pa.Table | None:
        """Rows of the given keys, at most one per key; None if missing."""
        wanted = sorted(set(keys))
        tables = []
        for name, keys_of_commit in self._keys_by_commit(wanted).items() if wanted else ():
            wanted_here = pc.field(self.key).isin(pa.array(keys_of_commit, pa.string()))
            with contextlib.suppress(FileNotFoundError), self.folder.local(name) as path:  # it was pruned then
                rows = pq.read_table(path, filters=wanted_here)
                tables += [rows] if rows.num_rows else []
        return pa.concat_tables(tables, promote_options="default") if tables else None

    def put(self, rows: pa.Table) -> None:
        if not rows.num_rows:
            return
        rows = rows.sort_by(self.key)
        name = self._next_name()
        self._commit(rows, name)
        self._write(0, _segment(name, rows[self.key].to_pylist()))
        self._merge()

    def _next_name(self) -> str:
        """A name that sorts behind those of all commits: the time, unless one was made by a clock that was ahead.

        Else what is put after the clock was set back would lose to what it replaces, for as long as it was ahead.
        """
        last = max((segment.commits[-1] for segment in self._segments() if segment.commits), default="")
        behind = int(last.partition("-")[0]) + 1 if last else 0
        return f"{max(time.time_ns(), behind):020d}-{uuid.uuid4().hex[:8]}.parquet"

    def forget(self, removed: Callable[[pa.Table], pa.Array]) -> int:
        """Remove rows from all commits; returns how many. removed: a mask over the rows of a table."""

        def remaining(rows: pa.Table) -> pa.Table | None:
            stays = rows.filter(pc.invert(removed(rows)))
            return stays if stays.num_rows < rows.num_rows else None

        return self.change(remaining)

    def change(self, changed: Callable[[pa.Table], pa.Table | None]) -> int:
        """Replace the rows of commits; returns how many rows went. changed: rows with the same keys or fewer, or None.

        The only case in which a commit changes: it is replaced under its name, so that the index stays as it is. By one
        process at a time: two, such as a takedown and `gc`, would each bring back what the other has removed.
        """
        count = 0
        if not self.commits():
            return count
        with self.folder.locked(ALONE_S, lambda held: StoreError(self.folder.at("_lock"), held)):
            for name in self.commits():
                with self.folder.local(name) as path:
                    rows = read_parquet(path)
                remaining = changed(rows)
                if remaining is not None:
                    count += rows.num_rows - remaining.num_rows
                    self._commit(remaining, name)
        return count

    def _commit(self, rows: pa.Table, name: str) -> None:
        with self.folder.making(name) as f:
            pq.write_table(rows, f, compression="zstd", row_group_size=ROW_GROUP)

    def commits(self) -> list[str]:
        """Names of the files that hold rows, oldest first."""
        return [name for name in self.folder.names() if name.endswith(".parquet") and not name.startswith(".")]

    def _keys_by_commit(self, keys: Sequence[str]) -> dict[str, list[str]]:
        """Commit -> those of the keys whose latest row it seems to hold (64 bits may also be those of another key)."""
        heads = _heads(keys)
        order = np.argsort(heads)  # searched in ascending order: neighbours are on the same pages of a mapped file
        latest = [""] * len(keys)  # names of commits begin with their time: the greatest name is the latest
        for segment in self._segments():
            at = np.searchsorted(segment.keys, heads[order])
            at[at == len(segment.keys)] = 0  # greater than all of the segment: any place will do, the keys differ there
            hits = np.flatnonzero(segment.keys[at] == heads[order])
            for number, commit in zip(order[hits].tolist(), segment.commit[at[hits]].tolist(), strict=True):
                latest[number] = max(latest[number], segment.commits[commit])
        places: dict[str, list[str]] = {}
        for key, name in zip(keys, latest, strict=True):
            if name:
                places.setdefault(name, []).append(key)
        return places

    def _segments(self) -> list[_Segment]:
        """All index files as they are at one moment."""
        for _ in range(20):
            try:
                return [self._read(name) for name in _arrows(self._index)]
            except FileNotFoundError:  # merged into another one since it was listed
                continue
        raise TimeoutError(f"{self._index.url} is being merged without end")

    def _read(self, name: str) -> _Segment:
        return _mapped(self._index.at(name)) if self._index.is_local else _copied(self._index.url, name)

    def _write(self, level: int, segment: _Segment) -> None:
        schema = _SCHEMA.with_metadata({"commits": json.dumps(segment.commits)})
        table = pa.table([pa.array(segment.keys), pa.array(segment.commit)], schema=schema)
        with (
            self._index.making(f"{level:02d}-{uuid.uuid4().hex[:12]}.arrow") as f,
            pa.ipc.new_file(f, schema) as writer,
        ):
            writer.write_table(table)

    def _merge(self) -> None:
        """Merge FAN_IN index files of one level into one of the next, level by level.

        Two processes may do the same merge: its entries are then there twice until the next merge drops the doubles.
        """
        level = 0
        while True:
            names = [name for name in _arrows(self._index) if name.startswith(f"{level:02d}-")]
            if len(names) < FAN_IN:
                return
            try:
                segments = [self._read(name) for name in names]
            except FileNotFoundError:  # another process has merged them
                return
            if sum(len(segment.keys) for segment in segments) > MOST_KEYS:
                return
            level += 1
            self._write(level, _merged(segments))
            for name in names:
                self._index.delete(name)


_SCHEMA = pa.schema([("key", pa.uint64()), ("commit", pa.uint32())])


@dataclass(frozen=True, slots=True)
class _Segment:
    """An index file [N], sorted by key, each key once."""

    keys: npt.NDArray[np.uint64]  # the first 64 bits of each
    commit: npt.NDArray[np.uint32]  # of each key's latest commit the number in `commits`
    commits: list[str]


def _heads(keys: Sequence[str]) -> npt.NDArray[np.uint64]:
    """The first 64 bits of each key."""
    return np.frombuffer(bytes.fromhex("".join([key[:16] for key in keys])), ">u8").astype(np.uint64)


def _arrows(index: Folder) -> list[str]:
    return [name for name in index.names() if name.endswith(".arrow") and not name.startswith(".")]


def _segment(commit: str, keys: Sequence[str]) -> _Segment:
    heads = np.unique(_heads(keys))
    return _Segment(heads, np.zeros(len(heads), np.uint32), [commit])


def _merged(segments: Sequence[_Segment]) -> _Segment:
    """One segment with the entries of all: of a key that several have, the latest commit."""
    commits = sorted({name for segment in segments for name in segment.commits})
    number = {name: at for at, name in enumerate(commits)}
    keys = np.concatenate([segment.keys for segment in segments])
    renumber = [np.array([number[name] for name in segment.commits], np.uint32) for segment in segments]
    commit = np.concatenate([new[segment.commit] for new, segment in zip(renumber, segments, strict=True)])
    # By key, then by commit; `commits` is sorted by time, so the last of a run of equal keys has the latest commit.
    order = np.lexsort((commit, keys))
    keys, commit = keys[order], commit[order]
    last = np.append(keys[1:] != keys[:-1], True)
    return _Segment(keys[last], commit[last], commits)


@functools.lru_cache(64)  # an index file never changes, and its name is never used again
def _mapped(path: str) -> _Segment:
    return _opened(pa.memory_map(path))


@functools.lru_cache(1024)
def _copied(url: str, name: str) -> _Segment:
    with Folder(url).local(name) as path:
        return _opened(pa.BufferReader(path.read_bytes()))


def _opened(source: pa.NativeFile) -> _Segment:
    table = pa.ipc.open_file(source).read_all()
    keys, commit = (table[name].chunk(0).to_numpy() for name in _SCHEMA.names)
    return _Segment(keys, commit, json.loads(table.schema.metadata[b"commits"]))
