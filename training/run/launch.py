"""Where a run computes: its device, the process group it belongs to, its folder, and who may tell it to leave.

The same loop runs under plain `python`, under `torchrun -m training` (the group is made here from torchrun's
environment) and under Ray Train (which has made the group before the loop begins).

Limits: one device a process; NCCL on CUDA, Gloo otherwise.
"""

from __future__ import annotations

import ctypes
import fcntl
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import IntEnum
from pathlib import Path

import torch
import torch.distributed as dist

from training.errors import ConfigError, TrainingError
from training.method import distributed

LOG = logging.getLogger(__name__)

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of glibc's malloc.h


def keep_memory() -> bool:
    """Tell glibc to keep freed memory in this process instead of giving it back; whether it was told.

    torch frees and asks for the same large blocks at every layer of a CPU step. By default each of them is mapped anew,
    and zeroing its pages takes more time than computing on them: a MobileNetV2 forward (B=32, 192 px, 2 cores) took
    0.60 s, and 0.26 s without. The numbers do not change; the process stays as large as it was at its largest.
    Settings in the environment (MALLOC_...) are left as they are; nothing is done where the C library is another one.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None or any(name.startswith("MALLOC_") for name in os.environ):
        return False
    return bool(mallopt(_M_MMAP_MAX, 0)) and bool(mallopt(_M_TRIM_THRESHOLD, 2**31 - 1))


def device_of(name: str) -> torch.device:
    """Device by the name in `run.device`; `cuda` is this process's GPU, `auto` the same if there is one, else the CPU.

    Raises ConfigError on a name that torch does not know and on a device that is not there.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda":
        name = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as e:
        raise ConfigError("run.device", f"{name!r}: {str(e).splitlines()[0]}") from None
    return device


def exact_float32(device: torch.device) -> None:
    """Let float32 on a GPU be float32: no TF32 in matrix products and convolutions.

    `run.precision=fp32` means it, and under bf16 what is left in float32 (region pooling, similarities with the queue,
    whose differences are divided by the temperature) is left there for its digits. torch's default for convolutions is
    TF32.
    """
    if device.type == "cuda":
        torch.backends.cuda.matmul.fp32_precision = "ieee"
        torch.backends.cudnn.conv.fp32_precision = "ieee"  # type: ignore[attr-defined]


@contextmanager
def process_group(device: torch.device) -> Iterator[None]:
    """Join the group that torchrun's environment describes, and leave it at the end; nothing to do without one."""
    if device.type == "cuda":
        torch.cuda.set_device(device)  # NCCL's exchanges of objects and barriers use the current device
    if distributed.active() or int(os.environ.get("WORLD_SIZE", "1")) < 2:
        yield
        return
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


def average_gradients(parameters: list[torch.nn.Parameter], chunk_bytes: int = 64 << 20) -> None:
    """Mean of the gradients over the ranks, in place, in exchanges of about `chunk_bytes`. A missing gradient is zero.

    Why not DistributedDataParallel: one exchange a step, after the last micro-step, is all that the loop needs, and the
    model's forward stays a plain call whose output is a record.
    """
    if distributed.world_size() == 1:
        return
    chunk: list[torch.Tensor] = []
    held = 0
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        chunk.append(parameter.grad)
        held += parameter.grad.numel() * parameter.grad.element_size()
        if held >= chunk_bytes:
            distributed.average_(chunk)
            chunk, held = [], 0
    distributed.average_(chunk)


class Leave(IntEnum):
    """What a run is told between two steps; of several ranks the largest counts for all."""

    NO = 0
    SAVE = 1
    """This machine may go soon: save, and go on."""
    STOP = 2
    """Save, and end."""


Told = Callable[[], Leave]
"""Asked by every rank after every step."""


@contextmanager
def terminated() -> Iterator[Told]:
    """STOP once this process was sent SIGTERM, as schedulers do before they take a machine away."""
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda: Leave.NO  # a signal goes to the main thread, which is someone else's
        return
    before = signal.signal(signal.SIGTERM, lambda number, _: received.append(number))
    try:
        yield lambda: Leave.STOP if received else Leave.NO
    finally:
        signal.signal(signal.SIGTERM, before)


def together(valid: int, leave: Leave, device: torch.device) -> tuple[int, Leave]:
    """The sum of `valid` over the ranks, and the most pressing of what they were told."""
    if distributed.world_size() == 1:
        return valid, leave
    found = distributed.gather(torch.tensor([[valid, leave]], device=device))
    return int(found[:, 0].sum()), Leave(int(found[:, 1].max()))


@contextmanager
def owned(out: Path, wait: float = 120.0) -> Iterator[None]:
    """Be the only run that writes into `out`. A killed one lets go at once; one that is just ending is waited for.

    Raises TrainingError after `wait` seconds. Where the file system knows no locks there is none, and that is said.
    """
    out.mkdir(parents=True, exist_ok=True)
    handle = os.open(out / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    deadline = time.monotonic() + wait
    try:
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise TrainingError(str(out), "another run writes into it; choose another --out") from None
                time.sleep(0.2)
            except OSError as e:
                LOG.warning("%s: cannot be locked (%s); let no other run write into it", out, e.strerror)
                break
        yield
    finally:
        os.close(handle)
