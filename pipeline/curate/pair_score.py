"""Judge pair_score: how well picture and primary text match, by the cosine of their features from two towers, or by
the words of the pair (`pipeline.curate._words`).

A first pass scores every pair, to four decimals: fewer than the last digits in which two kinds of CPU differ, and few
enough that their counts say where a share ends (`pipeline.store.pair_scores`). Features are cached in STORE, of images
by their sha256 and of texts by theirs, and shared by all builds: another band computes nothing, the next week only what
is new, and two builds at once compute each once (`pipeline.model_runner`, `pipeline.curate._towers`).

A second one counts the scores of all partitions and finds where the share of each source ends. Then filters judge: a
band, or the best share of each source; of equal scores the smaller id is kept. So a build is the same on any number of
workers, and a larger share keeps all that a smaller one kept. Without a filter of pairs, scores are noted alone.

A takedown removes the features of the images that it names, as from every cache, and of all texts of candidates that
go.

Limits: the primary text alone is scored. A pair on whose image or text a tower fails gets no score, and is dropped
where there is a filter. A share is one of this build's own pairs (`pipeline.filters.pair_score`). Finding the end of a
share holds the ids of the pairs that have exactly that score.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from data_specs.build import BuildSpec
from data_specs.shard import PAIR_SCORE, nfc
from pipeline.curate import _words
from pipeline.curate._towers import Row, checked_towers, models_of, resources
from pipeline.curate.judging import KEEP, ROW_GROUP, Judge, Verdict, Verdicts, pair_partitions, spread
from pipeline.filters import Drop, PairFilter, names_filter, pair_filters
from pipeline.model_runner import model_values, text_values
from pipeline.processes import pulse
from pipeline.rows.decisions import DropReason
from pipeline.rows.records import sha256_hex
from pipeline.store import pair_scores
from pipeline.store.build import Build, Pass, PassFile, no_partitions, no_run
from pipeline.store.commits import ROWS_DIGEST
from pipeline.store.pair_scores import CUTS, UNITS, UNSCORED, Counts, Cut, Cuts, in_units
from pipeline.store.pairs import PAIRS, SCORES, columns_of, pairs_before, primary_texts, reaching, reads_before

log = logging.getLogger("wenlan")

AT_ONCE = 4_096
"""Pairs whose features are multiplied together."""


def _is_scored(spec: BuildSpec) -> bool:
    return spec.pair_score is not None


def _score_token(build: Build) -> Any:
    if _uses_words(build):
        return _words.VERSION
    towers = checked_towers(build.spec)
    return [towers.image_id, towers.text_id]


def _uses_words(build: Build) -> bool:
    return build.spec.pair_score is not None and build.spec.pair_score.by_words


def _score(build: Build, partition: str) -> None:
    rows = pairs_before(build, partition, "pair_score", ["sha256", "texts"])
    if _uses_words(build):
        scored: Scored = _in_four_decimals(_words.chances(rows["texts"].to_pylist())), {}, [_words.ID]
    else:
        scored = _score_by_towers(build, partition, rows)
    scores, counts, models = scored
    with build.stage(SCORES).attempt(partition) as attempt:
        table = spread({PAIR_SCORE.name: scores}, reaching(build, partition, "pair_score"), SCORE_COLUMN)
        attempt.write_table("parquet", table, row_group_size=ROW_GROUP)
        counts = {"pairs": rows.num_rows, "scored": len(scores) - scores.null_count, **counts}
        digest = build.stage(PAIRS).record(partition).info[ROWS_DIGEST]
        attempt.commit(counts, {"models": models, ROWS_DIGEST: digest})


Scored = tuple[pa.Array, dict[str, int], list[str]]
"""Scores of pairs, counts of the work, and the ids of the models."""


def _score_by_towers(build: Build, partition: str, rows: pa.Table) -> Scored:
    texts = [nfc(text) for text in primary_texts(rows)]
    ids, images = [sha256_hex(text) for text in texts], rows["sha256"].to_pylist()
    of_images, of_texts = models_of(build.spec)
    seen = model_values(build, partition, set(images), [of_images])
    read = text_values(build, dict(zip(ids, texts, strict=True)), of_texts)
    for name, why in {**seen.undecodable, **read.undecodable}.items():
        log.warning("score: no features for %s: %s", name, why)
    scores = cosines(images, ids, seen.values[of_images.id], read.values[of_texts.id])
    counts = {"images": len(set(images)), "texts": len(set(ids))}
    counts |= {"cached": seen.cached + read.cached, "computed": seen.computed + read.computed}
    counts["undecodable"] = len(seen.undecodable) + len(read.undecodable)
    return scores, counts, [of_images.id, of_texts.id]


SCORE_COLUMN = pa.schema([PAIR_SCORE])


def cosines(
    images: Sequence[str], texts: Sequence[str], pictures: Mapping[str, Row], words: Mapping[str, Row]
) -> pa.Array:
    """float32 cosines of pairs to four decimals, null where an image or a text lacks features.

    images, texts: sha256 of each pair's. pictures, words: features by sha256.
    """
    there = np.array([i in pictures and t in words for i, t in zip(images, texts, strict=True)], np.bool_)
    scores = np.zeros(len(there), np.float32)
    rows = np.flatnonzero(there)
    for low in range(0, len(rows), AT_ONCE):
        some = rows[low : low + AT_ONCE]
        left = np.stack([pictures[images[row]] for row in some.tolist()]).astype(np.float32)
        right = np.stack([words[texts[row]] for row in some.tolist()]).astype(np.float32)
        scores[some] = np.einsum("nd,nd->n", left, right)
    return _in_four_decimals(scores, ~there)


def _in_four_decimals(scores: npt.NDArray[np.floating[Any]], mask: npt.NDArray[np.bool_] | None = None) -> pa.Array:
    units = np.rint(np.clip(scores, -1, 1).astype(np.float64) * UNITS)
    return pa.array((units / UNITS).astype(np.float32), mask=mask)


SCORE = Pass(
    name=SCORES,
    over=pair_partitions,
    reads=("fetch", *reads_before("pair_score")),
    run=_score,
    token=_score_token,
    version=2,
    when=_is_scored,
    resources=resources,
    files=(PassFile("parquet", SCORE_COLUMN, aligned=PAIRS),),
    unit="pairs",
    done=("pairs",),
)


def when(spec: BuildSpec) -> bool:
    return names_filter(spec, PairFilter)


def token(build: Build) -> Any:
    return [f.identity() for f in pair_filters(build.spec)]


def _cuts(build: Build) -> Any:
    """Returns the end of each source's share, for every filter; empty for a filter that keeps all."""
    filters, counts, cuts = pair_filters(build.spec), Counts(), Cuts()
    if any(f.top_share < 1 for f in filters):
        counts = pair_scores.summed(build)
    for own in filters:
        of_filter: dict[str, Cut] = {}
        for source, of_source in sorted(counts.items()) if own.top_share < 1 else ():
            within = {units: pairs for units, pairs in of_source.items() if own.judge(units / UNITS) is None}
            if within:
                units, ties = pair_scores.end_of_share(within, own.top_share)
                of_filter[source] = Cut(units, _nth_id(build, source, units, ties))
        cuts.append(of_filter)
    return pair_scores.as_json(cuts)


def _nth_id(build: Build, source: str, units: int, n: int) -> str:
    """The n-th smallest id of the pairs of a source with one score, n from 1. Holds n ids, and those of a partition."""
    smallest = list[str]()
    for partition in pair_partitions(build):
        scores = columns_of(build, SCORES, partition)[PAIR_SCORE.name]
        own, there = in_units(scores)
        near = there & (own == units)
        if near.any():
            stage = build.stage(PAIRS)
            rows = stage.table(stage.record(partition), columns=["candidate_id", "source"]).filter(pa.array(near))
            ids = rows.filter(pc.field("source") == source)["candidate_id"].to_pylist()
            smallest = sorted([*smallest, *ids])[:n]
    return smallest[n - 1]


CUT = Pass(
    name=CUTS,
    over=no_partitions,
    reads=(PAIRS, SCORES),
    run=no_run,
    token=token,
    reduce=_cuts,
    when=when,
)


def judge_pairs(build: Build, partition: str, rows: pa.Table) -> Verdicts:
    filters, cuts = pair_filters(build.spec), pair_scores.read(build)
    pulse.expect(rows.num_rows)
    scores = columns_of(build, SCORES, partition)[PAIR_SCORE.name].filter(
        pa.array(reaching(build, partition, "pair_score"))
    )
    units, there = in_units(scores)
    ids, sources = rows["candidate_id"].to_pylist(), rows["source"].to_pylist()
    verdicts = list[Verdict]()
    for name, source, own, is_there in zip(ids, sources, units.tolist(), there.tolist(), strict=True):
        pulse.advance()
        if not is_there:
            verdicts.append(Verdict((Drop(DropReason.UNREADABLE, UNSCORED),)))
            continue
        judged = [judge(f, of_f.get(source), source, own, name) for f, of_f in zip(filters, cuts, strict=True)]
        faults = tuple(fault for fault in judged if fault is not None)
        verdicts.append(Verdict(faults) if faults else KEEP)
    return Verdicts(verdicts)


def judge(pair_filter: PairFilter, cut: Cut | None, source: str, units: int, candidate_id: str) -> Drop | None:
    """Judges a pair by a filter: by its score, and by whether it is in the share of its source; None keeps it."""
    fault = pair_filter.judge(units / UNITS)
    if fault is None and cut is not None and not cut.keeps(units, candidate_id):
        share = f"the best {pair_filter.top_share:.4g} of {source} have at least {cut.score:.4f}"
        return Drop(DropReason.BELOW_TOP_SHARE, f"pair score {units / UNITS:.4f}; {share}")
    return fault


JUDGE = Judge("pair_score", "图文打分", judge_pairs, when, token, passes=(SCORE, CUT))
