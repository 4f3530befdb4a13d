"""The path of an input: what is given up is given up, whatever else happens in that moment."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest

from training.serve.options import Options
from training.serve.service import Service
from training.serve.towers import TorchTowers
from training.weights.load import load


def test_a_request_whose_client_leaves_as_its_thread_ends_is_given_up(tiny: Path) -> None:
    """asyncio.wait_for of Python 3.11 loses a cancellation that comes together with the result."""
    loaded = load(tiny, "cpu")
    service = Service("tiny", loaded.checkpoint, TorchTowers(loaded), Options(decoders=1))
    went_on: list[bool] = []

    async def request() -> None:
        await service.run_decoder(lambda: None)
        went_on.append(True)

    async def main() -> None:
        task = asyncio.ensure_future(request())
        await asyncio.sleep(0)
        ended = threading.Event()
        service._decoders.submit(ended.set)  # after it in the one thread
        assert ended.wait(60)  # the loop stands still: the result waits to be taken
        asyncio.get_running_loop().call_soon(task.cancel)
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    service.close()
    assert went_on == []
