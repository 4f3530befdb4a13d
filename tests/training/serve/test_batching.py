"""Dynamic batching: rows go to who asked, lines are bounded, a bad input is alone with its failure."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("fastapi")

from training.serve.batching import BatchingModel
from training.serve.metrics import Metrics
from training.serve.options import Options
from training.serve.refusals import Refused
from training.serve.towers import Features, PreparedPicture, Tokens


class Counting:
    """Towers whose row of a text is its first token; remembers its batches. `before` runs before each."""

    def __init__(self, before: Callable[[Sequence[Tokens]], None] = lambda texts: None) -> None:
        self.sizes: list[int] = []
        self._before = before

    def encode_images(self, pictures: Sequence[PreparedPicture]) -> Features:
        raise NotImplementedError

    def encode_texts(self, texts: Sequence[Tokens]) -> Features:
        self._before(texts)
        self.sizes.append(len(texts))
        return np.array([[ids[0], len(texts)] for ids in texts], np.float32)


def with_model(towers: Counting, work: Callable[[BatchingModel], object], **options: float) -> object:
    """Run an async function of a started model on a loop."""
    model = BatchingModel(towers, Options(**options), Metrics())  # type: ignore[arg-type]
    model.start()
    try:
        return asyncio.run(work(model))  # type: ignore[arg-type]
    finally:
        model.stop()


async def ask(model: BatchingModel, numbers: Sequence[int]) -> list[float]:
    with model.admit("text", len(numbers)):
        rows = await asyncio.gather(*model.submit("text", [[number] for number in numbers]))
    return [float(row[0]) for row in rows]


@pytest.mark.slow
@settings(max_examples=25)
@given(st.lists(st.lists(st.integers(0, 1000), min_size=1, max_size=9), min_size=1, max_size=30), st.integers(1, 8))
def test_every_request_gets_its_own_rows_in_their_order(requests: list[list[int]], batch: int) -> None:
    towers = Counting()

    async def all_at_once(model: BatchingModel) -> list[list[float]]:
        return list(await asyncio.gather(*(ask(model, numbers) for numbers in requests)))

    assert with_model(towers, all_at_once, batch=batch) == requests
    assert sum(towers.sizes) == sum(map(len, requests))
    assert max(towers.sizes) <= batch


def test_what_arrives_while_the_towers_compute_makes_the_next_batch() -> None:
    gate = threading.Event()
    towers = Counting(lambda texts: gate.wait(120) and None)

    async def work(model: BatchingModel) -> None:
        first = asyncio.ensure_future(ask(model, [0]))
        while not model.state().size:
            await asyncio.sleep(0.001)
        rest = [asyncio.ensure_future(ask(model, [n])) for n in range(1, 17)]
        while model.state().waiting < 16:
            await asyncio.sleep(0.001)
        gate.set()
        await asyncio.gather(first, *rest)

    with_model(towers, work, batch=16)
    assert towers.sizes == [1, 16]


def test_a_full_line_is_refused_with_the_time_to_come_back() -> None:
    gate = threading.Event()
    towers = Counting(lambda texts: gate.wait(120) and None)

    async def work(model: BatchingModel) -> None:
        with model.admit("text", 9):
            with pytest.raises(Refused, match="9 inputs are waiting") as refused:
                model.admit("text", 2).__enter__()
            assert (refused.value.status, refused.value.code) == (503, "queue_full")
            assert int(refused.value.headers()["Retry-After"]) >= 1
            with model.admit("text", 1):
                assert model.depth("text") == 10
        assert model.depth("text") == 0
        gate.set()
        assert await ask(model, [7]) == [7]

    with_model(towers, work, waiting_texts=10)


def test_a_request_larger_than_the_line_is_taken_where_nothing_waits() -> None:
    async def work(model: BatchingModel) -> list[float]:
        return await ask(model, range(30))

    assert with_model(Counting(), work, waiting_texts=10, batch=4) == list(range(30))


def test_a_bad_input_fails_alone() -> None:
    def before(texts: Sequence[Tokens]) -> None:
        if any(ids[0] == 13 for ids in texts):
            raise RuntimeError("13")

    async def work(model: BatchingModel) -> list[object]:
        return await asyncio.gather(*(ask(model, [n]) for n in (12, 13, 14)), return_exceptions=True)

    first, second, third = with_model(Counting(before), work)  # type: ignore[misc]
    assert (first, third) == ([12], [14])
    assert isinstance(second, Refused)
    assert second.code == "inference_failed"


def test_what_was_given_up_takes_no_room_in_a_line() -> None:
    gate = threading.Event()

    async def work(model: BatchingModel) -> None:
        first = asyncio.ensure_future(ask(model, [0]))
        while not model.state().size:
            await asyncio.sleep(0.001)
        for _ in range(20):  # clients that leave at once, and a probe each
            leaving = asyncio.ensure_future(ask(model, [1, 2, 3]))
            [probe] = model.submit("text", [[4]], first=True)
            await asyncio.sleep(0)
            leaving.cancel()
            probe.cancel()
            with pytest.raises(asyncio.CancelledError):
                await leaving
            assert model.depth("text") == 1
            assert model.state().waiting <= 1, "only that which waits, and the last probe"
        gate.set()
        assert await first == [0]

    with_model(Counting(lambda texts: gate.wait(120) and None), work, waiting_texts=4)


def test_a_thread_that_dies_refuses_what_waits_and_all_that_comes() -> None:
    gate = threading.Event()

    def before(texts: Sequence[Tokens]) -> None:
        gate.wait(120)
        raise SystemExit("killed")  # no Exception: nothing catches it

    async def work(model: BatchingModel) -> None:
        first = asyncio.ensure_future(ask(model, [0]))
        while not model.state().size:
            await asyncio.sleep(0.001)
        second = asyncio.ensure_future(ask(model, [1]))
        await asyncio.sleep(0.01)
        gate.set()
        for asked in (first, second):
            with pytest.raises(Refused, match="the model thread has stopped"):
                await asked
        assert not model.state().alive
        with pytest.raises(Refused, match="the model thread has stopped"):
            model.admit("text", 1).__enter__()

    with_model(Counting(before), work, batch=1)


def test_what_would_take_longer_than_a_request_may_is_refused_at_once() -> None:
    towers = Counting(lambda texts: time.sleep(0.1))

    async def work(model: BatchingModel) -> None:
        assert await ask(model, [0]) == [0]
        with model.admit("text", 60):  # 30 batches of two, a tenth of a second each
            with pytest.raises(Refused, match="an answer would take about") as refused:
                model.admit("text", 1).__enter__()
            assert refused.value.code == "too_busy"
        assert await ask(model, [1]) == [1]

    with_model(towers, work, batch=2, request_s=2)
