"""Two replicas of a real Ray Serve: the answers of one process, a lost replica, replicas that hang."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest

from tests.processes import QUIET, descendants, wait_until
from tests.training.serve.conftest import PICTURES, Server, command
from tests.training.serve.test_embeddings import data_uri

if importlib.util.find_spec("ray") is None:  # to import ray.serve takes a second
    pytest.skip("needs the extra ray", allow_module_level=True)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
TEXTS = [f"第{number}张图片" for number in range(40)]


@pytest.fixture(scope="module")
def served(tiny: Path) -> Iterator[Server]:
    environment = {name: value for name, value in QUIET.items() if name.startswith(("RAY", "OMP"))}
    with command(tiny, "--replicas", "2", "--health-s", "3", environment=environment) as server:
        yield server


def replicas(server: Server) -> list[int]:
    assert server.process is not None
    return [pid for pid, title in descendants(server.process.pid).items() if title.startswith(b"ray::ServeReplica")]


def listening(server: Server) -> dict[str, set[str]]:
    """By its title the addresses on which each process of the server listens."""
    assert server.process is not None
    found: dict[str, set[str]] = {}
    for pid, title in {server.process.pid: b"server", **descendants(server.process.pid)}.items():
        with contextlib.suppress(psutil.Error):  # it has ended meanwhile
            ports = psutil.Process(pid).net_connections("inet")
            found.setdefault(title.decode(), set()).update(c.laddr.ip for c in ports if c.status == psutil.CONN_LISTEN)
    return found


def rows(server: Server, **body: Any) -> Any:
    answer = server.embeddings(**body)
    assert answer.status_code == 200, answer.text
    return [row["embedding"] for row in answer.json()["data"]]


def test_two_replicas_answer_as_one_process_does(served: Server, server: Server) -> None:
    assert len(replicas(served)) == 2
    uris = [data_uri(content) for content in PICTURES]
    for body in ({"input": TEXTS}, {"input": uris, "modality": "image"}):
        np.testing.assert_allclose(rows(served, **body), rows(server, **body), atol=1e-6)
    wait_until(lambda: served.get("/health").status_code == 200, "healthy within 3 s, which a busy machine may exceed")


@pytest.mark.slow
def test_neither_the_server_nor_a_replica_listens_beyond_this_machine(served: Server) -> None:
    """Serve unpickles what comes to a replica's port: whoever reaches it runs commands as its user."""
    found = listening(served)
    assert sum(title.startswith("ray::ServeReplica") and bool(ips) for title, ips in found.items()) >= 1, found
    assert set().union(*found.values()) <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}, found


@pytest.mark.drill(30)
def test_a_replica_that_is_killed_costs_no_answer_and_another_takes_its_place(served: Server) -> None:
    before = replicas(served)
    os.kill(before[0], signal.SIGKILL)
    for text in TEXTS:
        assert served.get("/text_query", params={"text": text}).status_code == 200
    wait_until(lambda: len(set(replicas(served)) - {before[0]}) == 2, "another replica in its place")


@pytest.mark.drill(30)
def test_replicas_that_hang_are_told_by_health(served: Server) -> None:
    both = replicas(served)
    for pid in both:
        os.kill(pid, signal.SIGSTOP)
    try:
        wait_until(lambda: _hangs(served.get("/health")), "the hang is told")
    finally:
        for pid in both:
            with contextlib.suppress(ProcessLookupError):  # Ray ends what hangs for long
                os.kill(pid, signal.SIGCONT)
    wait_until(lambda: served.get("/health").status_code == 200, "healthy again")


def _hangs(answer: httpx.Response) -> bool:
    """In one answer: Ray ends what hangs for long, and a later one says that."""
    return answer.status_code == 503 and "no answer from the towers within 3 s" in answer.json()["reason"]


@pytest.mark.drill(20)
def test_the_command_ends_its_replicas(served: Server) -> None:
    assert served.process is not None
    below = set(descendants(served.process.pid))
    os.kill(served.process.pid, signal.SIGTERM)
    assert served.process.wait(120) == 0
    wait_until(lambda: not [pid for pid in below if Path(f"/proc/{pid}").exists()], "no process is left")
