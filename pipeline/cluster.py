"""The Ray executor: runs the partitions of a stage as tasks on a cluster, or on a Ray of our own on this machine.

Ray starts when the first partition is to run, so that a build in which everything is done never waits for it. Without
an address (or RAY_ADDRESS) an embedded Ray starts on this machine, bound to loopback, and ends with the build, also
where the build is killed (`pipeline.watchdog`).

This module knows a stage by its name, its function and what its tasks ask of the cluster, never by import: the page
(`pipeline.run`) hands these in. Objects that live on a cluster beside the tasks are `pipeline.actors`.

Limits: at most two tasks per CPU are in flight, so the driver holds that many references and the names that wait. A
task whose worker dies is tried twice more; what is committed stays whatever happens.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from data_specs.loopback import on_loopback
from pipeline import observe
from pipeline.errors import StageError, WenlanError
from pipeline.pulse import pulse
from pipeline.store.build import Build
from pipeline.store.partitions import timed
from pipeline.watchdog import Watchdog

log = logging.getLogger("wenlan")

RunPartition = Callable[[Build, str], None]
"""Does one partition of a stage and commits it: (build, partition)."""

Resources = dict[str, float]
"""What a task asks of the cluster, as options of a Ray task: num_cpus, and num_gpus where it wants one."""

START_TRIES = 3
"""How often an embedded Ray is started before a build gives up."""

TASK_RETRIES = 2
"""How often the task of a worker that died is tried again."""


class Cluster:
    """Ray, started when first needed: the cluster at `address` or RAY_ADDRESS, else one on this machine.

    workers: CPUs of the embedded Ray, 0 for those of the machine.
    """

    def __init__(self, address: str = "", workers: int = 0) -> None:
        self._address, self._workers, self._ours = address or os.environ.get("RAY_ADDRESS", ""), workers, False
        self._watchdog: Watchdog | None = None
        self.started = False

    def each(
        self, build: Build, stage: str, run: RunPartition, resources: Resources, partitions: list[str]
    ) -> Iterator[str]:
        """Run partitions of a stage and yield the name of each as it is committed. Raises WenlanError."""
        if not partitions:
            return
        ray = self.start()
        observe.show("wenlan_building", 1)
        available = ray.cluster_resources()
        options = granted(resources, available)
        task = ray.remote(run_task).options(max_retries=TASK_RETRIES, name=f"wenlan:{stage}", **options)
        build_ref = ray.put(build)
        limit = max(2, 2 * int(available.get("CPU", 1)))
        waiting, log_form = list(reversed(partitions)), observe.form()
        in_flight: dict[Any, str] = {}
        while waiting or in_flight:
            while waiting and len(in_flight) < limit:
                partition = waiting.pop()
                in_flight[task.remote(build_ref, stage, run, partition, log_form)] = partition
            ready, _ = ray.wait(list(in_flight), num_returns=1)
            for ref in ready:
                partition = in_flight.pop(ref)
                _wait_for(ray, ref, f"{stage}/{partition}")
                yield partition

    def close(self) -> None:
        """Leave the cluster, or end the embedded Ray; a Ray that was there before is left as it is."""
        if self._ours:
            import ray

            ray.shutdown()
        if self._watchdog is not None:
            self._watchdog.close()

    def start(self) -> Any:
        """Join the cluster, or start one here, where that is not done yet; returns Ray. Raises StageError."""
        import ray

        if not ray.is_initialized():
            os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
            quiet: dict[str, Any] = {"log_to_driver": True, "logging_level": logging.ERROR}
            if self._address:
                _join(ray, self._address, quiet)
            else:
                # "local": never join a cluster that happens to run here
                self._watchdog = Watchdog()
                options = {"num_cpus": self._workers or None, "include_dashboard": False, **quiet}
                with self._watchdog.marking(), on_loopback():
                    _start_here(ray, options)
            self._ours = True
        self.started = True
        return ray


def _start_here(ray: Any, options: dict[str, Any]) -> None:
    """Start Ray on this machine. Raises StageError.

    Ray gives each of its processes a fixed time to come up, and raises a bare Exception when a busy machine takes
    longer (https://github.com/ray-project/ray/issues/65983): so it is asked again.
    """
    for tries in range(START_TRIES):
        try:
            ray.init("local", **options)
            return
        except Exception as e:
            with contextlib.suppress(Exception):
                ray.shutdown()
            why = next(iter(str(e).splitlines()), type(e).__name__)
            log.warning("Ray did not start (%d of %d): %s", tries + 1, START_TRIES, why)
    raise StageError("ray", f"could not be started on this machine ({why})")


@contextlib.contextmanager
def joined(address: str = "") -> Iterator[None]:
    """Within the block this process belongs to the cluster at `address` or RAY_ADDRESS, which exports what it counts.

    Changes nothing where there is no cluster. One that cannot be joined is a warning: metrics hold nothing up.
    """
    address = address or os.environ.get("RAY_ADDRESS", "")
    if not address:
        yield
        return
    import ray

    ours = not ray.is_initialized()
    if ours:
        try:
            _join(ray, address, {"log_to_driver": False, "logging_level": logging.ERROR})
        except StageError as e:
            log.warning("%s; gates and releases are not counted", e)
    try:
        yield
    finally:
        if ours and ray.is_initialized():
            ray.shutdown()


class Here:
    """This process in place of a cluster: runs partitions one by one, for work that ends before Ray has started."""

    started = True

    def start(self) -> None:
        """Nothing has to start."""

    def each(
        self, build: Build, stage: str, run: RunPartition, resources: Resources, partitions: list[str]
    ) -> Iterator[str]:
        """As `Cluster.each`."""
        for partition in partitions:
            run_task(build, stage, run, partition, observe.form())
            yield partition

    def close(self) -> None:
        """Nothing was started."""


def granted(asked: Resources, available: Resources) -> Resources:
    """The resources asked for, cut to what the cluster has: a task that asks for more would wait without end."""
    cpus = {"num_cpus": min(asked["num_cpus"], available.get("CPU", 1.0))}
    gpus = asked.get("num_gpus", 0.0)
    return cpus | ({"num_gpus": gpus} if 0 < gpus <= available.get("GPU", 0.0) else {})


_NOT_WRITABLE = (errno.EROFS, errno.EACCES, errno.EPERM)
"""Errors of a file or folder that this user may not write (or read)."""


def run_task(build: Build, stage: str, run: RunPartition, partition: str, log_form: str) -> None:
    """The body of a Ray task: one partition, timed, with its log lines and counters labelled.

    Raises WenlanError; a full disk becomes a StageError that names the folder, a read-only one that names the file.
    """
    observe.log_as(log_form)
    labels = observe.about(build_id=build.build_id, stage=stage, partition=partition)
    with labels, timed(), pulse(build.stage(stage).folder, partition):
        try:
            run(build, partition)
        except OSError as e:
            if e.errno in _NOT_WRITABLE and e.filename:
                raise StageError(str(e.filename), f"{e.strerror} ({stage}/{partition})") from None
            if e.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            hint = "make room and run the same command again: what is committed stays"
            raise StageError(_fullest(build), f"no space is left on its disk ({stage}/{partition}); {hint}") from None


def _fullest(build: Build) -> str:
    """The folder whose disk has the least space left, of those written to: an OSError seldom says which it was."""
    folders = [f.url for f in (build.folder, build.store.folder) if f.is_local] + [tempfile.gettempdir()]
    return min((f for f in folders if Path(f).is_dir()), key=lambda f: shutil.disk_usage(f).free)


def _join(ray: Any, address: str, options: dict[str, Any]) -> None:
    """Join a cluster. Raises StageError at once where nobody listens (Ray alone tries for minutes) or Ray refuses."""
    try:
        parts = urlsplit(address if "://" in address else f"//{address}")
        if parts.hostname and parts.port:
            socket.create_connection((parts.hostname, parts.port), timeout=10).close()
        ray.init(address=address, **options)
    except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as e:
        hint = "; is it up, and are RAY_AUTH_MODE and RAY_AUTH_TOKEN_PATH those of the cluster?"
        raise StageError(address, f"no Ray cluster can be joined ({_first_line(e)}){hint}") from None


def _wait_for(ray: Any, ref: Any, name: str) -> None:
    """Wait for one task. A WenlanError of the task is raised as it is; a dead worker becomes a StageError."""
    try:
        ray.get(ref)
    except ray.exceptions.RayTaskError as e:
        cause = e.cause
        if isinstance(cause, WenlanError):
            raise cause from None
        log.error("%s", e)  # the remote traceback: it is a fault of ours, not of the input
        raise StageError(name, f"failed: {type(cause).__name__}: {_first_line(cause)}") from None
    except ray.exceptions.RayError as e:
        raise StageError(name, f"its worker died again and again: {type(e).__name__}: {_first_line(e)}") from None


def _first_line(e: BaseException) -> str:
    """The first line of an exception's message, or its type where it has none."""
    return next((line.strip() for line in str(e).splitlines() if line.strip()), type(e).__name__)[:300]
