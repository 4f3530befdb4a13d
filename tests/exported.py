"""A tiny checkpoint and its ONNX towers, exported once for all processes that run tests: tracing them costs seconds."""

from __future__ import annotations

import contextlib
import fcntl
import io
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest


@dataclass(frozen=True, slots=True)
class Exported:
    """What tests read and do not change: `run`, m.image.onnx and m.text.onnx in a folder.

    `said` and `written`: stderr of the command and the object of its --json.
    """

    folder: Path
    said: str
    written: dict[str, Any]

    @property
    def checkpoint(self) -> Path:
        return self.folder / "run"


def once(factory: pytest.TempPathFactory) -> Exported:
    """The towers that another process of these tests has exported, or else those that this one exports now."""
    base = factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "exported"
    folder.mkdir(exist_ok=True)
    done = folder / "said.json"
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            done.write_text(json.dumps(_export(folder)), encoding="utf-8")
    return Exported(folder, *json.loads(done.read_text(encoding="utf-8")))


def _export(folder: Path) -> tuple[str, dict[str, Any]]:
    """What the command that fills the folder says."""
    from tests.training.conftest import moved_checkpoint
    from training import cli

    checkpoint = moved_checkpoint(folder / "run", detector="grid")
    words = ["export", checkpoint, "--to", "onnx", "--out", folder / "m.onnx", "--json"]
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as said:
        code = cli.main([*map(str, words)])
    assert code == 0, said.getvalue()
    return said.getvalue(), json.loads(out.getvalue())
