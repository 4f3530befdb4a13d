"""The same loop on N workers of Ray Train: on this machine, or on the cluster that RAY_ADDRESS names.

The only module of `training` that imports ray. Ray starts the processes and the process group; data, queue, checkpoint
and resume are the loop's own, so a run may go on with another number of workers, or without Ray.

Limits: OUT and the data must be on a path that all workers see; no elastic resizing while it runs; a failed run is
started again by the same command, not by Ray.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data_specs.shard import ContractError
from training.config import Config, from_dict, to_dict
from training.errors import ConfigError, TrainingError

_RESULT = "fit.json"


def fit_on_ray(
    config: Config,
    data: Sequence[str],
    out: Path,
    workers: int,
    *,
    init: Path | None = None,
    cache: Path | None = None,
) -> dict[str, Any]:
    """`training.train.fit` on Ray workers: `FitResult.to_json` of rank 0. Raises what `fit` raises."""
    try:
        import ray
        from ray.train import RunConfig, ScalingConfig
        from ray.train.torch import TorchTrainer
    except ImportError:
        raise ConfigError("--workers", "needs Ray Train: pip install 'wenlan[ray]'") from None
    if workers < 1:
        raise ConfigError("--workers", f"{workers} is below 1")
    import torch

    gpu = torch.cuda.is_available() and config.run.device in ("auto", "cuda")
    out = out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    (out / _RESULT).unlink(missing_ok=True)
    task = {
        "config": to_dict(config),
        "data": list(data),
        "out": str(out),
        "init": None if init is None else str(init.resolve()),
        "cache": None if cache is None else str(cache.resolve()),
        "folder": str(Path.cwd()),
    }
    ours = not ray.is_initialized()
    if ours and "RAY_ADDRESS" not in os.environ:
        # "local": a cluster that someone else runs on this machine is not ours to join.
        ray.init("local", num_cpus=max(workers + 1, os.cpu_count() or 1), include_dashboard=False)
    trainer = TorchTrainer(
        _work,
        train_loop_config=task,
        scaling_config=ScalingConfig(num_workers=workers, use_gpu=gpu),
        run_config=RunConfig(storage_path=str(out / "ray"), name="fit"),
    )
    try:
        trainer.fit()
    except Exception as e:  # Ray wraps whatever a worker raised; only one of ours is turned back
        raise _cause(e) from e
    finally:
        if ours:
            ray.shutdown()
    result: dict[str, Any] = json.loads((out / _RESULT).read_text(encoding="utf-8"))
    return result


def _work(task: dict[str, Any]) -> None:
    """One worker. Relative paths of the config are those of the folder in which the command was given."""
    import logging

    from training import distributed
    from training.train import fit

    os.chdir(task["folder"])
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    out = Path(task["out"])
    result = fit(
        from_dict(task["config"]),
        task["data"],
        out,
        init=None if task["init"] is None else Path(task["init"]),
        cache=None if task["cache"] is None else Path(task["cache"]),
    )
    if distributed.rank() == 0:
        (out / _RESULT).write_text(json.dumps(result.to_json()), encoding="utf-8")


def _cause(error: Exception) -> Exception:
    """The error of ours that a worker raised, or one line of Ray's."""
    failures = getattr(error, "worker_failures", {})
    for failure in [*failures.values(), error]:
        found: BaseException | None = failure
        while found is not None:
            inner = getattr(found, "cause", None)
            if isinstance(inner, (ConfigError, ContractError, TrainingError)):
                found = inner
            if isinstance(found, (ConfigError, ContractError, TrainingError)):
                return _plain(found)
            found = found.__cause__ or found.__context__
    return TrainingError("ray", (str(error).strip().splitlines() or [type(error).__name__])[-1])


def _plain(error: ConfigError | ContractError | TrainingError) -> Exception:
    """The error without Ray's traceback: Ray makes a class that inherits ours and prints more than one line."""
    if isinstance(error, ContractError):
        return ContractError(str(error.args[0] if error.args else error).splitlines()[-1])
    kind = ConfigError if isinstance(error, ConfigError) else TrainingError
    return kind(error.subject, error.problem)
