"""One build: where its stages' results lie, at the fingerprints that its spec gives them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import pyarrow as pa

from data_specs.build import BuildSpec
from data_specs.shard import canonical_json
from pipeline.files.folder import Folder
from pipeline.records import DECISION_SCHEMA
from pipeline.store.partitions import DECISIONS, Record, StageDir
from pipeline.store.stage import Stages
from pipeline.store.store import Store

READ_AHEAD, GAP = 1 << 20, 64 << 10
"""Bytes of a tar that are read at once, and between two images that are read along rather than skipped."""


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
    stages: Stages = field(default_factory=dict, repr=False, compare=False)
    """What it consists of, in order (`pipeline.stages.STAGES`)."""

    @property
    def folder(self) -> Folder:
        return Folder(self.out)

    def stage(self, name: str) -> StageDir:
        """A stage's folder at this build's fingerprint."""
        return StageDir(self.folder / self.stages[name].folder, name, self.fingerprints[name])

    def history(self, name: str) -> list[StageDir]:
        """A stage's folder at each fingerprint that has committed something there, this build's or not."""
        return StageDir(self.folder / self.stages[name].folder, name, "").everyone()

    def packed(self) -> list[Record]:
        """Records of the shards that hold a sample: a takedown may have left nothing of one but its decisions."""
        return [record for record in self.stage("shard").records() if "tar" in record.files]

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
