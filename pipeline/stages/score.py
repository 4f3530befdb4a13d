"""Stage score: the cosine of the features of each pair's image and primary text, by the towers that the spec names.

A column of every pair, to four decimals, and no judgement: `pipeline.stages.choose` drops by it, where the spec has a
filter of it. Four decimals are fewer than the last digits in which two kinds of CPU differ, and few enough that their
counts say where a share ends (`pipeline.store.pair_scores`).

Features are cached in STORE, of images by their sha256 and of texts by theirs, and shared by all builds: another band
computes nothing, the next week only what is new, and two builds at once compute each once
(`pipeline.stages._model_runner`, `pipeline.stages._towers`).

A spec without `pair_score` has a stage without partitions. A takedown removes the features of the images that it names,
as from every cache, and of all texts of candidates that go.

Limits: the primary text alone is scored. A pair on whose image or text a tower fails, has no score.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data_specs.build import BuildSpec
from data_specs.shard import PAIR_SCORE, SPLITS, nfc
from pipeline.records import sha256_hex
from pipeline.stages._model_runner import model_values, text_values
from pipeline.stages._survivors import (
    SCORED_FILES,
    later_ones,
    primary_texts,
    split_file,
    survivors_in,
    without_scored,
)
from pipeline.stages._towers import Row, checked_towers, models_of
from pipeline.store.build import Build
from pipeline.store.pair_scores import COUNTS, COUNTS_SCHEMA, UNITS, counted, in_units
from pipeline.store.rewrite import Removal
from pipeline.store.stage import Stage, StageFile
from pipeline.store.store import PAIR_FEATURES

log = logging.getLogger("wenlan")

ROW_GROUP = 1_000

AT_ONCE = 4_096
"""Pairs whose features are multiplied together."""


def token(build: Build) -> Any:
    if build.spec.pair_score is None:
        return None
    towers = checked_towers(build.spec)
    later = later_ones(build, before="score")
    return [towers.image_id, towers.text_id, *([later] if later else [])]


def partitions(build: Build) -> list[str]:
    return [] if build.spec.pair_score is None else build.stage("fetch").partitions()


def resources(spec: BuildSpec) -> dict[str, float]:
    """What a worker takes: a CPU for each thread of a session, and the spec's share of a GPU."""
    own = spec.pair_score
    if own is None:
        return {"num_cpus": 1.0}
    return {"num_cpus": float(own.threads), **({"num_gpus": own.num_gpus} if own.num_gpus else {})}


def run_partition(build: Build, partition: str) -> None:
    """The pairs of each split in a fetch partition's range, with their scores, and counts of the scores by source."""
    rows = {split: survivors_in(build, partition, split, before="score") for split in SPLITS}
    texts_of = {split: [nfc(text) for text in primary_texts(table)] for split, table in rows.items()}
    ids_of = {split: [sha256_hex(text) for text in texts] for split, texts in texts_of.items()}
    images = {sha256 for table in rows.values() for sha256 in table["sha256"].to_pylist()}
    texts = {name: text for split in SPLITS for name, text in zip(ids_of[split], texts_of[split], strict=True)}
    of_images, of_texts = models_of(build.spec)
    seen = model_values(build, partition, images, [of_images])
    read = text_values(build, texts, of_texts)
    for name, why in {**seen.undecodable, **read.undecodable}.items():
        log.warning("score: %s has no features: %s", name, why)

    sources, units, counts = list[str](), list[int](), {"pairs": 0, "scored": 0}
    with build.stage("score").attempt(partition) as attempt:
        for split, table in rows.items():
            pictures, words = seen.values[of_images.id], read.values[of_texts.id]
            scores = scored(table["sha256"].to_pylist(), ids_of[split], pictures, words)
            own, there = in_units(pa.chunked_array([scores]))
            sources += table["source"].filter(pa.array(there)).to_pylist()
            units += own[there].tolist()
            attempt.write_table(split_file(split), table.append_column(PAIR_SCORE, scores), row_group_size=ROW_GROUP)
            counts[split] = table.num_rows
            counts["pairs"] += table.num_rows
            counts["scored"] += int(there.sum())
        attempt.write_table(COUNTS, counted(sources, units))
        computed = {"images": len(images), "texts": len(texts), "cached": seen.cached + read.cached}
        computed["computed"] = seen.computed + read.computed
        computed["undecodable"] = len(seen.undecodable) + len(read.undecodable)
        models = [of_images.id, of_texts.id]
        attempt.commit({**counts, **computed}, {"models": models})


def scored(
    images: Sequence[str], texts: Sequence[str], pictures: Mapping[str, Row], words: Mapping[str, Row]
) -> pa.Array:
    """float32 cosines of pairs to four decimals, null where an image or a text has no features.

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
    units = np.rint(np.clip(scores, -1, 1).astype(np.float64) * UNITS)
    return pa.array((units / UNITS).astype(np.float32), mask=~there)


def _forget_texts(build: Build, removal: Removal) -> None:
    """Remove the features of all texts of removed candidates, by whatever tower: they stand in `admit`'s rows still."""
    caches = [cache for name, cache in build.store.caches() if name.startswith(f"features/{PAIR_FEATURES}text-")]
    if not caches:
        return
    ids = set[str]()
    for table in build.tables("admit", "parquet", ["candidate_id", "texts"]):
        for texts in table.filter(removal.mask(table))["texts"].to_pylist():
            ids |= {sha256_hex(nfc(text["text"])) for text in texts}
    gone = pa.array(sorted(ids), pa.string())
    for cache in caches if ids else ():
        cache.forget(lambda rows: pc.is_in(rows["sha256"], gone))


STAGE = Stage(
    name="score",
    zh="图文打分",
    folder="scored",
    inputs=("screen",),
    version=1,
    token=token,
    partitions=partitions,
    run=run_partition,
    resources=resources,
    files=(*SCORED_FILES, StageFile(COUNTS, COUNTS_SCHEMA)),
    subject="",
    unit="pairs",
    done=("pairs",),
    rewrites_others=False,
    without=without_scored,
    forget_state=_forget_texts,
)
