"""BriVL: the method in one class, in the paper's order.

    query towers   trained by gradient                                     (section 3.2)
    key towers     moving averages of the query towers' trunks             (section 3.3; MoCo, arXiv 1911.05722)
    queues         the newest K image keys and the newest K text keys
    InfoNCE        image against the text queue plus text against the image queue, a sum

One optimiser step of the caller:

    outputs = backward(model, micro_batches, samples, autocast); optimizer.step()     # training/run/step.py
    model.after_step(outputs, step)          # the average moves, then keys enter; left out if the step is not finite

For parameters this equals the released order (average, keys, loss), and it makes accumulation exact: all micro-batches
meet the queue as it was, and keys enter in the order of the samples.

The same towers under another loss are another objective (`training.objectives`). Where we depart from the released
code: key towers run in eval mode with averaged batch-norm statistics (EMAN, arXiv 2101.08482), which needs no
shuffle-BN; empty slots and false negatives (same image or same text) are masked; the frozen prefix is computed once for
both towers; nothing depends on K being a multiple of the batch.

Limits: batch statistics of trained batch norms are those of one rank and micro-batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from training.config import Config
from training.encoders import build_tower
from training.method import distributed
from training.method.key_queue import KeyQueue, SampleIds
from training.method.key_towers import key_trunk, shuffled, statistics, update_average, use_batch_statistics
from training.method.losses import Candidates, Logits, describe
from training.objectives import objective_of
from training.records import Batch
from training.towers.layers import full_precision
from training.towers.tower import Modality

QUERY_PREFIXES = ("image_query.", "text_query.")
KEY_PREFIXES = ("image_key.", "text_key.")
QUEUE_PREFIXES = ("image_queue.", "text_queue.", "logits.")
"""Beginnings of names in `BriVL.state_dict()`: for checkpoints, which keep the three apart. A learned temperature is
kept with the queues: towers alone begin with a fresh one."""

ParameterGroup = Literal["image_backbone", "text_backbone", "new"]


@dataclass(frozen=True)
class Features:
    """Outputs of the towers: unit features and keys [B, D], the same tensors without key towers."""

    image_BD: Tensor
    text_BD: Tensor
    image_keys_BD: Tensor
    text_keys_BD: Tensor
    ids: SampleIds


@dataclass(frozen=True)
class StepOutput:
    """Outcome of a forward: a scalar loss, detached metrics and losses per sample, the batch's keys [B, D] and ids."""

    loss: Tensor
    metrics: Mapping[str, Tensor]
    image_keys_BD: Tensor
    text_keys_BD: Tensor
    ids: SampleIds
    losses_B: Tensor


class BriVL(nn.Module):
    """Two query towers, two key towers, two queues."""

    def __init__(self, config: Config, *, load_weights: bool = True) -> None:
        """Raises ConfigError. `load_weights=False` gets no backbone weights, because a checkpoint follows."""
        super().__init__()
        self.moco = config.moco
        self.objective = objective_of(self.moco)
        self.has_keys, self.in_batch = self.objective.has_keys, self.objective.in_batch
        self.image_query = build_tower("image", config, load_weights=load_weights)
        self.text_query = build_tower("text", config, load_weights=load_weights)
        if self.has_keys:
            self.image_key = key_trunk(self.image_query.trunk)
            self.text_key = key_trunk(self.text_query.trunk)
            self.image_queue = KeyQueue(self.moco.queue_size, self.moco.feature_dim)
            self.text_queue = KeyQueue(self.moco.queue_size, self.moco.feature_dim)
        learned = self.moco.learn_temperature or self.objective.learns_temperature
        self.logits = Logits(self.moco, learned, self.objective.learns_bias)

    def train(self, mode: bool = True) -> BriVL:
        """Set the mode as torch does, but keep key towers in eval mode: no dropout, averaged batch-norm statistics."""
        super().train(mode)
        if self.has_keys:
            self.image_key.eval()
            self.text_key.eval()
            if self.moco.key_norm == "shuffle" and not self.image_query.frozen:
                use_batch_statistics(self.image_key, mode)
        return self

    def forward(self, batch: Batch, samples: float | None = None) -> StepOutput:
        """Loss and keys of one micro-batch: `loss` of its `features`."""
        return self.loss(self.features(batch), samples)

    def features(self, batch: Batch, *, keys: bool = True) -> Features:
        """Features and keys of one micro-batch. `keys=False` skips the key towers."""
        with torch.no_grad():
            image_prefix = self.image_query.prefix(batch)
            text_prefix = self.text_query.prefix(batch)
        image_BD: Tensor = self.image_query.trunk(image_prefix, batch)
        text_BD: Tensor = self.text_query.trunk(text_prefix, batch)
        image_keys_BD, text_keys_BD = image_BD, text_BD
        if keys and self.has_keys:
            image_keys_BD, text_keys_BD = self._keys(image_prefix, text_prefix, batch)
        return Features(image_BD, text_BD, image_keys_BD, text_keys_BD, SampleIds.of(batch))

    def loss(self, features: Features, samples: float | None = None) -> StepOutput:
        """The objective on features.

        The loss is the sum over valid samples divided by `samples`, or by their number here when None. For an exact
        step over M micro-batches and W ranks (whose gradients are averaged) pass the step's valid samples / W to each
        and add the M losses up; where `in_batch`, join the features of all micro-batches first.
        """
        ids = features.ids
        everyone = ids.gather() if self.in_batch else None
        sides: dict[Modality, tuple[str, Tensor, Tensor, Tensor]] = {
            "text": ("i2t", features.image_BD, features.image_keys_BD, features.text_keys_BD),
            "image": ("t2i", features.text_BD, features.text_keys_BD, features.image_keys_BD),
        }
        each_B = torch.zeros_like(ids.valid_B, dtype=features.image_BD.dtype)
        metrics: dict[str, Tensor] = {}
        with full_precision(each_B.device):
            for other in self.objective.towards:
                direction, queries_BD, their_keys_BD, keys_BD = sides[other]
                candidates = self._candidates(keys_BD, other, ids, everyone)
                losses_B, similar_BM = self.objective.loss(self.logits, queries_BD, their_keys_BD, candidates)
                each_B = each_B + torch.where(ids.valid_B, losses_B, 0.0)
                described = describe(losses_B, similar_BM, candidates, ids.valid_B)
                metrics |= {f"{direction}_{name}": value for name, value in described.items()}
            metrics |= self._health(features.image_BD, features.image_keys_BD, "image", ids)
            metrics |= self._health(features.text_BD, features.text_keys_BD, "text", ids) | self.logits.metrics()
        loss = each_B.sum() / (ids.valid_B.sum().clamp(min=1) if samples is None else samples)
        keys = features.image_keys_BD.detach(), features.text_keys_BD.detach()
        return StepOutput(loss, metrics, *keys, ids, each_B.detach())

    @torch.no_grad()
    def after_step(self, outputs: StepOutput | Sequence[StepOutput], step: int) -> None:
        """Move the key towers, then enqueue the step's keys in the order of its samples.

        Call it once after `optimizer.step()` with the outputs of all micro-steps, on every rank. Micro-step m of all
        ranks, in rank order, must be the m-th slice of the global batch.
        """
        distributed.average_(self.statistics())
        self.logits.clamp_temperature()
        if not self.has_keys:
            return
        update_average(self.image_key, self.image_query.trunk, self.moco.momentum)
        update_average(self.text_key, self.text_query.trunk, self.moco.momentum)
        for output in [outputs] if isinstance(outputs, StepOutput) else outputs:
            self._enqueue(output.image_keys_BD, output.text_keys_BD, output.ids, step)

    @torch.no_grad()
    def prefill(self, batch: Batch, step: int) -> None:
        """Enqueue the keys of a batch without training on it: key towers only, on every rank."""
        if self.has_keys:
            keys = self._keys(self.image_query.prefix(batch), self.text_query.prefix(batch), batch)
            self._enqueue(*keys, SampleIds.of(batch), step)

    def compile_towers(self, backend: str = "inductor") -> None:
        """Compile each part of each tower by torch.compile, the first time that it is called."""
        for tower in (self.image_query, self.text_query):
            tower.prefix.compile(backend=backend)
            tower.trunk.compile(backend=backend)
        if self.has_keys:
            self.image_key.compile(backend=backend)
            self.text_key.compile(backend=backend)

    def statistics(self) -> list[Tensor]:
        """Batch-norm statistics of the query towers that a forward in train mode moves."""
        return statistics(self.image_query.trunk) + statistics(self.text_query.trunk)

    def encode_image(self, batch: Batch) -> Tensor:
        """image_features [B, D]: unit features of the query tower in eval mode, without gradient."""
        return self._encode("image", batch)

    def encode_text(self, batch: Batch) -> Tensor:
        """text_features [B, D]: unit features of the query tower in eval mode, without gradient."""
        return self._encode("text", batch)

    def queue_health(self, step: int) -> dict[str, float]:
        """Fill, mean age and largest age of both queues in steps; empty without queues."""
        if not self.has_keys:
            return {}
        image, text = self.image_queue.health(step), self.text_queue.health(step)
        return {f"image_queue_{k}": v for k, v in image.items()} | {f"text_queue_{k}": v for k, v in text.items()}

    def shared_tensors(self) -> dict[str, str]:
        """Name of each key-tower parameter that is a query-tower parameter too (frozen) -> that one's name."""
        if not self.has_keys:
            return {}
        names = {id(p): name for name, p in self.named_parameters() if name.startswith(QUERY_PREFIXES)}
        keys = (("image_key", self.image_key), ("text_key", self.text_key))
        return {f"{k}.{name}": names[id(p)] for k, m in keys for name, p in m.named_parameters() if id(p) in names}

    @staticmethod
    def group_of(name: str) -> ParameterGroup:
        for modality in ("image", "text"):
            if name.startswith(f"{modality}_query.trunk.backbone."):
                return "image_backbone" if modality == "image" else "text_backbone"
        return "new"

    @torch.no_grad()
    def _keys(self, image_prefix: Tensor, text_prefix: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Image and text keys [B, D] from what query and key towers share."""
        shuffle = self.moco.key_norm == "shuffle" and self.training
        image_keys_BD: Tensor = (
            shuffled(self.image_key, image_prefix, batch) if shuffle else self.image_key(image_prefix, batch)
        )
        text_keys_BD: Tensor = self.text_key(text_prefix, batch)
        return image_keys_BD, text_keys_BD

    def _candidates(self, keys_BD: Tensor, other: Modality, ids: SampleIds, everyone: SampleIds | None) -> Candidates:
        """Candidates of this rank's queries: their keys of the `other` modality, the batch's, the queue's."""
        size, first = len(keys_BD), distributed.rank() * len(keys_BD)
        keys, whose = [], []
        if everyone is not None:
            keys.append(distributed.gather(keys_BD) if self.has_keys else distributed.gather_with_grad(keys_BD))
            whose.append(everyone)
        if self.has_keys:
            queue = self.text_queue if other == "text" else self.image_queue
            keys.append(queue.keys_KD)
            whose.append(queue.ids())
        # N candidates beside the own key: the batch of all ranks first, in rank order, then the K slots of the queue.
        others = SampleIds.concatenate(whose)
        counted_BN = others.valid_B.expand(size, -1).clone()
        if everyone is not None:
            counted_BN[:, first : first + size].fill_diagonal_(False)  # a query's own key is column 0 already
        same_BN = (ids.image_B[:, None] == others.image_B) | (ids.text_B[:, None] == others.text_B)
        if self.moco.false_negatives == "masked":
            counted_BN &= ~same_BN
        positive_BN = counted_BN & same_BN if self.moco.false_negatives == "positives" else torch.zeros_like(same_BN)
        own_B1 = torch.ones_like(counted_BN[:, :1])  # column 0, the own key, always counts and is always positive
        return Candidates(
            own_BD=keys_BD,
            others_ND=keys[0] if len(keys) == 1 else torch.cat(keys),
            counted_BM=torch.cat([own_B1, counted_BN], dim=1),
            positive_BM=torch.cat([own_B1, positive_BN], dim=1),
        )

    @torch.no_grad()
    def _health(self, queries_BD: Tensor, keys_BD: Tensor, name: str, ids: SampleIds) -> dict[str, Tensor]:
        """spread: 1 - |mean feature|^2, 0 when all features are one. drift: 1 - similarity of query and key."""
        weights_B = ids.valid_B.to(queries_BD.dtype) / ids.valid_B.sum().clamp(min=1)
        mean_D = weights_B @ queries_BD
        drift = 1 - weights_B @ (queries_BD * keys_BD).sum(-1)
        return {f"{name}_spread": 1 - mean_D @ mean_D, f"{name}_drift": drift}

    @torch.no_grad()
    def _encode(self, modality: Modality, batch: Batch) -> Tensor:
        tower = self.image_query if modality == "image" else self.text_query
        training = tower.training
        tower.eval()
        try:
            features_BD: Tensor = tower(batch)
        finally:
            tower.train(training)
        return features_BD

    def _enqueue(self, image_keys_BD: Tensor, text_keys_BD: Tensor, ids: SampleIds, step: int) -> None:
        everyone = ids.gather()
        self.image_queue.enqueue(distributed.gather(image_keys_BD), everyone, step)
        self.text_queue.enqueue(distributed.gather(text_keys_BD), everyone, step)
