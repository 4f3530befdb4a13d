"""Actors read the same with a cluster as without, outlive a kill, and a shared object is one for all who ask."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from pipeline.processes import actors
from tests.processes import wait_until


class Counter:
    """Adds up; says where it lives. `start` may be large."""

    def __init__(self, start: bytes = b"", step: int = 1) -> None:
        self._start, self._step, self._total = start, step, 0

    def add(self, times: int) -> int:
        self._total += self._step * times
        return self._total

    def where(self) -> tuple[int, int]:
        return os.getpid(), len(self._start)

    async def total(self) -> int:
        return self._total


class Gate:
    """Answers once a file is there."""

    def wait(self, begun: Path, end: Path) -> int:
        begun.touch()
        wait_until(end.exists, "the gate opens")
        return 7


def sums(expected_processes: int) -> None:
    """The same calls, wherever the members live."""
    with actors.Actors(Counter, [(b"", 1), (b"", 10)]) as counters:
        assert len(counters) == 2
        assert counters.ask("add", [(2,), (3,)]) == [2, 30]
        assert counters.ask("add", [(1,), (1,)]) == [3, 40]
        assert len({pid for pid, _ in counters.ask("where", [(), ()])} - {os.getpid()}) == expected_processes
        assert counters.remote == bool(expected_processes)


def test_without_a_cluster_members_are_objects_of_this_process() -> None:
    assert not actors.on_cluster()
    sums(expected_processes=0)
    members = actors.Actors(Counter, [(b"", 5)])
    members.ask("add", [(2,)])
    assert asyncio.run(members.awaited(0).total()) == 10
    members.close()


def test_without_a_cluster_a_shared_object_is_one_for_the_process() -> None:
    class Own(Counter):
        pass

    actors.shared(Own, "own").add(2)
    assert actors.shared(Own, "own").add(1) == 3


@pytest.mark.drill(8)
def test_on_a_cluster_each_member_has_a_process_and_reads_the_same(ray: Any) -> None:
    assert actors.on_cluster()
    sums(expected_processes=2)

    async def total() -> int:
        with actors.Actors(Counter, [(b"", 1), (b"", 2)], concurrency=10) as counters:
            return await counters.awaited(1).total()

    assert asyncio.run(total()) == 0
    assert not actors.Actors(Counter, [(b"", 1)]).remote, "a single one needs no process of its own"


@pytest.mark.drill(10)
def test_a_member_whose_process_is_killed_is_constructed_anew_from_a_large_argument(ray: Any) -> None:
    large = os.urandom(3_000_000)
    with actors.Actors(Counter, [(large, 1), (large, 2)], restarts=1) as counters:
        before = counters.ask("where", [(), ()])
        gc.collect()
        os.kill(before[0][0], signal.SIGKILL)
        after = counters.ask("where", [(), ()])
    assert [size for _, size in after] == [3_000_000, 3_000_000]
    assert after[0][0] != before[0][0]
    assert after[1] == before[1]


@pytest.mark.drill(5)
def test_a_task_that_waits_for_a_member_keeps_its_cpu(ray: Any, tmp_path: Path) -> None:
    """Otherwise, Ray starts a worker process for the next task: more of them than CPUs, in each pass with a model."""
    begun, end = tmp_path / "begun", tmp_path / "end"

    @ray.remote(num_cpus=1)
    def ask(gates: actors.Actors[Gate]) -> Any:
        return gates.begin(0, "wait", begun, end).result()

    with actors.Actors(Gate, [(), ()]) as gates:
        answer = ask.remote(gates)
        wait_until(begun.exists, "the task waits")
        free = set[float]()
        for _ in range(10):
            time.sleep(0.1)  # Ray counts ten times a second
            free.add(ray.available_resources().get("CPU", 0.0))
        end.touch()
        assert ray.get(answer) == 7
    assert max(free) == ray.cluster_resources()["CPU"] - 1


@pytest.mark.drill(10)
def test_a_shared_object_is_one_for_the_cluster_and_made_anew_when_it_was_killed_for_good(ray: Any) -> None:
    counter = actors.shared(Counter, "test-counter")
    assert counter.add(2) == 2
    assert actors.shared(Counter, "test-counter").add(1) == 3

    @ray.remote
    def elsewhere() -> int:
        return actors.shared(Counter, "test-counter").add(1)

    assert ray.get(elsewhere.remote()) == 4
    ray.kill(ray.get_actor("test-counter", namespace="wenlan"))
    wait_until(lambda: not _is_alive(ray, "test-counter"), "Ray has ended the actor: `kill` does not wait for it")
    assert counter.add(1) == 1, "it has forgotten what it knew"


def _is_alive(ray: Any, name: str) -> bool:
    try:
        ray.get_actor(name, namespace="wenlan")
    except ValueError:
        return False
    return True
