"""Two tiny checkpoints of other weights, and the command that embeds by one."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.training.conftest import moved_checkpoint
from training import cli


@pytest.fixture(scope="session")
def checkpoint(checkpoint_with_moved_keys: Path) -> Path:
    """The tiny checkpoint; tests only read it."""
    return checkpoint_with_moved_keys


@pytest.fixture
def moved() -> Callable[..., Path]:
    """moved(folder, *overrides, detector=""): one of other weights, trained on that detector's boxes."""
    return partial(moved_checkpoint, seed=1)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, dict[str, Any], str]]:
    """run(*words): exit code, the object of --json, and stderr."""

    def run(*words: object) -> tuple[int, dict[str, Any], str]:
        code = cli.main(["embed", *map(str, words), "--json"])
        out, err = capsys.readouterr()
        return code, json.loads(out.splitlines()[-1]), err

    return run
