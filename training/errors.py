"""Errors of `training`. Each carries its subject, and its message is one line that begins with it.

    ValueError
      ConfigError      bad usage: an unknown recipe, key or value, weights that are not there      exit 2
    RuntimeError
      TrainingError    the work failed: corrupt data, a foreign checkpoint, a run that collapsed   exit 1

Why two trees: a command line maps the first to exit 2 and the second to exit 1, and nothing else to either.
"""

from __future__ import annotations


class ConfigError(ValueError):
    """The configuration is wrong. `subject` is the key, recipe or file that is."""

    def __init__(self, subject: str, problem: str) -> None:
        super().__init__(f"{subject}: {problem}")
        self.subject = subject
        self.problem = problem

    def __reduce__(self) -> tuple[type[ConfigError], tuple[str, str]]:
        return type(self), (self.subject, self.problem)  # errors cross process borders (loader workers, Ray)


class TrainingError(RuntimeError):
    """The work failed. `subject` is the file, key or step at which it did."""

    def __init__(self, subject: str, problem: str) -> None:
        super().__init__(f"{subject}: {problem}")
        self.subject = subject
        self.problem = problem

    def __reduce__(self) -> tuple[type[TrainingError], tuple[str, str]]:
        return type(self), (self.subject, self.problem)
