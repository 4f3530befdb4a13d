"""What was found before, by fuzzing and on real sites, is found no more (tests/fuzz/corpus.py)."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.fuzz.corpus import FINDS, PENDING, seeds
from tests.fuzz.targets import TARGETS

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(("target", "name"), [(target, name) for target, finds in FINDS.items() for name in finds])
def test_what_was_found_is_found_no_more(target: str, name: str, fault: Callable[[str, bytes], str]) -> None:
    if f"{target}/{name}" in PENDING:
        pytest.skip(PENDING[f"{target}/{name}"])
    assert fault(target, FINDS[target][name]()) == ""


@pytest.mark.parametrize("target", TARGETS)
def test_sound_examples_have_no_fault(target: str, fault: Callable[[str, bytes], str]) -> None:
    assert [fault(target, seed) for seed in seeds()[target]] == [""] * len(seeds()[target])


def test_every_target_has_examples_and_what_is_pending_is_there() -> None:
    assert TARGETS.keys() == seeds().keys() == FINDS.keys()
    assert PENDING.keys() <= {*TARGETS, *(f"{target}/{name}" for target, finds in FINDS.items() for name in finds)}
