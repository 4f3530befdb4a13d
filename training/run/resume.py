"""Resume: which keys of its config a continued run must keep, and which it may change.

Limits: a key that is in neither list must stay the same; a new key of the config that may change belongs into one.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

from training.config import Config, to_dict
from training.errors import ConfigError
from training.outputs import checkpoint
from training.outputs.checkpoint import RunState

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
    "run.patience",
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


def obeying(config: Config, start: Path | None) -> Config:
    """The config with `compat` of the checkpoint that the run begins from: its weights mean nothing without it."""
    if start is None:
        return config
    compat = checkpoint.open_checkpoint(start).config.compat
    if compat != config.compat:
        LOG.info("%s: compat is %r, and this run keeps to it", start, compat)
    return replace(config, compat=compat)


def check_same(saved: Config, asked: Config, folder: Path) -> None:
    """Raise ConfigError naming the keys in which a continued run differs from the saved one and must not."""
    before, now = flat("", to_dict(saved)), flat("", to_dict(asked))
    may = _FREE_TO_CHANGE | _CHANGED_ALOUD
    keys = sorted(k for k in before.keys() | now.keys() if before.get(k) != now.get(k) and k not in may)
    if keys:
        changes = ", ".join(f"{k} was {before.get(k)!r}, is {now.get(k)!r}" for k in keys[:3])
        raise ConfigError(str(folder), f"the run began otherwise ({changes}); use the same recipe or another --out")


def log_changes(state: RunState, batch_size: int, world_size: int) -> None:
    """Log one line for each change from here on: of the batch, of the number of processes."""
    for name, was, now in (("batch", state.batch_size, batch_size), ("processes", state.world_size, world_size)):
        if was and was != now:
            LOG.warning("step %d: %s: was %d, is %d now", state.step, name, was, now)


def flat(name: str, value: Any) -> dict[str, Any]:
    """Nested dicts as one, keys joined by dots."""
    if not isinstance(value, dict):
        return {name: value}
    parts = (flat(f"{name}.{key}" if name else str(key), item) for key, item in value.items())
    return {key: item for part in parts for key, item in part.items()}
