"""Training on workers of Ray Train, and embedding on actors: on this machine, or the cluster that RAY_ADDRESS names.

With training/serve/replicas.py the only module of `training` that imports ray. Ray starts the processes and the
process group, starts them again when one is lost, and with `--workers LO:HI` as many as the cluster has room for. Data,
queue, checkpoint and resume are the loop's own, so every start goes on from the last checkpoint of OUT, whatever the
number of workers now and then, and a run may go on without Ray. When a node is about to be taken away the loop is asked
to save. Ray exports the METRICS of rank 0 for Prometheus (`ray_` before their names).

Errors of ours (bad usage, bad data, a collapse) are final: a worker notes one in OUT before it raises it
(training/run/ray_errors.py), and Ray starts no worker again; one that it starts all the same ends at once.

An embedding's parts are independent: each actor holds the towers, makes parts of the index and commits them itself,
and gets others when it is done. What a lost actor had not committed goes to another.

Limits: OUT, an index and the data are on a path that the driver and all workers see. What was done since the last
checkpoint is done again after a loss and after a resize.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from data_specs.command.extras import install
from data_specs.command.loopback import start_ray
from data_specs.errors import WenlanError
from data_specs.search.folder import IndexInfo
from training.config import Config, from_dict, to_dict
from training.errors import ConfigError, FirstRankError, RunError
from training.run.launch import TIMEOUT, Leave, backends, ending_with_parent
from training.run.ray_errors import NOTE, read_error, root_error, write_error
from training.use.indexing import EmbedJob, PartResult, PartTask, Run, make_parts
from training.use.sources import Source
from training.weights.load import Loaded

_RESULT = "fit.json"
_ROOM_S = 25
"""Seconds that workers of a varying number wait for their places. Ray's list of nodes is up to 20 seconds old, so after
the loss of a node it asks for as many as before; its default keeps a run still for a minute then."""


_RESIZE_S = 60.0
"""Seconds between looks at whether there is room for more workers."""


def parse_workers(text: str) -> tuple[int, int]:
    """(LO, HI) from `4`, or from `2:8` for as many workers as there is room for. Raises ConfigError."""
    low, colon, high = text.partition(":")
    try:
        fewest, most = int(low), int(high if colon else low)
    except ValueError:
        raise ConfigError("--workers", f"{text!r} is neither a number nor LO:HI") from None
    if not 1 <= fewest <= most:
        raise ConfigError("--workers", f"{text} is out of range; give N or LO:HI with 1 <= LO <= HI")
    return fewest, most


def fit_on_ray(
    config: Config,
    data: Sequence[str],
    out: Path,
    workers: tuple[int, int],
    *,
    init: Path | None = None,
    cache: Path | None = None,
    max_failures: int = 10,
) -> dict[str, Any]:
    """`training.run.train.fit` on Ray workers: the `FitResult` of rank 0 as JSON values. Raises what `fit` raises.

    `workers`: the fewest and the most. `max_failures`: lost workers after which the run ends; nodes that a cloud
    takes back are not counted.
    """
    try:
        from ray.train import FailureConfig, RunConfig
        from ray.train.torch import TorchTrainer
    except ImportError:
        raise ConfigError("--workers", f"needs Ray Train: {install('ray')}") from None
    _check_shares(config, workers)
    out = out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    for name in (_RESULT, NOTE):
        (out / name).unlink(missing_ok=True)
    with cluster(cpus=workers[1] + 1):
        scaling = _scaling(config, workers)
        trainer = TorchTrainer(
            _work,
            train_loop_config=_task(config, data, out, init, cache),
            torch_config=torch_config(scaling.use_gpu),
            scaling_config=scaling,
            run_config=RunConfig(
                storage_path=config.run.mirror or str(out / "ray"),
                name="ray" if config.run.mirror else "fit",
                failure_config=FailureConfig(max_failures=max_failures),
                callbacks=_final_errors(out),
            ),
        )
        try:
            trainer.fit()
        except Exception as e:  # Ray wraps whatever a worker raised; only one of ours is turned back
            raise read_error(out) or root_error(e) from e
    final = read_error(out)
    if final is not None:
        raise final
    result: dict[str, Any] = json.loads((out / _RESULT).read_text(encoding="utf-8"))
    return result


def _check_shares(config: Config, workers: tuple[int, int]) -> None:
    """Raise ConfigError unless every possible number of workers divides the batch."""
    low, high = workers
    for count in range(low, high + 1):
        if config.run.batch_size % (count * config.run.accumulate):
            problem = f"{config.run.batch_size} cannot be divided among {count} of {low}:{high} workers"
            raise ConfigError("run.batch_size", problem)


@contextmanager
def cluster(cpus: int) -> Iterator[None]:
    """The cluster of RAY_ADDRESS, or one of this machine with `cpus` CPUs at least; left again if it was joined here.

    Raises RunError where none starts.
    """
    import ray

    ours = not ray.is_initialized()
    if ours and "RAY_ADDRESS" not in os.environ:
        try:
            start_ray(ray, num_cpus=max(cpus, os.cpu_count() or 1), include_dashboard=False)
        except RuntimeError as e:
            raise RunError("ray", str(e)) from None
    elif ours:
        ray.init()  # of RAY_ADDRESS
    try:
        yield
    finally:
        if ours:
            ray.shutdown()


def _task(config: Config, data: Sequence[str], out: Path, init: Path | None, cache: Path | None) -> dict[str, Any]:
    """Arguments of a worker, as JSON values."""
    return {
        "config": to_dict(config),
        "data": list(data),
        "out": str(out),
        "init": None if init is None else str(init.resolve()),
        "cache": None if cache is None else str(cache.resolve()),
        "folder": str(Path.cwd()),
    }


def _scaling(config: Config, workers: tuple[int, int]) -> Any:
    """Number of workers, and whether each takes a GPU: where there are any, in the cluster and not only here."""
    import ray
    import torch
    from ray.train import ScalingConfig

    some = torch.cuda.is_available() or ray.cluster_resources().get("GPU", 0) > 0  # type: ignore[no-untyped-call]
    use_gpu = some and config.run.device in ("auto", "cuda")
    low, high = workers
    if low == high:
        return ScalingConfig(num_workers=low, use_gpu=use_gpu)
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", str(_ROOM_S))
    elastic: dict[str, Any] = {"num_workers": workers, "elastic_resize_monitor_interval_s": _RESIZE_S}
    return ScalingConfig(use_gpu=use_gpu, **elastic)


def torch_config(gpu: bool) -> Any:
    """The process group that Ray makes: that of `training.run.launch.process_group`."""
    from ray.train.torch import TorchConfig

    return TorchConfig(backend=backends(gpu), timeout_s=int(TIMEOUT.total_seconds()))


def _final_errors(out: Path) -> list[Any]:
    """Callbacks by which an error that was noted in `out` ends the run; empty where this Ray lacks the interface.

    Without them Ray starts all workers again, each with seconds of imports, before they find the note.
    """
    import ray.train

    interface: Any = getattr(ray.train, "UserCallback", None)
    if interface is None:
        return []

    class FinalErrors(interface):  # type: ignore[misc]
        def after_exception(self, run_context: Any, worker_exceptions: Any) -> None:
            """Raise the error that was noted: Ray takes an error of a callback as one that no new try mends."""
            if (final := read_error(out)) is not None:
                raise final

    return [FinalErrors()]


def _work(task: dict[str, Any]) -> None:
    """Body of a worker. Relative paths of the config are those of the folder in which the command was started."""
    import logging

    from training.method import distributed
    from training.run.train import fit

    if Path(task["folder"]).is_dir():
        os.chdir(task["folder"])
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    out = Path(task["out"])
    config = from_dict(task["config"])
    if any(distributed.gather_objects(read_error(out) is not None)):
        return
    try:
        with ending_with_parent():  # the raylet of this node
            result = fit(
                config,
                task["data"],
                out,
                init=None if task["init"] is None else Path(task["init"]),
                cache=None if task["cache"] is None else Path(task["cache"]),
                leave_signal=Preemption(config.run.log_every),
                tracker=_RayMetrics(out.name),
            )
    except FirstRankError:
        raise  # the first rank notes it, with its kind
    except WenlanError as e:
        write_error(out, e)
        raise
    if distributed.rank() == 0:
        (out / _RESULT).write_text(json.dumps(asdict(result)), encoding="utf-8")


METRICS: dict[str, str] = {
    "wenlan_train_step": "steps done",
    "wenlan_train_loss": "loss of the last logged step that had a finite one",
    "wenlan_train_loss_finite": "1 if the loss of the last logged step was finite, otherwise 0",
    "wenlan_train_skipped_steps": "steps skipped because a gradient was not finite",
    "wenlan_train_samples_per_second": "samples per second, of all ranks",
    "wenlan_train_waiting_for_data": "share of the time that rank 0 waits for data",
    "wenlan_train_tflops": "10^12 operations per second of rank 0",
    "wenlan_train_mfu": "operations per second as a share of the peak of the device, where that is known",
}
"""Metrics that Ray exports for Prometheus, and what each is. Their tag `run` is the name of the run's folder."""


def exported_metrics(step: int, metrics: Mapping[str, float]) -> dict[str, float]:
    """Values of METRICS at a logged step: finite ones only; none for metrics without a loss."""
    if "loss" not in metrics:
        return {}
    found = {"step": float(step), "loss_finite": float(math.isfinite(metrics["loss"])), **metrics}
    found["skipped_steps"] = metrics.get("skipped", math.nan)
    values = {name: found.get(name.removeprefix("wenlan_train_"), math.nan) for name in METRICS}
    return {name: value for name, value in values.items() if math.isfinite(value)}


class _RayMetrics:
    """A tracker: gauges of this process, which Ray exports until it ends."""

    def __init__(self, run: str) -> None:
        from ray.util.metrics import Gauge

        self._gauges = {name: Gauge(name, description, ("run",)) for name, description in METRICS.items()}
        self._tags = {"run": run}

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        for name, value in exported_metrics(step, metrics).items():
            self._gauges[name].set(value, self._tags)

    def close(self) -> None:
        """Nothing to end: the gauges go with the process."""


class Preemption:
    """Returns SAVE once for every announcement that a node will be taken away, NO otherwise.

    Asking it of Ray is a barrier, so only every `every`-th call asks.
    """

    def __init__(self, every: int) -> None:
        import ray.train

        self._ask = getattr(ray.train, "get_preemption_info", lambda: None)  # Ray 2.60 and later
        self._every, self._steps, self._known = every, 0, None

    def __call__(self) -> Leave:
        self._steps += 1
        if self._steps % self._every:
            return Leave.NO
        info = self._ask()
        if info is None or info == self._known:
            return Leave.NO
        self._known = info
        return Leave.SAVE


# --- embedding

_CHUNKS = 4
"""Shares of the work that each worker gets one after the other: those that are done early take over from others."""

_LOST = 10
"""Lost actors after which an embedding ends."""


def embed_on_ray(workers: int, address: str = "") -> Run:
    """Makes the parts of an index on so many actors: of the cluster at `address`, of RAY_ADDRESS, or embedded.

    Raises ConfigError where Ray is not installed.
    """
    try:
        import ray  # noqa: F401
    except ImportError:
        raise ConfigError("--workers", f"needs Ray: {install('ray')}") from None
    if address:
        os.environ["RAY_ADDRESS"] = address

    def run(job: EmbedJob, folder: Path, about: IndexInfo, tasks: Sequence[PartTask]) -> Iterator[PartResult]:
        if not tasks:
            return
        with cluster(cpus=workers):
            try:
                yield from _Dispatch(workers, (job, str(folder), about, str(Path.cwd()))).run(tasks)
            except Exception as e:  # Ray wraps whatever an actor raised; only one of ours is turned back
                raise root_error(e) from e

    return run


class _Dispatch:
    """Gives parts to actors until all are made."""

    def __init__(self, workers: int, arguments: tuple[EmbedJob, str, IndexInfo, str]) -> None:
        import ray

        job = arguments[0]
        self._workers, self._arguments, self._failures = workers, arguments, _LOST
        cpus = int(ray.cluster_resources().get("CPU", 1))  # type: ignore[no-untyped-call]
        gpus = ray.cluster_resources().get("GPU", 0)  # type: ignore[no-untyped-call]
        use_gpu = gpus > 0 and job.device in ("auto", "cuda")
        remote: Any = ray.remote(_Embedding)
        self._actor = remote.options(num_cpus=max(1, cpus // workers), num_gpus=1 if use_gpu else 0)

    def run(self, tasks: Sequence[PartTask]) -> Iterator[PartResult]:
        """Parts as they are made. A lost actor repeats the parts that it had not handed over."""
        import ray
        from ray.exceptions import RayActorError

        size = -(-len(tasks) // (self._workers * _CHUNKS))
        waiting = [list(tasks[start : start + size]) for start in range(0, len(tasks), size)][::-1]
        idle = [self._actor.remote(*self._arguments) for _ in range(min(self._workers, len(waiting)))]
        running: dict[Any, tuple[Any, list[PartTask]]] = {}
        while waiting or running:
            while waiting and idle:
                actor, chunk = idle.pop(), waiting.pop()
                running[actor.embed.options(num_returns="streaming").remote(chunk)] = actor, chunk
            ready: list[Any] = ray.wait(list(running), num_returns=1)[0]
            for parts in ready:
                actor, chunk = running[parts]
                try:
                    yield ray.get(next(parts))
                    chunk.pop(0)
                except StopIteration:
                    del running[parts]
                    idle.append(actor)
                except RayActorError:
                    self._failures -= 1
                    if self._failures < 0:
                        raise
                    del running[parts]
                    waiting.append(chunk)
                    idle.append(self._actor.remote(*self._arguments))


class _Embedding:
    """An actor: a checkpoint's towers and the input, from which it makes parts."""

    def __init__(self, job: EmbedJob, folder: str, about: IndexInfo, started_in: str) -> None:
        self._job, self._folder, self._about, self._started_in = job, folder, about, started_in
        self._opened: tuple[Loaded, Source] | None = None

    def embed(self, tasks: Sequence[PartTask]) -> Iterator[PartResult]:
        """Write the files of parts, in order."""
        if self._opened is None:  # not in __init__: Ray takes an error there for a lost actor
            import logging

            if Path(self._started_in).is_dir():
                os.chdir(self._started_in)
            logging.basicConfig(level=logging.INFO, format="%(message)s")
            self._opened = self._job.open()
        folder, detector = Path(self._folder), self._job.detector
        yield from make_parts(*self._opened, folder, self._about, tasks, detector, lambda rows: None)
