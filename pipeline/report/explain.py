"""Explain: what happened to one candidate, image or page, and the values that each stage had of it.

A candidate's fate is its row in the union of decisions (every failing reason, evidence, what it is a duplicate of).
What the stages saw is looked up in the one partition that holds its order key, so the cost of a trace is that of one
partition, whatever the size of the build.

Limits: decisions are not indexed, so finding the rows reads each of their columns that is asked for, file by file. The
first TRACED rows are traced; a page may hold hundreds of images.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow.compute as pc

from data_specs.shard import KEY_LENGTH, PAIR_SCORE
from pipeline.report import earlier_samples
from pipeline.rows.records import order_key
from pipeline.store import pair_scores
from pipeline.store.build import Build, Pass, PassFile
from pipeline.store.commits import Record
from pipeline.store.images import records_between
from pipeline.store.pairs import PAIRS, columns_of
from pipeline.store.partitions import StageDir
from pipeline.store.ranges import KeyRange
from pipeline.store.sql import Tables
from pipeline.store.subjects import subject_of

MAX_TRACED = 20
QUERY_COLUMNS = {
    "key",
    "order_key",
    "candidate_id",
    "fetch_id",
    "source",
    "source_kind",
    "origin",
    "page_url",
    "image_url",
    "row",
}
"""Columns that say what is asked, not what was seen."""


def explain(build: Build, subject: str) -> list[dict[str, Any]]:
    """Every decision about what a person names: candidates, images or pages (`pipeline.store.subjects`).

    Rows have DECISION_SCHEMA's columns and `saw`: {stage: what it knew of the candidate}, in the stages' order, None
    beyond the first TRACED rows, with what a score is among those of its source as `fits`; `leader`: the decision
    about what it is a duplicate of, None if it is not one, or an earlier build's; and `held_by`: the earlier build that
    holds that one, with its dataset, the sample's key and the newest release if that has the build
    (`earlier_samples.Holder`), None for no such build. Raises SpecError for a subject that is too short.
    """
    where, values = subject_of(subject, [build]).where_clause
    with Tables.of(build) as tables:
        decisions = tables.rows(f"SELECT * FROM decisions WHERE {where}", values)  # as decisions are written
        leaders = {row["id"]: row for row in decisions if not row["duplicate_of"]}
        missing = sorted({row["duplicate_of"] for row in decisions if row["duplicate_of"]} - set(leaders))
        if missing:
            more = tables.rows("SELECT * FROM decisions WHERE id IN (SELECT unnest(?::VARCHAR[]))", [missing])
            leaders |= {row["id"]: row for row in more}
    kept = {row["id"] for row in leaders.values() if row["kept"]}
    scored = "curate.score" in build.fingerprints
    scores = pair_scores.summed(build) if scored else {}
    others = {row["duplicate_of"] for row in decisions if row["duplicate_of"]} - kept
    held = earlier_samples.with_drops(build, earlier_samples.holders(build, others))
    explained = []
    for number, row in enumerate(decisions):
        saw = dict(trace(build, row["id"], row["fetch_id"])) if number < MAX_TRACED and row["fetch_id"] else None
        if saw and PAIR_SCORE.name in saw.get("curate", {}):
            saw["curate"]["fits"] = pair_scores.in_words(scores, row["source"], saw["curate"][PAIR_SCORE.name])
        leader = leaders.get(row["duplicate_of"]) if row["duplicate_of"] else None
        holder = held.get(row["duplicate_of"])
        held_by = None if holder is None else dataclasses.asdict(holder)
        explained.append({**row, "saw": saw, "leader": leader, "held_by": held_by})
    return explained


def trace(build: Build, candidate_id: str, fetch_id: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """(stage, what it knew) of one candidate, from extract to the last stage that knew it."""
    key, sha256 = order_key(fetch_id, build.spec.seed), ""
    by_key = {
        "candidate_id": pc.field("candidate_id") == candidate_id,
        "fetch_id": pc.field("fetch_id") == fetch_id,
        "key": pc.field("key") == candidate_id[:KEY_LENGTH],
    }
    for stage in build.stages.values():
        if stage.name in build.fingerprints:
            wanted = by_key | {"sha256": pc.field("sha256") == sha256}  # by the name of the file's key
            saw = dict(_find(stage.main, build.stage(stage.name), key, wanted))
            if saw:
                sha256 = saw.get("sha256") or sha256
                yield stage.name, saw
        if stage.name == "curate" and (notes := _judge_notes(build, key, candidate_id)):
            yield stage.name, notes


def _judge_notes(build: Build, key: str, candidate_id: str) -> dict[str, Any]:
    """Notes of the judges on a pair, by the names of their columns; empty for a candidate that no judge saw."""
    if "curate" not in build.fingerprints:
        return {}
    stage = build.stage(PAIRS)
    for record in records_between(stage, key, key):
        at = pc.index(stage.table(record, columns=["candidate_id"])["candidate_id"], candidate_id).as_py()
        if at >= 0:
            files = [own.name for own in build.stages["curate"].passes[:-1] if own.name in build.passes and own.files]
            aligned = [name for name in files if build.passes[name].files[0].aligned]
            rows = (columns_of(build, name, record.partition).slice(at, 1).to_pylist()[0] for name in aligned)
            return {name: value for row in rows for name, value in row.items() if value not in (None, "", [])}
    return {}


def _find(stage: Pass, directory: StageDir, key: str, wanted: Mapping[str, pc.Expression]) -> Iterator[tuple[str, Any]]:
    """(column, value) of the row that a stage has; (detector, its boxes) where it has one file per detector.

    wanted: by row key, the expression that picks the row.
    """
    if not any(file.row_key for file in stage.files):
        return
    for record in _records(directory, key):
        for file, suffix in _files_with_rows(stage, record):
            picks = wanted[file.row_key]
            if file.row_key == "candidate_id" and file.schema is not None and "order_key" in file.schema.names:
                picks = (pc.field("order_key") == key) & picks  # rows are sorted by it: few row groups are read
            rows = directory.table(record, suffix, filters=picks).slice(0, 1).to_pylist()
            if rows and "scores" in rows[0]:
                scores = [round(score, 3) for score in rows[0]["scores"]]
                yield suffix.removesuffix(".parquet"), f"{len(scores)} boxes, scores {scores[:5]}"
            elif rows:
                yield "partition", record.partition
                for name, value in rows[0].items():
                    if name not in QUERY_COLUMNS and value not in ("", []):
                        yield name, value.hex() if isinstance(value, bytes) else value  # JSON lacks bytes
                return


def _files_with_rows(stage: Pass, record: Record) -> list[tuple[PassFile, str]]:
    """Files of a record that have rows of a candidate, with their suffixes, in the order in which the stage has them:
    the row of the first is what it knew.
    """
    files = [(stage.file(suffix), suffix) for suffix in record.files]
    searched = [(file, suffix) for file, suffix in files if file is not None and file.row_key]
    return sorted(searched, key=lambda found: stage.files.index(found[0]))


def _records(stage: StageDir, key: str) -> Iterator[Record]:
    """Records of a stage: only the one whose range holds the order key, where partitions are such ranges."""
    names = stage.partitions()
    if all(KeyRange.parse(name) for name in names):
        yield from records_between(stage, key, key)
    else:
        yield from (stage.record(name) for name in names)
