"""Device, float32 precision and memory allocator of a process that computes.

For the loop, for the worker processes that make batches, and for a finished checkpoint alike.

Limits: one device a process. `keep_memory` knows glibc only.
"""

from __future__ import annotations

import ctypes
import os

import torch

from training.errors import ConfigError, first_line

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of glibc's malloc.h


def keep_memory() -> bool:
    """Make glibc keep freed memory in this process instead of returning it to the system; returns whether it does now.

    torch frees and asks for the same large blocks at every layer of a CPU step. By default each is mapped again,
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
        raise ConfigError("run.device", f"{name!r}: {first_line(e)}") from None
    return device


def prepare_device(name: str) -> torch.device:
    """Returns `device_of`, ready to compute on: a CPU keeps freed memory, a GPU computes float32 in full, without TF32.

    `fp32` means it, and under bf16 what stays in float32 (region pooling, similarities with the queue, whose
    differences are divided by the temperature) stays there for its digits. torch's default for convolutions is TF32.
    """
    device = device_of(name)
    if device.type == "cpu":
        keep_memory()
    if device.type == "cuda":
        # Not by `fp32_precision`: after it torch refuses to read the old flags, as inductor's max-autotune does.
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = False
    return device
