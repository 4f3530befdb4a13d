"""The stages of a build, one file each, in the order in which a candidate meets them.

To add one: write `pipeline/stages/<name>.py`, which ends with `STAGE = Stage(...)`, and add its line to ORDER.
A file `_*.py` is a helper of a stage.

STAGES is made when it is first asked for: the process that reads odd pages (`_page_candidates`) needs one helper of one
stage, and imports half as much without the others.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.store.build import Stage

ORDER = ("crawl", "extract", "admit", "fetch", "measure", "filter", "dedup", "curate", "detect", "shard", "report")
"""The names of all stages. This is the order of a build."""

STAGES: dict[str, Stage]
"""Every stage by its name, in this order."""


def __getattr__(name: str) -> Any:
    if name != "STAGES":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    stages: dict[str, Stage] = {}
    for file in ORDER:
        stage: Stage = importlib.import_module(f"{__name__}.{file}").STAGE
        stages[stage.name] = stage
    globals()[name] = stages
    return stages
