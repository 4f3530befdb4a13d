"""The committed partitions of a pass, as the driver that runs it hears of them.

In memory are the names, 215,000 of them in 40 MB; the records lie in a temporary file, since each takes 7 kB in memory.
From time to time, and when the pass is finished, they are written into one file (`StageDir.compact`), which readers and
the next driver read in place of one file for each partition.
"""

from __future__ import annotations

import tempfile
import weakref
from collections.abc import Iterator

from pipeline.store.commits import Record
from pipeline.store.partitions import StageDir

EVERY = 5_000
"""Partitions after which the file is written again: a driver that is killed leaves as many to be read one by one."""


class Committed:
    """The committed partitions of a pass, and those that are committed from now on. Raises StoreError."""

    def __init__(self, directory: StageDir) -> None:
        self._directory, self._places, self._new = directory, dict[str, int](), 0
        self._file = tempfile.TemporaryFile(dir=directory.folder.scratch())  # noqa: SIM115 (as long as this object)
        weakref.finalize(self, self._file.close)
        for line in directory.lines():
            self._keep(*line)

    def __contains__(self, partition: str) -> bool:
        return partition in self._places

    def __len__(self) -> int:
        return len(self._places)

    def _keep(self, partition: str, line: str) -> None:
        self._places[partition] = self._file.seek(0, 2)
        self._file.write(line.encode() + b"\n")

    def add(self, line: str) -> Record:
        """Hear of a partition that was committed. line: its record as JSON, which is returned."""
        record = Record.model_validate_json(line)
        if record.partition not in self:
            self._keep(record.partition, line)
            self._new += 1
        if self._new >= EVERY:
            self._new = 0
            self._directory.compact(self._lines(), complete=False)
        return record

    def _lines(self) -> Iterator[tuple[str, str]]:
        for name in sorted(self._places):
            self._file.seek(self._places[name])
            yield name, self._file.readline().decode().rstrip()

    def records(self) -> Iterator[Record]:
        return (Record.model_validate_json(line) for _, line in self._lines())

    def compact(self) -> None:
        """Write the file, now that all partitions of the pass are committed."""
        self._directory.compact(self._lines(), complete=True)
