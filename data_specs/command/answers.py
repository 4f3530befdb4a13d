"""Output of both command lines for programs: with --json, one JSON object as the last line of stdout, always.

A command that fails, or is called wrongly, prints `{"ok": false, "error": MESSAGE, "code": EXIT_CODE}`; every other one
its result and `"ok": true`. Help prints no JSON.
"""

from __future__ import annotations

import json
import os
import select
import sys
from collections.abc import Sequence
from typing import Any

from data_specs.command.printable import printable_json


def wants_json(words: Sequence[str]) -> bool:
    """True if --json, or an abbreviation that argparse accepts, is among the arguments, even of an invalid command."""
    return any(len(word) > 2 and "--json".startswith(word) for word in words)


READER_LEFT = 141
"""Exit code of a command whose stdout is no longer read, as a shell has it (128 + SIGPIPE)."""


def has_reader_left(error: OSError) -> bool:
    """True if an error says that stdout is no longer read, as behind `| head`; from then on it leads nowhere."""
    if not isinstance(error, BrokenPipeError):
        return False
    stdout, poll = sys.stdout.fileno(), select.poll()
    poll.register(stdout, 0)  # errors are reported without being asked for
    if not poll.poll(0):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), stdout)  # else Python fails once more at its end
    return True


def answer(result: dict[str, Any]) -> str:
    """The JSON line of a finished command; keeps the result's own "ok", if it has one."""
    return to_json({"ok": True, **result})


def failure(error: str, code: int) -> str:
    """The JSON line of a failed command."""
    return to_json({"ok": False, "error": error, "code": code})


def to_json(value: Any, indent: int | None = None) -> str:
    """JSON of a value, in ASCII if stdout's encoding lacks a character."""
    text = printable_json(json.dumps(value, ensure_ascii=False, indent=indent))
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        return json.dumps(value, indent=indent)
    return text
