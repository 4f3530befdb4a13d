"""Encoders, one file each: file name = `image.encoder` or `text.encoder` in the config.

`image.encoder="cnn_regions"` is training/encoders/cnn_regions.py, which defines `build(config, load_weights) -> Tower`.
"""

from __future__ import annotations

import sys

from training.config import Config
from training.errors import ConfigError
from training.plug_ins import build_by
from training.towers.tower import Modality, Tower


def build_tower(modality: Modality, config: Config, *, load_weights: bool) -> Tower:
    """The tower that the config names. `load_weights=False` leaves it random, for a checkpoint to fill.

    Raises ConfigError on an encoder that does not exist or is of the other modality, and on weights that do not fit.
    """
    name = config.image.encoder if modality == "image" else config.text.encoder
    tower: Tower = build_by(sys.modules[__name__], name, f"{modality}.encoder", config, load_weights)
    if tower.modality != modality:
        raise ConfigError(f"{modality}.encoder", f"{name} is an encoder of {tower.modality}s")
    if config.image.frozen if modality == "image" else config.text.frozen:
        tower.freeze()
    return tower
