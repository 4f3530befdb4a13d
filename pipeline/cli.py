"""`wenlan-data`: the command line of the pipeline. Assembles the parser and runs one command.

The commands are in `pipeline.commands`: `plan`, `builds` (work on one build), `datasets` (what a build publishes),
`releases` (of a dataset) and `store` (upkeep of STORE). Human output goes to stderr (`pipeline.commands.terminal`).
With --json the last line of stdout is one JSON object, also of a command that fails (`data_specs.command.answers`).
Exit code 0: done; 1: the work failed, each fault named; 2: bad usage or spec; 130: interrupted.
"""

from __future__ import annotations

import argparse
import atexit
import gc
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Any

from data_specs.command import answers
from data_specs.command.command_line import Parser, UsageError, VersionAction, complete
from data_specs.command.extras import missing_line
from data_specs.command.ownership import check_ownership
from data_specs.command.printable import printable, printable_line
from data_specs.errors import SpecError, WenlanError
from data_specs.storage.credentials import credentials_in
from pipeline.commands import (
    builds,
    datasets,
    init,
    plan,
    plugins,
    releases,
    schema,
    store,
    studio,
    trials,
)
from pipeline.processes import observe
from pipeline.urls import shown

COMMANDS = (
    init.add_init,
    plan.add_plan,
    builds.add_build,
    trials.add_try,
    datasets.add_publish,
    builds.add_status,
    builds.add_report,
    builds.add_explain,
    studio.add_studio,
    datasets.add_verify,
    datasets.add_diff,
    releases.add_release,
    store.add_forget,
    store.add_gc,
    store.add_regions,
    store.add_store,
    datasets.add_export,
    plugins.add_plugins,
    schema.add_schema,
)
"""Adds each command to the parser, in the order of the help."""

EXAMPLES = (
    "wenlan-data init --from photos/",
    "wenlan-data plan my-first.yaml",
    "wenlan-data build my-first.yaml --out builds/1 --store store",
    "wenlan-data verify builds/1",
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    words = sys.argv[1:] if argv is None else argv
    as_json = answers.wants_json(words)
    if keyed := credentials_in(" ".join(words)):  # before anything repeats it
        return _fail(keyed, 2, as_json)
    try:
        parser = _parser()
        complete(parser)
        args = parser.parse_args(words)
    except UsageError as e:
        print(printable(str(e)), file=sys.stderr)
        return _print_failure(str(e), 2, as_json)
    os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "4")  # else each thread of NumPy spins for 0.1 s
    # A command imports 800 modules, none of which is garbage: Python's threshold of 700 objects and the collections of
    # an interpreter that ends took a fifth of `plan`.
    gc.set_threshold(10_000)
    atexit.register(gc.freeze)
    from data_specs.storage import object_store
    from pipeline.processes.without_pandas import arrow_without_pandas

    observe.log_as(observe.form())
    if problem := check_ownership():
        return _fail(problem, 2, as_json)
    arrow_without_pandas()
    try:
        result: dict[str, Any] = args.run(args)
    except SpecError as e:
        return _fail(str(e), 2, as_json)
    except WenlanError as e:
        return _fail(str(e), 1, as_json)
    except OSError as e:  # a folder that may not be written, a disk that fails: nothing that a traceback would explain
        if answers.has_reader_left(e):
            return answers.READER_LEFT
        return _fail(f"{e.filename or type(e).__name__}: {e.strerror or e}", 1, as_json)
    except object_store.client_errors() as e:
        return _fail(f"{args.command}: {object_store.reason(e)}", 1, as_json)
    except ImportError as e:
        line = missing_line(e, f"wenlan-data {args.command}", "pipeline")
        if line is None:
            raise
        return _fail(line, 2, as_json, prefix="")
    except KeyboardInterrupt:
        return _fail("interrupted; run the same command again to resume", 130, as_json)
    except Exception as e:  # a fault of ours: its traceback is for people, who may see no password of a URL in it
        print(printable(shown(traceback.format_exc())), file=sys.stderr, end="")
        return _print_failure(f"{type(e).__name__}: {e}", 1, as_json)
    if as_json:
        print(shown(answers.answer(result)))
    return 0 if result.get("ok", True) else 1


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="wenlan-data", description="Build Chinese image-text datasets.", examples=EXAMPLES)
    parser.add_argument("--version", action=VersionAction)
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="command")
    for add in COMMANDS:
        add(commands)
    return parser


def _fail(message: str, code: int, as_json: bool, prefix: str = "wenlan-data: ") -> int:
    for line in shown(message).splitlines():
        print(printable_line(f"{prefix}{line}"), file=sys.stderr)
    return _print_failure(message, code, as_json)


def _print_failure(message: str, code: int, as_json: bool) -> int:
    if as_json:
        print(shown(answers.failure(message, code)))
    return code
