"""Stage nearest: the leader pass over features of images, in which what earlier builds kept comes first.

Its only partition, "all", goes in order over what `vectors` has sorted, block by block, and holds no more than a block:
features of leaders are in `SemanticLeaders`, in this process where those of earlier builds and all pairs of this one
fit (`dedup.pairs_per_holder`), otherwise spread over actors, with the same answer. `pipeline.stages.semantic_dedup`
applies the verdicts in parallel.

What earlier builds kept stands in STORE/identity beside their hashes, and is read here (`Build.identities`). So a
delta drops what one build of everything would have dropped. An earlier build without semantic dedup, or by another
tower, has nothing that could be compared; that is logged.

For the report, a kept pair's nearest leader is noted too if it lies no more than LOOK times as far as the limit.

Limits: an exact search, whose cost grows with pairs times leaders: minutes for a million, and the holders share it.
The task itself holds 32 bytes per leader.
"""

from __future__ import annotations

import contextlib
import logging
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from data_specs.build import BuildSpec
from pipeline import pulse
from pipeline.actors import Actors
from pipeline.dedup.ranked_runs import Keys, merged
from pipeline.dedup.spill import Rows, Spill
from pipeline.files.digests import digests_of, hexed
from pipeline.matching.semantic import Codes, Nearest, SemanticLeaders, joined, millionths, resolved
from pipeline.stages._vectors import ALL, KEPT_SCHEMA, NEAR_SCHEMA, RANK, codes_in
from pipeline.store.build import Build
from pipeline.store.identities import SEMANTIC, Identities, Published
from pipeline.store.partitions import Attempt, Record
from pipeline.store.rewrite import Rewrite
from pipeline.store.stage import Stage, StageFile

log = logging.getLogger("wenlan")

BLOCK = 2_048
"""Pairs that are decided together."""

LOOK = 1.5
"""Times the distance up to which the report is told what lies near a pair that was kept."""

Ids = npt.NDArray[np.uint8]
"""[N, 32]"""


def token(build: Build) -> Any:
    own = build.spec.semantic_dedup
    return None if own is None else [own.distance, build.identity_revision]


def partitions(build: Build) -> list[str]:
    return [] if build.spec.semantic_dedup is None else [ALL]


def resources(spec: BuildSpec) -> dict[str, float]:
    """What it takes: a CPU for each thread of a session, which are those of the matrix products too."""
    return {"num_cpus": float(spec.pair_score.threads) if spec.semantic_dedup and spec.pair_score else 1.0}


def run_partition(build: Build, partition: str) -> None:
    """For each partition of `vectors` the pairs that have a leader near by; and what this build adds to STORE."""
    assert build.spec.semantic_dedup is not None
    runs = build.stage("vectors").records()
    pairs = sum(record.counts["compared"] for record in runs)
    tower = runs[0].info["tower"] if runs else ""
    identities = Identities(build.store)
    earlier_builds = _comparable(build, identities, tower)
    earlier = sum(identities.count(known, SEMANTIC) for known in earlier_builds)
    holders = -(-max(1, pairs + earlier if pairs else 0) // build.spec.dedup.pairs_per_holder)
    pulse.expect(pairs)
    with (
        _Leaders(build.spec.semantic_dedup.distance, holders) as leaders,
        build.stage("nearest").attempt(partition) as attempt,
    ):
        for known in earlier_builds if pairs else ():  # nothing is compared with them otherwise
            for table in identities.batches(known, SEMANTIC, ["candidate_id", "codes"]):
                leaders.add(digests_of(table["candidate_id"]), codes_in(table["codes"]))
        loaded = leaders.count
        dropped = _pass(build, attempt, runs, leaders)
        counts = {"pairs": pairs, "leaders": leaders.count - loaded, "dropped": dropped, "earlier": earlier}
        attempt.commit({**counts, "holders": holders}, {"tower": tower})


def _comparable(build: Build, identities: Identities, tower: str) -> list[Published]:
    """The earlier builds, in their order, that have features of this tower; of each other one the log tells."""
    comparable = list[Published]()
    for name in build.identities:
        known = identities.read(name)
        if SEMANTIC in known.files and known.tower == tower:
            comparable.append(known)
            continue
        message = (
            "semantic_dedup: %s was not compared by features of this tower: its images lead nobody here "
            "(build --generation new compares all of them)"
        )
        log.warning(message, known.build)
    return comparable


def _pass(build: Build, attempt: Attempt, runs: list[Record], leaders: _Leaders) -> int:
    """Decide all pairs in order; returns how many are duplicates."""
    dropped, earlier = 0, leaders.count
    with contextlib.ExitStack() as stack:
        near = Spill(attempt.folder("spill"), "near")
        kept_rows = stack.enter_context(Rows(attempt.path("kept.parquet"), KEPT_SCHEMA))
        blocks = merged(build.stage("vectors"), runs, BLOCK, _ranks)
        for table, run_of_row in blocks:
            ids = digests_of(table["candidate_id"])
            kept, nearest = leaders.decide(ids, codes_in(table["codes"]))
            kept_rows.add(table.take(pa.array(kept, pa.int64())).select(KEPT_SCHEMA.names))
            rows = np.flatnonzero(nearest.number >= 0)
            near.add(run_of_row[rows], _near_rows(ids, rows, nearest, kept, leaders, earlier))
            dropped += table.num_rows - len(kept)
            pulse.advance(table.num_rows)
        for number, run in enumerate(runs):
            verdicts = pa.concat_tables([NEAR_SCHEMA.empty_table(), *near.read(number)]).sort_by("candidate_id")
            attempt.write_table(f"{run.partition}.verdicts", verdicts)
    return dropped


def _ranks(table: pa.Table) -> Keys:
    """The column `rank`."""
    ranks: Keys = np.frombuffer(b"".join(table["rank"].to_pylist()), f"V{RANK.byte_width}")
    return ranks


def _near_rows(
    ids: Ids, rows: npt.NDArray[np.int64], nearest: Nearest, kept: list[int], leaders: _Leaders, earlier: int
) -> pa.Table:
    """NEAR_SCHEMA of the rows of a block that have a leader near by."""
    stay = np.zeros(len(ids), np.bool_)
    stay[kept] = True
    numbers = nearest.number[rows]
    columns = {
        "candidate_id": hexed(ids[rows]),
        "leader": hexed(leaders.ids_of(numbers)),
        "earlier": pa.array(numbers < earlier),
        "millionths": pa.array(nearest.millionths[rows], pa.int32()),
        "dropped": pa.array(~stay[rows]),
    }
    return pa.table(columns, schema=NEAR_SCHEMA)


class _Leaders:
    """All leaders, spread over holders; here only their ids. count: of leaders, which are numbered as they come."""

    def __init__(self, distance: float, holders: int) -> None:
        self._within = millionths(distance)
        self._reach = max(self._within, millionths(min(1.0, distance * LOOK)))
        self._holders = Actors(SemanticLeaders, [(self._reach,)] * holders)
        self._ids: Ids = np.zeros((1024, 32), np.uint8)
        self.count = 0

    def __enter__(self) -> _Leaders:
        return self

    def __exit__(self, *_: object) -> None:
        self._holders.close()

    def decide(self, ids: Ids, codes: Codes) -> tuple[list[int], Nearest]:
        """(rows that are kept, which lead from now on, the nearest leader of every row) of a block by rank."""
        asked = self._holders.ask("nearest", [(codes,)] * len(self._holders))
        kept, nearest = resolved(codes, joined(asked), self._within, self._reach, self.count)
        self.add(ids[kept], codes[kept])
        return kept, nearest

    def add(self, ids: Ids, codes: Codes) -> None:
        """Enter leaders, dealt out over the holders."""
        first, self.count = self.count, self.count + len(ids)
        while self.count > len(self._ids):
            self._ids = np.concatenate([self._ids, np.zeros_like(self._ids)])
        self._ids[first : self.count] = ids
        numbers, of = np.arange(first, self.count), len(self._holders)
        shares = [(codes[numbers % of == i], numbers[numbers % of == i]) for i in range(of)]
        self._holders.ask("add", shares)

    def ids_of(self, numbers: npt.NDArray[np.int64]) -> Ids:
        return self._ids[numbers]


def _without(rewrite: Rewrite) -> None:
    """What a build hands to STORE, and its verdicts, without what is removed."""
    for suffix in rewrite.record.files:
        if suffix.endswith(".verdicts"):
            table = rewrite.stage.table(rewrite.record, suffix)
            remaining = rewrite.removal.without(table)
            if remaining is not None:
                rewrite.write_table(suffix, remaining)
    rewrite.remove_rows()


STAGE = Stage(
    name="nearest",
    zh="语义选首",
    folder="nearest",
    inputs=("vectors",),
    version=1,
    token=token,
    partitions=partitions,
    run=run_partition,
    resources=resources,
    files=(StageFile("kept.parquet", KEPT_SCHEMA), StageFile("*.verdicts", NEAR_SCHEMA)),
    subject="",
    unit="pairs",
    done=("pairs",),
    rewrites_others=False,
    without=_without,
)
