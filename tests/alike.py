"""Builds with semantic dedup by the towers of tests/towered.py, which see the mean colour of a picture and no more."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data_specs.shard import SPLITS
from pipeline.store.build import Build
from tests import towered
from tests.stages import DEDUP, run_stage
from tests.towered import coloured

STAGES = (
    "measure", "filter", *DEDUP, "screen", "score", "choose",
    "vectors", "nearest", "semantic_dedup", "concepts", "balance",
)  # fmt: skip

Shown = tuple[str, tuple[float, float, float], int, str]
"""Name of a picture, its colour, its width, and its text."""


def made(
    fetched_build: Any,
    got: Any,
    folder: Path,
    shown: Sequence[Shown],
    options: dict[str, Any] | None = None,
    stages: Sequence[str] = STAGES,
    **more: Any,
) -> Build:
    """A build of such pictures up to balance; no two are copies. options: of semantic_dedup."""
    images = [
        got(name, coloured(zlib.crc32(name.encode()), *colour, (width, width * 3 // 4)), text)
        for name, colour, width, text in shown
    ]
    section = towered.written(folder / "towers")
    own = {"distance": 0.02, **(options or {})}
    more = {"filters": [], "regions": {"detectors": [{"name": "grid", "n": 2}]}, **more}
    build: Build = fetched_build(images, pair_score=section, semantic_dedup=own, **more)
    run_stage(build, *stages)
    return build


def kept(build: Build, stage: str = "semantic_dedup") -> set[str]:
    """Names of the pictures that a stage hands on."""
    directory = build.stage(stage)
    rows = [
        row
        for record in directory.records()
        for split in SPLITS
        for row in directory.table(record, f"{split}.parquet").to_pylist()
    ]
    return {row["image_url"].rpartition("/")[2] for row in rows}


def dropped(build: Build) -> dict[str, dict[str, Any]]:
    """Decisions of semantic_dedup by name of the picture."""
    stage = build.stage("semantic_dedup")
    rows = [row for record in stage.records() for row in stage.table(record, "decisions.parquet").to_pylist()]
    return {row["url"].rpartition("/")[2]: row for row in rows}


def ids(build: Build) -> dict[str, str]:
    """candidate_id by name of the picture, of all that were scored."""
    stage = build.stage("score")
    tables = [stage.table(record, f"{split}.parquet") for record in stage.records() for split in SPLITS]
    return {r["image_url"].rpartition("/")[2]: r["candidate_id"] for table in tables for r in table.to_pylist()}
