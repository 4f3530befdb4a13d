"""An embedded Ray that listens on loopback only and starts only the services that one machine needs.

A client that reaches its GCS, raylet or workers can run commands.

`ray.init` lacks an option for it. Given `_node_ip_address="127.0.0.1"`, Ray on Linux takes the address of the host's
network instead (`resolve_ip_for_localhost`), and its processes listen on every interface: seen with Ray 2.60, where a
token protects them; an older Ray lacks it. On macOS and Windows a local Ray binds to loopback, so that no firewall
asks. The switch between the two is one variable, read when Ray is imported, and by each of Ray's processes.

Both halves start a Ray, and neither may import the other: hence this place. Ray itself is imported by the caller.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import ModuleType
from typing import Any

LOG = logging.getLogger(__name__)

START_TRIES = 3
"""Number of starts of an embedded Ray before its user gives up."""

_SWITCH = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
_CONSTANTS, _NAME = "ray._private.ray_constants", "ENABLE_RAY_CLUSTER"
_NODE, _DASHBOARD_PACKAGES = "ray._private.node", "ray.dashboard.optional_deps"


@contextmanager
def on_loopback() -> Iterator[None]:
    """Within the block a Ray that starts here binds to 127.0.0.1; `import ray` comes before it.

    Afterwards everything is as before, so that the same process can join a cluster of the network. A later Ray without
    the switch starts as it likes: a test looks at the ports of a real one.
    """
    before, constants = os.environ.get(_SWITCH), sys.modules.get(_CONSTANTS)
    was = getattr(constants, _NAME, None)
    os.environ[_SWITCH] = "0"
    if was is not None:
        setattr(constants, _NAME, False)
    try:
        yield
    finally:
        if was is not None:
            setattr(constants, _NAME, was)
        if before is None:
            del os.environ[_SWITCH]
        else:
            os.environ[_SWITCH] = before


@contextmanager
def without_servers() -> Iterator[None]:
    """Within the block a Ray that starts here starts neither its autoscaler nor the server of its dashboard.

    One machine does not scale, and with `include_dashboard=False` that server does nothing but report usage: two
    processes of Python, 2 of the 5 s of CPU that Ray takes to start. `ray.init` lacks an option for either. Neither
    does this process import what that server would need, 230 modules, only to see that it could. A later Ray without
    these names starts as it likes.
    """
    node = getattr(sys.modules.get(_NODE), "Node", None)
    before = {name: getattr(node, name) for name in ("start_monitor", "start_api_server") if hasattr(node, name)}
    for name in before:
        setattr(node, name, lambda *_, **__: None)
    stub = ModuleType(_DASHBOARD_PACKAGES)
    sys.modules.setdefault(_DASHBOARD_PACKAGES, stub)
    try:
        yield
    finally:
        if sys.modules.get(_DASHBOARD_PACKAGES) is stub:
            del sys.modules[_DASHBOARD_PACKAGES]
        for name, method in before.items():
            setattr(node, name, method)


def start_ray(ray: Any, **options: Any) -> None:
    """Start a Ray of this machine alone, with options of `ray.init`. Raises RuntimeError with one line.

    Ray gives each of its processes a fixed time to come up, and raises a bare Exception when a busy machine takes
    longer (https://github.com/ray-project/ray/issues/65983): so it is asked again.
    """
    for tries in range(START_TRIES):
        try:
            with on_loopback(), without_servers():
                ray.init("local", **options)  # "local": a cluster that someone else runs on this machine is not ours
            return
        except Exception as e:
            with suppress(Exception):
                ray.shutdown()
            why = next(iter(str(e).splitlines()), type(e).__name__)
            LOG.warning("Ray did not start (%d of %d): %s", tries + 1, START_TRIES, why)
    raise RuntimeError(f"could not be started on this machine ({why})")
