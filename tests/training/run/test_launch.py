"""One run writes into a folder at a time."""

from __future__ import annotations

from pathlib import Path

import pytest

from training.errors import RunError
from training.run.launch import owned

pytestmark = pytest.mark.usefixtures("one_thread")


def test_only_one_run_writes_into_a_folder(tmp_path: Path) -> None:
    with owned(tmp_path), pytest.raises(RunError, match="another run writes into it"), owned(tmp_path, wait=0):
        pass
    with owned(tmp_path, wait=0):
        pass
