"""Stage deal: deals images and texts of each run out by keys, so that stage `meet` can compare them in parallel.

Of what earlier builds kept it makes the pieces that STORE has not got yet (`pipeline.dedup.dealt_earlier`): most were
made for builds before this one.

A run becomes flat files: its entries of each key of `pipeline.matching.meetings` and of the band keys of its distinct
texts, by bucket, what candidates are verified by, and splits, so that `lead` hashes none. A build of fewer than
`handed_on.FEWEST` pairs over fewer than FEWEST_KEPT images of earlier builds has no partition here, and none in `meet`.

Limits: a run is in memory. On disk, at default settings, 2.8 KB per pair, from 2.1 million pairs on 4.5 KB and from 280
million on 7.8 KB, as keys are more; 0.5 KB per distinct text. Of a pair with details 4.2 KB more, 7.8 KB where 0.7
million or more have some, from 9 million on 9.4 KB and from 45 million on 18 KB.
"""

from __future__ import annotations

from dataclasses import astuple
from typing import Any

import numpy as np
import pyarrow as pa

from data_specs.shard import SPLITS
from pipeline import pulse
from pipeline.dedup import handed_on
from pipeline.dedup.compared_texts import write_texts
from pipeline.dedup.dealt_earlier import groups, make, pieces_of
from pipeline.dedup.ranked_runs import write_ordered
from pipeline.dedup.splits import own_splits
from pipeline.features import feature_id
from pipeline.files.digests import digests_of
from pipeline.matching import text_meetings, text_rows
from pipeline.matching.holders import images_of
from pipeline.matching.looks import coarse_of, fine_of
from pipeline.matching.meetings import Table, by_word
from pipeline.store.build import Build
from pipeline.store.identities import DETAILS, SIGNATURES
from pipeline.store.partitions import Attempt
from pipeline.store.stage import Pass, PassFile


def token(build: Build) -> Any:
    own = [build.spec.dedup.image_distance, build.spec.seed, build.spec.shards.dev_share, build.spec.shards.val_share]
    return [*own, build.identity_revision, feature_id()] if build.identities else own


def partitions(build: Build) -> list[str]:
    """The runs, and groups of pieces of what earlier builds kept."""
    keys = handed_on.keys_of(build)
    if not keys:
        return []
    stored = groups(pieces_of(build, keys)) if build.identities else []
    return [
        *build.stage("dedup.rank").partitions(),
        *(f"{handed_on.STORED}-{number:05d}" for number in range(len(stored))),
    ]


def run_partition(build: Build, partition: str) -> None:
    """One run: its rows, signatures and splits by rank; entries of each key by bucket; distinct texts by rank.

    Or a group of pieces, which are noted in the record in order.
    """
    if partition.startswith(handed_on.STORED):
        _see_to_pieces(build, partition)
        return
    rank = build.stage("dedup.rank")
    table = rank.table(rank.record(partition))
    pulse.expect(table.num_rows)
    with build.stage("dedup.deal").attempt(partition) as attempt:
        if not build.made_from:  # a build that begins a generation takes the features of what the last one kept along
            write_ordered(attempt.path(handed_on.ORDERED), table.drop_columns(["signature", "details"]))
        texts = _deal_texts(attempt, table["sketches"])
        detailed = _deal_images(build, attempt, table)
        pulse.advance(table.num_rows)
        attempt.commit({"pairs": table.num_rows, "detailed": detailed, **texts})


def _see_to_pieces(build: Build, partition: str) -> None:
    """Make the pieces of a group that are not in STORE."""
    keys = handed_on.keys_of(build)
    own = groups(pieces_of(build, keys))[int(partition.rpartition("-")[2])]
    with build.stage("dedup.deal").attempt(partition) as attempt:
        made = [make(build, piece, keys) for piece in own]
        info = {"identities": build.identity_revision, "pieces": [astuple(piece) for piece in own]}
        counts = {"pairs": 0, "detailed": 0, "texts": 0, "text_entries": 0}
        attempt.commit({**counts, "pieces": len(own), "made": sum(made)}, info)


def _deal_images(build: Build, attempt: Attempt, table: pa.Table) -> int:
    """Deal out the images of a run's table; returns how many have details."""
    images = images_of(table)
    coarse, fine = coarse_of(images.phash, images.signature), fine_of(images.details)
    for number, key in enumerate(handed_on.keys_of(build)):
        if key.family.fine and not len(images.details):
            continue
        entries, starts = Table.of(key, fine if key.family.fine else coarse)
        path = attempt.path(handed_on.suffix_of(handed_on.name_of(number)))
        handed_on.write(path, starts, entries.codes, entries.tones, entries.owner)
    attempt.path(SIGNATURES).write_bytes(images.signature.tobytes())
    with attempt.path(DETAILS).open("wb") as file:
        images.details.write(file)
    splits = np.array([SPLITS.index(split) for split in own_splits(build.spec, images.sha256)], np.uint8)
    attempt.path(handed_on.OWN_SPLITS).write_bytes(splits.tobytes())
    words = text_meetings.words_of(digests_of(table["sha256"]))
    order, starts = by_word(words)
    handed_on.write(attempt.path(handed_on.suffix_of(handed_on.BYTES)), starts, words[order], order.astype(np.uint32))
    return len(images.details)


def _deal_texts(attempt: Attempt, column: pa.ChunkedArray) -> dict[str, int]:
    """Deal out the texts of a column of sketches [N]; returns how many there are."""
    flat = column.combine_chunks().flatten()
    first, again = text_meetings.distinct(digests_of(flat.field("id")))
    texts = text_rows.read(flat.take(pa.array(first)))
    entries, starts = text_meetings.TextTable.of(texts.sketches.keys)
    handed_on.write(attempt.path(handed_on.suffix_of(handed_on.TEXTS)), starts, entries.keys, entries.owner)
    attempt.path(handed_on.AGAIN).write_bytes(again.astype(np.int64).tobytes())
    write_texts(attempt.path(handed_on.SKETCHES), text_meetings.words_of(texts.ids), texts.sketches, first)
    return {"texts": len(flat), "text_entries": len(entries)}


PASS = Pass(
    name="dedup.deal",
    over=partitions,
    reads=("dedup.rank",),
    run=run_partition,
    token=token,
    version=handed_on.VERSION,
    files=(PassFile("*.bin"), PassFile(handed_on.ORDERED)),
    unit="pairs",
    done=("pairs",),
)
