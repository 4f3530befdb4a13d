"""Passes curate.vectors and curate.nearest: the leader pass over features of images, for the judge semantic_dedup.

`curate.vectors` prepares in parallel: the features of each pair's image, from STORE's cache, as integers
(`pipeline.matching.semantic`), sorted by rank. Pairs rank by the column that the spec names (larger image, longer
primary text, higher score), then by candidate_id. In a build that begins a generation, what builds of the last one kept
ranks before that, as in dedup.

`curate.nearest` has one partition, which goes in order over what is sorted, block by block, and holds no more than a
block: features of leaders are in `SemanticLeaders`, in this process where those of earlier builds and all pairs of this
one fit (`semantic_dedup.pairs_per_holder`), otherwise spread over actors, with the same answer. What earlier builds
kept stands in STORE/identity beside their hashes, and is read here (`Build.identities`). So a delta drops what one
build of everything would have dropped. An earlier build without semantic dedup, or by another tower, has nothing that
could be compared; that is logged.

For the report, a kept pair's nearest leader is noted too if it lies no more than LOOK times as far as the limit.

Limits: an exact search, whose cost grows with pairs times leaders: minutes for a million, and the holders share it.
The task holds 32 bytes per leader. An image that the tower could not read gets no row here: it is kept, and leads no
other.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
from collections.abc import Iterator
from operator import itemgetter
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from data_specs.build import BuildSpec
from data_specs.shard import PAIR_SCORE
from pipeline.curate import _towers
from pipeline.curate._towers import models_of
from pipeline.curate.judging import pair_partitions
from pipeline.files.digests import DIGEST, bytes_of, column_of, digests_of, hexed, unhex
from pipeline.files.parquet import Rows
from pipeline.matching.semantic import Codes, Nearest, SemanticLeaders, codes_of, merge_nearest, millionths, resolved
from pipeline.model_runner import model_values
from pipeline.processes import pulse
from pipeline.processes.actors import Actors
from pipeline.store.build import Build, Pass, PassFile
from pipeline.store.commits import Attempt, Record
from pipeline.store.identities import SEMANTIC, Identities, Published
from pipeline.store.pair_scores import in_units
from pipeline.store.pairs import SCORES, pairs_before, primary_texts, reads_before
from pipeline.store.sql import in_order

log = logging.getLogger("wenlan")

ROW_GROUP = 1_000

BLOCK = 2_048
"""Pairs that are decided together."""

LOOK = 1.5
"""Multiple of the distance up to which the report gets the nearest leader of a kept pair."""

COLUMNS = ["candidate_id", "fetch_id", "sha256", "width", "height", "texts", PAIR_SCORE.name]

ALL = "all"
"""The one partition of curate.nearest, which goes over all pairs in order."""

Ids = npt.NDArray[np.uint8]
"""[N, 32]"""

_KEPT = [("candidate_id", DIGEST), ("fetch_id", DIGEST), ("sha256", DIGEST), ("codes", pa.binary())]

KEPT_SCHEMA = pa.schema(_KEPT)
"""Kept pairs by rank, with the features of their images as int16 (`pipeline.matching.semantic`)."""

RANK = pa.binary(44)
"""Compares as bytes like the ranks of pairs: which build of the last generation kept it, the column, candidate_id."""

VECTOR_SCHEMA = pa.schema([("rank", RANK), *_KEPT, ("partition", pa.string())])

NEAR_SCHEMA = pa.schema(
    [
        ("candidate_id", pa.string()),
        ("leader", pa.string()),  # candidate_id of the nearest pair that was kept before
        ("earlier", pa.bool_()),  # an earlier build kept it
        ("millionths", pa.int32()),  # cosine distance of their images
        ("dropped", pa.bool_()),  # else it lies just beyond the distance
    ]
)
"""Verdicts of `nearest`."""

_NEAR = pa.schema([*NEAR_SCHEMA, ("partition", pa.string())])

CHUNK_BYTES = 1 << 30
"""Codes of one chunk of a column at most."""


def codes_column(codes: Codes) -> pa.ChunkedArray:
    """Codes [N, D] as a binary column, in chunks: an array counts its bytes in 32 bits."""
    width = codes.itemsize * codes.shape[1]
    rows, chunks = max(1, CHUNK_BYTES // max(1, width)), []
    for start in range(0, len(codes), rows):
        some = np.ascontiguousarray(codes[start : start + rows])
        offsets = np.arange(len(some) + 1, dtype=np.int32) * np.int32(width)
        buffers = [None, pa.py_buffer(offsets), pa.py_buffer(some)]
        chunks.append(pa.BinaryArray.from_buffers(pa.binary(), len(some), buffers))
    return pa.chunked_array(chunks, pa.binary())


def codes_in(column: Any) -> Codes:
    """[N, D] of a binary column; D is 0 for one without rows."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if isinstance(array, pa.ChunkedArray):
        array = pa.concat_arrays(array.chunks)
    if not len(array):
        return np.zeros((0, 0), np.int16)
    data, _ = bytes_of(array)
    codes: Codes = np.frombuffer(data.tobytes(), np.int16).reshape(len(array), -1)
    return codes


def when(spec: BuildSpec) -> bool:
    return spec.semantic_dedup is not None


def _vectors_token(build: Build) -> Any:
    own = build.spec.semantic_dedup
    return None if own is None else [own.keep, [earlier.identities for earlier in build.made_from]]


def _vectors_of(build: Build, partition: str) -> None:
    """The pairs in a fetch partition's range that have features, with their ranks."""
    assert build.spec.semantic_dedup is not None
    rows = pairs_before(build, partition, "semantic_dedup", COLUMNS)
    of_images, _ = models_of(build.spec)
    seen = model_values(build, partition, set(rows["sha256"].to_pylist()), [of_images]).values[of_images.id]
    read = pa.array([sha256 in seen for sha256 in rows["sha256"].to_pylist()], pa.bool_())
    pairs = rows.num_rows
    rows = rows.filter(read)
    features = [seen[sha256] for sha256 in rows["sha256"].to_pylist()]
    codes = codes_of(np.stack(features)) if features else np.zeros((0, 1), np.int16)
    with build.stage(VECTORS.name).attempt(partition) as attempt:
        attempt.write_table("parquet", _rank_rows(build, partition, rows, codes), row_group_size=ROW_GROUP)
        attempt.commit({"pairs": pairs, "compared": rows.num_rows}, {"tower": of_images.id})


def _rank_rows(build: Build, partition: str, rows: pa.Table, codes: Codes) -> pa.Table:
    ids = {name: unhex(rows[name].to_pylist()) for name in ("candidate_id", "fetch_id", "sha256")}
    kept = Identities(build.store).kept_by(build, ids["candidate_id"], SEMANTIC)
    ranks = [
        kept.astype(">u4").view(np.uint8).reshape(-1, 4),
        (np.iinfo(np.int64).max - _rank_values(build, rows)).astype(">u8").view(np.uint8).reshape(-1, 8),
        ids["candidate_id"],
    ]
    rank = np.ascontiguousarray(np.concatenate(ranks, axis=1))
    columns = {
        "rank": pa.array(rank.view(f"V{rank.shape[1]}").ravel().tolist(), RANK),
        **{name: column_of(own) for name, own in ids.items()},
        "codes": codes_column(codes),
        "partition": pa.repeat(partition, rows.num_rows),
    }
    return pa.table({name: columns[name] for name in VECTOR_SCHEMA.names}, schema=VECTOR_SCHEMA)


def _rank_values(build: Build, rows: pa.Table) -> npt.NDArray[np.int64]:
    """The value of each row by which the spec ranks, at least 0; higher is better."""
    assert build.spec.semantic_dedup is not None
    keep = build.spec.semantic_dedup.keep
    if keep == "longer_text":
        return np.array([len(text) for text in primary_texts(rows)], np.int64)
    if keep == "higher_score":
        units, there = in_units(rows[PAIR_SCORE.name])
        return np.where(there, units + (1 << 20), 0).astype(np.int64)  # a score may be negative
    pixels = pc.multiply(rows["width"].cast(pa.int64()), rows["height"].cast(pa.int64()))
    return np.asarray(pixels.to_numpy(), np.int64)


VECTORS = Pass(
    name="curate.vectors",
    over=pair_partitions,
    reads=("fetch", *reads_before("semantic_dedup"), SCORES),
    run=_vectors_of,
    token=_vectors_token,
    when=when,
    resources=_towers.resources,
    version=2,
    files=(PassFile("parquet", VECTOR_SCHEMA),),
    unit="pairs",
    done=("pairs",),
)


def _one_partition(build: Build) -> list[str]:
    return [ALL]


def _nearest_token(build: Build) -> Any:
    own = build.spec.semantic_dedup
    return None if own is None else [own.distance, build.identity_revision]


def resources(spec: BuildSpec) -> dict[str, float]:
    """Resources of the pass: a CPU for each thread of a session, which are those of the matrix products too."""
    return {"num_cpus": float(spec.pair_score.threads) if spec.semantic_dedup and spec.pair_score else 1.0}


def _nearest_of(build: Build, partition: str) -> None:
    """For each partition of `vectors` the pairs that have a leader near by; and what this build adds to STORE."""
    rules = build.spec.semantic_dedup
    assert rules is not None
    runs = list(build.stage(VECTORS.name).records())
    pairs = sum(record.counts["compared"] for record in runs)
    tower = runs[0].info["tower"] if runs else ""
    identities = Identities(build.store)
    earlier_builds = _comparable_builds(build, identities, tower)
    earlier = sum(identities.count(known, SEMANTIC) for known in earlier_builds)
    holders = -(-max(1, pairs + earlier if pairs else 0) // rules.pairs_per_holder)
    pulse.expect(pairs)
    with (
        _Leaders(rules.distance, holders) as leaders,
        build.stage(NEAREST.name).attempt(partition) as attempt,
    ):
        for known in earlier_builds if pairs else ():  # nothing is compared with them otherwise
            for table in identities.batches(known, SEMANTIC, ["candidate_id", "codes"]):
                leaders.add(digests_of(table["candidate_id"]), codes_in(table["codes"]))
        loaded = leaders.count
        dropped = _choose_leaders(build, attempt, runs, leaders)
        counts = {"pairs": pairs, "leaders": leaders.count - loaded, "dropped": dropped, "earlier": earlier}
        attempt.commit({**counts, "holders": holders}, {"tower": tower})


def _comparable_builds(build: Build, identities: Identities, tower: str) -> list[Published]:
    """The earlier builds, in their order, that have features of this tower; of each other one the log tells."""
    comparable = list[Published]()
    for name in build.identities:
        known = identities.read(name)
        if SEMANTIC in known.files and known.tower == tower:
            comparable.append(known)
            continue
        message = (
            "semantic_dedup: %s lacks features of this tower, so its images are not compared "
            "(build --generation new compares them all)"
        )
        log.warning(message, known.build)
    return comparable


def _choose_leaders(build: Build, attempt: Attempt, runs: list[Record], leaders: _Leaders) -> int:
    """Decide all pairs in order; returns how many are duplicates."""
    dropped, earlier, vectors = 0, leaders.count, build.stage(VECTORS.name)
    scratch = attempt.folder("scratch")
    noted = scratch / "near.parquet"
    with contextlib.ExitStack() as stack:
        near = stack.enter_context(Rows(noted, _NEAR))
        kept_rows = stack.enter_context(Rows(attempt.path("kept.parquet"), KEPT_SCHEMA))
        paths = [stack.enter_context(vectors.file(record, "parquet")) for record in runs]
        for table in in_order(paths, VECTOR_SCHEMA, ["rank"], BLOCK, scratch):
            ids = digests_of(table["candidate_id"])
            kept, nearest = leaders.decide(ids, codes_in(table["codes"]))
            kept_rows.add(table.take(pa.array(kept, pa.int64())).select(KEPT_SCHEMA.names))
            rows = np.flatnonzero(nearest.number >= 0)
            found = _near_rows(ids, rows, nearest, kept, leaders, earlier)
            near.add(found.append_column("partition", table["partition"].take(pa.array(rows))))
            dropped += table.num_rows - len(kept)
            pulse.advance(table.num_rows)
    empty = {record.partition for record in runs}
    for name, verdicts in _by_partition(in_order([noted], _NEAR, ["partition", "candidate_id"], BLOCK, scratch)):
        attempt.write_table(f"{name}.verdicts", verdicts)
        empty.remove(name)
    for name in sorted(empty):
        attempt.write_table(f"{name}.verdicts", NEAR_SCHEMA.empty_table())
    return dropped


def _by_partition(blocks: Iterator[pa.Table]) -> Iterator[tuple[str, pa.Table]]:
    """Rows of _NEAR, sorted by `partition`, as one table of NEAR_SCHEMA for each partition that has some."""
    pieces = (
        (name, block.filter(pc.equal(block["partition"], name)).select(NEAR_SCHEMA.names))
        for block in blocks
        for name in block["partition"].unique().to_pylist()
    )
    for name, own in itertools.groupby(pieces, itemgetter(0)):
        yield name, pa.concat_tables(table for _, table in own)


def _near_rows(
    ids: Ids, rows: npt.NDArray[np.int64], nearest: Nearest, kept: list[int], leaders: _Leaders, earlier: int
) -> pa.Table:
    """NEAR_SCHEMA of the rows of a block that have a leader near by."""
    stay = np.zeros(len(ids), np.bool_)
    stay[kept] = True
    numbers = nearest.number[rows]
    columns = {
        "candidate_id": hexed(ids[rows]),
        "leader": hexed(leaders.ids[numbers]),
        "earlier": pa.array(numbers < earlier),
        "millionths": pa.array(nearest.millionths[rows], pa.int32()),
        "dropped": pa.array(~stay[rows]),
    }
    return pa.table(columns, schema=NEAR_SCHEMA)


class _Leaders:
    """All leaders, spread over holders; here only their ids. count: of leaders, which are numbered as they come; ids:
    by number."""

    def __init__(self, distance: float, holders: int) -> None:
        self._within = millionths(distance)
        self._reach = max(self._within, millionths(min(1.0, distance * LOOK)))
        self._holders = Actors(SemanticLeaders, [(self._reach,)] * holders)
        self.ids: Ids = np.zeros((1024, 32), np.uint8)
        self.count = 0

    def __enter__(self) -> _Leaders:
        return self

    def __exit__(self, *_: object) -> None:
        self._holders.close()

    def decide(self, ids: Ids, codes: Codes) -> tuple[list[int], Nearest]:
        """(rows that are kept, which lead from now on, the nearest leader of every row) of a block by rank."""
        asked = self._holders.ask("nearest", [(codes,)] * len(self._holders))
        kept, nearest = resolved(codes, merge_nearest(asked), self._within, self._reach, self.count)
        self.add(ids[kept], codes[kept])
        return kept, nearest

    def add(self, ids: Ids, codes: Codes) -> None:
        """Enter leaders, distributed over the holders."""
        first, self.count = self.count, self.count + len(ids)
        while self.count > len(self.ids):
            self.ids = np.concatenate([self.ids, np.zeros_like(self.ids)])
        self.ids[first : self.count] = ids
        numbers, of = np.arange(first, self.count), len(self._holders)
        shares = [(codes[numbers % of == i], numbers[numbers % of == i]) for i in range(of)]
        self._holders.ask("add", shares)


NEAREST = Pass(
    name="curate.nearest",
    over=_one_partition,
    reads=(VECTORS.name,),
    run=_nearest_of,
    token=_nearest_token,
    when=when,
    resources=resources,
    files=(PassFile("kept.parquet", KEPT_SCHEMA), PassFile("*.verdicts", NEAR_SCHEMA)),
    unit="pairs",
    done=("pairs",),
)
