"""Small text tower for CPUs, tests and the demo: token embeddings under BriVL's own layers, from random weights.

    token ids -> embedding + position -> LayerNorm -> encoder layers -> masked mean -> Linear-ReLU-Linear -> L2

Without a backbone and prefix: everything is new and trained. Token ids must be below `text.vocab_size`, which may be
larger than the vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from training.config import Config
from training.errors import ConfigError
from training.records import Batch
from training.towers.layers import Head, length_mask
from training.towers.tower import Tower


class Prefix(nn.Module):
    """Nothing is frozen: passes the token ids on."""

    def forward(self, batch: Batch) -> Tensor:
        return batch.token_ids_BL


class Trunk(nn.Module):
    """Token ids [B, L] -> unit features [B, D]."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        text = config.text
        self.tokens = nn.Embedding(text.vocab_size, text.backbone_width)
        self.positions = nn.Embedding(text.max_positions, text.backbone_width)
        nn.init.normal_(self.positions.weight, std=0.1)  # the characters count for more than their places
        self.norm = nn.LayerNorm(text.backbone_width)
        self.dropout = nn.Dropout(text.dropout)
        self.head = Head.of(config, config.text)

    def forward(self, token_ids_BL: Tensor, batch: Batch) -> Tensor:
        length = token_ids_BL.shape[1]
        places_L = torch.arange(length, device=token_ids_BL.device)
        x_BLD = self.dropout(self.norm(self.tokens(token_ids_BL) + self.positions(places_L)))
        features_BD: Tensor = self.head(x_BLD, length_mask(batch.n_tokens_B, length))
        return features_BD


def build(config: Config, load_weights: bool) -> Tower:
    """The text tower that `config.text` describes. Raises ConfigError: it lacks weights to load."""
    if load_weights and config.text.weights:
        raise ConfigError("text.weights", "char_text starts from random weights; leave it empty")
    if config.text.position_embedding:
        raise ConfigError("text.position_embedding", "char_text already has position embeddings")
    return Tower("text", Prefix(), Trunk(config))
