"""The health of a run while it trains: its queues, the spread of its features, and the loss by source kind.

    fill, age, oldest       of each queue, in steps since a key entered
    false_negatives         share of (sample, key) that have the image or the text in common, by cluster ids; a step's
                            own keys are none
    image_stale, text_stale 1 - similarity of the query tower's feature now and the stored key, for samples whose keys
                            are about to leave the queue: how far training has moved away from its negatives
    *_spread                1 - |mean feature|^2: 0 when all features are one
    loss.KIND               mean loss of the samples of a source kind since the last line

A spread near 0 that lasts is a collapse: the loss then says nothing any more.

Limits: staleness is that of a few samples of the first rank. A collapse is looked for on logged steps only, after the
warm-up, the first tenth of the run and 200 steps, and once the queue holds nothing but keys of this training. It never
stops the last tenth.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from data_specs.shard import SOURCE_KINDS
from training.config import Config
from training.errors import RunError
from training.method import distributed
from training.moco import BriVL, StepOutput
from training.records import Batch
from training.run.agreement import stop
from training.run.optimizer import warmup_samples

LOG = logging.getLogger(__name__)

COLLAPSED = 0.02
"""Spread of features below which all samples look alike (1 is the most)."""

_LASTING = 5
"""Logged steps in a row of a collapse before it counts."""

_FRESH, _EDGE = 200, 0.1
"""Steps and share of a run in which a fresh model has not learned yet to separate its samples; in the last such share a
stop saves nothing."""

_PROBED = 8
"""Samples of a probe: their keys are compared with the query tower again when they are about to leave the queue."""


@dataclass(frozen=True)
class _Probe:
    step: int
    batch: Batch
    image_keys_BD: Tensor
    text_keys_BD: Tensor


class Health:
    """Collects figures of every step (`record_step`), returned on a logged one (`metrics`). Every rank calls alike."""

    def __init__(self, model: BriVL, config: Config, samples: int) -> None:
        """`samples` of the whole run, of which the warm-up may be a share."""
        self._model, self._config = model, config
        self._warmup, self._samples = warmup_samples(config.optim, samples), samples
        self._span = max(1, math.ceil(config.moco.queue_size / config.run.batch_size) - 1)
        self._probe: _Probe | None = None
        self._stale: dict[str, float] = {}
        self._alike: dict[str, int] = {}
        self._losses: Tensor | None = None

    def restore_probe(self, step: int, read: Callable[[int], Batch]) -> None:
        """Restore the probe that the run had at `step`; its keys are in the queues.

        `read(steps)`: this rank's first micro-batch of so many steps ago. Probes begin at multiples of their span.
        """
        ago = step % (self._span + 1)
        if not ago or not self._model.has_keys:
            return
        micro = read(ago)
        rows = micro.rows(0, _PROBED).to(self._model.image_queue.keys_KD.device)
        back = ago * self._config.run.batch_size - distributed.rank() * len(micro)
        image_BD = self._model.image_queue.keys_of(rows.sample_ids_B, step - ago, back)
        text_BD = self._model.text_queue.keys_of(rows.sample_ids_B, step - ago, back)
        if image_BD is not None and text_BD is not None:
            self._probe = _Probe(step - ago, rows, image_BD, text_BD)

    def record_step(self, step: int, micros: Sequence[Batch], outputs: Sequence[StepOutput]) -> None:
        self._by_source(micros, outputs)
        if not self._model.has_keys:
            return
        if self._probe is None:
            rows, keys = micros[0].rows(0, _PROBED), outputs[0]
            self._probe = _Probe(step, rows, keys.image_keys_BD[:_PROBED].clone(), keys.text_keys_BD[:_PROBED].clone())
        elif step - self._probe.step >= self._span:
            self._stale, self._probe = _staleness(self._model, self._probe), None

    def metrics(
        self, step: int, position: int, outputs: Sequence[StepOutput], spreads: Mapping[str, float]
    ) -> dict[str, float]:
        """Queue health and losses by source after `step` steps. Raises RunError on a collapse, if configured."""
        metrics = self._model.queue_health(step) | self._stale | self._losses_of_sources()
        if self._model.has_keys:
            metrics["false_negatives"] = self._model.text_queue.false_negatives(outputs[0].ids, step - 1)
        self._look_for_collapse(step, position, metrics | dict(spreads))
        self._stale = {}
        return metrics

    def _by_source(self, micros: Sequence[Batch], outputs: Sequence[StepOutput]) -> None:
        if micros[0].sources_B is None:
            return
        if self._losses is None:
            self._losses = torch.zeros(2, len(SOURCE_KINDS), device=outputs[0].losses_B.device)
        for batch, output in zip(micros, outputs, strict=True):
            assert batch.sources_B is not None
            self._losses[0].index_add_(0, batch.sources_B, output.losses_B.float())
            self._losses[1].index_add_(0, batch.sources_B, batch.valid_B.float())

    def _losses_of_sources(self) -> dict[str, float]:
        if self._losses is None:
            return {}
        distributed.average_([self._losses])
        sums, counts = self._losses.tolist()
        self._losses = None
        kinds = zip(SOURCE_KINDS, sums, counts, strict=True)
        return {f"loss.{kind}": loss / count for kind, loss, count in kinds if count}

    def _look_for_collapse(self, step: int, position: int, metrics: Mapping[str, float]) -> None:
        config = self._config
        fresh = step < _FRESH or position < max(self._warmup, _EDGE * self._samples)
        if fresh or metrics.get("text_queue_oldest", 0.0) > step:  # keys of the prefill
            return
        for name in ("image_spread", "text_spread"):
            alike = metrics.get(name, 1.0) < COLLAPSED
            self._alike[name] = self._alike.get(name, 0) + 1 if alike else 0
            if self._alike[name] < _LASTING:
                continue
            momentum = f", or a higher moco.momentum ({config.moco.momentum:g})" if self._model.has_keys else ""
            problem = (
                f"{name} is {metrics[name]:.4f}, below {COLLAPSED}, on {_LASTING} logged steps in a row: all "
                f"{name.partition('_')[0]}s have nearly the same features. Begin again in another --out with a lower "
                f"optim.lr ({config.optim.lr:g}), a longer warm-up ({self._warmup} samples: optim.warmup_samples, "
                f"optim.warmup_share){momentum}"
            )
            if config.run.stop_on_collapse and position < (1 - _EDGE) * self._samples:
                stop(RunError(f"step {step}", f"{problem}; or continue with run.stop_on_collapse=false"))
            LOG.warning("step %d: %s", step, problem)
            self._alike[name] = 0


@torch.no_grad()
def _staleness(model: BriVL, probe: _Probe) -> dict[str, float]:
    valid_B = probe.batch.valid_B
    stale = {}
    for name, now_BD, then_BD in (
        ("image_stale", model.encode_image(probe.batch), probe.image_keys_BD),
        ("text_stale", model.encode_text(probe.batch), probe.text_keys_BD),
    ):
        similar_B = (now_BD.float() * then_BD.float()).sum(1)
        stale[name] = float(1 - torch.where(valid_B, similar_B, 0.0).sum() / valid_B.sum().clamp(min=1))
    return stale
