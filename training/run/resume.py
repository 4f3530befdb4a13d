"""Resume: the config keys that a resumed run must keep, and those that it may change.

Limits: a key that is in neither list must stay the same; a new key of the config that may change belongs into one.
"""

from __future__ import annotations

import logging
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

from training.config import Config, to_dict
from training.errors import ConfigError
from training.method import distributed
from training.outputs import checkpoint
from training.outputs.checkpoint import RunState
from training.run.optimizer import schedule, warmup_samples
from training.weights.two_towers import is_two_towers

LOG = logging.getLogger(__name__)

_FREE_TO_CHANGE = {
    "run.device",
    "run.accumulate",
    "run.recompute",
    "run.compile",
    "run.checkpoint_every",
    "run.keep_last",
    "run.keep_best",
    "run.save_in_background",
    "run.mirror",
    "run.eval_every",
    "run.eval_epochs",
    "run.patience",
    "run.compare_every",
    "run.background",
    "run.log_every",
    "run.tracker",
    "run.profile_steps",
    "run.stop_on_collapse",
    "data.num_workers",
    "data.worker_nice",
    "data.cache_gb",
}
"""Keys that a resumed run may set otherwise, because the result does not depend on them."""

_CHANGED_ALOUD = {"moco.queue_size", "run.batch_size"}
"""Keys that a resumed run may set otherwise although it does: the run adapts, and says so in the log."""


def with_saved_compat(config: Config, start: Path | None) -> Config:
    """Returns the config with `compat` of the checkpoint that the run starts from, which its weights depend on."""
    if start is None or is_two_towers(start):
        return config
    compat = checkpoint.open_checkpoint(start).config.compat
    if compat != config.compat:
        LOG.info("%s: compat is %r, and this run keeps it", start, compat)
    return replace(config, compat=compat)


def check_same(saved: Config, asked: Config, folder: Path) -> None:
    """Raise ConfigError naming the keys that a resumed run must not change but does."""
    before, now = flatten("", to_dict(saved)), flatten("", to_dict(asked))
    may = _FREE_TO_CHANGE | _CHANGED_ALOUD
    if asked.optim.schedule in ("constant", "wsd"):
        may = may | {"run.epochs"}  # judged by `check_length`
    keys = sorted(k for k in before.keys() | now.keys() if before.get(k) != now.get(k) and k not in may)
    if keys:
        changes = ", ".join(f"{k} was {before.get(k)!r}, is {now.get(k)!r}" for k in keys[:3])
        advice = "use the same recipe or another --out"
        if keys == ["run.epochs"]:
            advice = "its cosine ends at that length; only optim.schedule=wsd and constant can be made longer"
        raise ConfigError(str(folder), f"the run was started with other settings ({changes}); {advice}")


def check_length(saved: Config, asked: Config, state: RunState, samples: int) -> None:
    """Raise ConfigError if the run cannot be lengthened or shortened as requested.

    `samples` of one epoch. What has been trained must be what a run of the new length would have trained by now: its
    warm-up (a share of the run) the same. A rate that has begun to fall already rises again, and that is logged.
    """
    was, now = saved.run.epochs, asked.run.epochs
    if was == now:
        return
    before, after = (math.ceil(epochs * samples) for epochs in (was, now))
    if after < state.position:
        raise ConfigError("run.epochs", f"{now:g} is below the {state.position / samples:.2f} epochs already done")
    warmups = warmup_samples(asked.optim, before), warmup_samples(asked.optim, after)
    if warmups[0] != warmups[1] and max(warmups) > state.position:
        raise ConfigError(
            "run.epochs",
            f"was {was:g}, is {now:g}: that changes the warm-up (optim.warmup_share) from {warmups[0]} to {warmups[1]} "
            f"samples, and the run is at {state.position}; change run.epochs after the warm-up",
        )
    if distributed.rank():
        return
    LOG.warning("step %d: run.epochs: was %g, is %g now", state.step, was, now)
    rates = [schedule(asked.optim, state.position, length) for length in (before, after)]
    if rates[0] < rates[1]:
        LOG.warning(
            "step %d: the learning rate had fallen to %.0f%% of its peak and rises again to %.0f%%; resume from a "
            "checkpoint before the fall to avoid this",
            *(state.step, 100 * rates[0], 100 * rates[1]),
        )


def log_changes(state: RunState, batch_size: int, world_size: int) -> None:
    """Log one line for each changed value: batch size, number of processes."""
    for name, was, now in (("batch", state.batch_size, batch_size), ("processes", state.world_size, world_size)):
        if was and was != now:
            LOG.warning("step %d: %s: was %d, is %d now", state.step, name, was, now)


def flatten(name: str, value: Any) -> dict[str, Any]:
    """Flattens nested dicts into one, keys joined by dots."""
    if not isinstance(value, dict):
        return {name: value}
    parts = (flatten(f"{name}.{key}" if name else str(key), item) for key, item in value.items())
    return {key: item for part in parts for key, item in part.items()}
