"""The lock on an object store: one holder at a time, whoever is killed, stopped or cut off. Real processes."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import fsspec
import pytest

from data_specs.storage import object_store, store_lock
from data_specs.storage.store_lock import LockedError, LockLostError, check_locks, is_held, locked
from tests.places import ROOT
from tests.processes import wait_until
from tests.s3_server import Remote

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

COUNTS = """
import sys, time
import fsspec
from data_specs.storage.store_lock import locked

url, times, kills_itself = sys.argv[1], int(sys.argv[2]), sys.argv[3:]
fs = fsspec.filesystem("s3")
for _ in range(times):
    with locked(f"{url}/_lock", 120.0):
        number = int(fs.cat_file(f"{url}/count"))
        time.sleep(0.02)
        if kills_itself:
            print("holds it", flush=True)
            time.sleep(600)
        fs.pipe_file(f"{url}/count", str(number + 1).encode())
"""
"""Adds to a number that is read and written without any other care."""


@pytest.fixture
def url(remote: Remote) -> Iterator[str]:
    place = f"{remote.url}/{os.urandom(4).hex()}"
    fsspec.filesystem("s3").pipe_file(f"{place}/count", b"0")
    yield place
    remote.proxy.heal()


def start(*words: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", COUNTS, *words], env=environment, stdout=-1, text=True
    )


class Clock:
    """The clock of who waits for a lock: it goes on where he sleeps, and not where a busy machine lets him wait."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, sleeping: Callable[[], None] = lambda: None) -> None:
        self.passed, self._sleeping = 0.0, sleeping
        monkeypatch.setattr(store_lock, "time", SimpleNamespace(monotonic=lambda: self.passed, sleep=self.sleep))

    def sleep(self, seconds: float) -> None:
        self.passed += seconds
        self._sleeping()


def elsewhere(url: str, beat: int = 0) -> bytes:
    """The content of a lock that a process of another machine holds."""
    return store_lock._content("another-machine:0.0:7:8#9", beat)


def test_processes_take_turns_whatever_the_store_does(url: str, remote: Remote) -> None:
    remote.proxy.fail("lost", share=0.05, hits=lambda operation, path: path.endswith("_lock"))
    processes = [start(url, "8") for _ in range(2)]
    assert [process.wait(300) for process in processes] == [0, 0]
    assert fsspec.filesystem("s3").cat_file(f"{url}/count") == b"16"
    assert remote.proxy.failed()


def test_a_holder_that_is_killed_blocks_nobody_on_its_machine(url: str) -> None:
    process = start(url, "1", "kill")
    assert process.stdout is not None
    assert process.stdout.readline() == "holds it\n"
    assert is_held(f"{url}/_lock") is True
    with pytest.raises(LockedError, match=rf"is held by process {process.pid} of "), locked(f"{url}/_lock", 0.0):
        pass
    process.kill()
    process.wait()
    assert is_held(f"{url}/_lock") is False
    began = time.monotonic()
    with locked(f"{url}/_lock", 0.0):
        assert time.monotonic() - began < store_lock.LEASE_S
        assert is_held(f"{url}/_lock") is True
    assert is_held(f"{url}/_lock") is False


def test_one_that_was_killed_elsewhere_is_waited_for_as_long_as_its_lease(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    object_store.create(f"{url}/_lock", elsewhere(url))
    assert is_held(f"{url}/_lock") is None, "nobody here can know"
    clock = Clock(monkeypatch)
    with locked(f"{url}/_lock", 0.0):
        assert store_lock.LEASE_S <= clock.passed < store_lock.LEASE_S + 3


def test_one_that_lives_elsewhere_is_waited_for_and_then_named(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    held, beats = object_store.create(f"{url}/_lock", elsewhere(url)), 0

    def beat() -> None:
        nonlocal held, beats
        beats += 1
        held = object_store.replace(f"{url}/_lock", elsewhere(url, beats), held)
        assert held, "nobody has taken it over"

    clock, wait_s = Clock(monkeypatch, beat), store_lock.LEASE_S + 5
    with pytest.raises(LockedError, match="is held by process 7 of another-machine") as e:  # noqa: SIM117
        with locked(f"{url}/_lock", wait_s):
            pass
    assert e.value.errno == errno.EAGAIN
    assert clock.passed >= wait_s, "longer than a lease: it is alive"


def test_a_holder_keeps_its_lock_by_beating(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_lock, "BEAT_S", 0.2)
    with locked(f"{url}/_lock", 0.0):

        def beat() -> int:
            there = object_store.read(f"{url}/_lock")
            assert there is not None
            return int(json.loads(there[0])["beat"])

        first = beat()
        wait_until(lambda: beat() > first + 1, "it has beaten twice")
        check_locks()


def test_a_holder_that_lost_its_lock_changes_nothing_more(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As one that was stopped for longer than its lease: another one has taken over."""
    from pipeline.errors import StoreError
    from pipeline.files.folder import Folder

    monkeypatch.setattr(store_lock, "FENCE_S", 0.0)  # it has not beaten for long
    folder = Folder(url)
    with locked(f"{url}/_lock", 0.0):
        folder.write("mine", b"1")
        there = object_store.read(f"{url}/_lock")
        assert there is not None
        assert object_store.replace(f"{url}/_lock", elsewhere(url), there[1])
        with pytest.raises(LockLostError, match="was taken over by another process; run the same command again"):
            check_locks()
        for change in (
            lambda: folder.write("mine", b"2"),
            lambda: folder.delete("mine"),
            lambda: folder.move("mine", "other"),
            lambda: folder.replace("mine", b"2", None),
        ):
            with pytest.raises(StoreError, match="was taken over"):
                change()
    assert folder.read("mine") == b"1"
    assert (object_store.read(f"{url}/_lock") or (b"",))[0] == elsewhere(url), "it gives nobody else's lock away"
    folder.write("mine", b"2")  # without a lock there is none to lose


def test_without_conditional_writes_nothing_is_held(tmp_path: object) -> None:
    with locked("memory://nowhere/_lock", 0.0), locked("memory://nowhere/_lock", 0.0):
        check_locks()
    assert is_held("memory://nowhere/_lock") is None
