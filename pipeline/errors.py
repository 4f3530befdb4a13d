"""Errors of the pipeline. Each carries its subject (a path, URL, key or stage), and its message names it.

    WenlanError                 the work failed; the command line prints one line and exits with 1
    ├── SourceError             a whole source cannot be read (a table is missing, a site answers nothing)
    ├── StageError              a partition of a stage failed for a reason that is not one candidate's
    ├── StoreError              a build folder or STORE is damaged, locked or of a newer version
    ├── DetectorError           a detector cannot be loaded or gives what it must not
    ├── ModelError              the model of a filter is not installed or cannot be loaded
    └── GateError               a gate of the spec holds the build back

A fault of one candidate is no exception: it is a Decision with a DropReason. A faulty spec is a SpecError of
data_specs.build.
"""

from __future__ import annotations


class WenlanError(Exception):
    """The work failed. `subject` is what it failed on."""

    def __init__(self, subject: str, message: str) -> None:
        super().__init__(subject, message)  # both in args: an exception crosses processes by pickle
        self.subject = subject
        self.message = message

    def __str__(self) -> str:
        return f"{self.subject}: {self.message}"


class SourceError(WenlanError):
    """A whole source cannot be read."""


class StageError(WenlanError):
    """A partition of a stage failed."""


class StoreError(WenlanError):
    """A build folder or STORE is damaged, locked or of a newer version."""


class DetectorError(WenlanError):
    """A detector cannot be loaded, or its output breaks the contract."""


class ModelError(WenlanError):
    """The model of a filter is not installed, or cannot be loaded."""


class GateError(WenlanError):
    """A gate of the spec holds the build back."""
