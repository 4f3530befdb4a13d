"""Stage vectors: prepares in parallel what semantic dedup compares: the features of each pair's image, sorted by rank.

Features are those of stage `score`, from STORE's cache, as integers (`pipeline.matching.semantic`). Pairs rank by the
column that the spec names (larger image, longer primary text, higher score), then by candidate_id. In a build that
begins a generation, what builds of the last one kept ranks before that, as in `signatures`. Each partition is one of
fetch, so that the one pass that must go in order (`pipeline.stages.nearest`) only merges and compares.

A spec without `semantic_dedup` has a stage without partitions.

Limits: an image that the tower could not read has no row here: it is kept, and leads nobody.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from data_specs.shard import PAIR_SCORE, SPLITS
from pipeline.dedup.ranked_runs import kept_by
from pipeline.files.digests import column_of, unhex
from pipeline.matching.semantic import Codes, codes_of
from pipeline.stages._model_runner import model_values
from pipeline.stages._survivors import primary_texts, survivors_in
from pipeline.stages._towers import models_of
from pipeline.stages._vectors import RANK, VECTOR_SCHEMA, codes_column
from pipeline.store.build import Build
from pipeline.store.identities import SEMANTIC
from pipeline.store.pair_scores import in_units
from pipeline.store.stage import Stage, StageFile

ROW_GROUP = 1_000

COLUMNS = ["candidate_id", "fetch_id", "sha256", "width", "height", "texts", PAIR_SCORE.name]


def token(build: Build) -> Any:
    own = build.spec.semantic_dedup
    if own is None:
        return None
    return [own.keep, [earlier.identities for earlier in build.made_from]]


def partitions(build: Build) -> list[str]:
    return [] if build.spec.semantic_dedup is None else build.stage("fetch").partitions()


def run_partition(build: Build, partition: str) -> None:
    """The pairs in a fetch partition's range that have features, by rank."""
    assert build.spec.semantic_dedup is not None
    rows = pa.concat_tables([survivors_in(build, partition, s, COLUMNS, before="semantic_dedup") for s in SPLITS])
    of_images, _ = models_of(build.spec)
    seen = model_values(build, partition, set(rows["sha256"].to_pylist()), [of_images]).values[of_images.id]
    read = pa.array([sha256 in seen for sha256 in rows["sha256"].to_pylist()], pa.bool_())
    pairs = rows.num_rows
    rows = rows.filter(read)
    features = [seen[sha256] for sha256 in rows["sha256"].to_pylist()]
    codes = codes_of(np.stack(features)) if features else np.zeros((0, 1), np.int16)
    with build.stage("vectors").attempt(partition) as attempt:
        attempt.write_table("parquet", _by_rank(build, rows, codes), row_group_size=ROW_GROUP)
        attempt.commit({"pairs": pairs, "compared": rows.num_rows}, {"tower": of_images.id})


def _by_rank(build: Build, rows: pa.Table, codes: Codes) -> pa.Table:
    """VECTOR_SCHEMA rows, sorted by `rank`."""
    candidate_id = unhex(rows["candidate_id"].to_pylist())
    ranks = [
        kept_by(build, candidate_id, SEMANTIC).astype(">u4").view(np.uint8).reshape(-1, 4),
        (np.iinfo(np.int64).max - _column(build, rows)).astype(">u8").view(np.uint8).reshape(-1, 8),
        candidate_id,
    ]
    rank = np.ascontiguousarray(np.concatenate(ranks, axis=1))
    order = np.argsort(rank.view(f"S{rank.shape[1]}").ravel(), kind="stable")
    columns = {
        "rank": pa.array(rank[order].view(f"V{rank.shape[1]}").ravel().tolist(), RANK),
        **{name: column_of(unhex(rows[name].to_pylist())[order]) for name in ("candidate_id", "fetch_id", "sha256")},
        "codes": codes_column(codes[order]),  # sorted before: Arrow's `take` makes one array of it
    }
    return pa.table({name: columns[name] for name in VECTOR_SCHEMA.names}, schema=VECTOR_SCHEMA)


def _column(build: Build, rows: pa.Table) -> npt.NDArray[np.int64]:
    """What the spec ranks by, of each row; the higher the better, at least 0."""
    assert build.spec.semantic_dedup is not None
    keep = build.spec.semantic_dedup.keep
    if keep == "longer_text":
        return np.array([len(text) for text in primary_texts(rows)], np.int64)
    if keep == "higher_score":
        units, there = in_units(rows[PAIR_SCORE.name])
        return np.where(there, units + (1 << 20), 0).astype(np.int64)  # a score may be negative
    pixels = pc.multiply(rows["width"].cast(pa.int64()), rows["height"].cast(pa.int64()))
    return np.asarray(pixels.to_numpy(), np.int64)


STAGE = Stage(
    name="vectors",
    zh="图像特征",
    folder="vectors",
    inputs=("score", "choose"),
    version=1,
    token=token,
    partitions=partitions,
    run=run_partition,
    files=(StageFile("parquet", VECTOR_SCHEMA),),
    subject="",
    unit="pairs",
    done=("pairs",),
    rewrites_others=False,
)
