"""Stage balance: of the pairs whose concepts are all frequent a share is kept, so that rare ones are seen as well.

MetaCLIP's curation (Xu et al., "Demystifying CLIP Data", arXiv 2309.16671; for many languages "MetaCLIP 2", arXiv
2507.22062). An entry of the word list that occurs in n texts has the probability min(1, t / n), and a pair is kept with
1 - prod(1 - p) over the entries of its primary text: one rare entry, with n at most t, keeps it for sure.

t is the spec's threshold, or follows from `tail_share`: the largest t for which entries of at most t texts have at most
that share of all matches. MetaCLIP 2 carries t from English to other languages that way.

Where MetaCLIP throws a coin, the pair's id decides: it is kept if a keyed hash of it, as a number in [0, 1), is below
the probability. So a build is the same whenever it is repeated, on any number of workers, and a pair that is kept at
some probability is kept at every larger one.

The driver adds the counts of stage `concepts` up once and leaves the probabilities beside this stage's files.

Limits: texts are counted within a build; what earlier builds hold stays, and does not count. A leader that is dropped
takes its cluster with it, as in `screen`. The driver holds one number per entry, and reads a small file per partition.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from data_specs.build import Balance, within
from data_specs.shard import SPLITS
from pipeline import pulse
from pipeline.errors import SourceError
from pipeline.records import Decision, DropReason, candidates_of, drop
from pipeline.stages._survivors import SPLIT_FILES, later_ones, primary_texts, split_file, survivors_in
from pipeline.store import concept_counts
from pipeline.store.build import Build
from pipeline.store.concept_counts import COUNTS_SCHEMA, Probabilities
from pipeline.store.stage import Stage, StageFile
from pipeline.texts.concepts import Concepts, concepts

ROW_GROUP = 1_000

_WHOLE = float(1 << 64)


def threshold_of(counts_E: npt.NDArray[np.int64], balance: Balance) -> int:
    """t: the spec's, or that of its `tail_share`; at least 1. counts_E: the texts of each entry."""
    if balance.threshold:
        return balance.threshold
    ascending = np.sort(counts_E[counts_E > 0])
    # share[i]: of all matches, those of entries that occur in at most ascending[i] texts
    last = np.searchsorted(ascending, ascending, side="right") - 1
    within = np.cumsum(ascending)[last] <= balance.tail_share * ascending.sum()
    return int(ascending[within].max(initial=1))


def token(build: Build) -> Any:
    if build.spec.balance is None:
        return None
    later = later_ones(build, before="balance")
    return [build.spec.balance.model_dump(exclude={"entries"}), build.spec.seed, *([later] if later else [])]


def partitions(build: Build) -> list[str]:
    """Those of fetch; adds the counts up for the tasks."""
    if build.spec.balance is None:
        return []
    concept_counts.write(build, _learnt(build, build.spec.balance))
    return build.stage("fetch").partitions()


def run_partition(build: Build, partition: str) -> None:
    """Kept pairs of each split in a fetch partition's range, a Decision for each other, and counts of what is kept."""
    assert build.spec.balance is not None
    known = concepts(build.spec.balance, build.spec.base)
    probabilities = concept_counts.read(build) or _learnt(build, build.spec.balance)
    if not probabilities.fit(known.sha256):
        raise _changed(build)
    decisions, after, counts = list[Decision](), Counter[int](), Counter[str]()
    with build.stage("balance").attempt(partition) as attempt:
        for split in SPLITS:
            rows = survivors_in(build, partition, split, before="balance")
            pulse.expect(rows.num_rows + counts["seen"], done=counts["seen"])
            drops = list(_judged(build, rows, known, probabilities, after))
            kept = pa.array([why is None for why in drops], pa.bool_())
            dropped = zip(candidates_of(rows), drops, strict=True)
            decisions += [drop(candidate, "balance", *why) for candidate, why in dropped if why is not None]
            attempt.write_table(split_file(split), rows.filter(kept), row_group_size=ROW_GROUP)
            counts[split] = sum(why is None for why in drops)
            counts["seen"] += rows.num_rows
        frequent = sorted(entry for entry in after if entry in probabilities.frequent)
        texts = [after[entry] for entry in frequent]
        table = pa.table([pa.array(frequent, pa.int32()), pa.array(texts, pa.int64())], schema=COUNTS_SCHEMA)
        attempt.write_table("after", table)
        attempt.decide(decisions)
        counts["dropped"] = len(decisions)
        counts["kept"] = counts["seen"] - counts["dropped"]
        attempt.commit({**counts, "matches": after.total()})


def _judged(
    build: Build, rows: pa.Table, known: Concepts, probabilities: Probabilities, after: Counter[int]
) -> Iterator[tuple[DropReason, str] | None]:
    """Why each row is dropped, None for those kept, whose entries are added to `after`."""
    assert build.spec.balance is not None
    for name, text in zip(rows["candidate_id"].to_pylist(), primary_texts(rows), strict=True):
        pulse.advance()
        entries = known.of(text)
        if not entries and build.spec.balance.unmatched == "drop":
            yield DropReason.NO_CONCEPT, "none of the entries occurs in its text"
            continue
        p = probabilities.of(entries) if entries else 1.0
        if p < 1 and draw(name, build.spec.seed) >= p:
            rarest = min(entries, key=lambda entry: (probabilities.frequent[entry], entry))
            word, texts = known.entries[rarest], probabilities.frequent[rarest]
            yield DropReason.OVER_REPRESENTED, f"kept with probability {p:.3f}; rarest: {word} in {texts:,} texts"
            continue
        after.update(entries)
        yield None


def draw(candidate_id: str, seed: int) -> float:
    """A number in [0, 1) that follows from a pair's id and the seed."""
    key = f"balance {seed}".encode()
    return int.from_bytes(hashlib.blake2b(candidate_id.encode(), digest_size=8, key=key).digest(), "big") / _WHOLE


def _learnt(build: Build, balance: Balance) -> Probabilities:
    """The probabilities by what was counted. Raises SourceError if the word list changed while that was done."""
    entries = {record.info.get("entries", "") for record in build.stage("concepts").records()} - {""}
    if len(entries) > 1:
        raise _changed(build)
    counts = concept_counts.summed(build, "concepts", "parquet")
    threshold = threshold_of(counts, balance)
    frequent = {int(entry): int(counts[entry]) for entry in np.flatnonzero(counts > threshold)}
    return Probabilities(threshold, frequent, next(iter(entries), ""))


def _changed(build: Build) -> SourceError:
    assert build.spec.balance is not None
    where = within(build.spec.base, build.spec.balance.entries)
    return SourceError(where, "has changed since its entries were counted; run the same command again")


STAGE = Stage(
    name="balance",
    zh="均衡",
    folder="balanced",
    inputs=("screen", "concepts"),
    version=1,
    token=token,
    partitions=partitions,
    run=run_partition,
    files=(*SPLIT_FILES, StageFile("after", COUNTS_SCHEMA)),
    rewrites_others=False,
)
