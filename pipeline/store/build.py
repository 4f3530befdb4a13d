"""One build: where its stages' results lie, at the fingerprints that its spec gives them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pyarrow as pa

from data_specs.build import BuildSpec
from data_specs.shard import canonical_json
from pipeline.files.folder import Folder
from pipeline.records import DECISION_SCHEMA

if TYPE_CHECKING:
    pass

from pipeline.store.partitions import DECISIONS, StageDir
from pipeline.store.store import Store

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

    def decisions(self) -> Iterator[pa.Table]:
        """The union of the stages' decisions, one table a partition: memory stays that of one partition."""
        for name in self.fingerprints:
            stage = self.stage(name)
            for record in stage.records():
                if DECISIONS in record.files:
                    yield stage.table(record, DECISIONS).cast(DECISION_SCHEMA)
