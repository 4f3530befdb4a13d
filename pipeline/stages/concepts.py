"""Stage concepts: counts, for each entry of the word list, the pairs in whose primary text it occurs.

The first of the two passes of concept balance; `pipeline.stages.balance` adds the counts of all partitions up and
makes the second. A spec without `balance` has a stage without partitions.

Limits: a takedown leaves the counts as they are, which hold no text and no id.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from data_specs.build import Balance, within
from data_specs.shard import SPLITS
from pipeline import pulse
from pipeline.errors import SourceError
from pipeline.stages._survivors import later_ones, primary_texts, survivors_in
from pipeline.store.build import Build
from pipeline.store.concept_counts import COUNTS_SCHEMA
from pipeline.store.rewrite import Rewrite
from pipeline.store.stage import Stage, StageFile
from pipeline.texts.concepts import concepts, digest


def token(build: Build) -> Any:
    balance = build.spec.balance
    return None if balance is None else _token(build, balance, digest(balance, build.spec.base))


def _token(build: Build, balance: Balance, entries: str) -> Any:
    later = later_ones(build, before="balance")
    return [entries, balance.min_letters, *([later] if later else [])]


def partitions(build: Build) -> list[str]:
    return [] if build.spec.balance is None else build.stage("fetch").partitions()


def run_partition(build: Build, partition: str) -> None:
    """Counts of the pairs in a fetch partition's range, of all splits. Raises SourceError for another word list.

    What another one counted would stay under the fingerprint of this one, also when it has been put back.
    """
    balance = build.spec.balance
    assert balance is not None
    known = concepts(balance, build.spec.base)
    if not build.is_token("concepts", _token(build, balance, known.sha256)):
        where = within(build.spec.base, balance.entries)
        raise SourceError(where, "has changed since the build began; run the same command again")
    counts = np.zeros(len(known.entries), np.int64)
    pairs = matched = 0
    for split in SPLITS:
        texts = primary_texts(survivors_in(build, partition, split, ["texts"], before="balance"))
        pulse.expect(pairs + len(texts), done=pairs)
        for text in texts:
            own = known.of(text)
            counts[own] += 1
            matched += bool(own)
            pulse.advance()
        pairs += len(texts)
    entries = np.flatnonzero(counts)
    table = pa.table([pa.array(entries, pa.int32()), pa.array(counts[entries])], schema=COUNTS_SCHEMA)
    with build.stage("concepts").attempt(partition) as attempt:
        attempt.write_table("parquet", table)
        counted = {"pairs": pairs, "matched": matched, "matches": int(counts.sum())}
        attempt.commit(counted, {"entries": known.sha256})


def _without(rewrite: Rewrite) -> None:
    """Nothing: counts name nobody."""


STAGE = Stage(
    name="concepts",
    zh="概念统计",
    folder="concepts",
    inputs=("screen",),
    version=1,
    token=token,
    partitions=partitions,
    run=run_partition,
    files=(StageFile("parquet", COUNTS_SCHEMA),),
    subject="",
    unit="pairs",
    done=("pairs",),
    rewrites_others=False,
    without=_without,
)
