"""Gradient checkpointing: three choices of what a forward keeps for the backward and what is computed again.

    nothing     everything is kept
    pointwise   kept are the results of convolutions, matrix products and attention: all that costs. Norms, activations
                and gates of a block are computed again: two thirds of a CNN's memory for a few percent of its time
    blocks      kept is what enters a block; the block is computed again, one at a time
    auto        a run chooses one of them (training/run/activations.py); elsewhere nothing

Why not `torch.utils.checkpoint` as it is: a batch norm in a block would see its batch twice and move its running
statistics twice a step. Here they stand still the second time, so all three compute the same numbers.

Limits: under `torch.compile` `pointwise` is left to the compiler, which does the same by itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

Recompute = Literal["auto", "nothing", "pointwise", "blocks"]
CHOICES: tuple[Recompute, ...] = ("nothing", "pointwise", "blocks")
"""Each keeps less than the one before, and takes longer."""

_aten = torch.ops.aten
_COSTLY = {
    _aten.convolution.default,
    _aten.mm.default,
    _aten.addmm.default,
    _aten.bmm.default,
    _aten.baddbmm.default,
    _aten._scaled_dot_product_flash_attention_for_cpu.default,
    _aten._scaled_dot_product_flash_attention.default,
    _aten._scaled_dot_product_efficient_attention.default,
    _aten._scaled_dot_product_cudnn_attention.default,
}


def run_block(block: nn.Module, x: Tensor, *more: Any, recompute: Recompute) -> Tensor:
    """Run `block(x, *more)`, keeping for the backward only what `recompute` says."""
    if recompute in ("auto", "nothing") or not torch.is_grad_enabled() or (recompute == "pointwise" and _compiling()):
        out: Tensor = block(x, *more)
        return out
    contexts = partial(_contexts, block, recompute)
    again: Tensor = checkpoint(block, x, *more, use_reentrant=False, context_fn=contexts)
    return again


def run_stage(stage: nn.Module, x: Tensor, *, recompute: Recompute) -> Tensor:
    """The blocks of a stage (the children of an nn.Sequential, or the stage itself), one after the other."""
    cut = recompute in ("pointwise", "blocks") and isinstance(stage, nn.Sequential)
    for block in stage.children() if cut else (stage,):
        x = run_block(block, x, recompute=recompute)
    return x


def _compiling() -> bool:
    return torch.compiler.is_compiling()


def _contexts(
    block: nn.Module, recompute: Recompute
) -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
    """Contexts of the first and of the second forward of a block."""
    if recompute == "blocks":
        return nullcontext(), _statistics_stand_still(block)
    first, second = create_selective_checkpoint_contexts(_policy)  # type: ignore[no-untyped-call]
    return first, _both_contexts(_statistics_stand_still(block), second)


def _policy(_context: Any, op: Any, *_args: Any, **_kwargs: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if op in _COSTLY else CheckpointPolicy.PREFER_RECOMPUTE


@contextmanager
def _both_contexts(one: AbstractContextManager[Any], other: AbstractContextManager[Any]) -> Iterator[None]:
    with one, other:
        yield


@contextmanager
def _statistics_stand_still(block: nn.Module) -> Iterator[None]:
    """Batch norms of `block` that train normalise by their batch, as before, and move copies of their averages."""
    norms = [m for m in block.modules() if isinstance(m, _BatchNorm) and m.training and m.track_running_stats]
    kept = [dict(norm._buffers) for norm in norms]
    for norm in norms:
        norm._buffers.update({name: None if b is None else b.clone() for name, b in norm._buffers.items()})
    try:
        yield
    finally:
        for norm, buffers in zip(norms, kept, strict=True):
            norm._buffers.update(buffers)
