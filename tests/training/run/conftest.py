"""Runs are computed by one thread, so that they repeat to the bit, and can be stopped in the middle."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import pytest
import torch

from training.outputs.journal import Journal


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def stopped_after() -> Callable[[int], AbstractContextManager[None]]:
    """stopped_after(step): what runs within is interrupted at that step, as by a person."""

    @contextmanager
    def stopped(last: int) -> Iterator[None]:
        advance = Journal.advance

        def stopping(self: Journal, step: int) -> None:
            advance(self, step)
            if step == last:
                raise KeyboardInterrupt

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Journal, "advance", stopping)
            with pytest.raises(KeyboardInterrupt):
                yield

    return stopped
