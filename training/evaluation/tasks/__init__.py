"""Tasks that a checkpoint is evaluated on: one file each, whose name is the task's (`zero_shot.py` is `zero-shot`).

A task's file ends in `TASK = Task(run, summary)`. `run` returns a result: JSON values with at least

    task, checkpoint, protocol      what was measured, and how: `protocol["line"]` says it in one line
    headline, in_train              which figures count, and how many queries stand in the train split (None: unknown)
    examples                        single queries, hits and misses, if the request asks for pictures (examples.py)

and the figures in keys of its own; `summary` says them in lines for people.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the command line reads this file at its start, for the names
    from training.evaluation.labelled import EvaluationData
    from training.evaluation.results import Result
    from training.weights.load import Towers

TASKS = ("retrieval", "zero-shot", "regions")
"""Names of the tasks, as `--task` takes them."""

MIN_SCORE = 0.5
"""Score of a detector below which its box does not count as true, unless `--min-score` says otherwise."""


@dataclass(frozen=True)
class Request:
    """One requested evaluation.

    pictures: with single queries as examples, for the page. regions: boxes of a benchmark, by sha256; retrieval only.
    """

    checkpoint: Path
    source: EvaluationData
    split: str
    detector: str = ""
    device: str = "auto"
    towers: Towers = "query"
    templates: Path | None = None
    min_score: float = MIN_SCORE
    pictures: bool = False
    regions: Path | None = None


@dataclass(frozen=True)
class Task:
    """A task: `run` measures, `summary` says the result in lines, the headline first."""

    run: Callable[[Request], Result]
    summary: Callable[[Mapping[str, Any]], list[str]]


def task(name: str) -> Task:
    found: Task = importlib.import_module(f"{__name__}.{name.replace('-', '_')}").TASK
    return found
