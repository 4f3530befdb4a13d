"""Two replicas of a real Ray Serve: the answers of one process, a lost replica, replicas that hang."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.processes import QUIET, descendants, wait_until
from tests.training.serve.conftest import PICTURES, Server, command
from tests.training.serve.test_embeddings import data_uri

pytest.importorskip("ray.serve")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
TEXTS = [f"第{number}张图片" for number in range(40)]


@pytest.fixture(scope="module")
def served(tiny: Path) -> Iterator[Server]:
    environment = {name: value for name, value in QUIET.items() if name.startswith(("RAY", "OMP"))}
    with command(tiny, "--replicas", "2", "--health-s", "3", "--request-s", "20", environment=environment) as server:
        yield server


def replicas(server: Server) -> list[int]:
    assert server.process is not None
    return [pid for pid, title in descendants(server.process.pid).items() if title.startswith(b"ray::ServeReplica")]


def rows(server: Server, **body: Any) -> Any:
    answer = server.embeddings(**body)
    assert answer.status_code == 200, answer.text
    return [row["embedding"] for row in answer.json()["data"]]


def test_two_replicas_answer_as_one_process_does(served: Server, server: Server) -> None:
    assert len(replicas(served)) == 2
    uris = [data_uri(content) for content in PICTURES]
    for body in ({"input": TEXTS}, {"input": uris, "modality": "image"}):
        np.testing.assert_allclose(rows(served, **body), rows(server, **body), atol=1e-6)
    assert served.get("/health").json()["status"] == "ok"


def test_a_replica_that_is_killed_costs_no_answer_and_another_takes_its_place(served: Server) -> None:
    before = replicas(served)
    os.kill(before[0], signal.SIGKILL)
    for text in TEXTS:
        assert served.get("/text_query", params={"text": text}).status_code == 200
    wait_until(lambda: len(set(replicas(served)) - {before[0]}) == 2, "another replica in its place")


def test_replicas_that_hang_are_told_by_health(served: Server) -> None:
    both = replicas(served)
    for pid in both:
        os.kill(pid, signal.SIGSTOP)
    try:
        wait_until(lambda: served.get("/health").status_code == 503, "the hang is told")
        assert "no answer of the towers within 3 s" in served.get("/health").json()["reason"]
    finally:
        for pid in both:
            os.kill(pid, signal.SIGCONT)
    wait_until(lambda: served.get("/health").status_code == 200, "healthy again")


def test_the_command_ends_its_replicas(served: Server) -> None:
    assert served.process is not None
    below = set(descendants(served.process.pid))
    os.kill(served.process.pid, signal.SIGTERM)
    assert served.process.wait(120) == 0
    wait_until(lambda: not [pid for pid in below if Path(f"/proc/{pid}").exists()], "no process is left")
