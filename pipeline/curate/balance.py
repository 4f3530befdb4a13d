"""Judge balance: keeps only a share of the pairs with frequent concepts alone, so that rare concepts gain weight.

MetaCLIP's curation (Xu et al., "Demystifying CLIP Data", arXiv 2309.16671; for many languages "MetaCLIP 2", arXiv
2507.22062). An entry of the word list that occurs in n texts has the probability min(1, t / n), and a pair is kept with
1 - prod(1 - p) over the entries of its primary text: one rare entry, with n at most t, keeps it for sure.

t is the spec's threshold, or follows from `tail_share`: the largest t for which entries of at most t texts have at most
that share of all matches. MetaCLIP 2 carries t from English to other languages that way.

Where MetaCLIP throws a coin, the pair's id decides: it is kept if a keyed hash of it, as a number in [0, 1), is below
the probability. So a build is the same whenever it is repeated, on any number of workers, and a pair that is kept at
some probability is kept at every larger one.

A first pass counts, for each entry, the pairs in whose primary text it occurs; the driver adds the counts up.

Limits: texts are counted within a build; what earlier builds hold stays, and does not count. The driver holds one
number per entry, and reads a small file per partition. A takedown leaves the counts as they are, which hold no text and
no id.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from data_specs.build import Balance, BuildSpec
from pipeline.curate.judging import KEEP, Judge, Verdict, Verdicts, pair_partitions
from pipeline.filters import Drop
from pipeline.processes import pulse
from pipeline.rows.decisions import DropReason
from pipeline.store import concept_counts
from pipeline.store.build import Build, Pass, PassFile
from pipeline.store.concept_counts import CONCEPTS, COUNTS_SCHEMA, Probabilities
from pipeline.store.pairs import pairs_before, primary_texts, reads_before
from pipeline.texts.concepts import concepts, digest

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


def when(spec: BuildSpec) -> bool:
    return spec.balance is not None


def token(build: Build) -> Any:
    own = build.spec.balance
    if own is None:
        return None
    return [digest(own, build.spec.base), own.model_dump(mode="json", exclude={"entries"}), build.spec.seed]


def _count(build: Build, partition: str) -> None:
    """Counts of the pairs of a partition."""
    balance = build.spec.balance
    assert balance is not None
    known = concepts(balance, build.spec.base)
    counts, matched = np.zeros(len(known.entries), np.int64), 0
    texts = primary_texts(pairs_before(build, partition, "balance", ["texts"]))
    pulse.expect(len(texts))
    for text in texts:
        own = known.find(text)
        counts[own] += 1
        matched += bool(own)
        pulse.advance()
    entries = np.flatnonzero(counts)
    table = pa.table([pa.array(entries, pa.int32()), pa.array(counts[entries])], schema=COUNTS_SCHEMA)
    with build.stage(CONCEPTS).attempt(partition) as attempt:
        attempt.write_table("parquet", table)
        attempt.commit({"pairs": len(texts), "matched": matched, "matches": int(counts.sum())})


def _probabilities(build: Build) -> Any:
    assert build.spec.balance is not None
    counts = concept_counts.summed(build)
    threshold = threshold_of(counts, build.spec.balance)
    frequent = {int(entry): int(counts[entry]) for entry in np.flatnonzero(counts > threshold)}
    return concept_counts.as_json(Probabilities(threshold, frequent))


COUNT = Pass(
    name=CONCEPTS,
    over=pair_partitions,
    reads=reads_before("balance"),
    run=_count,
    token=token,
    reduce=_probabilities,
    when=when,
    files=(PassFile("parquet", COUNTS_SCHEMA, kind="figures"),),
    unit="pairs",
    done=("pairs",),
)


def judge_pairs(build: Build, partition: str, rows: pa.Table) -> Verdicts:
    """A verdict for each pair, by the entries of its primary text, and the frequent ones of those that are kept."""
    balance = build.spec.balance
    assert balance is not None
    known, probabilities = concepts(balance, build.spec.base), concept_counts.read(build)
    pulse.expect(rows.num_rows)
    verdicts, of_pairs, matches = list[Verdict](), list[list[int]](), Counter[int]()
    for name, text in zip(rows["candidate_id"].to_pylist(), primary_texts(rows), strict=True):
        pulse.advance()
        entries = known.find(text)
        fault = _judge(name, entries, balance, probabilities, build.spec.seed, known.entries)
        verdicts.append(KEEP if fault is None else Verdict((fault,)))
        of_pairs.append([entry for entry in entries if entry in probabilities.frequent])
        matches.update(entries if fault is None else ())
    column = pa.array(of_pairs, pa.list_(pa.int32()))
    return Verdicts(verdicts, {"frequent": column}, {"matches": matches.total()})


def _judge(
    name: str, entries: list[int], balance: Balance, probabilities: Probabilities, seed: int, words: Any
) -> Drop | None:
    """Why a pair with these entries goes; None to keep it."""
    if not entries and balance.unmatched == "drop":
        return Drop(DropReason.NO_CONCEPT, "its text contains none of the entries")
    p = probabilities.of(entries) if entries else 1.0
    if p < 1 and draw(name, seed) >= p:
        rarest = min(entries, key=lambda entry: (probabilities.frequent[entry], entry))
        word, texts = words[rarest], probabilities.frequent[rarest]
        return Drop(DropReason.OVER_REPRESENTED, f"kept with probability {p:.3f}; rarest: {word} in {texts:,} texts")
    return None


def draw(candidate_id: str, seed: int) -> float:
    """A number in [0, 1) that follows from a pair's id and the seed."""
    key = f"balance {seed}".encode()
    return int.from_bytes(hashlib.blake2b(candidate_id.encode(), digest_size=8, key=key).digest(), "big") / _WHOLE


JUDGE = Judge(
    "balance",
    "均衡",
    judge_pairs,
    when,
    token,
    passes=(COUNT,),
    columns=(pa.field("frequent", pa.list_(pa.int32())),),
)
