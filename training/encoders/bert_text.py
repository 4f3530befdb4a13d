"""Text tower of BriVL: a BERT (RoBERTa-wwm) under BriVL's encoder layers.

    token ids -> BERT -> L2 of each token -> encoder layers -> masked mean -> Linear-ReLU-Linear -> L2

BERT's parts are transformers' own, called layer by layer so that the frozen ones can be the prefix. The released code
calls BERT without an attention mask, so that padding changes a caption's feature; only `compat="brivl-1.0"` does so.

Source: BriVL-1.0 (arXiv 2103.06561, section 3.2, and the released inference code).
Weights: a local folder of transformers or a name on the hub, or none: the architecture is always that of `config.text`,
so that a checkpoint is read without getting them.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from training.config import Config, TextTowerConfig
from training.errors import ConfigError
from training.layers import Head, present, unit
from training.records import Batch
from training.towers import Tower


class _Bert(nn.Module):
    """Some leading or trailing part of a BERT."""

    def __init__(self, embeddings: nn.Module | None, layers: Sequence[nn.Module], masked: bool) -> None:
        super().__init__()
        self.embeddings = embeddings
        self.layer = nn.ModuleList(layers)
        self.masked = masked

    def forward(self, x: Tensor, batch: Batch) -> Tensor:
        if self.embeddings is not None:
            x = self.embeddings(x)
        mask = present(batch.n_tokens_B, batch.token_ids_BL.shape[1])[:, None, None, :] if self.masked else None
        for layer in self.layer:
            out: Any = layer(x, mask)
            x = out[0] if isinstance(out, tuple) else out  # transformers 4 gives a tuple, 5 a tensor
        return x


class Prefix(nn.Module):
    """Embeddings and frozen layers: token ids -> [B, L, width]; passes the ids on where nothing is frozen."""

    def __init__(self, backbone: _Bert | None) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, batch: Batch) -> Tensor:
        if self.backbone is None:
            return batch.token_ids_BL
        states_BLD: Tensor = self.backbone(batch.token_ids_BL, batch)
        return states_BLD


class Trunk(nn.Module):
    """The trained layers and all that is new: [B, L, width] (or token ids) -> unit features [B, D]."""

    def __init__(self, backbone: _Bert, config: Config) -> None:
        super().__init__()
        text = config.text
        self.backbone = backbone
        self.head = Head(
            text.backbone_width,
            text.heads,
            text.ffn,
            text.layers,
            text.dropout,
            text.hidden,
            config.moco.feature_dim,
            positions=config.data.max_tokens if text.position_embedding else 0,
        )

    def forward(self, x: Tensor, batch: Batch) -> Tensor:
        tokens_BLD = unit(self.backbone(x, batch))
        features_BD: Tensor = self.head(tokens_BLD, present(batch.n_tokens_B, tokens_BLD.shape[1]))
        return features_BD


def build(config: Config, load_weights: bool) -> Tower:
    """The text tower that `config.text` describes. Raises ConfigError."""
    text = config.text
    if text.frozen_layers > text.backbone_layers:
        raise ConfigError("text.frozen_layers", f"{text.frozen_layers} of {text.backbone_layers} layers")
    if text.backbone_width % text.backbone_heads:
        heads, width = text.backbone_heads, text.backbone_width
        raise ConfigError("text.backbone_heads", f"the width {width} is not a multiple of {heads} heads")
    model = _bert(text, load_weights)
    masked = config.compat != "brivl-1.0"
    layers = list(model.encoder.layer)
    frozen, trained = layers[: text.frozen_layers], layers[text.frozen_layers :]
    if not frozen:
        return Tower("text", Prefix(None), Trunk(_Bert(model.embeddings, trained, masked), config))
    return Tower("text", Prefix(_Bert(model.embeddings, frozen, masked)), Trunk(_Bert(None, trained, masked), config))


def _bert(text: TextTowerConfig, load_weights: bool) -> Any:
    from transformers import BertConfig, BertModel
    from transformers.utils import logging as verbosity

    if not (load_weights and text.weights):
        return BertModel(_architecture(text, BertConfig), add_pooling_layer=False)
    level = verbosity.get_verbosity()
    verbosity.set_verbosity(
        logging.ERROR
    )  # else: a page about the pooler and the masked-word head, which we do not want
    try:
        found = BertConfig.from_pretrained(text.weights)
        _compare(text, found)
        found._attn_implementation = "sdpa"
        found.hidden_dropout_prob = found.attention_probs_dropout_prob = text.backbone_dropout
        return BertModel.from_pretrained(text.weights, config=found, add_pooling_layer=False)
    except (OSError, RuntimeError) as e:
        first = (str(e).splitlines() or [""])[0]
        raise ConfigError("text.weights", f"{text.weights}: no BERT could be loaded from there ({first})") from e
    finally:
        verbosity.set_verbosity(level)


def _architecture(text: TextTowerConfig, config_class: Any) -> Any:
    config = config_class(
        vocab_size=text.vocab_size,
        hidden_size=text.backbone_width,
        num_hidden_layers=text.backbone_layers,
        num_attention_heads=text.backbone_heads,
        intermediate_size=text.backbone_ffn,
        max_position_embeddings=text.max_positions,
        hidden_dropout_prob=text.backbone_dropout,
        attention_probs_dropout_prob=text.backbone_dropout,
    )
    config._attn_implementation = "sdpa"
    return config


def _compare(text: TextTowerConfig, found: Any) -> None:
    pairs = (
        ("vocab_size", found.vocab_size),
        ("backbone_width", found.hidden_size),
        ("backbone_layers", found.num_hidden_layers),
        ("backbone_heads", found.num_attention_heads),
        ("backbone_ffn", found.intermediate_size),
        ("max_positions", found.max_position_embeddings),
    )
    for key, value in pairs:
        if getattr(text, key) != value:
            raise ConfigError(f"text.{key}", f"{getattr(text, key)}, but the weights {text.weights} have {value}")
