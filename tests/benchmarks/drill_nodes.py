"""Drills that take processes away from a build on a Ray cluster: raylets, the head, the driver, a worker."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

from tests.benchmarks.drilling import PATH_AND_ADVICE, Build, Row, Scene, wait_for
from tests.benchmarks.ray_nodes import Nodes, frozen
from tests.benchmarks.services import DrillFailed
from tests.processes import is_running

STAGES = (
    "crawl", "extract", "admit", "fetch", "dedup", "curate", "detect", "shard", "report",
)  # fmt: skip
"""Of which tasks are seen: those of fetch go on with measure and filter."""

QUICK_STAGES = ("fetch", "shard")


def raylet(scene: Scene) -> Iterator[Row]:
    """In each stage a node is lost with the task that it runs; another one joins; the same build goes on."""
    stages = QUICK_STAGES if scene.quick else STAGES
    with scene.source() as source, Nodes(scene.folder, count=3) as nodes:
        source.delay_s = 0.02
        build = Build(scene, "raylet", environment=nodes.environment)
        for stage in stages:
            node, worker = frozen(nodes, f"ray::wenlan:{stage}", build)
            where = build.running()
            done = f"{node}: worker {worker} in a task; {nodes.kill_node(node)}"
            nodes.add_meanwhile()  # the next stage may be over before it is there
            yield Row(stage, done, f"build.json says {where}; another node joins", held=where == stage)
        yield build.row("all of them", f"{len(stages)} nodes lost in one build", "exit 0", build.ended(400))


def _workers_of(nodes: Nodes, node: str, title: str) -> list[int]:
    return [pid for pid in nodes.processes_below(node) if nodes.title(pid).startswith(title)]


def head(scene: Scene) -> Iterator[Row]:
    """The head is lost in fetch, with all that the cluster knows: one line; on a new head the same command goes on."""
    with scene.source() as source, Nodes(scene.folder) as nodes:
        source.delay_s = 0.05
        build = Build(scene, "head", environment=nodes.environment)
        wait_for("two partitions of fetch", 180, lambda: build.committed("images") >= 2, build)
        stage, committed = build.running(), build.committed("images")
        gcs = nodes.process_of("head", "gcs_server")
        seen = nodes.kill_node("head")
        began = time.monotonic()
        ended = build.ended(90)
        line = ended.one_line
        outcome = f"ended after {time.monotonic() - began:.0f} s with exit {ended.code}: {line or ended.tail()}"
        for name in list(nodes.names):  # they end with their head; what is left of them goes too
            nodes.kill(name)
            nodes.names.remove(name)
        yield Row(stage, f"gcs {gcs} and {seen}", outcome, held=ended.code == 1 and bool(PATH_AND_ADVICE.match(line)))
        nodes.start_head()
        nodes.add()
        nodes.add()
        build.start()
        again = build.ended()
        done = f"head at the same address again, the same command; {committed} partitions of fetch were committed"
        yield build.row(stage, done, "went on, exit 0", again)


def driver(scene: Scene) -> Iterator[Row]:
    """The driver is killed in fetch and in shard; what it had started on the cluster ends; the same command goes on."""
    with scene.source() as source, Nodes(scene.folder) as nodes:
        source.delay_s = 0.05
        build = Build(scene, "driver", environment=nodes.environment)
        for stage, folder in (("fetch", "images"), ("shard", "shards")):
            if stage == "fetch":
                wait_for("two partitions of fetch", 180, lambda: build.committed("images") >= 2, build)
                workers = [pid for name in nodes.names for pid in _workers_of(nodes, name, "ray::wenlan")]
                build.kill()
            else:
                _, worker = frozen(nodes, f"ray::wenlan:{stage}", build)
                workers = [worker]
                build.kill()
                os.kill(worker, signal.SIGCONT)
            committed = build.committed(folder)
            began = time.monotonic()
            wait_for("the end of its tasks", 60, lambda workers=workers: not any(map(is_running, workers)))
            gone = f"its {len(workers)} worker(s) ended after {time.monotonic() - began:.1f} s"
            build.start()
            yield Row(stage, f"driver killed, {committed} partitions committed; {gone}", "the same command was started")
        yield build.row("all of them", "the driver was killed twice", "went on, exit 0", build.ended())


def memory(scene: Scene) -> Iterator[Row]:
    """The kernel kills a worker in mid-task, since its cgroup has no memory left; the task is done again."""
    with scene.source(), Nodes(scene.folder) as nodes, _cgroup() as group:
        build = Build(scene, "memory", environment=nodes.environment)
        node, worker = frozen(nodes, "ray::wenlan:fetch", build)
        group.take(worker)
        before = group.kills()
        os.kill(worker, signal.SIGCONT)
        wait_for("the kernel's kill", 60, lambda: group.kills() > before and not is_running(worker), build)
        done = f"worker {worker} of {node}: {group.kills() - before} kill(s) for memory counted by its cgroup"
        yield build.row("fetch", done, "exit 0", build.ended())


class _Group:
    """A cgroup of almost no memory, of version 2 or 1."""

    def __init__(self, folder: Path, version: int) -> None:
        self._folder, self._version = folder, version

    def take(self, pid: int) -> None:
        """Put a process into it: what the process has stays its old group's, what it asks for next is refused."""
        (self._folder / "cgroup.procs").write_text(str(pid))
        limit = "memory.max" if self._version == 2 else "memory.limit_in_bytes"
        (self._folder / limit).write_text("65536")

    def kills(self) -> int:
        """Processes in it that the kernel has killed for memory."""
        text = (self._folder / ("memory.events" if self._version == 2 else "memory.oom_control")).read_text()
        return int(dict(line.split() for line in text.splitlines())["oom_kill"])


@contextlib.contextmanager
def _cgroup() -> Iterator[_Group]:
    """A new cgroup beside that of this process. Raises DrillFailed where this user may make none."""
    lines = [line.split(":", 2) for line in Path("/proc/self/cgroup").read_text().splitlines()]
    own = {controllers: path.strip("/") for _, controllers, path in lines}
    two = Path("/sys/fs/cgroup") / own.get("", "")
    version = 2 if (two / "cgroup.controllers").exists() and "memory" in (two / "cgroup.controllers").read_text() else 1
    base = two if version == 2 else Path("/sys/fs/cgroup/memory") / own.get("memory", "")
    folder = base / f"wenlan-drill-{os.getpid()}"
    try:
        folder.mkdir()
    except OSError as e:
        raise DrillFailed(f"did not hit: no cgroup can be made here ({e}); run it as root") from None
    try:
        yield _Group(folder, version)
    finally:
        with contextlib.suppress(OSError):
            folder.rmdir()
