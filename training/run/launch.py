"""Surroundings of a run: its process group, the lock on its folder, and requests to save or to stop.

A rank ends with the process that started it. When torchrun's agent is killed its ranks are not: they would train on and
save, beside those that the next start of the same command begins.

The same loop runs under plain `python`, under `torchrun -m training` (the group is made here from torchrun's
environment) and under Ray Train (which has made the group before the loop begins).

Limits: one device a process; NCCL for tensors on CUDA, Gloo for all others. Ray makes its group with the same backends
and timeout, but names no device to it: NCCL takes the one that `process_group` sets. A launcher that is gone before its
rank has imported torch is not missed: that rank waits for a process group that never forms.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from enum import IntEnum
from pathlib import Path

import torch
import torch.distributed as dist

from data_specs.storage.whole_files import exclusive
from training.errors import RunError
from training.method import distributed

LOG = logging.getLogger(__name__)


_LOOKS_S = 0.5
"""Seconds between two looks for the process that started this one."""


TIMEOUT = timedelta(minutes=30)
"""Longest wait for another rank: one that reads cold remote data, or copies its last checkpoint to a slow mirror."""


def under_torchrun() -> bool:
    return "TORCHELASTIC_RUN_ID" in os.environ


@contextmanager
def ending_with_parent(watch: bool = True) -> Iterator[None]:
    """End this process at once, without saving, when the process that started it is gone. `watch=False`: do nothing.

    Only where that is a launcher: who starts a run from a shell may close the shell. A thread looks, and not the
    kernel (PR_SET_PDEATHSIG), which would take the end of the launcher's *thread* for that of the launcher.
    """
    parent, done = os.getppid(), threading.Event()

    def look() -> None:
        while not done.wait(_LOOKS_S):
            if os.getppid() != parent:
                words = "rank %s: its parent process (%d) has ended; exiting without saving"
                # In a thread of its own: who was to read the log may be gone too, and a full pipe is waited for.
                teller = threading.Thread(target=LOG.error, args=(words, distributed.rank(), parent), daemon=True)
                teller.start()
                teller.join(1.0)
                os._exit(1)

    if watch:
        threading.Thread(target=look, name="parent", daemon=True).start()
    try:
        yield
    finally:
        done.set()


def backends(gpu: bool) -> str:
    """Backend by device: objects, counts and all else that lies in the CPU's memory never wait for a GPU."""
    return "cpu:gloo,cuda:nccl" if gpu else "gloo"


@contextmanager
def process_group(device: torch.device) -> Iterator[None]:
    """Join the group that torchrun's environment describes, and leave it at the end; does nothing without it."""
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if distributed.active() or int(os.environ.get("WORLD_SIZE", "1")) < 2:
        yield
        return
    gpu = device.type == "cuda"
    dist.init_process_group(backends(gpu), timeout=TIMEOUT, device_id=device if gpu else None)
    try:
        yield
    finally:
        dist.destroy_process_group()


class Leave(IntEnum):
    """Request to a run between two steps; of several ranks the largest counts for all."""

    NO = 0
    SAVE = 1
    """Save, and go on: this machine may go soon, or the last checkpoint is old."""
    STOP = 2
    """Save, and end."""


_INTERRUPTED = b"\nCtrl-C: ends after this step, with a checkpoint; once more: ends at once\n"

LeaveSignal = Callable[[], Leave]
"""Called by every rank after every step."""


@contextmanager
def leave_on_signal() -> Iterator[LeaveSignal]:
    """Turn SIGTERM, which schedulers send before they take a machine away, and Ctrl-C's SIGINT into a request to STOP.

    A second SIGINT interrupts at once, as it would without this. One that is ignored (nohup, `&` in a script) stays so.
    """
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda: Leave.NO  # a signal goes to the main thread, which is someone else's
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def receive(number: int, _frame: object) -> None:
        received.append(number)
        if number == signal.SIGINT:
            signal.signal(number, before[signal.SIGINT])
            os.write(2, _INTERRUPTED)  # a log's stream may be in the middle of a line of its own

    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, receive)
    try:
        yield lambda: Leave.STOP if received else Leave.NO
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def locked_folder(out: Path, wait: float = 120.0) -> Iterator[None]:
    """Hold the lock of `out`, so that only one run writes to it. Waits for a run that is ending, which is logged.

    Raises RunError after `wait` seconds. A file system without locks goes unlocked, which is logged.
    """
    with ExitStack() as lock:
        try:
            try:
                lock.enter_context(exclusive(out / ".lock", wait_s=0))
            except BlockingIOError:
                LOG.info("%s: another run is writing to it; waiting up to %g s for its end", out, wait)
                lock.enter_context(exclusive(out / ".lock", wait))
        except BlockingIOError:
            raise RunError(str(out), "another run is writing to it; choose another --out") from None
        except OSError as e:
            LOG.warning("%s: cannot be locked (%s); make sure that no other run writes to it", out, e.strerror)
        yield
