"""Fixtures of the fuzz tests."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import pytest

from tests.fuzz.watchdog import Watchdog


@pytest.fixture(scope="module")
def fault(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str, bytes], str]]:
    """fault(target, example): what is wrong with how one takes the other, in a process per target; "" for nothing."""
    watchdogs: dict[str, Watchdog] = {}
    with contextlib.ExitStack() as stack:

        def fault(target: str, data: bytes) -> str:
            if target not in watchdogs:
                watchdogs[target] = stack.enter_context(Watchdog(target, tmp_path_factory.mktemp(target)))
            return watchdogs[target].fault(data)

        yield fault
