"""Errors of the trainer, below the root `data_specs.errors.WenlanError`; each names its subject.

    TrainingError                 the work failed; the command line prints one line and exits with 1
    ├── ConfigError               bad usage: a recipe, key or value, weights that are not there; exit 2
    ├── InputError                what a command was given cannot be used: vocabulary, rows, boxes, arrays, texts
    │   └── CheckpointError       a checkpoint is damaged, foreign, of a newer version, or of another model
    └── RunError                  a run cannot begin or go on: memory, its folder, its gradients, its data's quality
        └── FirstRankError        the same on the other ranks: the first rank prints the line

What breaks the shard contract is a ContractError of data_specs.shard. A sample that cannot be decoded, and a released
row that cannot be read, are not exceptions: they are counted, named in the log, and left out.
"""

from __future__ import annotations

from data_specs.errors import WenlanError


def first_line(error: BaseException) -> str:
    """The first line of an exception's message, or its type if that is empty."""
    return (str(error).splitlines() or [""])[0] or type(error).__name__


class TrainingError(WenlanError):
    """The work failed. `subject` is the key, file, recipe or step that it failed on; `problem` says how."""

    def __init__(self, subject: str, problem: str) -> None:
        super().__init__(subject, problem)  # both in args: errors cross processes by pickle (loader workers, Ray)
        self.subject = subject
        self.problem = problem

    def __str__(self) -> str:
        return f"{self.subject}: {self.problem}"


class ConfigError(TrainingError):
    """The command or the configuration is wrong. `subject` is the key, recipe, option or file at fault."""


class InputError(TrainingError):
    """An input of a command cannot be used."""


class CheckpointError(InputError):
    """A checkpoint, ours or a released one, cannot be used."""


class RunError(TrainingError):
    """A run cannot start or continue."""


class FirstRankError(RunError):
    """Error that stopped all ranks, raised on the ranks that do not print it."""
