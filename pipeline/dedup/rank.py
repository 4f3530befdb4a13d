"""Stage rank: prepares in parallel what dedup compares, sorted by rank.

Pairs rank by (larger image, candidate_id). In a build that begins a generation, what builds of the last one kept ranks
before that, in the order of those builds: with the same spec the same pairs are kept again, as a pair that was dropped
was dropped for one that ranks before it. Each partition is a run (`pipeline.dedup.ranked_runs`): neighbouring
partitions of filter, up to RUN pairs. It holds the columns that the leader pass reads: hashes, signatures, and the id
and sketch of each text, so that the one pass that must go in order (`pipeline.dedup.lead`) does nothing that can be
done in parallel.

Limits: a new generation reads the ids of all that the last one kept once per run.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data_specs.text.folding import normals
from pipeline import pulse
from pipeline.dedup.ranked_runs import KEPT_BY, RUN_SCHEMA, kept_by, pairs_of, run_name, sorted_by_rank
from pipeline.files.digests import column_of, digests_of, unhex
from pipeline.matching import text_rows
from pipeline.records import TEXTS_TYPE
from pipeline.store.build import Build
from pipeline.store.partitions import Record
from pipeline.store.stage import Pass, PassFile
from pipeline.urls import domain_key

RUN = 100_000
"""Pairs of a run at most, unless a single partition of filter has more."""

LEAST, RUNS = 2_500, 16
"""A build has about RUNS runs, so that as many workers have work, but none of fewer than LEAST pairs, nor over RUN."""

ROW_GROUP = 1_000

SKETCHED_AT_ONCE = 10_000
"""Texts sketched between two looks at the clock of progress."""

_DIGESTS = ("candidate_id", "fetch_id", "sha256")
_UNCHANGED = ("width", "height", "phash", "signature", "details", "texts")
"""Columns of PAIR_SCHEMA that become DIGEST columns of RUN_SCHEMA, and those that are taken as they are."""


def token(build: Build) -> Any:
    run = {"run": RUN, "sketch": text_rows.token(build.spec.dedup.text_similarity)}
    return {**run, "made_from": [own.identities for own in build.made_from]} if build.made_from else run


def partitions(build: Build) -> list[str]:
    """Runs, each named by the partitions of filter in it; those that an older wenlan began to make, if it did."""
    records = build.stage("filter").records()
    pairs = sum(record.counts["kept"] for record in records)
    runs = _runs_of(records, min(RUN, max(LEAST, pairs // RUNS)))
    return runs if set(build.stage("dedup.rank").partitions()) <= set(runs) else _runs_of(records, RUN)


def _runs_of(records: Sequence[Record], size: int) -> list[str]:
    """Runs of at most so many pairs, or of one partition of filter."""
    runs: list[list[str]] = []
    pairs = 0
    for record in records:
        if not runs or pairs + record.counts["kept"] > size:
            runs.append([])
            pairs = 0
        runs[-1].append(record.partition)
        pairs += record.counts["kept"]
    return [run_name(run) for run in runs]


def run_partition(build: Build, partition: str) -> None:
    """One run, by rank."""
    pairs = pairs_of(build, partition, [*_DIGESTS, *_UNCHANGED, "page_url", "image_url"])
    table = prepared(pairs, build.spec.dedup.text_similarity)
    if build.made_from:
        table = sorted_by_rank(
            table.append_column(KEPT_BY, pa.array(kept_by(build, digests_of(table["candidate_id"]), "images.parquet")))
        )
    with build.stage("dedup.rank").attempt(partition) as attempt:
        attempt.write_table("parquet", table, row_group_size=ROW_GROUP)
        texts, without = len(table["texts"].combine_chunks().flatten()), table["details"].null_count
        attempt.commit({"pairs": table.num_rows, "texts": texts, "detailed": table.num_rows - without})


def prepared(pairs: pa.Table, threshold: float) -> pa.Table:
    """RUN_SCHEMA rows by rank, from rows of PAIR_SCHEMA; `position` is where a row stands in `pairs`.

    threshold: the similarity at which texts will be compared.
    """
    pages, images = pairs["page_url"].to_pylist(), pairs["image_url"].to_pylist()
    columns = {
        "position": pa.array(np.arange(pairs.num_rows), pa.int32()),
        **{name: column_of(unhex(pairs[name].to_pylist())) for name in _DIGESTS},
        **{name: pairs[name] for name in _UNCHANGED},
        "domain": pa.array([domain_key(p or i) for p, i in zip(pages, images, strict=True)], pa.uint64()),
        "sketches": _sketches(pairs, threshold),
    }
    return sorted_by_rank(pa.table({name: columns[name] for name in RUN_SCHEMA.names}).cast(RUN_SCHEMA))


def _sketches(pairs: pa.Table, threshold: float) -> pa.ListArray:
    """For each pair the sketches of its texts; equal texts are sketched once."""
    texts = pairs["texts"].combine_chunks() if pairs.num_rows else pa.array([], TEXTS_TYPE)
    flat = normals(texts.flatten().field("text").to_pylist())
    number_of = {text: number for number, text in enumerate(dict.fromkeys(flat))}
    distinct, made = list(number_of), []
    pulse.expect(pairs.num_rows)
    for at in range(0, max(1, len(distinct)), SKETCHED_AT_ONCE):
        made.append(text_rows.made(distinct[at : at + SKETCHED_AT_ONCE], threshold).columns())
        share = min(1.0, (at + SKETCHED_AT_ONCE) / max(1, len(distinct)))
        pulse.expect(pairs.num_rows, done=int(pairs.num_rows * share))
    sketches = pa.concat_arrays(made)
    # A slice of a list array keeps the offsets of the whole, its `flatten` does not: they are moved to begin with 0.
    offsets = pc.subtract(texts.offsets, texts.offsets[0]) if len(texts) else pa.array([0], pa.int32())
    of_text = pa.array([number_of[text] for text in flat], pa.int32())
    return pa.ListArray.from_arrays(offsets, sketches.take(of_text))


PASS = Pass(
    name="dedup.rank",
    over=partitions,
    reads=("filter",),
    run=run_partition,
    token=token,
    files=(PassFile("parquet", RUN_SCHEMA, kind="derived"),),
    unit="pairs",
    done=("pairs",),
)
