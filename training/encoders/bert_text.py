"""Text tower of BriVL: a BERT (RoBERTa-wwm), or another encoder of transformers, under BriVL's encoder layers.

    token ids -> BERT -> L2 of each token -> encoder layers -> masked mean -> Linear-ReLU-Linear -> L2

The backbone's parts are transformers' own, called layer by layer so that the frozen ones can be the prefix. The
released code calls BERT without an attention mask, so that padding changes a caption's feature; only
`compat="brivl-1.0"` does so.

Source: BriVL-1.0 (arXiv 2103.06561, section 3.2, and the released inference code).
Limits: a backbone that training/towers/text_backbones.py cannot cut is frozen whole or not at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from training.config import Config
from training.errors import ConfigError
from training.records import Batch
from training.towers.layers import Head, length_mask, unit
from training.towers.recompute import Recompute, run_block
from training.towers.text_backbones import TextBackbone, load_text_backbone
from training.towers.tower import Tower


class _Layers(nn.Module):
    """Some leading or trailing part of a backbone that is cut."""

    def __init__(
        self,
        embeddings: nn.Module | None,
        layers: Sequence[nn.Module],
        masked: bool,
        additive: bool,
        recompute: Recompute,
    ) -> None:
        super().__init__()
        self.embeddings = embeddings
        self.layer = nn.ModuleList(layers)
        self.masked = masked
        self.additive = additive
        self.recompute: Recompute = "blocks" if recompute == "blocks" else "nothing"

    def forward(self, x: Tensor, batch: Batch) -> Tensor:
        if self.embeddings is not None:
            x = self.embeddings(x)
        mask = self._mask(x, batch) if self.masked else None
        for layer in self.layer:
            out: Any = run_block(layer, x, mask, recompute=self.recompute)
            x = out[0] if isinstance(out, tuple) else out  # transformers 4 returns a tuple, 5 a tensor
        return x

    def _mask(self, x_BLD: Tensor, batch: Batch) -> Tensor:
        present_B11L = length_mask(batch.n_tokens_B, batch.token_ids_BL.shape[1])[:, None, None, :]
        if not self.additive:
            return present_B11L
        lowest = torch.finfo(x_BLD.dtype).min
        return torch.zeros_like(present_B11L, dtype=x_BLD.dtype).masked_fill(~present_B11L, lowest)


class _UncutBackbone(nn.Module):
    """A backbone that is not cut."""

    def __init__(self, model: nn.Module, masked: bool) -> None:
        super().__init__()
        self.model = model
        self.masked = masked

    def forward(self, ids_BL: Tensor, batch: Batch) -> Tensor:
        mask = length_mask(batch.n_tokens_B, ids_BL.shape[1]).long() if self.masked else None
        states_BLD: Tensor = self.model(input_ids=ids_BL, attention_mask=mask).last_hidden_state
        return states_BLD


class Prefix(nn.Module):
    """Embeddings and frozen layers: token ids -> [B, L, width]; passes the ids on where nothing is frozen."""

    def __init__(self, backbone: nn.Module | None) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, batch: Batch) -> Tensor:
        if self.backbone is None:
            return batch.token_ids_BL
        states_BLD: Tensor = self.backbone(batch.token_ids_BL, batch)
        return states_BLD


class Trunk(nn.Module):
    """The trained layers and all that is new: [B, L, width] (or token ids) -> unit features [B, D]."""

    def __init__(self, backbone: nn.Module, config: Config) -> None:
        super().__init__()
        text = config.text
        self.backbone = backbone
        self.head = Head.of(config, text, config.data.max_tokens if text.position_embedding else 0)

    def forward(self, x: Tensor, batch: Batch) -> Tensor:
        tokens_BLD = unit(self.backbone(x, batch))
        features_BD: Tensor = self.head(tokens_BLD, length_mask(batch.n_tokens_B, tokens_BLD.shape[1]))
        return features_BD


def build(config: Config, load_weights: bool) -> Tower:
    """The text tower that `config.text` describes. Raises ConfigError."""
    text = config.text
    if text.frozen_layers > text.backbone_layers:
        raise ConfigError("text.frozen_layers", f"{text.frozen_layers} exceeds the {text.backbone_layers} layers")
    backbone = load_text_backbone(text, load_weights)
    masked = config.compat != "brivl-1.0"
    if backbone.whole is not None:
        return _uncut(backbone.whole, masked, config)

    def tower_part(backbone: TextBackbone, embeddings: bool, layers: Sequence[nn.Module]) -> _Layers:
        first = backbone.embeddings if embeddings else None
        return _Layers(first, layers, masked, backbone.additive, config.run.recompute)

    frozen, trained = backbone.layers[: text.frozen_layers], backbone.layers[text.frozen_layers :]
    stages = [f"backbone.layer.{i}" for i in range(len(trained))]
    if not frozen:
        trunk = Trunk(tower_part(backbone, True, trained), config)
        return Tower("text", Prefix(None), trunk, ["backbone.embeddings", *stages])
    trunk = Trunk(tower_part(backbone, False, trained), config)
    return Tower("text", Prefix(tower_part(backbone, True, frozen)), trunk, stages)


def _uncut(model: nn.Module, masked: bool, config: Config) -> Tower:
    text = config.text
    if text.frozen_layers not in (0, text.backbone_layers):
        raise ConfigError(
            "text.frozen_layers",
            f"{text.backbone} cannot be frozen in part: use 0, or {text.backbone_layers} to freeze it whole",
        )
    whole = _UncutBackbone(model, masked)
    if not text.frozen_layers:
        return Tower("text", Prefix(None), Trunk(whole, config), ["backbone"])
    return Tower("text", Prefix(whole), Trunk(_Layers(None, (), masked, False, "nothing"), config))
