"""Shared memory between worker processes and the reader of batches: a ring of slots, one batch each.

torch's DataLoader shares every tensor of a batch through a file descriptor of its own, and maps fresh pages for each:
for ten tensors that was 2 to 9 ms a batch, more than decoding eight pictures takes. Here the worker lays all tensors of
a batch into one slot, sends where they lie, and the reader copies the slot out at once. Pages are mapped once, and none
of it counts against /dev/shm, which containers keep small.

Limits: worker processes must be forked after the ring was made. Nothing here guards a slot: the code that hands out the
numbers must not reuse one before it was read.
"""

from __future__ import annotations

import itertools
import mmap
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from training.errors import RunError

_ALIGN = 64


@dataclass(frozen=True, slots=True)
class TensorPlace:
    """Place of a tensor in a slot: offset in bytes, type, shape and strides."""

    start: int
    dtype: torch.dtype
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    def view_in(self, memory: Tensor) -> Tensor:
        """View of the tensor in the bytes `memory` of a slot."""
        typed = memory[self.start : self.start + self.bytes].view(self.dtype)
        return typed.as_strided(self.shape, self.stride)

    @property
    def bytes(self) -> int:
        """Bytes of the tensor, which is dense whatever the order of its axes."""
        return int(torch.Size(self.shape).numel()) * self.dtype.itemsize


class Slots:
    """`count` slots of `size` bytes. Raises RunError where the machine has no memory for them."""

    _every: ClassVar[WeakValueDictionary[int, Slots]] = WeakValueDictionary()
    _numbers: ClassVar[itertools.count[int]] = itertools.count()

    def __init__(self, count: int, size: int) -> None:
        self.count = count
        size = -(-size // _ALIGN) * _ALIGN
        try:
            memory = mmap.mmap(-1, count * size)
        except OSError as e:
            needed = f"{count * size / 2**30:,.1f} GiB for {count} batches: {e.strerror}"
            raise RunError("data.num_workers", f"{needed}; fewer, or a smaller batch, need less") from None
        self._memory = torch.frombuffer(memory, dtype=torch.uint8).view(count, size)
        self._number = next(self._numbers)
        self._every[self._number] = self

    def write(self, slot: int, tensors: Iterable[Tensor]) -> tuple[TensorPlace, ...]:
        """Copy tensors into a slot. Raises ValueError if they do not fit."""
        memory, at, pieces = self._memory[slot], 0, []
        for tensor in tensors:
            piece = TensorPlace(at, tensor.dtype, tuple(tensor.shape), tensor.stride())
            assert _dense(tensor), "a tensor with gaps"
            if at + piece.bytes > len(memory):
                raise ValueError(f"{at + piece.bytes} bytes for a slot of {len(memory)}")
            piece.view_in(memory).copy_(tensor)
            pieces.append(piece)
            at += -(-piece.bytes // _ALIGN) * _ALIGN  # rounded up: torch wants aligned memory for every dtype
        return tuple(pieces)

    def read(self, slot: int, pieces: Iterable[TensorPlace], *, pin_memory: bool = False) -> list[Tensor]:
        """Copies of the tensors in the reader's memory; the slot can then be reused."""
        pieces = tuple(pieces)
        end = max(piece.start + piece.bytes for piece in pieces)
        copy = torch.empty(end, dtype=torch.uint8, pin_memory=pin_memory).copy_(self._memory[slot, :end])
        return [piece.view_in(copy) for piece in pieces]

    def __reduce__(self) -> tuple[object, tuple[int]]:
        """Pickle the number alone: a forked process has the same ring."""
        return _ring_by_number, (self._number,)


def _dense(tensor: Tensor) -> bool:
    last = sum((size - 1) * step for size, step in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.numel() in (0, last + 1)


def _ring_by_number(number: int) -> Slots:
    return Slots._every[number]


def slot_bytes(tensors: Iterable[tuple[int, int]]) -> int:
    """Bytes of a slot for tensors of these (elements, bytes an element)."""
    return sum(-(-elements * size // _ALIGN) * _ALIGN for elements, size in tensors)
