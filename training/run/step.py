"""One optimiser step: gradients, their mean over the ranks, clipping, AdamW, key towers and queues.

A step whose gradient is not finite changes nothing: no parameter, no average, no key; batch-norm statistics, which its
forward has moved, are put back. Random numbers of a step follow from (seed, step, rank).

Limits: gradients are exchanged once, after the last micro-step, without overlap; dropout differs between world sizes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from training.data.order import seed_of
from training.method import distributed
from training.moco import BriVL, StepOutput
from training.outputs.checkpoint import RunState
from training.records import Batch
from training.run.accumulate import backward
from training.run.launch import average_gradients
from training.run.optimizer import batch_factor, schedule
from training.run.setup import Setup


@dataclass(frozen=True, slots=True)
class Step:
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

    def step(self, batches: Sequence[Batch], state: RunState, valid: int) -> Step:
        """Train on one step's micro-batches at `state`. `valid`: samples of all ranks that could be read."""
        micros = [batch.to(self._device, non_blocking=True) for batch in batches]
        # After the batches are there: torch's DataLoader draws a number of its own when it starts.
        torch.manual_seed(seed_of("step", self._config.seed, state.step, distributed.rank()))
        self._set_learning_rate(state.position)
        statistics = [b.clone() for b in self._model.statistics()]
        samples = max(valid, 1) / distributed.world_size()  # gradients are averaged over the ranks, not added up
        outputs = backward(self._model, micros, samples, self._autocast)
        average_gradients(self.parameters)
        clip = self._config.optim.clip or math.inf
        norm = float(torch.nn.utils.clip_grad_norm_(self.parameters, clip))
        finite = math.isfinite(norm)  # the same on every rank: the gradients are
        if finite:
            self._optimizer.step()
            self._model.after_step(outputs, state.step)
        else:
            for now, before in zip(self._model.statistics(), statistics, strict=True):
                now.copy_(before)  # a forward has moved them, perhaps to NaN, and the average would take that along
        self._optimizer.zero_grad(set_to_none=True)
        lr = float(self._optimizer.param_groups[-1]["lr"])
        return Step(micros, outputs, norm if finite else None, lr)

    def _set_learning_rate(self, position: int) -> None:
        optim = self._config.optim
        factor = schedule(optim, position, self._samples) * batch_factor(optim, self._config.run.batch_size)
        for group in self._optimizer.param_groups:
            group["lr"] = group["base_lr"] * factor

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self._device.type, torch.bfloat16, enabled=self._config.run.precision == "bf16")
