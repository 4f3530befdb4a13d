"""Floating-point operations of a training step, and what share of the device's peak a run reaches (MFU).

Counted are the operations that the mathematics asks for, on the shapes that the towers see: both prefixes once, both
query trunks forward and backward, both key trunks forward where the objective has them. What is computed twice to save
memory does not count (model FLOPs utilisation: PaLM, arXiv 2204.02311, appendix B). A multiplication and an addition
are two operations.

The count is torch's own (`FlopCounterMode`) over the real towers on the meta device, so it follows any backbone. Work
grows as a polynomial of degree two with the number of tokens or boxes (attention), so three counts determine all.

Limits: only products (matrix products, convolutions, attention) are counted; similarities with the queue, under 1% of
a step, are not. Peaks are those of data sheets, without sparsity; for a device that is not in the table, a CPU above
all, only the operations per second that were reached are given, without MFU.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from training.config import Config, DataConfig, MocoConfig, OptimConfig, RunConfig, from_dict, to_dict
from training.encoders import build_tower
from training.objectives import objective_of
from training.records import Batch
from training.towers.tower import Modality, Tower

PEAKS: tuple[tuple[str, float, float], ...] = (
    ("B200", 2250e12, 75e12),
    ("H20", 148e12, 44e12),
    ("H200", 989e12, 67e12),
    ("H100 PCIe", 756e12, 51e12),
    ("H100 NVL", 835e12, 60e12),
    ("H100", 989e12, 67e12),
    ("H800", 989e12, 67e12),
    ("A100", 312e12, 19.5e12),
    ("A800", 312e12, 19.5e12),
    ("A40", 150e12, 37.4e12),
    ("A30", 165e12, 10.3e12),
    ("A10", 125e12, 31.2e12),
    ("L40S", 362e12, 91.6e12),
    ("L40", 181e12, 90.5e12),
    ("L20", 119e12, 59.8e12),
    ("L4", 121e12, 30.3e12),
    ("RTX 4090", 165e12, 82.6e12),
    ("RTX 3090", 71e12, 35.6e12),
)
"""Part of a device's name, and its peak operations per second in bf16 (dense, float32 sums) and in plain float32."""


def peak_flops(device_name: str, precision: str) -> float | None:
    """Peak operations per second of a device by its name in CUDA, or None for one that is not in the table."""
    words = device_name.replace("-", " ").split()
    for name, bf16, fp32 in PEAKS:
        if all(part in words for part in name.split()):
            return bf16 if precision == "bf16" else fp32
    return None


def forward_flops(config: Config, modality: Modality, parts: int) -> dict[str, int]:
    """Operations of one sample through the query tower of `parts` tokens or boxes: of `backbone`, and of `tower`."""
    return _forward_flops(_model_of(config), modality, parts)


@lru_cache(maxsize=16)
def _forward_flops(model: str, modality: Modality, parts: int) -> dict[str, int]:
    config = from_dict(json.loads(model))
    tower = _tower(config, modality)
    with torch.no_grad(), _counter() as counter:
        tower(_sample(config, parts))
    by_module = {name: sum(counts.values()) for name, counts in counter.get_flop_counts().items()}
    backbone = sum(by_module.get(f"Tower.{n}", 0) for n in ("prefix", *(f"trunk.{stage}" for stage in tower.stages)))
    return {"backbone": backbone, "tower": counter.get_total_flops()}


class Meter:
    """Operations of the steps of one run on one device."""

    def __init__(self, config: Config, device: torch.device) -> None:
        self._data = config.data
        self._model = _model_of(config)
        self._has_keys = objective_of(config.moco).has_keys
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
        self._peak = peak_flops(name, config.run.precision)

    def step_flops(self, pairs: int, boxes: int, tokens: int) -> float:
        """Operations of one rank's part of a step: `pairs` samples padded to `boxes` and `tokens`."""
        # Seconds of work: only when it is first asked for, and once in a process.
        image = _fit_polynomial(self._model, "image", self._data.max_boxes + 1, self._has_keys)
        text = _fit_polynomial(self._model, "text", self._data.max_tokens, self._has_keys)
        return float(pairs * (np.polyval(image, boxes) + np.polyval(text, tokens)))

    def sample_flops(self) -> float:
        """Operations of one sample in one step, with as many boxes and tokens as the config allows."""
        return self.step_flops(1, self._data.max_boxes + 1, self._data.max_tokens)

    def metrics(self, micros: Sequence[Batch], seconds: float) -> dict[str, float]:
        """`tflops`: 10^12 operations per second of this rank; `mfu`: their share of the peak, where that is known."""
        done = sum(self.step_flops(len(b), b.boxes_BR4.shape[1], b.token_ids_BL.shape[1]) for b in micros)
        metrics = {"tflops": done / seconds / 1e12}
        return metrics if self._peak is None else metrics | {"mfu": done / seconds / self._peak}


def _model_of(config: Config) -> str:
    """The part of a config that a tower's operations depend on, as the JSON of a config: the key of cached counts."""
    moco = MocoConfig(feature_dim=config.moco.feature_dim)
    sizes = config.data
    data = DataConfig(image_size=sizes.image_size, max_boxes=sizes.max_boxes, max_tokens=sizes.max_tokens)
    run = RunConfig(recompute=config.run.recompute)
    alike = replace(config, recipe="", seed=0, moco=moco, data=data, optim=OptimConfig(), run=run)
    return json.dumps(to_dict(alike))


@lru_cache(maxsize=16)
def _fit_polynomial(model: str, modality: Modality, most: int, has_keys: bool) -> Any:
    """Coefficients, highest first, of a sample's operations by its number of parts, through query and key tower."""
    counts = _counts(model, modality, most)
    return np.polyfit(list(counts), [query + key * has_keys for key, query in counts.values()], len(counts) - 1)


@lru_cache(maxsize=16)
def _counts(model: str, modality: Modality, most: int) -> dict[int, tuple[int, int]]:
    """`_count` of a sample by its number of parts: three numbers determine all others."""
    config = from_dict(json.loads(model))
    last = most + 3 if modality == "image" else min(most + 3, config.text.max_positions)
    at = sorted({1, min(most // 2 + 2, last), last})  # three of them, also where `most` is 1
    tower = _tower(config, modality)
    return {parts: _count(tower, _sample(config, parts)) for parts in at}


def _count(tower: Tower, sample: Batch) -> tuple[int, int]:
    """Operations of the key tower, which is the trunk in eval and sees every patch; of the query tower, both ways."""
    with torch.no_grad(), _counter() as of_prefix:
        prefix = tower.prefix(sample)
    tower.trunk.eval()
    with _counter() as of_key:  # with gradients, else torch's own encoder takes a path that is not counted
        tower.trunk(prefix, sample)
    tower.trunk.train()
    with _counter() as of_query:
        features_BD = tower.trunk(prefix, sample)
        if not tower.frozen:
            features_BD.sum().backward()
    return of_key.get_total_flops(), of_prefix.get_total_flops() + of_query.get_total_flops()


def _tower(config: Config, modality: Modality) -> Tower:
    config = replace(config, run=replace(config.run, recompute="nothing"))
    with torch.device("meta"):
        return build_tower(modality, config, load_weights=False).train()


def _sample(config: Config, parts: int) -> Batch:
    """One sample without memory, of `parts` boxes and tokens."""
    size = config.data.image_size
    with torch.device("meta"):
        one = torch.zeros(1, dtype=torch.int64)
        images, boxes = torch.zeros(1, 3, size, size, dtype=torch.uint8), torch.zeros(1, parts, 4)
        tokens = torch.zeros(1, parts, dtype=torch.int64)
        return Batch(images, boxes, one, tokens, one, one, one, one, one.bool())


def _counter() -> Any:
    # torch's own count of a convolution's backward forgets the groups: 20 times too much for an EfficientNet.
    formulas: dict[Any, Any] = {torch.ops.aten.convolution_backward: _convolution_backward}
    return FlopCounterMode(display=False, custom_mapping=formulas)


def _convolution_backward(
    grad_shape: Sequence[int], _x_shape: Sequence[int], weight_shape: Sequence[int], *more: Any, **_: Any
) -> int:
    """Operations of a convolution's backward: those of its forward for each gradient asked for, of input and weight."""
    wanted = more[7]  # bias, stride, padding, dilation, transposed, output padding, groups, then which gradients
    forward = 2 * math.prod(grad_shape) * math.prod(weight_shape[1:])
    return forward * (bool(wanted[0]) + bool(wanted[1]))
