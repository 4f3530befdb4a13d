"""Parameters and memory of a run, counted before it starts; a run that cannot fit is refused.

Counted is what must be there whatever the batch: weights, key weights, gradients, Adam's two moments, both queues, and
one more copy of what a checkpoint holds where it is written in the background (host memory). Beside that, the pixels of
a step must fit, which a process holds at once. Activations come on top; they depend on the backbone and
`run.recompute`, so `fit --dry-run` measures them in real steps instead of guessing.

Why no sharding of parameters (`fully_shard`): the largest recipe takes 7.8 GB with all of the above, and it refuses
weights in the layout channels_last. A model that outgrows a device is refused here with its sum.

Limits: a floor. A run above it may still run out of memory in its first step.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import torch

from training.config import Config, OptimConfig, RunConfig, from_dict, to_dict
from training.errors import ConfigError, RunError
from training.moco import BriVL

_CGROUP_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


@dataclass(frozen=True)
class Footprint:
    """Parameters by number, memory by bytes. `frozen` counts what query and key towers share once."""

    trained: int
    frozen: int
    averaged: int
    weights_bytes: int
    gradients_bytes: int
    optimizer_bytes: int
    queues_bytes: int

    @property
    def floor_bytes(self) -> int:
        """Bytes that the device must hold before the first activation."""
        return self.weights_bytes + self.gradients_bytes + self.optimizer_bytes + self.queues_bytes


def footprint(config: Config) -> Footprint:
    """Footprint of a config's model, counted on tensors without memory."""
    return _count_footprint(
        json.dumps(to_dict(replace(config, recipe="", seed=0, optim=OptimConfig(), run=RunConfig())))
    )


@lru_cache(maxsize=4)
def _count_footprint(config: str) -> Footprint:
    """Footprint of the model of a config, which is given as JSON: a dry run asks for it, and then the run."""
    with torch.device("meta"):
        model = BriVL(from_dict(json.loads(config)), load_weights=False)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    shared = model.shared_tensors()
    keys = [p for n, p in model.named_parameters() if n.startswith(("image_key.", "text_key.")) and n not in shared]
    averaged = sum(p.numel() for p in keys)
    every = sum(p.numel() for p in model.parameters())
    queues = [b for n, b in model.named_buffers() if n.startswith(("image_queue.", "text_queue."))]
    buffers = [b for n, b in model.named_buffers() if not n.startswith(("image_queue.", "text_queue."))]
    return Footprint(
        trained=trained,
        frozen=every - trained - averaged,
        averaged=averaged,
        weights_bytes=sum(t.numel() * t.element_size() for t in [*model.parameters(), *buffers]),
        gradients_bytes=4 * trained,
        optimizer_bytes=8 * trained,
        queues_bytes=sum(t.numel() * t.element_size() for t in queues),
    )


def check_fits(config: Config, device: torch.device, ranks_here: int, world: int = 1) -> Footprint:
    """The footprint of a run of `world` processes, of which `ranks_here` share this machine.

    Raises RunError if it cannot fit, ConfigError if a batch cannot.
    """
    needs = footprint(config)
    gpu = device.type == "cuda"
    there = torch.cuda.get_device_properties(device).total_memory if gpu else machine_memory() // ranks_here
    where = str(device) if gpu else f"this machine's share for each of {ranks_here} process(es)"
    pixels = config.run.batch_size // world * 3 * config.data.image_size**2
    if pixels > there:
        problem = (
            f"{config.run.batch_size}: the pixels of one step alone take {pixels / 1e9:.1f} GB in each process, but "
        )
        raise ConfigError("run.batch_size", f"{problem}{where} has {there / 1e9:.1f} GB; use a smaller batch")
    if needs.floor_bytes > there:
        what = "weights with key towers {:.1f}, gradients {:.1f}, optimiser {:.1f}, queues {:.1f}".format(
            *(n / 1e9 for n in (needs.weights_bytes, needs.gradients_bytes, needs.optimizer_bytes, needs.queues_bytes))
        )
        raise RunError(
            f"recipe {config.recipe}",
            f"does not fit in memory: it needs {needs.floor_bytes / 1e9:.1f} GB before the first activation ({what}), "
            f"but {where} has {there / 1e9:.1f} GB; use fewer processes, a smaller queue or a smaller recipe",
        )
    return needs


def machine_memory() -> int:
    """Bytes that this process's machine or container has."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for path in _CGROUP_LIMITS:
        try:
            text = path.read_text().strip()
        except OSError:
            continue
        if text.isdigit():
            total = min(total, int(text))
    return total


def used_memory(device: torch.device) -> int:
    """Peak memory of this process in bytes: of its GPU, or of the process itself."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if os.uname().sysname == "Darwin" else peak * 1024
