"""Parser failures on untrusted pages, robots.txt, headers and rows become Decisions and do not stop a build.

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
