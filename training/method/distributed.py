"""Exchange between ranks. Every function also works in a process that belongs to no group.

Why gather in rank order: a queue must hold the same keys in the same order on every rank, and the same as on one rank
with the whole batch, or a resumed run at another world size would go another way.

Limits: all ranks must pass tensors of one shape; a batch is divided evenly over the ranks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

Object = TypeVar("Object")


def active() -> bool:
    """True if this process belongs to a process group."""
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """Number of this process in the group; 0 without one."""
    return dist.get_rank() if active() else 0


def world_size() -> int:
    """Processes of the group; 1 without one."""
    return dist.get_world_size() if active() else 1


def gather(x: Tensor) -> Tensor:
    """The ranks' tensors [B, ...] joined in rank order: [world * B, ...]. No gradient flows."""
    x = x.detach()
    if world_size() == 1:
        return x
    # Backends differ in whether they carry bool; a byte always travels.
    parts = [torch.empty_like(x, dtype=torch.uint8 if x.dtype == torch.bool else x.dtype) for _ in range(world_size())]
    dist.all_gather(parts, x.to(parts[0].dtype).contiguous())
    return torch.cat(parts).to(x.dtype)


def gather_with_grad(x: Tensor) -> Tensor:
    """Same as `gather`, with gradient: each rank receives the sum of the gradients of every rank's use of its part."""
    if world_size() == 1:
        return x
    gathered: Tensor = _GatherWithGrad.apply(x)  # type: ignore[no-untyped-call]
    return gathered


def gather_objects(value: Object) -> list[Object]:
    """The ranks' values in rank order. They travel by pickle, which is safe among processes of one run."""
    if world_size() == 1:
        return [value]
    gathered: list[Any] = [None] * world_size()
    dist.all_gather_object(gathered, value)
    return gathered


def broadcast_from_first(value: Object) -> Object:
    """Returns the first rank's value on every rank."""
    if world_size() == 1:
        return value
    told: list[Any] = [value]
    dist.broadcast_object_list(told, src=0)
    first: Object = told[0]
    return first


def average_(tensors: Sequence[Tensor]) -> None:
    """Replace each tensor by its mean over the ranks, in place, in one exchange. All must share one float type."""
    if world_size() == 1 or not tensors:
        return
    flat = torch.cat([t.reshape(-1) for t in tensors])
    dist.all_reduce(flat)
    flat /= world_size()
    for tensor, part in zip(tensors, torch.split(flat, [t.numel() for t in tensors]), strict=True):
        tensor.copy_(part.view_as(tensor))


class _GatherWithGrad(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return gather(x)

    @staticmethod
    def backward(ctx: object, *grads: Tensor) -> Tensor:
        parts = list(grads[0].contiguous().chunk(world_size()))
        mine = torch.empty_like(parts[0])
        dist.reduce_scatter(mine, parts)
        return mine
