"""The switch to loopback; tests/pipeline/test_cluster.py looks at the ports of a real Ray."""

from __future__ import annotations

import os
import sys
from types import ModuleType

import pytest

from data_specs.command.loopback import on_loopback, start_ray

SWITCH, CONSTANTS = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "ray._private.ray_constants"


@pytest.mark.parametrize("before", [None, "1"])
def test_the_switch_holds_within_the_block_alone(monkeypatch: pytest.MonkeyPatch, before: str | None) -> None:
    monkeypatch.delenv(SWITCH, raising=False)
    if before is not None:
        monkeypatch.setenv(SWITCH, before)
    ray = ModuleType(CONSTANTS)
    ray.ENABLE_RAY_CLUSTER = True  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, CONSTANTS, ray)
    inside = []

    def fails() -> None:
        with on_loopback():
            inside.append((os.environ[SWITCH], ray.ENABLE_RAY_CLUSTER))
            raise RuntimeError("did not start")

    with pytest.raises(RuntimeError, match="did not start"):
        fails()
    assert inside == [("0", False)]
    assert (os.environ.get(SWITCH), ray.ENABLE_RAY_CLUSTER) == (before, True)


def test_a_ray_that_is_not_imported_yet_needs_the_variable_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, CONSTANTS, raising=False)
    with on_loopback():
        assert os.environ[SWITCH] == "0"
    assert SWITCH not in os.environ


@pytest.mark.parametrize("failures", [2, 3])
def test_a_ray_that_does_not_come_up_is_started_again_and_is_one_line_in_the_end(failures: int) -> None:
    """Ray's processes have a fixed time to come up, which a busy machine may not give them."""
    tried: list[tuple[str | None, dict[str, int]]] = []

    class Ray:
        def init(self, _: str, **options: int) -> None:
            tried.append((os.environ.get(SWITCH), options))
            if len(tried) <= failures:
                raise Exception("The current node timed out during startup.\nMore lines.")

        def shutdown(self) -> None:
            raise RuntimeError("there is nothing to shut down")

    if failures == 2:
        start_ray(Ray(), num_cpus=2)
    else:
        said = r"^could not be started on this machine \(The current node timed out during startup\.\)$"
        with pytest.raises(RuntimeError, match=said):
            start_ray(Ray(), num_cpus=2)
    assert tried == [("0", {"num_cpus": 2})] * 3
