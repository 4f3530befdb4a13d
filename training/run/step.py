"""One optimiser step: gradients, their mean over the ranks, clipping, AdamW, key towers and queues.

A step whose gradient is not finite changes nothing: no parameter, no average, no key; batch-norm statistics, which its
forward has moved, are put back. Random numbers of a step follow from (seed, step, rank).

Its gradients over several micro-batches equal those of the whole batch for every objective. Where negatives come from
the queue only, the loss is a sum over samples: each micro-batch runs forward and backward on its own. Where samples of
a batch are each other's candidates it is not, and features are cached (GradCache, arXiv 2101.06983): all micro-batches
forward without a graph, the loss once on all features, its gradient by each feature, and then each micro-batch forward
again, from the same random numbers, and backward from that gradient. It costs one more forward of the query towers and
keeps the memory of one micro-batch.

Limits: dropout differs between world sizes. Batch statistics of trained batch norms are those of a micro-batch; they
move once, in the second forward.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from training.data.order import seed_of
from training.errors import RunError
from training.method import distributed
from training.method.key_queue import SampleIds
from training.moco import BriVL, Features, StepOutput
from training.outputs.checkpoint import RunState
from training.records import Batch
from training.run.gradient_exchange import GradientExchange
from training.run.optimizer import batch_factor, schedule
from training.run.setup import Setup


@dataclass(frozen=True, slots=True)
class StepResult:
    """A finished step: its micro-batches and their outputs.

    `norm`: of the gradient before clipping, or None when it was not finite and nothing was moved.
    """

    micros: Sequence[Batch]
    outputs: Sequence[StepOutput]
    norm: float | None
    lr: float

    @property
    def skipped(self) -> bool:
        """True if the step did not update anything."""
        return self.norm is None


class Stepper:
    """Takes the steps of one run, on every rank alike."""

    def __init__(self, setup: Setup) -> None:
        self._config, self._device = setup.config, setup.device
        self._model: BriVL = setup.model
        self._optimizer = setup.optimizer
        self._samples = setup.samples
        self.exchange = GradientExchange(setup.model)
        self.parameters = [p for group in self._optimizer.param_groups for p in group["params"]]

    def prefill(self, batches: Iterable[Batch]) -> None:
        """Fill the queues with keys of the K stream entries before the first, as if the run had begun before."""
        accumulate = self._config.run.accumulate
        steps = self.prefill_steps
        for number, batch in enumerate(batches):
            with torch.no_grad(), self._autocast():
                # Keys enter with negative steps, -steps .. -1, so that their age is right from the first step on.
                self._model.prefill(batch.to(self._device), number // accumulate - steps)

    @property
    def prefill_steps(self) -> int:
        """Steps whose keys fill the queues; where no batch divides K the last ones push out some of the first."""
        return math.ceil(self._config.moco.queue_size / self._config.run.batch_size)

    def step(self, batches: Sequence[Batch], state: RunState, valid: int) -> StepResult:
        """Train on one step's micro-batches at `state`. `valid`: samples of all ranks that could be read."""
        micros = [batch.to(self._device, non_blocking=True) for batch in batches]
        # After the batches are there: torch's DataLoader draws a number of its own when it starts.
        torch.manual_seed(seed_of("step", self._config.seed, state.step, distributed.rank()))
        self._set_learning_rate(state.position)
        statistics = [b.clone() for b in self._model.statistics()]
        samples = max(valid, 1) / distributed.world_size()  # gradients are averaged over the ranks, not added up
        try:
            outputs = backward(self._model, micros, samples, self._autocast, self.exchange)
        except torch.OutOfMemoryError as e:
            advice = "set run.recompute=pointwise, then blocks, or a larger run.accumulate"
            raise RunError(f"step {state.step}", f"the memory of {self._device} is full; {advice}") from e
        clip = self._config.optim.clip or math.inf
        norm = float(torch.nn.utils.clip_grad_norm_(self.parameters, clip))
        finite = math.isfinite(norm)  # the same on every rank: the gradients are
        if finite:
            self._optimizer.step()
            self._model.after_step(outputs, state.step)
        else:
            for now, before in zip(self._model.statistics(), statistics, strict=True):
                now.copy_(before)  # a forward has moved them, perhaps to NaN, and the average would take that along
        self.exchange.clear(self._optimizer)
        lr = float(self._optimizer.param_groups[-1]["lr"])
        return StepResult(micros, outputs, norm if finite else None, lr)

    def _set_learning_rate(self, position: int) -> None:
        optim = self._config.optim
        factor = schedule(optim, position, self._samples) * batch_factor(optim, self._config.run.batch_size)
        for group in self._optimizer.param_groups:
            group["lr"] = group["base_lr"] * factor

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self._device.type, torch.bfloat16, enabled=self._config.run.precision == "bf16")


Autocast = Callable[[], AbstractContextManager[Any]]


def backward(
    model: BriVL,
    micros: Sequence[Batch],
    samples: float,
    autocast: Autocast = nullcontext,
    exchange: GradientExchange | None = None,
) -> list[StepOutput]:
    """Add the step's gradients to the parameters; returns the micro-steps' outputs, whose losses add up to the step's.

    `samples`: valid samples of the step over all ranks, divided by the ranks (see `BriVL.loss`). `exchange`: the run's
    own; a process alone may leave it out.
    """
    exchange = exchange or GradientExchange(model)
    if model.in_batch and len(micros) > 1:
        outputs = _cached(model, micros, samples, autocast, exchange)
    else:
        outputs = list[StepOutput]()
        for number, batch in enumerate(micros, 1):
            with autocast():
                output: StepOutput = exchange(batch, samples, last=number == len(micros))
            output.loss.backward()  # type: ignore[no-untyped-call]
            outputs.append(output)
    exchange.finish()
    return outputs


def _cached(
    model: BriVL, micros: Sequence[Batch], samples: float, autocast: Autocast, exchange: GradientExchange
) -> list[StepOutput]:
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
    outputs, start = list[StepOutput](), 0
    for batch, seed in zip(micros, seeds, strict=True):
        torch.manual_seed(seed)
        # A second autocast context: one that has cached the weights without a graph would return them without one.
        with autocast():
            again: Features = exchange(batch, last=len(outputs) == len(micros) - 1)
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
    ids = SampleIds.concatenate([p.ids for p in parts])
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
