"""Clients that mean ill, in a quick form: a real process takes 150 malformed requests, and stays as it was.

The full form, 10,000 of them, is tests/benchmarks/bench_serve.py.
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.benchmarks.hostile_clients import attack, broken_picture
from tests.training.serve.conftest import Server, command

pytest.importorskip("schemathesis")


def resident_mb(server: Server) -> float:
    assert server.process is not None
    status = Path(f"/proc/{server.process.pid}/status").read_text(encoding="utf-8")
    return int(status.split("VmRSS:")[1].split()[0]) / 1024


@pytest.mark.slow
@pytest.mark.timeout(280)
def test_malformed_requests_neither_end_the_server_nor_fill_it(tiny: Path, index: Path) -> None:
    with command(tiny, "--index", f"pictures={index}", "--max-pixels", "5000000") as server:
        first = attack(server.url, 50, seed=1)
        before = resident_mb(server)
        second = attack(server.url, 100, seed=2)
        assert first.faults + second.faults == []
        assert second.statuses[400] > 25
        assert resident_mb(server) < before + 150
        assert server.get("/health").json()["status"] == "ok"
        assert server.embeddings(input="红").status_code == 200
        assert server.process is not None
        assert server.process.poll() is None


@pytest.mark.slow
def test_no_broken_picture_is_anything_but_a_wrong_request(server: Server) -> None:
    rng = random.Random(5)
    answers = [server.post("/image_query", files={"image": broken_picture(rng)}) for _ in range(60)]
    assert {answer.status_code for answer in answers} == {200, 400}, "a few can be read all the same"
    assert server.get("/health").json()["status"] == "ok"
