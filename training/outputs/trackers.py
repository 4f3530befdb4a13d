"""Trackers: TensorBoard, Weights & Biases, MLflow or Prometheus receive a run's metrics beside metrics.jsonl.

Prometheus reads a text file through node_exporter (`--collector.textfile.directory`, named to us by
WENLAN_TEXTFILE_DIR); on Ray, `training.run.ray_job` exports the same values through Ray. A run is known by the name of
its folder there.

W&B and MLflow are not dependencies: who names one has it installed, and sets it up by its own environment variables
(WANDB_MODE, WANDB_PROJECT, MLFLOW_TRACKING_URI, ...). A resumed run writes into the run of the tracker that it began.

Limits: metrics only; no files, no weights, no code leave the machine through here.
"""

from __future__ import annotations

import math
import os
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from training.errors import ConfigError
from training.outputs.whole import flush, whole_file

PROMETHEUS: dict[str, str] = {
    "wenlan_train_step": "steps done",
    "wenlan_train_loss": "loss of the last logged step that had a finite one",
    "wenlan_train_loss_finite": "1 if the loss of the last logged step was finite, otherwise 0",
    "wenlan_train_skipped_steps": "steps skipped since a gradient was not finite",
    "wenlan_train_samples_per_second": "samples per second, of all ranks",
    "wenlan_train_waiting_for_data": "share of the time that rank 0 waits for data",
    "wenlan_train_tflops": "10^12 operations per second of rank 0",
    "wenlan_train_mfu": "operations per second as a share of the peak of the device, where that is known",
}
"""Names and descriptions of the metrics for Prometheus. Each has the tag `run`: the name of the run's folder."""


def for_prometheus(step: int, metrics: Mapping[str, float]) -> dict[str, float]:
    """The values of PROMETHEUS at a logged step: finite ones only; none for metrics without a loss."""
    if "loss" not in metrics:
        return {}
    found = {"step": float(step), "loss_finite": float(math.isfinite(metrics["loss"])), **metrics}
    found["skipped_steps"] = metrics.get("skipped", math.nan)
    values = {name: found.get(name.removeprefix("wenlan_train_"), math.nan) for name in PROMETHEUS}
    return {name: value for name, value in values.items() if math.isfinite(value)}


class Tracker(Protocol):
    """Interface of a tracker, as the journal needs it."""

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record the metrics of a step."""
        ...

    def close(self) -> None:
        """End the record: nothing more will come."""
        ...


def open_tracker(name: str, out: Path, step: int, config: Mapping[str, Any]) -> Tracker | None:
    """The tracker that `run.tracker` names, for the run in `out` that goes on from `step`. Raises ConfigError."""
    if name == "none":
        return None
    kinds: dict[str, Callable[[Path, int, Mapping[str, Any]], Tracker]]
    kinds = {"tensorboard": _TensorBoard, "wandb": _Wandb, "mlflow": _Mlflow, "prometheus": _Textfile}
    try:
        return kinds[name](out, step, config)
    except ImportError:
        raise ConfigError("run.tracker", f"{name} is not installed: pip install {name}") from None


def _remembered(path: Path, fresh: str = "") -> str:
    """The name in the file, or `fresh`, which is then in it. An empty file is none: a kill left it there."""
    known = path.read_text(encoding="utf-8").strip() if path.exists() else ""
    if fresh and not known:
        with whole_file(path) as temporary:
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


class _Textfile:
    """WENLAN_TEXTFILE_DIR/wenlan-RUN.prom, or OUT/wenlan-RUN.prom; replaced at every logged step, removed at the end.

    What a killed run leaves is recognised by its age: node_textfile_mtime_seconds.
    """

    def __init__(self, out: Path, step: int, config: Mapping[str, Any]) -> None:
        folder = Path(os.environ.get("WENLAN_TEXTFILE_DIR") or out)
        if not folder.is_dir():
            raise ConfigError("run.tracker", f"WENLAN_TEXTFILE_DIR={folder} is no folder")
        self._path = folder / f"wenlan-{out.resolve().name}.prom"
        self._run = out.resolve().name.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
        self._values: dict[str, float] = {}

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        self._values |= for_prometheus(step, metrics)
        lines = [
            f'# HELP {name} {PROMETHEUS[name]}\n# TYPE {name} gauge\n{name}{{run="{self._run}"}} {value!r}\n'
            for name, value in self._values.items()
        ]
        temporary = self._path.with_suffix(".tmp")  # the collector reads *.prom only
        temporary.write_text("".join(lines), encoding="utf-8")
        temporary.replace(self._path)

    def close(self) -> None:
        self._path.unlink(missing_ok=True)


class _Wandb:
    def __init__(self, out: Path, step: int, config: Mapping[str, Any]) -> None:
        import wandb

        run_id = _remembered(out / "wandb-id", uuid.uuid4().hex[:8])
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
        self._run = _remembered(out / "mlflow-id")
        if not self._run:
            experiment = self._client.get_experiment_by_name("wenlan")
            number = self._client.create_experiment("wenlan") if experiment is None else experiment.experiment_id
            self._run = _remembered(out / "mlflow-id", self._client.create_run(number, run_name=out.name).info.run_id)
            self._client.log_dict(self._run, dict(config), "config.json")

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            if math.isfinite(value):
                self._client.log_metric(self._run, name, value, step=step)

    def close(self) -> None:
        self._client.set_terminated(self._run)
