"""Errors of Ray workers: Ray wraps the exceptions of a worker and may restart it.

A worker notes an error of ours in the run's folder before it raises it (`write_error`); a restarted worker and the
driver, find it there (`read_error`). An error that was not noted is dug out of Ray's (`root_error`).

Limits: the first note of a run counts; the driver removes it before a run begins.
"""

from __future__ import annotations

import json
from pathlib import Path

from data_specs.errors import WenlanError
from data_specs.shard import ContractError
from data_specs.storage.object_store import StorageError
from training.errors import CheckpointError, ConfigError, InputError, RunError, TrainingError

NOTE = "failed.json"

_KINDS = {kind.__name__: kind for kind in (ConfigError, CheckpointError, InputError, RunError, ContractError)}
"""Kinds that are known by name, a kind before the one that it is derived from."""


def write_error(out: Path, error: WenlanError) -> None:
    """Write an error of ours into the folder `out` for the driver; the first one only."""
    kind, words = _kind_and_arguments(error)
    try:
        with (out / NOTE).open("x", encoding="utf-8") as file:
            json.dump({"kind": kind, "said": words}, file)
    except FileExistsError:
        return


def read_error(out: Path) -> Exception | None:
    """The error that a worker wrote into the folder `out`, or None."""
    try:
        written = json.loads((out / NOTE).read_text(encoding="utf-8"))
        return _KINDS[written["kind"]](*written["said"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def root_error(error: Exception) -> Exception:
    """The error of ours that a worker raised, or a RunError with the last line of Ray's."""
    failures = getattr(error, "worker_failures", {})
    for failure in [*failures.values(), error]:
        link: BaseException | None = failure
        while link is not None:
            inner = getattr(link, "cause", None)
            if isinstance(inner, WenlanError):
                link = inner
            if isinstance(link, WenlanError):
                kind, words = _kind_and_arguments(link)
                return _KINDS[kind](*words)
            link = link.__cause__ or link.__context__
    return RunError("ray", (str(error).strip().splitlines() or [type(error).__name__])[-1])


def _kind_and_arguments(error: WenlanError) -> tuple[str, list[str]]:
    """Kind and arguments of an error. Ray makes a class that inherits ours and whose text has a traceback in it."""
    if isinstance(error, TrainingError):
        return next(name for name, kind in _KINDS.items() if isinstance(error, kind)), [error.subject, error.problem]
    said = error if isinstance(error, StorageError) or not error.args else error.args[0]
    return ContractError.__name__, [str(said).splitlines()[-1]]
