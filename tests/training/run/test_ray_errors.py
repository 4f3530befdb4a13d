"""An error of ours comes through Ray as it was raised: noted in the run's folder, or dug out of Ray's own error."""

from __future__ import annotations

from pathlib import Path

import pytest

from data_specs.shard import ContractError
from training.errors import CheckpointError, ConfigError, InputError, RunError
from training.run.ray_errors import read_error, root_error, write_error

pytestmark = pytest.mark.usefixtures("one_thread")

OURS = [
    ConfigError("a.b", "no"),
    ContractError("x.tar: cut"),
    CheckpointError("run/step-1", "cut"),
    InputError("vocab.txt", "none"),
    RunError("step 3", "gone"),
]


def wrapped(error: Exception) -> Exception:
    """As Ray raises it in the driver: a class that inherits the error's, whose text is a traceback."""

    class RayTaskError(type(error)):  # type: ignore[misc]
        def __init__(self) -> None:
            self.cause = error
            self.args = (f"Traceback (most recent call last):\n  File x\n{error}",)

        def __str__(self) -> str:
            return str(self.args[0])

    return RayTaskError()


@pytest.mark.parametrize("error", OURS)
def test_an_error_of_a_worker_reaches_the_driver_and_the_first_one_counts(tmp_path: Path, error: Exception) -> None:
    assert read_error(tmp_path) is None
    write_error(tmp_path, error)  # type: ignore[arg-type]
    write_error(tmp_path, RunError("later", "a consequence"))
    there = read_error(tmp_path)
    assert (type(there), str(there)) == (type(error), str(error))


@pytest.mark.parametrize("error", OURS)
def test_an_error_that_ray_wraps_is_dug_out_as_it_was(error: Exception) -> None:
    outer = RuntimeError("Ray Train: a worker failed")
    outer.__cause__ = wrapped(error)
    found = root_error(outer)
    assert (type(found), str(found)) == (type(error), str(error))


def test_an_error_of_a_worker_group_is_that_of_a_worker() -> None:
    failure = RuntimeError("traceback")
    failure.__cause__ = RunError("step 3", "gone")
    group = RuntimeError("1 worker failed")
    group.worker_failures = {0: failure}  # type: ignore[attr-defined]
    assert str(root_error(group)) == "step 3: gone"


def test_an_error_of_rays_own_is_its_last_line() -> None:
    found = root_error(OSError("a page\nof text\nno room"))
    assert (type(found), str(found)) == (RunError, "ray: no room")
