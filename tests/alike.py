"""Builds with semantic dedup by the towers of tests/towered.py, which see the mean colour of a picture and no more."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.store.build import Build
from tests import curated, towered
from tests.stages import run_stage
from tests.towered import coloured

STAGES = ("measure", "filter", "dedup", "curate")

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
    """A build of such pictures up to curate; no two are copies. options: of semantic_dedup."""
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


def kept(build: Build) -> set[str]:
    """Names of the pictures that go on to detect."""
    return {curated.name_of(row["image_url"]) for row in curated.kept(build)}


def dropped(build: Build) -> dict[str, dict[str, Any]]:
    """Decisions of stage curate by name of the picture."""
    return {curated.name_of(row["url"]): row for row in curated.dropped(build)}


def ids(build: Build) -> dict[str, str]:
    """candidate_id by name of the picture, of all that were scored."""
    return {curated.name_of(row["image_url"]): row["candidate_id"] for row in curated.reached(build, "pair_score")}
