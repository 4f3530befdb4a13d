"""The watchdog sees what it is there for: an exception, a hang, memory, and the death of the process."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from tests.fuzz import targets, watchdog
from tests.fuzz.watchdog import Watchdog

EVIL = """
import os, sys
from tests.fuzz import targets, watchdog
def evil(data):
    if data == b"raise":
        raise KeyError("of the target")
    if data == b"exit":
        sys.exit()
    if data == b"hang":
        while True:
            pass
    if data == b"memory":
        b"x" * 600_000_000
    if data == b"die":
        os.abort()
targets.TARGETS["evil"] = evil
"""


@pytest.mark.slow
def test_every_kind_of_fault_is_seen_and_the_next_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sitecustomize.py").write_text(EVIL, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{Path(targets.__file__).parents[2]}")
    monkeypatch.setattr(watchdog, "SECONDS", 1.0)
    with Watchdog(tmp_path) as watched:
        assert watched.fault("evil", b"sound") == ""
        assert "KeyError: 'of the target'" in watched.fault("evil", b"raise")
        assert "SystemExit" in watched.fault("evil", b"exit")
        assert watched.fault("evil", b"memory").endswith(" MB of memory")
        assert watched.fault("evil", b"sound") == ""
        began = time.monotonic()
        assert watched.fault("evil", b"hang") == "a hang: more than 1 s of computing"
        assert time.monotonic() - began < watchdog.WALL * watchdog.SECONDS, "by the time of computing"
        assert watched.fault("evil", b"die") == f"the process died: {-signal.SIGABRT}"
        assert watched.fault("evil", b"sound") == ""
