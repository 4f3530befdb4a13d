"""Where a run computes: its device, and the process group it belongs to.

The same loop runs under plain `python`, under `torchrun -m training` (the group is made here from torchrun's
environment) and under Ray Train (which has made the group before the loop begins).

Limits: one device a process; NCCL on CUDA, Gloo otherwise.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist

from training import distributed
from training.errors import ConfigError


def device_of(name: str) -> torch.device:
    """Device by the name in `run.device`; `auto` is this process's GPU if there is one, else the CPU.

    Raises ConfigError on a name that torch does not know and on a device that is not there.
    """
    if name == "auto":
        name = f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as e:
        raise ConfigError("run.device", f"{name!r}: {str(e).splitlines()[0]}") from None
    return device


@contextmanager
def process_group(device: torch.device) -> Iterator[None]:
    """Join the group that torchrun's environment describes, and leave it at the end; nothing to do without one."""
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


def total(value: int, device: torch.device) -> int:
    """Sum of a number over the ranks."""
    if distributed.world_size() == 1:
        return value
    return int(distributed.gather(torch.tensor([value], device=device)).sum())
