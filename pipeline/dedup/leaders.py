"""Pass dedup.leaders: decides which pairs are kept, over all pairs of the build in order; earlier builds come first.

Its only partition, "all", is the only step of dedup that goes in order. It reads edges and no feature
(`pipeline.dedup.greedy`), but where a member of a crowd is kept (`pipeline.matching.crowds`). Pairs that match nothing
are kept as they are. `pipeline.stages.dedup` applies the verdicts in parallel.

After the pass, leaders take over the texts of their duplicates, within `max_texts`. These texts are placed last, in the
order of their leaders, and do not lead in later builds: whether a pair is kept does not depend on what was merged. A
leader under more than `placeholder_texts` different primary texts is a placeholder. It is dropped with all its copies,
and remembered in STORE: later builds drop it at sight. Texts are counted within a build; what an earlier build has
published stays.

Kept pairs get their splits here (`pipeline.dedup.splits`).

Limits: what is in memory (`pipeline.dedup.joined`), and texts that leaders take over. A placeholder has taken its place
under the caps before it is known as one, and that place is not given back.
"""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline import pulse
from pipeline.dedup import earlier, ranked_runs
from pipeline.dedup.greedy import LeaderPass
from pipeline.dedup.joined import Joined
from pipeline.dedup.outcome import MERGED_SCHEMA, VERDICT_SCHEMA, merged, spread_out, write
from pipeline.dedup.splits import TextSplits
from pipeline.dedup.taken_texts import TakenTexts
from pipeline.errors import StoreError
from pipeline.features import feature_id
from pipeline.matching import text_rows
from pipeline.matching.looks import Details
from pipeline.store.build import Build
from pipeline.store.identities import (
    DETAILS,
    IMAGE_SCHEMA,
    PLACEHOLDER_SCHEMA,
    SIGNATURES,
    TEXT_SCHEMA,
    write_without,
)
from pipeline.store.rewrite import Rewrite
from pipeline.store.stage import Pass, PassFile

PREPARING = ("dedup.signatures", "dedup.copies", "dedup.edges")


def token(build: Build) -> Any:
    spec = build.spec
    return {
        "dedup": spec.dedup.model_dump(mode="json"),
        "apart": spec.shards.apart,
        "features": feature_id(),
        "identities": build.identity_revision,
        "splits": [own.identities for own in build.made_from],
    }


def partitions(build: Build) -> list[str]:
    return [ranked_runs.ALL]


def run_partition(build: Build, partition: str) -> None:
    """Verdicts of every run, texts that leaders take over, and what this build adds to STORE's identities."""
    _check_prepared(build)
    rules = build.spec.dedup
    with contextlib.ExitStack() as files, build.stage("dedup.leaders").attempt(partition) as attempt:
        earlier.warn(build)
        joined = Joined(build, files)
        pulse.expect(len(joined.order))
        began = {at + len(joined.texts): split for at, split in enumerate(joined.earlier_texts.splits) if split}
        text_splits = TextSplits(began) if build.spec.shards.apart == "texts" else None
        deciding, taken = LeaderPass(rules, joined.images, joined.texts, joined.kept()), TakenTexts(rules)
        outcome = spread_out(build, joined, deciding.decide(joined.pairs()), text_splits)
        rows = merged(outcome, taken, deciding, text_splits)
        write(attempt, outcome, rows, sorted(taken.placeholders))
        pulse.advance(len(joined.order))
        counts = {
            "pairs": len(joined.order),
            "free": len(joined.order) - len(joined.bound),
            "leaders": len(outcome.kept),
            "text_clusters": outcome.counts["text_clusters"],
            "merged_texts": sum(table.num_rows for table in rows.values()),
            "placeholders": len(taken.placeholders),
            "earlier": joined.kept_earlier,
            **(text_splits.counts if text_splits is not None else {}),
        }
        info = {"features": feature_id(), "sketch": text_rows.sketch_id(rules.text_similarity)}
        attempt.commit(counts, info)


def _check_prepared(build: Build) -> None:
    """Raises StoreError where a takedown has deleted what was prepared for an earlier fingerprint of this pass."""
    prepared = [build.stage(name) for name in PREPARING]
    if not prepared[0].partitions() and any(record.counts["kept"] for record in build.stage("filter").records()):
        for stage in prepared:
            stage.unfinish()
        fault = "what dedup had prepared was deleted by a takedown; run the same command again: it is made again"
        raise StoreError(build.out, fault)


def _without(rewrite: Rewrite) -> None:
    """What a build hands to STORE, and the texts that its leaders took over, without what is removed."""
    stage, record = rewrite.stage, rewrite.record
    borrowed = pa.array(sorted(rewrite.borrowed.removed), pa.string())
    for suffix in record.files:
        if suffix.endswith((".verdicts", ".merged")):
            table = stage.table(record, suffix)
            stays = pc.invert(rewrite.removal.mask(table))
            if suffix.endswith(".merged"):
                stays = pc.and_(stays, pc.invert(pc.is_in(table["text"], borrowed)))
            remaining = table.filter(stays)
            if remaining.num_rows < table.num_rows:
                rewrite.write_table(suffix, remaining)
    images = stage.table(record, "images.parquet")
    mask = np.array(rewrite.removal.mask(images).to_pylist(), np.bool_)
    if mask.any():
        parts = ["images.parquet", SIGNATURES, DETAILS, "placeholders.parquet"]
        with contextlib.ExitStack() as files:
            signatures = np.memmap(files.enter_context(stage.file(record, SIGNATURES)), np.uint8, "r")
            details = Details.read(files.enter_context(stage.file(record, DETAILS)))
            looks = signatures.reshape(images.num_rows, -1), details
            placeholders = stage.table(record, "placeholders.parquet")
            write_without({part: rewrite.path(part) for part in parts}, images, looks, placeholders, mask)
        for part in parts:
            rewrite.replace(part)
    rewrite.remove_rows()


PASS = Pass(
    name="dedup.leaders",
    over=partitions,
    reads=("filter", *PREPARING),
    run=run_partition,
    token=token,
    files=(
        PassFile("*.verdicts", VERDICT_SCHEMA),
        PassFile("*.merged", MERGED_SCHEMA),
        PassFile("images.parquet", IMAGE_SCHEMA),
        PassFile(SIGNATURES),
        PassFile(DETAILS),
        PassFile("texts.parquet", TEXT_SCHEMA),
        PassFile("placeholders.parquet", PLACEHOLDER_SCHEMA),
    ),
    unit="pairs",
    done=("pairs",),
    rewrites_others=False,
    without=_without,
)
