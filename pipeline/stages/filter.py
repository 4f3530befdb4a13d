"""Stage filter: applies the image filters of the spec to the measured features; candidates become pairs.

Touches Parquet only. Each distinct image is judged once by source, or twice: a filter may judge it otherwise for a
candidate with words of its own (an alt or a caption). Every filter is asked even when an earlier one has failed, so
that a Decision lists every failing reason (the first in the spec's order is the one it is counted under) and the report
can say what loosening one filter would bring back.
"""

from __future__ import annotations

import functools
from typing import Any

import pyarrow as pa

from pipeline.errors import OURS, evidence
from pipeline.filters import Drop, ImageFilter, image_filters
from pipeline.processes import pulse
from pipeline.rows.decisions import Decision, DropReason, drop
from pipeline.rows.records import FEATURE_SCHEMA, OWN_WORDS, PAIR_SCHEMA, Features, candidates_of
from pipeline.store.build import Build, Pass, PassFile, Stage


def token(build: Build) -> Any:
    return {s.name: [f.identity() for f in image_filters(build.spec, s)] for s in build.spec.sources}


def partitions(build: Build) -> list[str]:
    return build.stage("measure").partitions()


def run_partition(build: Build, partition: str) -> None:
    """Pairs of a partition, sorted by (order_key, candidate_id), and a Decision for each candidate that fails."""
    admit, fetch, measure = (build.stage(name) for name in ("admit", "fetch", "measure"))
    features: dict[str, dict[str, Any]] = {
        row["sha256"]: row for row in measure.table(measure.record(partition)).to_pylist()
    }
    columns = ["fetch_id", "sha256", "fetched_at"]
    fetched = fetch.table(fetch.record(partition), columns=columns, filters=[("ok", "==", True)])
    images: dict[str, dict[str, Any]] = {row["fetch_id"]: row for row in fetched.to_pylist()}
    sources = {source.name: source for source in build.spec.sources}

    @functools.cache
    def filters_of(source: str, has_own_words: bool) -> list[ImageFilter]:
        filters = image_filters(build.spec, sources.get(source))
        return [f.with_own_words() for f in filters] if has_own_words else filters

    @functools.cache
    def drops_of(sha256: str, source: str, has_own_words: bool) -> list[Drop]:
        return judge(features_of(features[sha256]), filters_of(source, has_own_words))

    pairs, decisions = list[dict[str, Any]](), list[Decision]()
    candidates = admit.table(admit.record(partition))
    pulse.expect(candidates.num_rows)
    for row, candidate in zip(candidates.to_pylist(), candidates_of(candidates), strict=True):
        pulse.advance()
        image = images.get(row["fetch_id"])
        if image is None or image["sha256"] not in features:
            continue  # fetch or measure has written its Decision
        drops = drops_of(image["sha256"], candidate.source, any(text.kind in OWN_WORDS for text in candidate.texts))
        if drops:
            reasons = tuple(dict.fromkeys(d.reason.value for d in drops))
            evidence = "; ".join(d.evidence for d in drops)
            decisions.append(drop(candidate, "filter", drops[0].reason, evidence, reasons=reasons))
        else:
            pairs.append({**row, **features[image["sha256"]], "fetched_at": image["fetched_at"]})
    pairs.sort(key=lambda r: (r["order_key"], r["candidate_id"]))
    with build.stage("filter").attempt(partition) as attempt:
        attempt.write_table("parquet", pa.Table.from_pylist(pairs, schema=PAIR_SCHEMA))
        attempt.decide(decisions)
        attempt.commit({"seen": len(pairs) + len(decisions), "kept": len(pairs), "dropped": len(decisions)})


def reduce(build: Build) -> Any:
    """Number of pairs that all partitions have kept."""
    return sum(record.counts["kept"] for record in build.stage("filter").records())


def judge(features: Features, filters: list[ImageFilter]) -> list[Drop]:
    """Every reason to drop an image, in the filters' order; empty to keep."""
    return [reason for f in filters if (reason := _check(f, features)) is not None]


def _check(image_filter: ImageFilter, features: Features) -> Drop | None:
    """Returns a filter's fault for an image, or that the filter raised."""
    try:
        return image_filter.check(features)
    except OURS:
        raise
    except Exception as e:
        raised = evidence(e, f"image {features.sha256}")
        return Drop(DropReason.UNREADABLE, f"{image_filter.plugin_name()}: {raised}")


def features_of(row: dict[str, Any]) -> Features:
    """Features from a row that has at least FEATURE_SCHEMA's columns."""
    values = {name: row[name] for name in FEATURE_SCHEMA.names}
    return Features(**{**values, "phash": tuple(row["phash"])})


STAGE = Stage(
    name="filter",
    zh="过滤",
    folder="pairs",
    passes=(
        Pass(
            name="filter",
            follows=True,
            over=partitions,
            reads=("admit", "fetch", "measure"),
            run=run_partition,
            token=token,
            version=4,
            reduce=reduce,
            files=(PassFile("parquet", PAIR_SCHEMA, "candidate_id"),),
        ),
    ),
)
