"""The Ray executor: runs the partitions of a stage as tasks, on a cluster or on an embedded Ray on this machine.

Without an address (or RAY_ADDRESS) an embedded Ray starts on this machine, bound to loopback, and ends with the build.
It starts when the first pass has more than one partition to run: a single one before that runs in this process, since
Ray and its workers take longer to start than a small build. If the build is killed, Ray's workers end with it, and the
two agents of its raylet within a minute.

This module knows a stage by its name, its function and what its tasks ask of the cluster, never by import: the page
(`pipeline.run`) hands these in. Objects that live on a cluster beside the tasks are `pipeline.processes.actors`.

Limits: at most twice as many tasks as run at a time are in flight, so the driver holds that many references and the
names that wait; tasks that have ended are taken together. A task whose worker dies, mostly killed for memory, is tried
twice more: with twice the memory, so that fewer run beside it, then alone on a node. What is committed stays whatever
happens.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import logging
import math
import os
import re
import resource
import shutil
import socket
import sqlite3
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from urllib.parse import urlsplit

from data_specs.command.loopback import start_ray
from data_specs.errors import WenlanError
from pipeline.errors import StageError
from pipeline.files.folder import DISK_FULL, MAKE_ROOM
from pipeline.processes import observe
from pipeline.processes.actors import Actors, on_cluster
from pipeline.processes.pulse import pulse
from pipeline.processes.sessions import Sessions, lent
from pipeline.processes.without_pandas import arrow_without_pandas
from pipeline.store.build import Build
from pipeline.store.commits import timed
from pipeline.store.partitions import reading

log = logging.getLogger("wenlan")

_COLOURS = re.compile("\x1b\\[[0-9;]*m")
"""Colours that Ray puts into tracebacks."""

RunPartition = Callable[[Build, str], None]
"""Does one partition of a pass and commits it: (build, partition)."""

Runs = tuple[str, RunPartition]
"""A pass by its name, and its function."""

Done = list[str]
"""A partition that is committed: the records of some passes as JSON."""

Resources = dict[str, float]
"""Resources of a pass, as options of Ray: of each task `num_cpus` and `memory` in bytes; `num_gpus` of each holder of
sessions."""

TASK_RETRIES = 2
"""Number of retries of a task whose worker, node or actor died, and of a batch whose holder died."""


class Cluster:
    """Ray, started when first needed: the cluster at `address` or RAY_ADDRESS, else one on this machine.

    workers: CPUs of the embedded Ray, 0 for those of the machine. here: run everything in this process, without Ray.
    """

    def __init__(self, address: str = "", workers: int = 0, here: bool = False) -> None:
        self._address, self._workers, self._ours = address or os.environ.get("RAY_ADDRESS", ""), workers, False
        self._here = here
        self.started = False

    def each(
        self, build: Build, passes: Sequence[Runs], resources: Resources, partitions: list[str]
    ) -> Iterator[list[Done]]:
        """Runs partitions, each through some passes in one task, and yields those that are committed, some at a time.

        Raises WenlanError.
        """
        if not self.is_needed(resources, partitions):
            yield from _each_in_process(build, passes, partitions)
            return
        ray = self.start()
        observe.show("wenlan_building", 1)
        with _holders(resources.get("num_gpus", 0.0), _nodes(ray)) as holders:
            yield from self._each(ray, build, passes, resources, partitions, holders)

    def _each(
        self,
        ray: Any,
        build: Build,
        passes: Sequence[Runs],
        resources: Resources,
        partitions: list[str],
        holders: Actors[Sessions] | None,
    ) -> Iterator[list[Done]]:
        options = granted(resources, _nodes(ray))
        stage = "+".join(name for name, _ in passes)
        task = _remote_function(ray, build, passes)
        usual = task.options(**options)
        limit = _most_in_flight(ray, options)
        waiting = list(reversed(partitions))
        in_flight: dict[Any, str] = {}
        head = _Head(ray.get_runtime_context().gcs_address)
        lost = Counter[str]()  # by partition: how often its task died
        while waiting or in_flight:
            while waiting and len(in_flight) < limit:
                partition = waiting.pop()
                own = usual
                if deaths := lost[partition]:
                    nodes = _nodes(ray)
                    own = task.options(**granted(_options_after(deaths, resources, nodes), nodes))
                in_flight[own.remote(partition, holders)] = partition
            ready, _ = ray.wait(list(in_flight), num_returns=1, timeout=HEAD_LOOK_S)
            looked, lost_head = head.looked, head.is_lost()
            if not ready and lost_head:
                raise head.error()
            if head.looked > looked and head.answers:  # an autoscaler may have added nodes
                limit = _most_in_flight(ray, options)
            done = list[Done]()
            for ref in ray.wait(list(in_flight), num_returns=len(in_flight), timeout=0)[0]:
                partition = in_flight.pop(ref)
                try:
                    done.append(ray.get(ref))
                except ray.exceptions.RayError as e:
                    why = _death_reason(ray, e)
                    if not why or lost[partition] == TASK_RETRIES:
                        raise _failure(ray, e, f"{stage}/{partition}") from None
                    lost[partition] += 1
                    waiting.append(partition)
                    how = "twice the memory" if lost[partition] < TASK_RETRIES else "all memory of a node"
                    log.warning("%s/%s: %s; retrying with %s", stage, partition, why, how)
            if done:
                yield done

    def is_needed(self, resources: Resources, partitions: Sequence[str]) -> bool:
        """True if Ray runs some partitions: more than one, or one that asks for something else than one CPU.

        A crawl asks for less, since its visitors are spread over the CPUs. A Ray that is there runs all.
        """
        alone = len(partitions) == 1 and resources["num_cpus"] == 1 and not resources.get("num_gpus")
        needed = not alone or bool(self._address) or on_cluster()
        return bool(partitions) and not self._here and needed

    def close(self) -> None:
        """Leave the cluster, or end the embedded Ray; a Ray that was already running stays up."""
        if self._ours:
            import ray

            _leave(ray)

    def start(self) -> Any:
        """Join the cluster, or start one here, where that is not done yet; returns Ray. Raises StageError."""
        import ray

        if not ray.is_initialized():
            if self._address:
                _join(ray, self._address)
            else:
                try:
                    start_ray(ray, num_cpus=self._workers or None, include_dashboard=False, **_log_options())
                except RuntimeError as e:
                    raise StageError("ray", str(e)) from None
            self._ours = True
        self.started = True
        return ray


def _remote_function(ray: Any, build: Build, passes: Sequence[Runs]) -> Any:
    """Returns the remote function that runs a partition through some passes. Ray does not repeat it: its driver does,
    with more memory.

    The function holds the build, so Ray sends that to each worker once. As an argument it would be pickled for every
    task, which takes the driver 4 ms.
    """
    log_form = observe.form()

    def run_partition(partition: str, holders: Actors[Sessions] | None) -> Done:
        return run_passes(build, passes, partition, log_form, holders)

    return ray.remote(max_retries=0, name=f"wenlan:{passes[0][0]}")(run_partition)


def _end_at_once() -> None:
    """End this process, which has failed: Ray's threads crash an interpreter that is taken down beneath them."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)


class _Head:
    """The head of a cluster, as this process sees it from time to time: whether a server listens at its address."""

    def __init__(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        self._address, self._place = address, (host.strip("[]"), int(port))
        self.looked, self._silent = -math.inf, math.inf  # since when: the last look, the first of those that failed

    def is_lost(self) -> bool:
        """Look, if the last look was HEAD_LOOK_S ago, and say whether every look of HEAD_LOST_S has failed."""
        now = time.monotonic()
        if now - self.looked >= HEAD_LOOK_S:
            self.looked = now
            try:
                socket.create_connection(self._place, timeout=HEAD_LOOK_S).close()
                self._silent = math.inf
            except OSError:
                self._silent = min(self._silent, now)
        return now - self._silent > HEAD_LOST_S

    @property
    def answers(self) -> bool:
        """True if the head answered at the last check."""
        return self._silent == math.inf

    def error(self) -> StageError:
        """Returns the error to show. Ray itself would end this process a little later, with a stack trace."""
        silent = time.monotonic() - self._silent
        hint = "start it, then run the same command again: committed work is kept"
        return StageError(self._address, f"the head of the Ray cluster has not responded for {silent:.0f} s; {hint}")


@contextlib.contextmanager
def joined(address: str = "") -> Iterator[None]:
    """Within the block this process belongs to the cluster at `address` or RAY_ADDRESS, which exports what it counts.

    Changes nothing without a cluster. One that cannot be joined is a warning: metrics hold nothing up. A command joins
    once: of a process that joins and leaves within a second, a busy node exports nothing.
    """
    address = address or os.environ.get("RAY_ADDRESS", "")
    if not address:
        yield
        return
    import ray

    ours = not ray.is_initialized()
    if ours:
        try:
            _join(ray, address)
        except StageError as e:
            log.warning("%s; metrics of gates and releases are not available", e)
    try:
        yield
    finally:
        if ours and ray.is_initialized():
            _leave(ray)


def _each_in_process(build: Build, passes: Sequence[Runs], partitions: Sequence[str]) -> Iterator[list[Done]]:
    """`Cluster.each` in this process, one partition after the other."""
    stage = "+".join(name for name, _ in passes)
    for partition in partitions:
        try:
            done = run_passes(build, passes, partition, observe.form())
        except WenlanError:
            raise
        except Exception as e:
            raise _own_fault(f"{stage}/{partition}", e, traceback.format_exc()) from None
        yield [done]


def _most_in_flight(ray: Any, options: Resources) -> int:
    """Tasks that are handed to the cluster as it is now: as many as its CPUs run, and as many that wait for them."""
    return max(2, int(2 * ray.cluster_resources().get("CPU", 1) / (options["num_cpus"] or 1)))


def _nodes(ray: Any) -> list[Resources]:
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def granted(asked: Resources, nodes: Sequence[Resources]) -> Resources:
    """Returns the resources of a task, capped to what a node has: a task that needs more would wait for ever.

    Memory is cut to that of the nodes which have its CPUs: one that needs all of it runs alone.
    """
    most = max((node.get("CPU", 0.0) for node in nodes), default=0.0)
    options = {"num_cpus": min(asked["num_cpus"], most or 1.0)}  # 1: it waits for an autoscaler
    if memory := asked.get("memory"):
        fitting = [node for node in nodes if node.get("CPU", 0.0) >= options["num_cpus"]]
        options["memory"] = min(memory, max((node.get("memory", 0.0) for node in fitting), default=memory))
    return options


def _options_after(deaths: int, asked: Resources, nodes: Sequence[Resources]) -> Resources:
    """Returns the resources to request for a task that died: twice the memory, at its last try all that a node has."""
    twice = 2 * asked.get("memory", 0.0)
    most = max((node.get("memory", 0.0) for node in nodes), default=twice)
    return {**asked, "memory": twice if deaths < TASK_RETRIES else most}


def holders_of(num_gpus: float, nodes: Sequence[Resources]) -> int:
    """Number of holders of sessions that the GPUs of the nodes have room for, each with so many of them.

    Raises StageError if there is room for none.
    """
    gpus = [node.get("GPU", 0.0) for node in nodes]
    number = sum(int(own) * int(1 / num_gpus) if num_gpus < 1 else int(own / num_gpus) for own in gpus)
    if not number:
        most = max(gpus, default=0.0)
        hint = "add a node that has them, or set num_gpus: 0"
        raise StageError("ray", f"num_gpus asks for {num_gpus:g} GPUs, but no node has more than {most:g}; {hint}")
    return number


def _holders(num_gpus: float, nodes: Sequence[Resources]) -> contextlib.AbstractContextManager[Actors[Sessions] | None]:
    """Starts holders of sessions on all GPUs that the cluster has now, for the block; none without `num_gpus`."""
    if not num_gpus:
        return contextlib.nullcontext()
    arguments = [(observe.form(),)] * holders_of(num_gpus, nodes)
    return Actors(Sessions, arguments, restarts=TASK_RETRIES, num_gpus=num_gpus)


OPEN_FILES = 65_536
"""Files that a worker may have open, where the system lets it."""


HEAD_LOOK_S = 2.0
"""Seconds between two looks of the driver for the head of its cluster."""

HEAD_LOST_S = max(1.0, float(os.environ.get("RAY_gcs_rpc_server_reconnect_timeout_s", "60")) - 5.0)  # noqa: SIM112
"""Seconds for which a head may be gone: as long as Ray waits for one that comes back, but for the last few."""

_NOT_WRITABLE = (errno.EROFS, errno.EACCES, errno.EPERM)
"""Errors of a file or folder that this user may not write (or read)."""


def run_passes(
    build: Build,
    passes: Sequence[Runs],
    partition: str,
    log_form: str,
    holders: Actors[Sessions] | None = None,
) -> Done:
    """Runs one partition through one pass after the other. Raises WenlanError.

    holders: of the sessions of models on GPUs.
    """
    done = Done()
    with lent(holders):
        for stage, run in passes:
            run_task(build, stage, run, partition, log_form)
            with reading(stage, build.reads(stage)):
                done.append(build.stage(stage).record(partition).model_dump_json())
    return done


def run_task(build: Build, stage: str, run: RunPartition, partition: str, log_form: str) -> None:
    """One partition of a pass that has not committed it, timed, with its log lines and counters labelled.

    Raises WenlanError; a full disk becomes a StageError that names the folder, a read-only one that names the file.
    """
    observe.log_as(log_form)
    arrow_without_pandas()
    _allow_open_files()
    labels = observe.about(build_id=build.build_id, stage=stage, partition=partition)
    directory = build.stage(stage)
    with labels, timed(), pulse(directory.folder, partition), reading(stage, build.reads(stage)):
        if directory.find_record(partition) is not None:
            return
        try:
            run(build, partition)
        except OSError as e:
            if e.errno in _NOT_WRITABLE and e.filename:
                raise StageError(str(e.filename), f"{e.strerror} ({stage}/{partition})") from None
            if e.errno not in DISK_FULL:
                raise
            raise StageError(_fullest_folder(build), _full_disk_message(stage, partition)) from None
        except sqlite3.OperationalError as e:  # of the frontier of a crawl
            if "disk is full" not in str(e):
                raise
            raise StageError(_fullest_folder(build), _full_disk_message(stage, partition)) from None


def _allow_open_files() -> None:
    """Raises the limit of open files to that of Ray's driver: nodes started from a shell have 1,024, and a large
    build has more runs."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _full_disk_message(stage: str, partition: str) -> str:
    return f"no space left on its disk ({stage}/{partition}); {MAKE_ROOM}"


def _fullest_folder(build: Build) -> str:
    """The folder whose disk has the least space left, of those written to: an OSError seldom says which it was."""
    folders = [f.url for f in (build.folder, build.store.folder) if f.is_local] + [tempfile.gettempdir()]
    return min(filter(os.path.isdir, folders), key=lambda folder: shutil.disk_usage(folder).free)


def _log_options() -> dict[str, Any]:
    """Returns options of `ray.init` for the lines of workers, which go into log files too; sets Ray's environment."""
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_COLOR_PREFIX", "0")
    return {"log_to_driver": True, "logging_level": logging.ERROR}


def _leave(ray: Any) -> None:
    """Leaves the cluster; if its head is gone, when this process ends, since Ray would wait for it and then abort."""
    host, _, port = ray.get_runtime_context().gcs_address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=HEAD_LOOK_S).close()
    except OSError:
        atexit.unregister(ray.shutdown)
        atexit.register(_end_at_once)
    else:
        ray.shutdown()


def _join(ray: Any, address: str) -> None:
    """Joins a cluster. Raises StageError at once for a closed port (Ray alone tries for minutes) or if Ray refuses."""
    try:
        parts = urlsplit(address if "://" in address else f"//{address}")
        if parts.hostname and parts.port:
            socket.create_connection((parts.hostname, parts.port), timeout=10).close()
        ray.init(address=address, **_log_options())
    except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as e:
        hint = "; check that it is running and that RAY_AUTH_MODE and RAY_AUTH_TOKEN_PATH match it"
        raise StageError(address, f"cannot connect to a Ray cluster ({_first_line(e)}){hint}") from None


def _death_reason(ray: Any, e: Exception) -> str:
    """Why a task that has failed did not come to its own end; "" for one that did, with an error."""
    if isinstance(e, ray.exceptions.RayTaskError):
        return "an actor that it used was lost" if isinstance(e.cause, ray.exceptions.RayActorError) else ""
    if isinstance(e, ray.exceptions.OutOfMemoryError):
        return "its worker was killed, since the node ran out of memory"
    if isinstance(e, ray.exceptions.WorkerCrashedError):
        return "its worker died, perhaps killed for memory"
    return "its node was lost" if isinstance(e, ray.exceptions.NodeDiedError) else ""


def _failure(ray: Any, e: Exception, name: str) -> WenlanError:
    """Returns the error to show for a task that has failed: its own WenlanError, or a StageError."""
    cause = e.cause if isinstance(e, ray.exceptions.RayTaskError) else e
    if isinstance(cause, WenlanError):
        return cause
    if isinstance(cause, ray.exceptions.ObjectStoreFullError | ray.exceptions.OutOfDiskError):
        hint = "give its nodes more (ray start --object-store-memory), or free space on the disk of --temp-dir, then"
        full = f"the object store of Ray is full ({type(cause).__name__})"
        return StageError(name, f"{full}; {hint} run the same command again")
    if isinstance(e, ray.exceptions.RayTaskError):
        return _own_fault(name, cause, _COLOURS.sub("", str(e)))
    return StageError(name, f"its worker died again and again: {type(e).__name__}: {_first_line(e)}")


def _own_fault(name: str, e: BaseException, trace: str) -> StageError:
    """Returns the error to show for a fault of ours, not of the input; logs its traceback."""
    log.error("%s", trace)
    return StageError(name, f"failed: {type(e).__name__}: {_first_line(e)}")


def _first_line(e: BaseException) -> str:
    """The first line of an exception's message, or its type where it has none."""
    return next((line.strip() for line in str(e).splitlines() if line.strip()), type(e).__name__)[:300]
