"""Activation memory of a step, counted before the run, and the choice of `run.recompute=auto` by it.

Counted are the bytes of live tensors in a forward and backward of both query towers on the meta device, which takes
seconds and no memory. To them come weights, gradients, moments and queues (training/run/footprint.py). The first choice
that fits is taken: nothing, pointwise, blocks. All three compute the same numbers, so each rank chooses for its own
card, a checkpoint's config.json names the first rank's choice, and a resumed run chooses again.

Limits: bf16 is counted as half of float32. For `nothing` and `pointwise` that is within 5% of `make gpu-rehearsal`,
which has autocast and the whole step; for `blocks`, the last resort, up to twice as much. Workspaces and fragmentation
of a GPU come on top, for which a tenth of the free memory is left; no GPU has been asked yet. On a CPU memory is not
counted, and nothing is computed again; neither is it under torch.compile, which chooses by itself.
"""

from __future__ import annotations

import logging
import math
import weakref
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from training.config import Config
from training.encoders import build_tower
from training.method import distributed
from training.objectives import objective_of
from training.records import Batch
from training.run.footprint import footprint
from training.towers.recompute import CHOICES, Recompute

LOG = logging.getLogger(__name__)

_SHARE = 0.9
"""Share of the free memory that the counted bytes may take."""

_PER_CANDIDATE = 44
"""Bytes of a query with one candidate in albef's loss, which holds the most: cosines, logits, targets, masks."""


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Bytes of the live tensors that operations have made on one device, and the most of them at once."""

    def __init__(self, device: str) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.device = device
        self.live, self.peak = 0, 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(tensor, Tensor) and tensor.device.type == self.device:
                self._hold(tensor.untyped_storage())
        return out

    def _hold(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self._known:
            self._known.add(key)
            self.live += size
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self._release, key, size)

    def _release(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live -= size


def with_recompute(config: Config, device: torch.device, world: int) -> Config:
    """The config with what `run.recompute=auto` takes on this device in a run of `world` processes."""
    if config.run.recompute != "auto":
        return config
    free = free_memory(device)
    choice: Recompute = "nothing"
    if free < math.inf and not config.run.compile:
        floor, needs = footprint(config).floor_bytes, dict[Recompute, int]()
        for choice in CHOICES:
            needs[choice] = floor + activation_bytes(config, choice, world)
            if needs[choice] <= _SHARE * free:
                break
        said = ", ".join(f"{name} takes {size / 2**30:.1f} GiB" for name, size in needs.items())
        if distributed.rank() == 0:
            LOG.info("run.recompute=%s: %s; %.1f GiB of %s are free", choice, said, free / 2**30, device)
    return replace(config, run=replace(config.run, recompute=choice))


def activation_bytes(config: Config, recompute: Recompute, world: int = 1) -> int:
    """Bytes of one process at the peak of a micro-step, beside weights and gradients."""
    run, data, objective = config.run, config.data, objective_of(config.moco)
    bf16, rows = run.precision == "bf16", -(-run.batch_size // (world * run.accumulate))
    config = replace(config, run=replace(run, recompute=recompute))
    with torch.device("meta"):
        towers = [build_tower(modality, config, load_weights=False).train() for modality in ("image", "text")]
        for parameter in (p for tower in towers for p in tower.parameters() if p.requires_grad):
            parameter.grad = torch.zeros_like(parameter)
        batch = Batch.of(
            images_B3HW=torch.zeros(rows, 3, data.image_size, data.image_size, dtype=torch.uint8),
            boxes_BR4=torch.zeros(rows, data.max_boxes + 1, 4),
            token_ids_BL=torch.zeros(rows, data.max_tokens, dtype=torch.int64),
        )
        bytes_ = LiveBytes("meta")
        with bytes_:
            with torch.no_grad():
                prefixes = [tower.prefix(batch) for tower in towers]
            features = [tower.trunk(prefix, batch) for tower, prefix in zip(towers, prefixes, strict=True)]
            if objective.has_keys:  # the key towers' maps come and go while those of the query towers are kept
                with torch.no_grad():
                    for tower, prefix in zip(towers, prefixes, strict=True):
                        tower.trunk(prefix, batch)
            loss = torch.stack([f_BD.sum() for f_BD in features if f_BD.requires_grad]).sum()
            loss.backward()  # type: ignore[no-untyped-call]
    queries = rows * run.accumulate if objective.in_batch else rows  # micro-batches meet in one loss
    candidates = config.moco.queue_size * objective.has_keys + run.batch_size * objective.in_batch
    weights = 2 * footprint(config).trained if bf16 else 0  # autocast's copies
    return bytes_.peak // (1 + bf16) + weights + _PER_CANDIDATE * queries * candidates


def free_memory(device: torch.device) -> float:
    """Bytes of a GPU that this process may still take; of a CPU infinity."""
    if device.type != "cuda":
        return math.inf
    cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return float(torch.cuda.mem_get_info(device)[0] + cached)
