"""A single tower with cross-attention: UNITER's place in the paper's comparison, at the size of the two towers.

    regions -> Linear -> LayerNorm +
                                     joined -> encoder layers over both -> masked mean -> Linear-ReLU-Linear -> logit
    characters + places -> LayerNorm +

It reads drawing and text together and says whether they match: the image-text matching loss of UNITER (arXiv
1909.11740), binary, here with one true pair and NEGATIVES wrong texts of the same batch for each drawing. There is no
feature of one side alone, so a search scores every pair anew; that is what it costs.

Limits: no masked-word and masked-region losses, which UNITER has besides and which need a pre-training of their own.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from tests.benchmarks.study.corpus import Corpus, Gallery
from tests.benchmarks.study.features import CHANNELS
from training.config import Config
from training.data.order import seed_of
from training.evaluation.hits import Features
from training.records import Batch
from training.run.optimizer import batch_factor, schedule
from training.towers.layers import EncoderLayer, length_mask, masked_mean

LAYERS = 3
"""So that its parameters are about as many as the two towers'."""

NEGATIVES = 1
"""Wrong texts for each drawing of a batch: half of the pairs are true, as in UNITER."""

_AT_ONCE = 1000


class Matcher(nn.Module):
    """The tower: features of regions and token ids to a logit per pair."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        width, text = config.text.backbone_width, config.text
        self.project = nn.Linear(CHANNELS, width)
        self.tokens = nn.Embedding(text.vocab_size, width)
        self.positions = nn.Embedding(text.max_positions, width)
        nn.init.normal_(self.positions.weight, std=0.1)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.layers = nn.ModuleList(EncoderLayer(width, text.heads, text.ffn, text.dropout) for _ in range(LAYERS))
        self.fc1 = nn.Linear(width, text.hidden)
        self.fc2 = nn.Linear(text.hidden, 1)

    def forward(self, regions_BRC: Tensor, ids_BL: Tensor, length_B: Tensor) -> Tensor:
        """Logits [B] of B pairs."""
        places_L = torch.arange(ids_BL.shape[1], device=ids_BL.device)
        regions_BRD = self.norms[0](self.project(regions_BRC))
        words_BLD = self.norms[1](self.tokens(ids_BL) + self.positions(places_L))
        x_BPD = torch.cat([regions_BRD, words_BLD], dim=1)
        seen_BR = torch.ones(regions_BRC.shape[:2], dtype=torch.bool, device=ids_BL.device)
        mask_BP = torch.cat([seen_BR, length_mask(length_B, ids_BL.shape[1])], dim=1)
        for layer in self.layers:
            x_BPD = layer(x_BPD, mask_BP)
        logits_B: Tensor = self.fc2(F.relu(self.fc1(masked_mean(x_BPD, mask_BP)))).squeeze(1)
        return logits_B


class SingleTower:
    """A Matcher in training; a `Learner` of tests/benchmarks/study/trial.py."""

    def __init__(self, config: Config) -> None:
        torch.manual_seed(config.seed)
        self._config = config
        self.model = Matcher(config).train()
        weights = [p for p in self.model.parameters() if p.ndim > 1]
        others = [p for p in self.model.parameters() if p.ndim <= 1]
        optim = config.optim
        decayed: list[dict[str, Any]] = [
            {"params": weights, "weight_decay": optim.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ]
        self._optimizer = torch.optim.AdamW(decayed, lr=optim.lr, betas=optim.betas, fused=True)

    def step(self, batch: Batch, number: int, position: int) -> float:
        """As in `Learner`. A wrong text that is another drawing's of the same emoji, or the same text, is left out."""
        torch.manual_seed(seed_of("step", self._config.seed, number))
        size = len(batch)
        image = torch.arange(size).repeat(NEGATIVES + 1)
        # Other places of the batch, without the own one: the sum with 1 .. size - 1, modulo size.
        away = torch.stack([torch.randperm(size - 1)[:NEGATIVES] + 1 for _ in range(size)], dim=1)
        text = torch.cat([torch.arange(size), ((torch.arange(size) + away) % size).flatten()])
        same = batch.image_ids_B[image] == batch.image_ids_B[text]
        same |= batch.text_ids_B[image] == batch.text_ids_B[text]
        wanted = (torch.arange(len(image)) < size).float()
        counted = (wanted > 0) | ~same
        regions_BRC = batch.images_B3HW.squeeze(2).transpose(1, 2)
        logits = self.model(regions_BRC[image], batch.token_ids_BL[text], batch.n_tokens_B[text])
        losses = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
        # True and wrong pairs weigh the same in all.
        loss = losses[:size].mean() + (losses * counted)[size:].sum() / counted[size:].sum().clamp(min=1)
        factor = schedule(self._config.optim, position, 1) * batch_factor(self._config.optim, size)
        for group in self._optimizer.param_groups:
            group["lr"] = self._config.optim.lr * factor
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(list(self.model.parameters()), self._config.optim.clip)
        self._optimizer.step()
        return float(loss.detach())

    @torch.no_grad()
    def scores(self, corpus: Corpus, gallery: Gallery) -> tuple[Features, Features]:
        """As in `Learner`: every pair is scored."""
        names = [corpus.emoji[number].name for number in gallery.emoji_M]
        images = corpus.batch(gallery.pictures, [names[0]] * len(gallery.pictures)).images_B3HW
        regions_NRC = images.squeeze(2).transpose(1, 2)
        ids_ML, length_M = corpus.tokens(names)
        pairs = len(regions_NRC) * len(names)
        logits = []
        self.model.eval()
        for start in range(0, pairs, _AT_ONCE):
            pair = torch.arange(start, min(start + _AT_ONCE, pairs))
            n, m = pair // len(names), pair % len(names)
            logits.append(self.model(regions_NRC[n], ids_ML[m], length_M[m]))
        self.model.train()
        # A hundredth: `rank` takes products of unit features, which lie below 2.
        scores_NM: Features = (torch.cat(logits).view(len(regions_NRC), len(names)) / 100).numpy()
        return scores_NM, np.eye(len(names), dtype=np.float32)


def sample_flops(config: Config) -> float:
    """Operations of one training sample: its true and its wrong pairs forward and backward."""
    with torch.device("meta"):
        model = Matcher(config)
        regions = torch.zeros(1, config.data.max_boxes + 1, CHANNELS)
        ids = torch.zeros(1, config.data.max_tokens, dtype=torch.int64)
        length = torch.ones(1, dtype=torch.int64)
        with FlopCounterMode(display=False) as counter:
            model(regions, ids, length).sum().backward()
    return float(counter.get_total_flops() * (1 + NEGATIVES))
