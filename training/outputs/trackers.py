"""Trackers: TensorBoard or Weights & Biases receive a run's metrics beside metrics.jsonl.

W&B is not a dependency: it is installed by the user, and set up by its own environment variables (WANDB_MODE,
WANDB_PROJECT, ...). A resumed run writes into the run of the tracker that it began.
On Ray, `training.run.ray_job` exports metrics for Prometheus as well. A tracker that cannot be reached, or lacks a
login, is one line before the first step, and of `fit --dry-run` too, which begins no run there.

Limits: metrics only; no files, no weights, no code leave the machine through here.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from data_specs.storage.whole_files import flush
from training.errors import ConfigError
from training.outputs.atomic_files import atomic_file


class Tracker(Protocol):
    """Interface of a tracker, as the journal needs it."""

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record the metrics of a step."""
        ...

    def close(self) -> None:
        """End the record."""
        ...


def open_tracker(name: str, out: Path, step: int, config: Mapping[str, Any]) -> Tracker | None:
    """The tracker that `run.tracker` names, for the run in `out` that resumes from `step`. Raises ConfigError."""
    if name == "none":
        return None
    kinds: dict[str, Callable[[Path, int, Mapping[str, Any]], Tracker]]
    kinds = {"tensorboard": _TensorBoard, "wandb": _Wandb}
    with _tracker_errors(name):
        return kinds[name](out, step, config)


def check_tracker(name: str) -> None:
    """Raise ConfigError if the tracker that `run.tracker` names is not installed, not reached, or lacks a login."""
    with _tracker_errors(name):
        if name == "wandb":
            import wandb

            wandb.login()


@contextmanager
def _tracker_errors(name: str) -> Iterator[None]:
    """Convert errors of a tracker's package, whatever their class, to ConfigError."""
    try:
        yield
    except ImportError:
        raise ConfigError("run.tracker", f"{name} is not installed: pip install {name}") from None
    except Exception as e:
        problem = (str(e).splitlines() or [type(e).__name__])[0]
        raise ConfigError("run.tracker", f"{name}: {problem}; or train without it: --set run.tracker=none") from None


class _TensorBoard:
    def __init__(self, out: Path, step: int, config: Mapping[str, Any]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(out / "tensorboard"), purge_step=step + 1)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class _Wandb:
    def __init__(self, out: Path, step: int, config: Mapping[str, Any]) -> None:
        import wandb

        name = out / "wandb-id"
        if not name.exists():
            with atomic_file(name) as temporary:
                temporary.write_text(uuid.uuid4().hex[:8], encoding="utf-8")
                flush(temporary)
        self._run: Any = wandb.init(
            project="wenlan",
            id=name.read_text(encoding="utf-8"),
            resume="allow",
            dir=str(out),
            name=out.name,
            config=dict(config),
            save_code=False,
        )

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        self._run.log(dict(metrics), step=step)

    def close(self) -> None:
        self._run.finish()
