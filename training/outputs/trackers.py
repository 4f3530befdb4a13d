"""Trackers: TensorBoard, Weights & Biases or MLflow receive a run's metrics beside metrics.jsonl.

W&B and MLflow are not dependencies: they are installed by the user, and set up by their own environment variables
(WANDB_MODE, WANDB_PROJECT, MLFLOW_TRACKING_URI, ...). A resumed run writes into the run of the tracker that it began.
On Ray, `training.run.ray_job` exports metrics for Prometheus as well. A tracker that cannot be reached, or lacks a
login, is one line before the first step, and of `fit --dry-run` too, which begins no run there.

Limits: metrics only; no files, no weights, no code leave the machine through here.
"""

from __future__ import annotations

import math
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
    kinds = {"tensorboard": _TensorBoard, "wandb": _Wandb, "mlflow": _Mlflow}
    with _tracker_errors(name):
        return kinds[name](out, step, config)


def check_tracker(name: str) -> None:
    """Raise ConfigError if the tracker that `run.tracker` names is not installed, not reached, or lacks a login."""
    with _tracker_errors(name):
        if name == "wandb":
            import wandb

            wandb.login()
        elif name == "mlflow":
            import mlflow

            mlflow.MlflowClient().search_experiments(max_results=1)


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


def _stored_name(path: Path, fresh: str = "") -> str:
    """The name in a file, or `fresh`, which is then written to it. An empty file, left by a kill, does not count."""
    known = path.read_text(encoding="utf-8").strip() if path.exists() else ""
    if fresh and not known:
        with atomic_file(path) as temporary:
            temporary.write_text(fresh, encoding="utf-8")
            flush(temporary)
    return known or fresh


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

        run_id = _stored_name(out / "wandb-id", uuid.uuid4().hex[:8])
        self._run: Any = wandb.init(
            project="wenlan",
            id=run_id,
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


class _Mlflow:
    def __init__(self, out: Path, step: int, config: Mapping[str, Any]) -> None:
        import mlflow

        self._client: Any = mlflow.MlflowClient()
        self._run = _stored_name(out / "mlflow-id")
        if not self._run:
            experiment = self._client.get_experiment_by_name("wenlan")
            number = self._client.create_experiment("wenlan") if experiment is None else experiment.experiment_id
            self._run = _stored_name(out / "mlflow-id", self._client.create_run(number, run_name=out.name).info.run_id)
            self._client.log_dict(self._run, dict(config), "config.json")

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            if math.isfinite(value):
                self._client.log_metric(self._run, name, value, step=step)

    def close(self) -> None:
        self._client.set_terminated(self._run)
