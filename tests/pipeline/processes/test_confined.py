"""A function over what strangers wrote costs no more than its limits, whatever it does, and the next call goes on."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.errors import StageError
from pipeline.processes.confined import Confined, OverLimit

pytestmark = pytest.mark.slow

WORK = """
import os, signal, time

class Odd(Exception):
    def __init__(self, a, b):
        super().__init__(f"{a} and {b}")

def work(what, *more):
    if what == "loop":
        while True: pass
    if what == "c":
        "a" * 100 + max(["b"] * 10); sum(range(10 ** 11))
    if what == "memory":
        return len(bytearray(10 ** 9))
    if what == "die":
        os.kill(os.getpid(), signal.SIGSEGV)
    if what == "exit":
        os._exit(3)
    if what == "raise":
        raise KeyError("of the page")
    if what == "odd":
        raise Odd(1, 2)
    if what == "disk":
        raise OSError(28, "No space left on device")
    if what == "print":
        print("x" * 1000, flush=True)
    if what == "sleep":
        time.sleep(more[0])
    return (what, more, os.getpid())
"""


@pytest.fixture
def confined(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Confined[object]]:
    (tmp_path / "strange_work.py").write_text(WORK, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    import strange_work  # type: ignore[import-not-found]

    with Confined(strange_work.work, ("example",), seconds=0.5, memory=300_000_000) as it:
        yield it


def test_values_come_back_from_one_other_process(confined):
    what, more, first = confined("value", "文\ud83d", b"\0" * 1_000_000)
    assert (what, more) == ("value", ("文\ud83d", b"\0" * 1_000_000))
    assert confined("print")[2] == confined("again")[2] == first != os.getpid()


@pytest.mark.parametrize(
    ("what", "why"),
    [
        ("loop", "more than 0.5 s of CPU time"),
        ("c", "more than 0.5 s of CPU time"),
        ("memory", "more than 300 MB of memory"),
        ("die", f"its process was killed by signal {int(signal.SIGSEGV)}"),
        ("exit", "its process exited with code 3"),
    ],
)
def test_what_is_over_the_limits_ends_and_the_next_call_goes_on(confined, what, why):
    before = confined("before")[2]
    with pytest.raises(OverLimit, match=why):
        confined(what)
    assert confined("after")[2] != before


def test_the_limit_is_the_processors_time_and_each_call_has_its_own(confined):
    pids = {confined("sleep", 0.3)[2] for _ in range(3)}
    assert len(pids) == 1


@pytest.mark.parametrize(
    ("what", "kind", "words"),
    [("raise", KeyError, "of the page"), ("odd", RuntimeError, "Odd: 1 and 2"), ("disk", OSError, "No space left")],
)
def test_what_is_raised_there_is_raised_here_with_its_traceback(confined, what, kind, words):
    with pytest.raises(kind, match=words) as raised:
        confined(what)
    assert 'strange_work.py", line' in str(raised.value.__cause__)
    assert confined("after")[0] == "after"


def test_files_in_the_working_folder_are_none_of_its_modules(confined, tmp_path, monkeypatch):
    (tmp_path / "of somebody").mkdir()
    (tmp_path / "of somebody" / "struct.py").write_text("raise SystemExit", encoding="utf-8")
    monkeypatch.chdir(tmp_path / "of somebody")
    assert confined("value")[0] == "value"


def test_a_child_that_cannot_start_is_a_fault_of_ours(confined, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(StageError, match="did not start"):
        confined("x")


def test_the_child_ends_with_its_user(confined):
    pid = confined("x")[2]
    confined.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
