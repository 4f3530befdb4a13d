"""Mean of the gradients over the ranks, by torch's DistributedDataParallel: exchanged while the backward still runs.

A step exchanges once, in the backward of its last micro-step. DDP sees the towers' trained parameters alone, without
the buffers (queues, statistics). A learned temperature and bias get their gradient from the loss, which is outside of a
micro-step where features are cached: they are averaged apart.

Limits: with several ranks every trained parameter of a tower must be used in every forward, or the run stops.
"""

from __future__ import annotations

import re
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from training.errors import ConfigError
from training.method import distributed
from training.moco import BriVL, Features, StepOutput
from training.records import Batch


class GradientExchange:
    """Runs the micro-steps of a model, on every rank alike. A process alone has nothing to exchange."""

    def __init__(self, model: BriVL) -> None:
        self._micro = _MicroStep(model)
        self._logits = list(model.logits.parameters())
        self._replica: DistributedDataParallel | None = None
        if distributed.world_size() > 1:
            # init_sync would hide ranks that begin apart (training/run/agreement.py).
            self._replica = DistributedDataParallel(self._micro, init_sync=False, gradient_as_bucket_view=True)
            # DDP lays out its buckets again after the first backward, and a sum over four ranks rounds by its place in
            # a bucket. With a backward of zeros before the first step, a resumed run adds in the same order as ever.
            self._replica().backward()

    def __call__(self, batch: Batch, samples: float | None = None, *, last: bool) -> Any:
        """`BriVL.forward` of a micro-batch; without `samples` its features alone, without keys.

        The backward of the step's `last` one exchanges the gradients. Raises ConfigError for unused parameters, in the
        step after that in which they were.
        """
        if self._replica is None:
            return self._micro(batch, samples)
        quiet: AbstractContextManager[None] = nullcontext() if last else self._replica.no_sync()
        try:
            with quiet:
                return self._replica(batch, samples)
        except RuntimeError as e:
            unused = re.search(r"did not receive grad for rank \d+: ([\d ]+)", str(e))
            if unused is None:
                raise
            names = ", ".join(self._micro.names[int(number)] for number in unused[1].split())
            advice = "remove or freeze them, or train in one process"
            raise ConfigError("image.encoder or text.encoder", f"no loss uses {names}; {advice}") from None

    def finish(self) -> None:
        """Average what no micro-step has exchanged."""
        distributed.average_([p.grad for p in self._logits if p.grad is not None])

    def clear(self, optimizer: torch.optim.Optimizer) -> None:
        """Remove the gradients of a step; those of replicas stay in their buckets, as zeros."""
        optimizer.zero_grad(set_to_none=self._replica is None)


class _MicroStep(nn.Module):
    """A micro-step's forward, as a module that has the trained parameters of the towers and nothing else."""

    def __init__(self, model: BriVL) -> None:
        super().__init__()
        towers = {"image": model.image_query, "text": model.text_query}
        trained = {
            f"{of}.{n}": p for of, tower in towers.items() for n, p in tower.named_parameters() if p.requires_grad
        }
        self._of = (model,)  # in a tuple, so that it is not a submodule
        self.names, self.trained = list(trained), nn.ParameterList(trained.values())

    def forward(self, batch: Batch | None = None, samples: float | None = None) -> Features | StepOutput | Tensor:
        if batch is None:
            return torch.stack([p.sum() * 0 for p in self.trained]).sum()
        if samples is None:
            return self._of[0].features(batch, keys=False)
        output: StepOutput = self._of[0](batch, samples)
        return output
