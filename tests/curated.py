"""What judges and the selection left of a build's pairs, for tests of stage curate."""

from __future__ import annotations

from typing import Any

from data_specs.shard import PAIR_SCORE
from pipeline.store.build import Build
from pipeline.store.pairs import PAIRS, SCORES, columns_of, pairs_before, pass_name, survivors


def kept(build: Build) -> list[dict[str, Any]]:
    """Rows of the pairs that go on to detect, in their order."""
    return [row for partition in build.stage(PAIRS).partitions() for row in survivors(build, partition).to_pylist()]


def reached(build: Build, judge: str) -> list[dict[str, Any]]:
    """Rows of the pairs that reach a judge."""
    columns = build.passes[PAIRS].files[0].schema.names
    columns += [PAIR_SCORE.name] if SCORES in build.passes else []
    return [row for p in build.stage(PAIRS).partitions() for row in pairs_before(build, p, judge, columns).to_pylist()]


def dropped(build: Build) -> list[dict[str, Any]]:
    """Decisions of stage curate."""
    stage = build.stage("curate")
    return [row for record in stage.records() for row in stage.table(record, "decisions.parquet").to_pylist()]


def said(build: Build, judge: str) -> dict[str, dict[str, Any]]:
    """What a judge noted of each pair that it was asked about, by the last part of its image's URL."""
    noted = dict[str, dict[str, Any]]()
    pairs = build.stage(PAIRS)
    for partition in pairs.partitions():
        urls = pairs.table(pairs.record(partition), columns=["image_url"])["image_url"].to_pylist()
        rows = columns_of(build, pass_name(judge), partition).to_pylist()
        noted |= {name_of(url): row for url, row in zip(urls, rows, strict=True) if row["reasons"] is not None}
    return noted


def name_of(url: str) -> str:
    """The last part of a URL."""
    return url.rpartition("/")[2]


def table_of(build: Build, name: str, suffix: str = "parquet") -> list[dict[str, Any]]:
    """Rows of a file of all partitions of a pass."""
    stage = build.stage(name)
    return [row for r in stage.records() if suffix in r.files for row in stage.table(r, suffix).to_pylist()]
