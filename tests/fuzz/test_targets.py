"""Fuzzing: no bytes crash a parser, hold it for 2 s, or take 500 MB; what was found is found no more.

`make test` runs each target for a fifth of a second (FUZZ_SECONDS: another time), the same examples each time;
`make fuzz` for longer (FUZZ_MINUTES over all of them), from another beginning each time. A failure names the file of
the example: it goes into tests/fuzz/corpus.py.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from tests.fuzz.corpus import FINDS, PENDING, seeds
from tests.fuzz.examples import Example, examples
from tests.fuzz.targets import TARGETS

pytestmark = pytest.mark.slow

LOG = logging.getLogger(__name__)
MINUTES = float(os.environ.get("FUZZ_MINUTES", "0"))
SECONDS = 60 * MINUTES / len(TARGETS) or float(os.environ.get("FUZZ_SECONDS", "0.2"))
"""Time for each target."""

CASES = 10_000_000


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


@pytest.mark.timeout(0)
@pytest.mark.filterwarnings("ignore:Generating overly large repr")  # of the example at which the time was over
@pytest.mark.parametrize("target", TARGETS)
def test_no_bytes_are_too_much(target: str, fault: Callable[[str, bytes], str], tmp_path: Path) -> None:
    if target in PENDING:
        pytest.skip(PENDING[target])
    fault(target, b"")  # starts the process
    until, cases = time.monotonic() + SECONDS, 0

    @settings(
        max_examples=CASES,
        database=None,
        derandomize=not MINUTES,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(examples(target))
    def run(example: Example) -> None:
        nonlocal cases
        if time.monotonic() > until:
            raise _Over
        cases += 1
        wrong = fault(target, example.data)
        if wrong:
            (tmp_path / f"{target}.bin").write_bytes(example.data)
            pytest.fail(f"{target}, case {cases}: {wrong}\n{tmp_path / target}.bin: {example!r}", pytrace=False)

    with contextlib.suppress(_Over):
        run()
    LOG.info("%s: %d cases in %.1f s", target, cases, SECONDS)


class _Over(BaseException):
    """The time is over."""
