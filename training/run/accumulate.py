"""Gradients of one optimiser step over its micro-batches, equal to those of the whole batch for every objective.

Where negatives come from the queue only, the loss is a sum over samples: each micro-batch runs forward and backward on
its own. Where samples of a batch are each other's candidates it is not, and features are cached (GradCache, arXiv
2101.06983): all micro-batches forward without a graph, the loss once on all features, its gradient by each feature, and
then each micro-batch forward again, from the same random numbers, and backward from that gradient. It costs one more
forward of the query towers and keeps the memory of one micro-batch.

Limits: batch statistics of trained batch norms are those of a micro-batch; they move once, in the second forward.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from training.method.key_queue import SampleIds
from training.moco import BriVL, Features, StepOutput
from training.records import Batch

Autocast = Callable[[], AbstractContextManager[Any]]


def backward(
    model: BriVL, micros: Sequence[Batch], samples: float, autocast: Autocast = nullcontext
) -> list[StepOutput]:
    """Add the step's gradients to the parameters; returns the micro-steps' outputs, whose losses add up to the step's.

    `samples`: valid samples of the step over all ranks, divided by the ranks (see `BriVL.loss`).
    """
    if model.in_batch and len(micros) > 1:
        return _cached(model, micros, samples, autocast)
    outputs = []
    for batch in micros:
        with autocast():
            output: StepOutput = model(batch, samples)
        output.loss.backward()  # type: ignore[no-untyped-call]
        outputs.append(output)
    return outputs


def _cached(model: BriVL, micros: Sequence[Batch], samples: float, autocast: Autocast) -> list[StepOutput]:
    seeds = torch.randint(2**62, (len(micros),)).tolist()
    first = []
    for batch, seed in zip(micros, seeds, strict=True):
        torch.manual_seed(seed)
        with torch.no_grad(), _statistics_stand_still(model), autocast():
            first.append(model.features(batch))
    whole = _leaves(first, model.has_keys)
    output = model.loss(whole, samples)
    output.loss.backward()  # type: ignore[no-untyped-call]

    # Second pass: rows start..stop-1 of the joined features are this micro-batch's, and so are their gradients.
    outputs, start = [], 0
    for batch, seed in zip(micros, seeds, strict=True):
        torch.manual_seed(seed)
        # A second autocast context: one that has cached the weights without a graph would return them without one.
        with autocast():
            again = model.features(batch, keys=False)
        stop = start + len(batch)
        pairs = ((again.image_BD, whole.image_BD), (again.text_BD, whole.text_BD))
        trained = [(out, _gradient(leaf)[start:stop]) for out, leaf in pairs if out.requires_grad]  # not frozen
        torch.autograd.backward([out for out, _ in trained], [gradient for _, gradient in trained])
        outputs.append(_share(output, start, stop, len(micros)))
        start = stop
    return outputs


def _leaves(parts: Sequence[Features], has_keys: bool) -> Features:
    """The features of all micro-batches joined, as leaves that receive the gradient of the loss."""
    image_BD = torch.cat([p.image_BD for p in parts]).requires_grad_()
    text_BD = torch.cat([p.text_BD for p in parts]).requires_grad_()
    ids = SampleIds.joined([p.ids for p in parts])
    if not has_keys:
        return Features(image_BD, text_BD, image_BD, text_BD, ids)
    keys = torch.cat([p.image_keys_BD for p in parts]), torch.cat([p.text_keys_BD for p in parts])
    return Features(image_BD, text_BD, *keys, ids)


def _gradient(leaf: Tensor) -> Tensor:
    assert leaf.grad is not None
    return leaf.grad


def _share(output: StepOutput, start: int, stop: int, micros: int) -> StepOutput:
    """One micro-batch's part of the step's output: its keys, which enter by micro-step, and a part of the loss."""
    return replace(
        output,
        loss=output.loss.detach() / micros,
        image_keys_BD=output.image_keys_BD[start:stop],
        text_keys_BD=output.text_keys_BD[start:stop],
        ids=output.ids.rows(start, stop),
        losses_B=output.losses_B[start:stop],
    )


@contextmanager
def _statistics_stand_still(model: nn.Module) -> Iterator[None]:
    """Batch norms in train mode use their batch's statistics, as always, but do not remember them."""
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats and m.training]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True
