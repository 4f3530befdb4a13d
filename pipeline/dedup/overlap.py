"""Reading and writing beside the work of a step that must go in order: one thread each, nothing else changes."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")

WAITING = 2
"""Things to be written that wait at most: each holds a block."""


def read_ahead(items: Iterator[Item]) -> Iterator[Item]:
    """The items; the next one is made in a thread while one is worked on. Raises what `items` raises, in its place."""
    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(_next, items)
        while item := coming.result():
            coming = thread.submit(_next, items)
            yield item[0]


def _next(items: Iterator[Item]) -> tuple[()] | tuple[Item]:
    for item in items:
        return (item,)
    return ()


@contextlib.contextmanager
def writing_behind() -> Iterator[Callable[[Callable[[], None]], None]]:
    """A function that takes steps, which are done one after the other in a thread.

    All are done when the block ends. What a step raises is raised by a later call, or at the end; steps after it are
    done all the same.
    """
    waiting = deque[Future[None]]()
    with ThreadPoolExecutor(1) as thread:

        def later(step: Callable[[], None]) -> None:
            waiting.append(thread.submit(step))
            while len(waiting) > WAITING:
                waiting.popleft().result()

        yield later
        for step in waiting:
            step.result()
