"""wenlan-train: fit, fit-captioner, eval, caption, embed, search, serve, export and import-brivl on the command line.

stdout carries results only; with `--json` its last line is one JSON object, also of a command that fails
(`data_specs.command.answers`); of several ranks the first prints it. Everything for people goes to stderr.
Exit 0 done; 1 the work failed (corrupt data, a foreign checkpoint); 2 bad usage or configuration; 130 interrupted.

Limits: torch and the rest are imported inside the commands, so that `--help` and usage errors are quick.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from data_specs.command import answers
from data_specs.command.command_line import Parser, UsageError, VersionAction, complete
from data_specs.command.extras import missing_line
from data_specs.command.ownership import check_ownership
from data_specs.command.printable import printable, printable_line
from data_specs.errors import WenlanError
from data_specs.storage.credentials import credentials_in
from training.commands.captions import add_caption, add_fit_captioner
from training.commands.conversion import add_export, add_import, add_import_transformers
from training.commands.embed import add_embed
from training.commands.evaluate import add_calibrate, add_eval
from training.commands.fit import add_fit
from training.commands.options import first_rank
from training.commands.search import add_search
from training.commands.serve import add_serve
from training.errors import ConfigError, FirstRankError

LOG = logging.getLogger("training")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    words = sys.argv[1:] if argv is None else argv
    as_json = answers.wants_json(words) and first_rank()
    if problem := credentials_in(" ".join(words)):  # before anything repeats it
        _log_to_stderr()
        return _fail(problem, 2, as_json)
    try:
        parser = _parser()
        complete(parser)
        arguments = parser.parse_args(words)
    except UsageError as e:
        print(printable(str(e)), file=sys.stderr)
        return _failed(str(e), 2, as_json)
    os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "4")  # else each thread of NumPy spins for 0.1 s
    from data_specs.storage import object_store

    _log_to_stderr()
    foreign = check_ownership()
    if foreign is not None:
        return _fail(foreign, 2, as_json)
    try:
        with _fetched_checkpoints(arguments):
            result: dict[str, Any] = arguments.run(arguments)
    except ConfigError as e:
        return _fail(str(e), 2, as_json)
    except FirstRankError:
        return 1
    except WenlanError as e:
        return _fail(str(e), 1, as_json)
    except OSError as e:
        if answers.has_reader_left(e):
            return answers.READER_LEFT
        return _fail(f"{e.filename or 'input/output'}: {e.strerror or e}", 1, as_json)
    except object_store.client_errors() as e:
        return _fail(f"{arguments.command}: {object_store.reason(e)}", 1, as_json)
    except ImportError as e:
        line = missing_line(e, f"wenlan-train {arguments.command}", "training")
        if line is None:
            raise
        print(line, file=sys.stderr)
        return _failed(line, 2, as_json)
    except KeyboardInterrupt:
        return _fail(_interrupted(arguments), 130, as_json)
    except Exception as e:  # a fault of ours: its traceback is for people, programs still get their line
        _failed(f"{type(e).__name__}: {e}", 1, as_json)
        raise
    if as_json:
        print(answers.answer(result))
    return 0


def _interrupted(arguments: argparse.Namespace) -> str:
    """State that an interrupted command leaves behind."""
    command = arguments.command
    if command == "embed" and arguments.index is not None:
        return "interrupted; run the same command to resume"
    if not command.startswith("fit") or getattr(arguments, "dry_run", False) or arguments.out is None:
        return "interrupted"
    if any(Path(arguments.out).glob("checkpoints/step-*")):
        return "interrupted; run the same command to resume from the last checkpoint"
    return "interrupted before the first checkpoint (run.checkpoint_every); the same command starts over"


def _fail(message: str, code: int, as_json: bool) -> int:
    LOG.error("%s", message)
    return _failed(message, code, as_json)


def _failed(message: str, code: int, as_json: bool) -> int:
    if as_json:
        print(answers.failure(message, code))
    return code


_WRITTEN = frozenset({"out", "cache", "index", "region_cache", "report"})
_READ = frozenset({"regions", "texts", "jsonl", "tensors", "file", "labels", "classes", "templates", "folder", "image"})
"""Arguments that must be paths on a local disk."""


@contextlib.contextmanager
def _fetched_checkpoints(arguments: argparse.Namespace) -> Iterator[None]:
    """Give the command paths: checkpoints behind URLs are fetched for as long as it runs. Raises ConfigError."""
    with contextlib.ExitStack() as stack:
        for name, value in vars(arguments).items():
            if not isinstance(value, str) or "://" not in value:
                continue
            if name in _WRITTEN | _READ:
                option = name if name in ("file", "folder") else f"--{name.replace('_', '-')}"
                todo = "give a path, then copy it there" if name in _WRITTEN else "copy it, and give its path"
                if arguments.command == "fit" and name == "out":
                    todo = "give a path, and set run.mirror to this URL"
                raise ConfigError(option, f"{value}: must be on a local disk; {todo}")
            if name == "init" and arguments.workers is not None:
                raise ConfigError(
                    "--init", f"{value}: with --workers it must be a folder that all machines share; copy it"
                )
            if name == "checkpoint" and arguments.command == "calibrate":
                raise ConfigError(
                    name, f"{value}: must be on a local disk, since it is changed; copy it and give its path"
                )
            if name in ("checkpoint", "init"):
                from training.outputs.saver import local_checkpoint

                setattr(arguments, name, stack.enter_context(local_checkpoint(value)))
        yield


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="wenlan-train",
        description="Pre-train BriVL on a wenlan dataset, evaluate it and use it.",
        examples=[
            "wenlan-train fit --data builds/1 --out runs/1",
            "wenlan-train eval runs/1 --data builds/1 --task retrieval",
        ],
    )
    parser.add_argument("--version", action=VersionAction)
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="command")
    add_fit(commands)
    add_fit_captioner(commands)
    add_eval(commands)
    add_caption(commands)
    add_embed(commands)
    add_search(commands)
    add_serve(commands)
    add_calibrate(commands)
    add_export(commands)
    add_import(commands)
    add_import_transformers(commands)
    return parser


class _Stderr(logging.StreamHandler):  # type: ignore[type-arg]
    """Writes to what sys.stderr is at the time, so that lines go above a progress bar and not through it."""

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)


class _OneLine(logging.Formatter):
    """One line per record; an error names the command that it comes from."""

    def format(self, record: logging.LogRecord) -> str:
        line = printable_line(" ".join(record.getMessage().splitlines()))
        return f"wenlan-train: {line}" if record.levelno >= logging.ERROR else line


def _log_to_stderr() -> None:
    handler = _Stderr(sys.stderr)
    handler.setFormatter(_OneLine())
    LOG.handlers[:] = [handler]
    LOG.setLevel(logging.INFO if first_rank() else logging.WARNING)
    LOG.propagate = False
