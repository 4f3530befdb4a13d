"""Two tiny checkpoints of other weights."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from tests.training.conftest import moved_checkpoint


@pytest.fixture(scope="session")
def checkpoint(checkpoint_with_moved_keys: Path) -> Path:
    """The tiny checkpoint; tests only read it."""
    return checkpoint_with_moved_keys


@pytest.fixture
def moved() -> Callable[..., Path]:
    """moved(folder, *overrides, detector=""): one of other weights, trained on that detector's boxes."""
    return partial(moved_checkpoint, seed=1)
