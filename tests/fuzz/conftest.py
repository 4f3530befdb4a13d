"""Fixtures of the fuzz tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.fuzz.watchdog import Watchdog


@pytest.fixture(scope="module")
def fault(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str, bytes], str]]:
    """fault(target, example): what is wrong with how one takes the other, in a process of its own; "" for nothing."""
    with Watchdog(tmp_path_factory.mktemp("fuzz")) as watched:
        yield watched.fault
