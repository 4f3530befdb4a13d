"""Errors of wenlan: one root class; every message is one line that names its subject.

    WenlanError                 a command prints its line, without a traceback, and exits with 1
    ├── ContractError           a shard folder breaks the contract (`data_specs.shard`); a ValueError
    ├── SpecError               a faulty spec, one line per fault; exits with 2; a ValueError
    ├── StorageError            an object store does not answer, or refuses (`data_specs.storage`); an OSError
    ├── PipelineError           a build, its sources, STORE (`pipeline.errors`)
    └── TrainingError           a run, a checkpoint, an input of a command (`training.errors`)

A fault of one candidate, sample or row raises none of these: it is a Decision, or counted, and the work goes on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


class WenlanError(Exception):
    """The work failed; `str(e)` is one line: the subject, the problem, and what to do."""


class ContractError(WenlanError, ValueError):
    """A shard folder, manifest or member violates the contract. The message names the file or the key."""


class SpecError(WenlanError, ValueError):
    """A spec cannot be used. `problems`: one line per fault, `demo.yaml: filters[0].min_char: unknown option ...`."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = tuple(problems)

    def __reduce__(self) -> tuple[type[SpecError], tuple[tuple[str, ...]]]:
        return type(self), (self.problems,)  # an exception crosses processes by pickle
