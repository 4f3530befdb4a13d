"""What an encoder is to the rest: a tower, cut where its frozen prefix ends.

`prefix(batch)` is what is frozen and comes first; query and key tower share it, so it is computed once a step, exactly:
it never trains, runs without gradient, and stays in eval mode. `trunk(prefix_out, batch)` is the rest: the query
tower's is trained, the key tower's is its moving average.

Encoders are found by file name: `image.encoder="cnn_regions"` is training/encoders/cnn_regions.py, which defines
`build(config, load_weights) -> Tower`. There is no registry.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn

from training.config import Config
from training.errors import ConfigError
from training.records import Batch

Modality = Literal["image", "text"]


class Tower(nn.Module):
    """A query tower: a frozen prefix and a trained trunk.

    `stages`: names of the trunk's submodules that are trained stages of a backbone, lowest first (for layer decay).
    """

    def __init__(self, modality: Modality, prefix: nn.Module, trunk: nn.Module, stages: Sequence[str] = ()) -> None:
        super().__init__()
        self.stages = tuple(stages)
        self.modality = modality
        self.prefix = prefix.requires_grad_(False)
        self.trunk = trunk

    def train(self, mode: bool = True) -> Tower:
        """As in torch, but the prefix stays in eval mode: its dropout is off and its batch norms stand still."""
        super().train(mode)
        self.prefix.eval()
        return self

    def forward(self, batch: Batch) -> Tensor:
        """Unit features [B, D] of the batch."""
        features_BD: Tensor = self.trunk(self.prefix(batch), batch)
        return features_BD


def build_tower(modality: Modality, config: Config, *, load_weights: bool) -> Tower:
    """The tower that the config names. `load_weights=False` leaves it random, because a checkpoint follows.

    Raises ConfigError on an encoder that does not exist or is of the other modality, and on weights that do not fit.
    """
    import training.encoders

    name = config.image.encoder if modality == "image" else config.text.encoder
    known = sorted(module.name for module in pkgutil.iter_modules(training.encoders.__path__))
    if name not in known:
        raise ConfigError(f"{modality}.encoder", f"no encoder {name!r}; there are {', '.join(known)}")
    tower: Tower = importlib.import_module(f"training.encoders.{name}").build(config, load_weights)
    if tower.modality != modality:
        raise ConfigError(f"{modality}.encoder", f"{name} encodes {tower.modality}")
    return tower
