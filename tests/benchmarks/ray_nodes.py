"""A Ray cluster of several nodes on this machine, real raylets and a real GCS, whose nodes can be killed and added.

A node is `ray start --block` in a session of its own. The head has no CPU, so that every task runs on another node; the
drivers of builds belong to the head.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from tests.benchmarks.drilling import Build, environment_of, wait_for
from tests.benchmarks.harness import told
from tests.benchmarks.services import TOKEN, DrillFailed, Services
from tests.processes import free_ports, is_running

SETTINGS = {
    "RAY_health_check_initial_delay_ms": "500",
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "4",
    "RAY_gcs_rpc_server_reconnect_timeout_s": "10",
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": TOKEN,
}
"""Ray's own settings: the loss of a node is seen after seconds, not half a minute, and that of the head after ten."""


STARTED, START_TRIES = "Ray runtime started", 4
"""What `ray start` says of a node that is up, and how often a node is started before a drill gives up."""


class Nodes(Services):
    """The cluster. `environment`: further variables of its processes, and of the workers below them."""

    def __init__(self, folder: Path, count: int = 2, environment: Mapping[str, str] | None = None) -> None:
        super().__init__(folder)
        self._environment = environment_of({**SETTINGS, **(environment or {})})
        self._environment["PATH"] = f"{Path(sys.executable).parent}:{self._environment['PATH']}"
        [self._port] = free_ports(1)
        self._numbers, self._count = itertools.count(1), count
        self.names: list[str] = []  # of the nodes with CPUs
        self.address = f"127.0.0.1:{self._port}"

    def __enter__(self) -> Nodes:
        try:
            self.start_head()
            for _ in range(self._count):
                self.add()
        except BaseException:
            self.__exit__()
            raise
        return self

    @property
    def environment(self) -> dict[str, str]:
        """What a driver needs to join."""
        return SETTINGS | {"RAY_ADDRESS": self.address}

    def start_head(self) -> None:
        """Start the head, at the address of the one before it."""
        words = ["--head", "--port", str(self._port), "--include-dashboard", "false", "--num-cpus", "0"]
        self._start_node("head", [*words, "--temp-dir", str(self.folder / "ray")])

    def add(self, cpus: int = 1) -> str:
        """Add a node; returns its name."""
        name = f"node{next(self._numbers)}"
        self._start_node(name, ["--address", self.address, "--num-cpus", str(cpus)])
        self.names.append(name)
        return name

    def add_meanwhile(self) -> None:
        """Add a node while the caller goes on."""
        threading.Thread(target=self.add, daemon=True).start()

    def _start_node(self, name: str, words: Sequence[str]) -> None:
        """Start a node, again where Ray gives up: its processes have a fixed time to come up on a busy machine."""
        for tries in range(START_TRIES):
            agent, metrics, runtime_env = free_ports(3)
            ports = ["--dashboard-agent-listen-port", str(agent), "--metrics-export-port", str(metrics)]
            ports += ["--runtime-env-agent-port", str(runtime_env), "--min-worker-port", "0", "--max-worker-port", "0"]
            common = ["--node-ip-address", "127.0.0.1", "--num-gpus", "0", "--block", "--disable-usage-stats"]
            common += ["--object-store-memory", "80000000"]
            ray, log = str(Path(sys.executable).with_name("ray")), self.folder / f"{name}.log"
            log.unlink(missing_ok=True)
            self.start(name, [ray, "start", *words, *ports, *common], self._environment)
            wait_for(f"{name} of the Ray cluster", 180, lambda: self._ended(name) or STARTED in _read(log))  # noqa: B023
            if not self._ended(name):
                return
            told(f"{name} did not start ({tries + 1}): {_read(log)[-300:]}")
            self.kill(name)
        raise DrillFailed(f"{name} of the Ray cluster did not start")

    def _ended(self, name: str) -> bool:
        return self._processes[name].poll() is not None

    def process_of(self, name: str, program: str) -> int:
        """The id of a node's program: raylet, gcs_server."""
        for pid in _below(self._processes[name].pid):
            with contextlib.suppress(OSError):
                if Path(f"/proc/{pid}/cmdline").read_bytes().partition(b"\0")[0].endswith(program.encode()):
                    return pid
        raise DrillFailed(f"{name} has no {program}")

    def processes_below(self, name: str) -> list[int]:
        """Ids of what runs below a node's raylet: its workers, and its agents."""
        return _below(self.process_of(name, "raylet/raylet"))

    def title(self, pid: int) -> str:
        """The title that Ray has given a worker: `ray::wenlan:fetch`, `ray::IDLE`; "" for one that is gone."""
        return _title(pid)

    def kill_node(self, name: str) -> str:
        """`kill -9` of a node's raylet, then of all below it, as when a machine is lost; what was seen of it."""
        raylet = self.process_of(name, "raylet/raylet")
        if not is_running(raylet):
            raise DrillFailed(f"the raylet of {name} was gone already")
        below = self.processes_below(name)
        os.kill(raylet, signal.SIGKILL)
        began = time.monotonic()
        wait_for(f"the end of raylet {raylet}", 20, lambda: not is_running(raylet))
        self.kill(name)
        wait_for(f"the end of the workers of {name}", 20, lambda: not any(map(is_running, below)))
        if name in self.names:
            self.names.remove(name)
        return f"raylet {raylet} and {len(below)} processes below it gone in {time.monotonic() - began:.1f} s"


def _read(log: Path) -> str:
    return log.read_text(encoding="utf-8", errors="replace")


def _below(pid: int) -> list[int]:
    """Ids of all processes below one, by the kernel's lists of children: cheap enough to ask all the time."""
    found: list[int] = []
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(OSError):
                found += map(int, (task / "children").read_text().split())
    return [one for child in found for one in (child, *_below(child))]


LOOK_AGAIN_S = 0.1
"""Between two looks for new workers; their titles are read all the time."""


def frozen(
    nodes: Nodes, title: str, build: Build, wanted: Callable[[str], bool] = lambda node: True, seconds: float = 180
) -> tuple[str, int]:
    """(node, pid) of a worker that bears a title, `ray::wenlan:fetch`, stopped in mid-work by SIGSTOP.

    The tasks of some stages take milliseconds: what is killed afterwards is killed in one, for certain. wanted: whether
    a node will do, asked for its name.
    """
    with contextlib.suppress(OSError):  # of this thread alone: the task may be over after a few turns of the machine
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), -15)
    for node, pid in _workers(nodes, build, seconds, title):
        if not _title(pid).startswith(title):
            continue
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
            wait_for("a worker to stop", 5, lambda pid=pid: _state(pid) in "TZ")
            if _title(pid).startswith(title) and wanted(node):
                return node, pid
            os.kill(pid, signal.SIGCONT)
    raise DrillFailed(f"did not hit: no worker with the title {title} within {seconds:.0f} s")


def _workers(nodes: Nodes, build: Build, seconds: float, title: str) -> Iterator[tuple[str, int]]:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if build.process.poll() is not None:
            raise DrillFailed(f"did not hit: the build ended, no worker with the title {title}: {build.tail()}")
        workers = []
        for name in nodes.names:
            with contextlib.suppress(DrillFailed):  # it is coming up
                workers += [(name, pid) for pid in nodes.processes_below(name)]
        again = time.monotonic() + LOOK_AGAIN_S
        while time.monotonic() < again:
            yield from workers
            time.sleep(0.0005)


def _title(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().partition(b"\0")[0].decode(errors="replace")
    return ""


def _state(pid: int) -> str:
    """The letter of a process's state (proc(5)), Z for one that is gone."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
    return "Z"
