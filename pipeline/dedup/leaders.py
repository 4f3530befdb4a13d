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

Limits: what is in memory (`pipeline.dedup.leader_input`), and texts that leaders take over. A placeholder has taken
its place under the caps before it is known as one, and that place is not given back.
"""

from __future__ import annotations

import contextlib
from typing import Any

from pipeline.dedup import earlier
from pipeline.dedup.greedy import LeaderPass
from pipeline.dedup.leader_input import LeaderInput
from pipeline.dedup.leader_output import MERGED_SCHEMA, VERDICT_SCHEMA, decide_all_pairs, merged, write
from pipeline.dedup.merged_texts import MergedTexts
from pipeline.dedup.splits import TextSplits
from pipeline.features import feature_id
from pipeline.matching import text_rows
from pipeline.processes import pulse
from pipeline.store.build import Build, Pass, PassFile
from pipeline.store.identities import (
    DETAILS,
    IMAGE_SCHEMA,
    PLACEHOLDER_SCHEMA,
    SIGNATURES,
    TEXT_SCHEMA,
)

ALL = "all"
"""The one partition, which goes over all runs in order."""


def token(build: Build) -> Any:
    spec = build.spec
    return {
        "dedup": spec.dedup.model_dump(mode="json"),
        "apart": spec.shards.apart,
        "text_kinds": list(spec.text_kinds),
        "features": feature_id(),
        "identities": build.identity_revision,
        "splits": [own.identities for own in build.made_from],
    }


def partitions(build: Build) -> list[str]:
    return [ALL]


def run_partition(build: Build, partition: str) -> None:
    """Verdicts of every run, texts that leaders take over, and what this build adds to STORE's identities."""
    rules = build.spec.dedup
    with contextlib.ExitStack() as files, build.stage("dedup.leaders").attempt(partition) as attempt:
        earlier.warn(build)
        inputs = LeaderInput(build, files)
        pulse.expect(len(inputs.order))
        began = {at + len(inputs.texts): split for at, split in enumerate(inputs.earlier_texts.splits) if split}
        text_splits = TextSplits(began) if build.spec.shards.apart == "texts" else None
        deciding, taken = LeaderPass(rules, inputs.images, inputs.texts, inputs.earlier_results()), MergedTexts(rules)
        outcome = decide_all_pairs(build, inputs, deciding.decide(inputs.pairs()), text_splits)
        rows = merged(outcome, taken, deciding, text_splits)
        write(attempt, outcome, rows, sorted(taken.placeholders))
        pulse.advance(len(inputs.order))
        counts = {
            "pairs": len(inputs.order),
            "free": len(inputs.order) - len(inputs.bound),
            "leaders": len(outcome.kept),
            "text_clusters": outcome.counts["text_clusters"],
            "merged_texts": sum(table.num_rows for table in rows.values()),
            "placeholders": len(taken.placeholders),
            "earlier": inputs.kept_earlier,
            **(text_splits.counts if text_splits is not None else {}),
        }
        info = {"features": feature_id(), "sketch": text_rows.sketch_id(rules.text_similarity)}
        attempt.commit(counts, info)


PASS = Pass(
    name="dedup.leaders",
    over=partitions,
    reads=("dedup.signatures", "dedup.copies", "dedup.edges"),
    run=run_partition,
    token=token,
    version=3,
    files=(
        PassFile("*.verdicts", VERDICT_SCHEMA, kind="derived"),
        PassFile("*.merged", MERGED_SCHEMA, kind="derived"),
        PassFile("images.parquet", IMAGE_SCHEMA, kind="identities"),
        PassFile(SIGNATURES, kind="identities"),
        PassFile(DETAILS, kind="identities"),
        PassFile("texts.parquet", TEXT_SCHEMA, kind="identities"),
        PassFile("placeholders.parquet", PLACEHOLDER_SCHEMA, kind="identities"),
    ),
    unit="pairs",
    done=("pairs",),
)
