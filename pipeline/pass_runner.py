"""Runs the passes of a build: which partitions lack a record, their tasks, and what is noted of a finished pass."""

from __future__ import annotations

import itertools
import logging
import tempfile
import time
import weakref
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass

from pipeline.cluster import Cluster
from pipeline.errors import StageError
from pipeline.processes import observe
from pipeline.store import build_json
from pipeline.store.build import Build, Pass
from pipeline.store.build_json import Result, Running
from pipeline.store.commits import Record
from pipeline.store.partitions import StageDir, reading
from pipeline.store.progress import Progress, Watch

log = logging.getLogger("wenlan")


MARGIN = 1.25
"""Memory that is asked for, over the most that an earlier build needed."""

UNKNOWN = 1 << 29
"""Bytes that are asked for where no build has noted what it needed."""


class PassRunner:
    """Runs the passes of one build in their order.

    wanted: names of the passes that run. crawls: False to work from stored captures only. peaks: the most memory of a
    worker in an earlier build, by pass.
    """

    def __init__(
        self,
        build: Build,
        cluster: Cluster,
        progress: Progress,
        wanted: Set[str],
        crawls: bool = True,
        peaks: Mapping[str, int] | None = None,
    ) -> None:
        self._build, self._cluster, self._progress = build, cluster, progress
        self._wanted, self._crawls, self._peaks = wanted, crawls, peaks or {}
        self._ahead: dict[str, _PassState] = {}  # what tasks of an earlier pass have done of a later one
        self._unnoted: list[Result] = []  # by build.json: each is when the next pass begins, or after the last one

    def run(self, own: Pass) -> Result:
        """Runs a pass; only its result if it is not wanted."""
        if own.name not in self._wanted:
            return Result.of(own.name, [])
        with observe.about(stage=own.name), reading(own.name, self._build.reads(own.name)):
            return self._run(own)

    def add(self, result: Result) -> None:
        """Add the result of a pass to what `note` writes."""
        self._unnoted.append(result)

    def note(self, running: Running | None = None) -> None:
        """Write to build.json the results that are not there yet, and the pass that begins."""
        if self._unnoted or running:
            build_json.note(self._build, *self._unnoted, running=running)
            self._unnoted.clear()

    def _run(self, own: Pass) -> Result:
        """Runs the partitions of a pass that lack a record, reduces them, and notes that all are committed.

        Its tasks go on with the passes that follow it; what is left of these is done when they are run themselves.
        """
        build, chain = self._build, self._chain(own)
        directory, started = build.stage(own.name), time.monotonic()
        if directory.finished():
            return Result.of(own.name, directory.records())
        partitions = own.over(build)
        own.begin(build)
        state = self._ahead.pop(own.name, None) or _PassState.of(own, build)
        missing = [partition for partition in partitions if partition not in state.committed]
        if own.stored is not None and not self._crawls and build.asks:
            missing = _check_stored(build, own, missing)
            state = _PassState.of(own, build)  # with those that were adopted
        before = len(state.committed)
        if missing:
            now = Running(own.name, build.fingerprints[own.name], build_json.now(), before, len(partitions))
            self.note(now)
        log.info("pass begins", extra={"partitions": len(partitions), "committed": before})
        if not self._cluster.started and self._cluster.is_needed(own.resources(build.spec), missing):
            asked = time.monotonic()
            with self._progress.starting("Ray"):
                self._cluster.start()
            started += time.monotonic() - asked  # not part of the pass
        states = [state, *(_PassState.of(each, build) for each in chain[1:] if missing)]
        spent = self._run_tasks(chain, states, len(partitions), missing)
        state.committed.compact()
        if own.reduce is not None:
            directory.write_reduced(own.reduce(build))
        directory.finish(partitions, own.version)
        passed = time.monotonic() - started
        for each, share in zip(states, spent, strict=True) if missing else ():
            each.ran, each.seconds = each.ran + len(missing), each.seconds + passed * share / (sum(spent) or 1)
        self._ahead |= {later.name: each for later, each in zip(chain[1:], states[1:], strict=False)}
        seconds = state.seconds if missing else state.seconds + passed
        result = Result.of(own.name, state.committed.records(), state.ran, seconds)
        log.info("pass done", extra={"seconds": result.seconds, "funnel": result.funnel})
        return result

    def _run_tasks(
        self, chain: Sequence[Pass], states: Sequence[_PassState], partitions: int, missing: list[str]
    ) -> list[float]:
        """Runs the missing ones of so many partitions; returns the seconds of each pass. states: of each pass, added
        to."""
        build, own = self._build, chain[0]
        passes, spent = [(each.name, each.run) for each in chain], [0.0] * len(states)
        memory = max(int(MARGIN * self._peaks.get(each.name, 0)) or UNKNOWN for each in chain)
        resources = {**own.resources(build.spec), "memory": memory}
        with Watch(build, own.name, partitions, states[0].committed.records(), self._progress) as watch:
            for some in self._cluster.each(build, passes, resources, missing):
                for number, (each, state) in enumerate(zip(chain, states, strict=True)):
                    with observe.about(stage=each.name), reading(each.name, build.reads(each.name)):
                        records = [state.committed.add(done[number]) for done in some]
                        for record in records:
                            _log_partition(record)
                    spent[number] += sum(record.seconds for record in records)
                    if each is own:
                        watch.commit(records)
        return spent

    def _chain(self, own: Pass) -> list[Pass]:
        """A pass, and those that follow it in the same tasks."""
        later = list(self._build.passes.values())
        later = later[later.index(own) + 1 :]
        return [own, *itertools.takewhile(lambda each: each.follows and each.name in self._wanted, later)]


EVERY = 5_000
"""Partitions after which the file is written again: a driver that is killed leaves as many to be read one by one."""


class Committed:
    """The committed partitions of a pass, and those that are committed from now on. Raises StoreError.

    In memory are the names, 215,000 of them in 40 MB; the records lie in a temporary file, since each takes 7 kB in
    memory. From time to time, and when the pass is finished, they are written into one file (`StageDir.compact`), which
    readers and the next driver read in place of one file for each partition.
    """

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


@dataclass
class _PassState:
    """Partitions of a pass that are committed; of those that this run has done the number, and its seconds."""

    committed: Committed
    ran: int = 0
    seconds: float = 0.0

    @staticmethod
    def of(own: Pass, build: Build) -> _PassState:
        """The state of a pass before any of its tasks has run."""
        with reading(own.name, build.reads(own.name)):
            return _PassState(Committed(build.stage(own.name)))


def _check_stored(build: Build, own: Pass, missing: list[str]) -> list[str]:
    """Partitions left to run when stored results are adopted: none. Raises StageError where a result is not stored."""
    assert own.stored is not None
    if absent := [partition for partition in missing if not own.stored(build, partition)]:
        why = f"not crawled for snapshot {build.snapshot}, and past snapshots cannot be crawled"
        raise StageError(", ".join(absent), why)
    return []


def _log_partition(record: Record) -> None:
    """Logs and counts a partition that was just committed."""
    with observe.about(partition=record.partition):
        log.info("partition done", extra={"seconds": record.seconds, "counts": record.counts})
        for fate in ("kept", "dropped", "state"):
            observe.count("wenlan_rows", record.counts.get(fate, 0), fate=fate)
        observe.count("wenlan_partitions")
        observe.count("wenlan_partition_seconds", record.seconds)
        observe.count("wenlan_cpu_seconds", record.cpu_seconds)
        observe.count("wenlan_written_bytes", sum(file.bytes for file in record.files.values()))
