"""Text tower of CLIP's kind (CLIP, Chinese-CLIP, SigLIP, SigLIP 2).

    token ids -> embeddings -> layers -> pool and projection -> L2

Which token is pooled and what becomes of padding differ by family (training/towers/two_tower_parts.py). The tokenizer
must be the checkpoint's own; `fit --init FOLDER` takes it along.
"""

from __future__ import annotations

from torch import Tensor, nn

from training.config import Config
from training.errors import ConfigError
from training.records import Batch
from training.towers.layers import unit
from training.towers.recompute import Recompute, run_block
from training.towers.tower import Tower
from training.towers.two_tower_parts import TextPool, text_stages


class Prefix(nn.Module):
    """Embeddings and frozen layers: token ids -> states; passes the ids on where nothing is frozen."""

    def __init__(self, stages: dict[str, nn.Module]) -> None:
        super().__init__()
        self.backbone = nn.ModuleDict(stages)

    def forward(self, batch: Batch) -> Tensor:
        return _run(self.backbone, batch.token_ids_BL, batch, "nothing")


class Trunk(nn.Module):
    """The trained layers and the pool: states (or token ids) -> unit features [B, D]."""

    def __init__(self, stages: dict[str, nn.Module], pool: TextPool, recompute: Recompute) -> None:
        super().__init__()
        self.backbone = nn.ModuleDict({**stages, "pool": pool})
        self.recompute: Recompute = "blocks" if recompute == "blocks" else "nothing"

    def forward(self, x: Tensor, batch: Batch) -> Tensor:
        return unit(_run(self.backbone, x, batch, self.recompute))


def _run(stages: nn.ModuleDict, x: Tensor, batch: Batch, recompute: Recompute) -> Tensor:
    for name, stage in stages.items():
        x = stage(batch) if name == "embeddings" else run_block(stage, x, batch, recompute=recompute)
    return x


def build(config: Config, load_weights: bool) -> Tower:
    """The text tower that `config.text` describes. Raises ConfigError: its weights come by --init."""
    text = config.text
    if load_weights and text.weights:
        raise ConfigError("text.weights", "clip_text loads both towers from a transformers folder; use --init FOLDER")
    if text.position_embedding:
        raise ConfigError("text.position_embedding", "clip_text already has position embeddings")
    stages, pool = text_stages(config)
    layers = len(stages) - 1
    if text.frozen_layers > layers:
        raise ConfigError("text.frozen_layers", f"{text.frozen_layers} exceeds the {layers} layers")
    cut = text.frozen_layers + 1 if text.frozen_layers else 0
    frozen, trained = dict(stages[:cut]), dict(stages[cut:])
    trunk = Trunk(trained, pool, config.run.recompute)
    return Tower("text", Prefix(frozen), trunk, [f"backbone.{name}" for name in trained])
