"""Each drill as a test of `make drills`."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.benchmarks.drills import DRILLS
from tests.benchmarks.harness import environment, program

TIMES = 4
"""A drill is killed after about so many times what it takes."""


@pytest.fixture(scope="module")
def kept() -> Iterator[Path]:
    """A folder whose undisturbed build and training are made by the first drill that compares with them."""
    folder = Path(tempfile.mkdtemp(prefix="wd"))  # short: a socket's path holds 107 bytes
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.timeout(0)  # each has its own limit
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.drill(drill.limit_s / TIMES)) for name, drill in DRILLS.items()]
)
def test_a_drill_hits_and_holds(name: str, kept: Path) -> None:
    words = program("drills", "--only", name, "--keep", kept)
    done = subprocess.run(words, env=environment(), capture_output=True, text=True, check=False)
    for lacking in ("no cgroup can be made here", "no libfaketime here", "Local disk is full"):
        if lacking in done.stderr:
            pytest.skip(lacking)
    assert done.returncode == 0, done.stderr[-6000:]
