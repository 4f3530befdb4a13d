"""One run writes into a folder at a time; signals ask it to save and to end."""

from __future__ import annotations

import logging
import os
import signal
from pathlib import Path

import pytest

from training.errors import RunError
from training.run.launch import Leave, leave_on_signal, locked_folder

pytestmark = pytest.mark.usefixtures("one_thread")


def test_only_one_run_writes_into_a_folder(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "training")
    with (
        locked_folder(tmp_path),
        pytest.raises(RunError, match="another run is writing to it"),
        locked_folder(tmp_path, wait=0.5),
    ):
        pass
    assert caplog.messages == [f"{tmp_path}: another run is writing to it; waiting up to 0.5 s for its end"]
    with locked_folder(tmp_path, wait=0):
        pass


@pytest.mark.usefixtures("interruptible")
def test_a_second_interrupt_ends_at_once(capfd: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(signal.SIGINT)
    with leave_on_signal() as leave:
        assert leave() is Leave.NO
        os.kill(os.getpid(), signal.SIGINT)
        assert leave() is Leave.STOP
        assert "once more: ends at once" in capfd.readouterr().err
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_an_interrupt_that_is_ignored_stays_so() -> None:
    """As in a script's background: who interrupts the script does not mean the run."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with leave_on_signal() as leave:
            os.kill(os.getpid(), signal.SIGINT)
            assert leave() is Leave.NO
    finally:
        signal.signal(signal.SIGINT, before)
