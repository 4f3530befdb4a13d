"""Pass dedup.signatures: writes what dedup compares for each run of pairs, sorted by rank and by keys.

Pairs rank by (better words, larger image, candidate_id; `runs.words_of`). In a build that begins a generation, what
builds of the last one kept ranks before that, in the order of those builds: with the same spec the same pairs are kept
again, as a pair that was dropped was dropped for one that ranks before it. Each partition is a run: neighbouring
partitions of filter, up to RUN pairs. It holds the run's rows by rank, the signatures and details of its images, and
what both images and texts are joined by (`pipeline.dedup.piece`), so that the one pass in order
(`pipeline.dedup.leaders`) does nothing that can be done in parallel. Other partitions see to the pieces of what earlier
builds kept (`pipeline.dedup.earlier`).

Limits: a run is in memory. A new generation reads the ids of all that the last one kept once per run. On disk, at
default settings, 3.5 KB per pair, of a pair with details 3 KB more, until the build is published.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from data_specs.build import BuildSpec
from data_specs.shard import SPLITS
from data_specs.text.folding import normals
from pipeline.dedup import earlier
from pipeline.dedup.piece import write_images, write_texts
from pipeline.dedup.runs import ARRAYS, ROW_SCHEMA, ROWS, order_of, pairs_of, pixels_of, run_name, words_of
from pipeline.features import feature_id
from pipeline.files.arrays import ArrayWriter
from pipeline.files.digests import column_of, digests_of, rows_of, unhex
from pipeline.matching import text_rows
from pipeline.matching.contexts import OWN, Context, contexts_of
from pipeline.matching.image_comparison import Details, coarse_of, fine_of, hashes_of, signatures_of
from pipeline.matching.image_keys import Key, plan
from pipeline.matching.text_rows import TextRows
from pipeline.processes import pulse
from pipeline.rows.records import LOOKS, split_of
from pipeline.store.build import Build, Pass, PassFile
from pipeline.store.commits import Attempt
from pipeline.store.identities import DETAILS, SIGNATURES, Identities

RUN = 100_000
"""Pairs of a run at most, unless a single partition of filter has more."""

LEAST, RUNS = 2_500, 16
"""A build has about RUNS runs, so that as many workers have work, but none of fewer than LEAST pairs, nor over RUN."""

SKETCHED_AT_ONCE = 10_000
"""Texts sketched between two looks at the clock of progress."""

_DIGESTS = ("candidate_id", "fetch_id", "sha256")
_DRAWN = ("png", "gif", "bmp")
"""Formats of drawings and screens: windows before one wallpaper differ in their words alone, as dialogs do."""

_CONTEXT = ["page_url", "image_url", "width", "height", "pixels", "format"]
_READ = [*_DIGESTS, "width", "height", "format", *LOOKS, "texts", "text_rank", "shown", "page_url", "image_url"]


def token(build: Build) -> Any:
    rules = build.spec.dedup
    shards = build.spec.shards
    own = {"run": RUN, "sketch": text_rows.token(rules.text_similarity), "radius": rules.image_distance}
    own |= {
        "turned": rules.image_turned,
        "identities": build.identity_revision,
        "seed": build.spec.seed,
        "shares": [shards.dev_share, shards.val_share],
    }
    return {**own, "made_from": [one.identities for one in build.made_from], "features": feature_id()}


def partitions(build: Build) -> list[str]:
    """Runs, each named by the partitions of filter in it, and groups of pieces of what earlier builds kept."""
    kept = {record.partition: record.counts["kept"] for record in build.stage("filter").records()}
    pairs = sum(kept.values())
    runs = _runs_of(kept, min(RUN, max(LEAST, pairs // RUNS)))
    return [*runs, *(earlier.groups(build) if pairs else ())]


def _runs_of(kept: Mapping[str, int], size: int) -> list[str]:
    """Runs of at most so many pairs, or of one partition of filter. kept: pairs by partition."""
    runs: list[list[str]] = []
    pairs = 0
    for partition, own in kept.items():
        if not runs or pairs + own > size:
            runs.append([])
            pairs = 0
        runs[-1].append(partition)
        pairs += own
    return [run_name(run) for run in runs]


def run_partition(build: Build, partition: str) -> None:
    """One run by rank; or a group of pieces, which are made unless they are there."""
    size = earlier.compared(build, build.stage("filter").reduced())
    keys = plan(size, build.spec.dedup.image_distance, build.spec.dedup.image_turned)
    with build.stage("dedup.signatures").attempt(partition) as attempt:
        if partition.startswith(earlier.STORED):
            made = earlier.make_group(build, partition, keys)
            attempt.commit({"pairs": 0, "texts": 0, "detailed": 0, "made": made}, {"compared": size})
            return
        pairs = pairs_of(build, partition, _READ)
        number = Identities(build.store).kept_by(build, digests_of(_digest(pairs, "candidate_id")), "images.parquet")
        pulse.expect(pairs.num_rows)
        counts = _write(attempt, pairs, number, keys, build.spec)
        attempt.commit({"pairs": pairs.num_rows, **counts}, {"compared": size})


def _digest(pairs: pa.Table, name: str) -> pa.Array:
    return column_of(unhex(pairs[name].to_pylist()))


def _write(attempt: Attempt, pairs: pa.Table, kept: Any, keys: Sequence[Key], spec: BuildSpec) -> dict[str, int]:
    """Write a run; returns counts. kept: of each pair the number of the build that kept it (`kept_by`)."""
    columns = {
        **{name: pairs[name] for name in ("width", "height", "phash", "texts")},
        **{name: _digest(pairs, name) for name in _DIGESTS},
        "position": pa.array(np.arange(pairs.num_rows), pa.int32()),
        "words": pa.array(words_of(pairs), pa.int32()),
        "kept_by": pa.array(kept, pa.int32()),
    }
    rows = pa.table({name: columns[name] for name in ROW_SCHEMA.names}).cast(ROW_SCHEMA)
    by_rank = pa.array(order_of([rows]))
    rows, looks = rows.take(by_rank).combine_chunks(), pairs.select(["signature", "details"]).take(by_rank)
    with pa.ipc.new_file(str(attempt.path(ROWS)), ROW_SCHEMA) as file:
        file.write_table(rows)
    signature, details = signatures_of(looks["signature"]), Details.of_table(looks)
    attempt.path(SIGNATURES).write_bytes(signature.tobytes())
    with attempt.path(DETAILS).open("wb") as out:
        details.write(out)
    with attempt.path(ARRAYS).open("wb") as out:
        writer = ArrayWriter(out)
        turned = spec.dedup.image_turned
        looks_of = coarse_of(hashes_of(rows), signature, turned), fine_of(details, turned)
        lists = rows["texts"].combine_chunks()
        forms = normals(lists.flatten().field("text").to_pylist())
        contexts = _contexts_of(pairs.select(_CONTEXT).take(by_rank), lists, forms, details.of)
        write_images(writer, digests_of(rows["sha256"]), contexts, looks_of, keys)
        pulse.advance(pairs.num_rows // 2)
        order = _about_the_rank(rows)
        writer.add("order", order)
        writer.add("split", splits_of(spec, rows["sha256"]))
        texts = _write_texts(writer, lists, forms, order, spec.dedup.text_similarity)
        writer.finish()
    pulse.advance(pairs.num_rows - pairs.num_rows // 2)
    return {"texts": texts, "detailed": len(details)}


def _about_the_rank(rows: pa.Table) -> npt.NDArray[np.uint32]:
    """[N] numbers that ascend with the rank but for the candidate_id, and nearly so for images of nearly one size."""
    most = np.iinfo(np.uint32).max
    smaller = (most - np.minimum(pixels_of(rows), most)) >> 5
    about: npt.NDArray[np.int64] = rows["words"].to_numpy().astype(np.int64) << 27 | smaller
    return about.astype(np.uint32)


def splits_of(spec: BuildSpec, sha256: pa.ChunkedArray) -> npt.NDArray[np.int8]:
    """[N] numbers of the splits of images by their own bytes."""
    shares = spec.shards.dev_share, spec.shards.val_share
    splits = [split_of(name.hex(), spec.seed, *shares) for name in rows_of(digests_of(sha256))]
    return np.array([SPLITS.index(split) for split in splits], np.int8)


def _contexts_of(pairs: pa.Table, lists: pa.ListArray, forms: Sequence[str], plain: npt.NDArray[np.int64]) -> Context:
    """Contexts of pairs with these texts, whose normal forms lie end to end; plain: those of images with details."""
    own = pc.index_in(lists.flatten().field("kind"), pa.array(list(OWN))).fill_null(-1).to_numpy()
    counts = pc.list_value_length(lists).to_numpy(zero_copy_only=False)
    owner, kinds, places = np.repeat(np.arange(len(lists)), counts), list(OWN), np.flatnonzero(own >= 0)
    words = [(kinds[own[at]], owner[at], forms[at]) for at in places.tolist()]
    sides = np.stack([pairs[name].to_numpy() for name in ("width", "height")], axis=1)
    drawn = np.union1d(plain, np.flatnonzero(pc.is_in(pairs["format"], pa.array(_DRAWN)).to_numpy()))
    pixels = pc.fill_null(pairs["pixels"], 0).to_numpy()
    return contexts_of(pairs["page_url"].to_pylist(), pairs["image_url"].to_pylist(), words, pixels, sides, drawn)


def _write_texts(
    writer: ArrayWriter, lists: pa.ListArray, flat: Sequence[str], order: npt.NDArray[np.uint32], threshold: float
) -> int:
    """Write the distinct texts of a run in the order of its rows, and which of them each pair has; returns how many.

    flat: the normal forms of all texts.
    """
    number_of = {text: number for number, text in enumerate(dict.fromkeys(flat))}
    distinct, made = list(number_of), []
    for at in range(0, max(1, len(distinct)), SKETCHED_AT_ONCE):
        made.append(text_rows.make_text_rows(distinct[at : at + SKETCHED_AT_ONCE], threshold))
    write_texts(writer, TextRows.concat(made))
    counts = pc.list_value_length(lists).to_numpy(zero_copy_only=False)
    writer.add("own.starts", np.concatenate([[0], np.cumsum(counts)]).astype(np.int64))
    own = np.array([number_of[text] for text in flat], np.int64)
    writer.add("own.rows", own)
    writer.add("text.order", np.repeat(order, counts)[np.unique(own, return_index=True)[1]])
    return len(distinct)


PASS = Pass(
    name="dedup.signatures",
    over=partitions,
    reads=("measure", "filter"),
    run=run_partition,
    token=token,
    version=7,
    files=(PassFile(ROWS), PassFile("*.bin")),
    working=True,
    unit="pairs",
    done=("pairs",),
)
