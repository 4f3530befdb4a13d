"""The optimiser: one fused AdamW, its parameters in groups, and the learning rate's schedule.

    group        image backbone | text backbone | new layers, each with a factor on the learning rate
    depth        within a backbone `layer_decay` once more for every stage down (BEiT's rule, arXiv 2106.08254)
    decay        weights decay; biases, norms, positions, class tokens and a temperature do not

Why here and not in the loop: which parameter learns how fast is a choice of method, and a test reads it off the groups.

Limits: the schedule counts samples, so another batch size keeps the curve.
"""

from __future__ import annotations

import math

import torch
from torch import nn

from training.config import OptimConfig
from training.moco import BriVL
from training.towers.tower import Tower

_NEVER_DECAY = ("pos_embed", "cls_token", "reg_token", "relative_position_bias_table", "positions")
"""Last parts of names of parameters that have more than one axis and yet are not weights of a product."""


def schedule(config: OptimConfig, position: int, samples: int) -> float:
    """Factor on the learning rate at a position of a run of `samples`: linear warm-up, then what the config names."""
    warmup = warmup_samples(config, samples)
    if position < warmup:
        return (position + 1) / (warmup + 1)
    if config.schedule == "constant":
        return 1.0
    if config.schedule == "wsd":
        falling = max(config.decay_share * samples, 1.0)
        return min(max((samples - position) / falling, 0.0), 1.0)
    rest = max(samples - warmup, 1)
    return 0.5 * (1 + math.cos(math.pi * min((position - warmup) / rest, 1.0)))


def warmup_samples(config: OptimConfig, samples: int) -> int:
    """Samples of the warm-up in a run of `samples`."""
    return max(config.warmup_samples, math.floor(config.warmup_share * samples))


def batch_factor(config: OptimConfig, batch_size: int) -> float:
    """Factor on the learning rate for a batch other than the one that `lr` is meant for.

    linear: their ratio (arXiv 1706.02677); sqrt: its root, which Adam's normalised steps ask for (2205.10287).
    """
    ratio = batch_size / config.lr_batch if config.lr_batch else 1.0
    return ratio if config.lr_scaling == "linear" else math.sqrt(ratio)


def build_optimizer(model: BriVL, config: OptimConfig) -> torch.optim.AdamW:
    """Fused AdamW over the trained parameters. Each group keeps `base_lr`, which the schedule scales."""
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            key = config.lr * config.lr_factor * _factor(model, name, config), _decays(name, parameter)
            groups.setdefault(key, []).append(parameter)
    described = [
        {"params": parameters, "lr": lr, "base_lr": lr, "weight_decay": config.weight_decay if decays else 0.0}
        for (lr, decays), parameters in groups.items()
    ]
    return torch.optim.AdamW(described, lr=config.lr, betas=config.betas, fused=True)


def _decays(name: str, parameter: nn.Parameter) -> bool:
    return parameter.ndim > 1 and name.rpartition(".")[2] not in _NEVER_DECAY


def _factor(model: BriVL, name: str, config: OptimConfig) -> float:
    """Factor on the learning rate of a parameter of `named_parameters()`."""
    group = model.group_of(name)
    if group == "new":
        return 1.0
    tower: Tower = model.image_query if group == "image_backbone" else model.text_query
    of_group = config.lr_image_backbone if group == "image_backbone" else config.lr_text_backbone
    return of_group * config.layer_decay ** _steps_down(tower, name)


def _steps_down(tower: Tower, name: str) -> int:
    """1 for the last stage of a tower's backbone, 2 for the one before it, and so on."""
    within = name.partition(".trunk.")[2]
    for number, stage in enumerate(reversed(tower.stages), 1):
        if within.startswith(f"{stage}."):
            return number
    return len(tower.stages) + 1
