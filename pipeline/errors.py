"""Errors of the pipeline, below the root `data_specs.errors.WenlanError`; each names its subject.

    PipelineError               the work failed; the command line prints one line and exits with 1
    ├── SourceError             a whole source cannot be read (a table is missing, a site does not answer)
    │   └── BrokenFile          one file of it cannot, because of its content; of several files that is a Decision
    ├── StageError              a partition of a stage failed for a reason that is not a single candidate's
    ├── StoreError              a build folder or STORE is damaged, locked or of a newer version
    ├── DetectorError           a detector cannot be loaded, or its output breaks the contract
    ├── ModelError              the model of a filter is not installed, or cannot be loaded
    ├── GateError               a gate of the spec holds the build back
    │   └── ApprovalError       all gates hold, and the spec requires that a person publishes
    └── NothingNew              a build found nothing that its dataset does not hold: no failure, exits with 0

A fault of a single candidate raises nothing: it is a Decision with a DropReason, and the build goes on. Bytes that are
not a picture are a `pipeline.pictures.decode.PictureError`, which becomes such a Decision.

Parser failures on untrusted pages, robots.txt, headers and rows become Decisions and do not stop a build.

No parser that reads what strangers wrote is without faults, ours included. A stage therefore takes each page or row in
one place, and there whatever is raised becomes a Decision of the reason `unreadable` with the evidence that `evidence`
returns: the class of the exception and its first line. The traceback is logged once per kind of exception and process,
since one fault of ours may hit every page; that such a build is not published is a gate (`publish.max_unreadable`).

What is raised for other reasons than the page or row is in OURS and goes on upwards: the work has failed.
"""

from __future__ import annotations

import logging
import sqlite3
import traceback

from data_specs.errors import WenlanError
from pipeline.urls import shown


class PipelineError(WenlanError):
    """The work failed. `subject` names what it failed on, without passwords; `str(e)` is "subject: message"."""

    def __init__(self, subject: str, message: str) -> None:
        subject, message = shown(subject), shown(message)
        super().__init__(subject, message)  # both, since pickle, by which errors leave a worker, calls cls(*args)
        self.subject = subject
        self.message = message

    def __str__(self) -> str:
        return f"{self.subject}: {self.message}"


class SourceError(PipelineError):
    """A whole source cannot be read."""


class BrokenFile(SourceError):
    """A file of a source cannot be read, and its content is the cause: it is empty, cut off, or of another format.

    read: bytes of it that were read before.
    """

    def __init__(self, subject: str, message: str, read: int = 0) -> None:
        super().__init__(subject, message)
        self.args, self.read = (subject, message, read), read


class StageError(PipelineError):
    """A partition of a stage failed for a reason that is not a single candidate's."""


class StoreError(PipelineError):
    """A build folder or STORE is damaged, locked or of a newer version."""


class DetectorError(PipelineError):
    """A detector cannot be loaded, or its output breaks the contract."""


class ModelError(PipelineError):
    """The model of a filter is not installed, or cannot be loaded."""


class GateError(PipelineError):
    """A gate of the spec holds the build back."""


class ApprovalError(GateError):
    """All gates hold, and the spec requires that a person publishes."""


class NothingNew(PipelineError):
    """A build found nothing that its dataset does not hold. It is done, and there is nothing to publish."""


OURS = (WenlanError, OSError, sqlite3.Error)
"""Errors that no page or row causes: those of the work itself, a full disk, damaged state on disk."""

MAX_EVIDENCE = 300
"""Characters of the evidence."""

log = logging.getLogger("wenlan")
_logged: set[tuple[str, str]] = set()  # (class, place) of what was logged with its traceback


def evidence(error: Exception, subject: str) -> str:
    """`TypeError: 'NoneType' object is not subscriptable`: what a parser raised, on one line; logs it.

    subject: the page, row or file that was read. Two exceptions are of one kind if their class and the line that
    raised them are the same.
    """
    name = type(error).__name__
    lines = str(error).splitlines()
    shown = f"{name}: {lines[0]}"[:MAX_EVIDENCE] if lines else name
    frames = traceback.extract_tb(error.__traceback__)
    kind = (name, f"{frames[-1].filename}:{frames[-1].lineno}" if frames else "")
    if kind not in _logged:
        _logged.add(kind)
        # as text, not as `exc_info`: what strangers wrote may hold half characters, which no log file or pipe takes
        trace = _without_surrogates("".join(traceback.format_exception(error)))
        log.warning(
            "%s is unreadable; further errors of this kind are not logged\n%s", _without_surrogates(subject), trace
        )
    return _without_surrogates(shown)


def _without_surrogates(text: str) -> str:
    """The text with half characters (lone surrogates) replaced, so that it can be encoded."""
    return text.encode("utf-8", "replace").decode()
