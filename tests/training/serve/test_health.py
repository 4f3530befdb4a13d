"""/health tells the facts: of towers that hang, that die, that answer wrongly, of decoders that are stuck."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from tests.processes import wait_until
from tests.training.serve.conftest import PATIENCE_S, PICTURES, Server, patient, running
from training.serve.towers import Features, PreparedPicture, Tokens, Towers

pytestmark = pytest.mark.slow

SHORT = patient(health_s=0.5)
"""A probe is soon given up."""


class Disturbed:
    """The real towers, until something happens to them."""

    def __init__(self, towers: Towers) -> None:
        self._towers = towers
        self.hang, self.die, self.lie = threading.Event(), False, False
        self.hang.set()
        self.reached = threading.Event()  # by a batch

    def encode_images(self, pictures: Sequence[PreparedPicture]) -> Features:
        self._disturb()
        return self._towers.encode_images(pictures) * (-1 if self.lie else 1)

    def encode_texts(self, texts: Sequence[Tokens]) -> Features:
        self._disturb()
        return self._towers.encode_texts(texts)

    def _disturb(self) -> None:
        self.reached.set()
        self.hang.wait(PATIENCE_S)
        if self.die:
            raise SystemExit("killed")


def disturbed(made: list[Disturbed], towers: Towers) -> Disturbed:
    made.append(Disturbed(towers))
    return made[-1]


def health(server: Server) -> tuple[int, str]:
    answer = server.get("/health")
    return answer.status_code, answer.json()["reason"]


def test_a_sound_server_is_healthy_and_needs_a_real_inference_for_it(server: Server) -> None:
    answer = server.get("/health")
    assert (answer.status_code, answer.json()["status"], answer.json()["model"]) == (200, "ok", "tiny")
    time.sleep(1.1)
    before = server.get("/metrics").text
    assert health(server) == (200, "")
    assert batches(server.get("/metrics").text) == batches(before) + 2, "one batch of either tower"


def batches(text: str) -> int:
    lines = [line for line in text.splitlines() if line.startswith("wenlan_batch_size_count")]
    return sum(int(float(line.split()[-1])) for line in lines)


def test_a_hundred_probes_at_once_are_one_inference(server: Server) -> None:
    time.sleep(1.1)
    before, began = batches(server.get("/metrics").text), time.monotonic()
    threads = [threading.Thread(target=health, args=(server,)) for _ in range(30)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = int(time.monotonic() - began)  # in each of which it may be asked anew, by one batch of either tower
    assert batches(server.get("/metrics").text) <= before + 4 + 2 * seconds


@pytest.mark.drill(3)
def test_towers_that_hang_are_told_and_healthy_again_when_they_go_on(tiny: Path) -> None:
    made: list[Disturbed] = []
    options = patient(health_s=0.5, request_s=2.0)
    with running(tiny, options, towers=lambda towers: disturbed(made, towers)) as server:
        wait_until(lambda: health(server) == (200, ""), "healthy at first")
        made[0].hang.clear()
        made[0].reached.clear()
        answers: list[int] = []
        asking = threading.Thread(
            target=lambda: answers.append(server.get("/text_query", params={"text": "红"}).status_code)
        )
        asking.start()
        assert made[0].reached.wait(60), "a probe that came first would be the batch of which is told"
        time.sleep(1.1)  # what was healthy is asked anew
        status, reason = health(server)
        assert status == 503
        assert "no answer from the towers within 0.5 s; the model thread has been computing a batch of 1" in reason
        asking.join()
        assert answers == [503], "and the request got its time limit"
        made[0].hang.set()
        wait_until(lambda: health(server)[0] == 200, "healthy again")


def test_a_model_thread_that_dies_is_told_for_good(tiny: Path) -> None:
    made: list[Disturbed] = []
    with running(tiny, SHORT, towers=lambda towers: disturbed(made, towers)) as server:
        made[0].die = True
        lost = server.get("/text_query", params={"text": "红"})
        assert (lost.status_code, lost.json()["error"]["code"]) == (503, "model_down")
        wait_until(lambda: health(server)[0] == 503, "the death is told")
        assert "the model thread has stopped (SystemExit: killed); restart the server" in health(server)[1]
        assert "wenlan_model_up 0.0" in server.get("/metrics").text
        assert server.post("/image_query", files={"image": PICTURES[0]}).status_code == 503


def test_towers_that_answer_otherwise_than_at_the_start_are_told(tiny: Path) -> None:
    made: list[Disturbed] = []
    with running(tiny, SHORT, towers=lambda towers: disturbed(made, towers)) as server:
        wait_until(lambda: health(server) == (200, ""), "healthy at first")
        made[0].lie = True
        told = (503, "the towers return other features than at the start; restart the server")
        wait_until(lambda: health(server) == told, "the change is told")
        made[0].lie = False
        assert health(server) == told, "until it is started again"


def test_threads_that_decode_and_are_stuck_are_told(tiny: Path) -> None:
    with running(tiny, SHORT) as server:
        assert server.service is not None
        gate = threading.Event()
        for _ in range(server.service.options.decoders):
            server.service._decoders.submit(gate.wait, 300)
        told = (503, "no answer from the towers within 0.5 s; nothing is decoded")
        wait_until(lambda: health(server) == told, "it is told")  # a busy machine may be late with the towers too
        gate.set()


def test_numbers_that_are_none_reach_nobody(tiny: Path) -> None:
    class Broken(Disturbed):
        def encode_texts(self, texts: Sequence[Tokens]) -> Features:
            return np.full((len(texts), 32), np.nan, np.float32)

    with running(tiny, SHORT, towers=Broken) as server:
        assert server.get("/text_query", params={"text": "红"}).json()["error"]["code"] == "inference_failed"
        assert health(server)[0] == 503
