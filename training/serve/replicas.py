"""Towers on replicas of Ray Serve: on this machine, or on the cluster that RAY_ADDRESS names.

The server stays one process: it takes requests, checks, decodes and gathers batches as without replicas, and sends each
batch to the next free replica. Ray Serve places the replicas, finds those that died or hang, and starts others in their
place. A batch of a replica that was lost is sent once more, since towers are stateless; one that is not answered in
time is refused. Several such servers behind a load balancer may use one cluster, each with its replicas.

Ray Serve's own HTTP proxy is off: what is asked of every request (data_specs/web/http_app.py) stays in one place.

Each replica also opens a port for calls by gRPC, on every interface, whose requests it unpickles; Ray has no option for
it. Calls go from actor to actor here, so that port is not needed: it is bound to loopback (`_listen_on_loopback`).

Limits: the checkpoint lies on a path that all machines see. With RAY_SERVE_USE_GRPC_BY_DEFAULT=1, which makes Serve
call by gRPC, the port is left as Ray has it.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from data_specs.command.extras import install
from training.errors import ConfigError, RunError, first_line
from training.run.ray_job import cluster
from training.serve.towers import Engine, Features, PreparedPicture, Tokens

LOG = logging.getLogger(__name__)

_TRIES = 2


class Replicas:
    """The towers of all replicas. As many threads may call it as there are replicas."""

    def __init__(self, handle: Any, seconds: float) -> None:
        self._handle, self._seconds = handle, seconds

    def encode_images(self, pictures: Sequence[PreparedPicture]) -> Features:
        """Unit rows [N, D]. Raises RunError if no replica answers."""
        return self._answer("image", list(pictures))

    def encode_texts(self, texts: Sequence[Tokens]) -> Features:
        """Unit rows [N, D]. Raises RunError if no replica answers."""
        return self._answer("text", list(texts))

    def _answer(self, kind: str, inputs: list[Any]) -> Features:
        from ray.exceptions import RayActorError

        for tries in range(1, _TRIES + 1):
            try:
                rows = self._handle.encode.remote(kind, inputs).result(timeout_s=self._seconds)
                return np.asarray(rows, np.float32)
            except RayActorError as e:
                LOG.warning("a replica was lost (%d of %d): %s", tries, _TRIES, first_line(e))
            except TimeoutError:
                raise RunError("replicas", f"no answer within {self._seconds:g} s") from None
        raise RunError("replicas", "every attempt lost its replica")


class Replica:
    """One process of towers; Ray Serve makes it."""

    def __init__(self, checkpoint: str, engine: Engine, device: str, threads: int) -> None:
        import torch

        from training.outputs.checkpoint import TOWERS, open_checkpoint
        from training.serve.towers import open_towers

        _listen_on_loopback()
        torch.set_num_threads(threads)
        self._towers = open_towers(open_checkpoint(Path(checkpoint), TOWERS), engine, device, threads)

    def encode(self, kind: str, inputs: list[Any]) -> Features:
        """Unit rows [N, D] of pictures or of texts."""
        return self._towers.encode_images(inputs) if kind == "image" else self._towers.encode_texts(inputs)


def _listen_on_loopback() -> None:
    """Bind the port that Ray Serve opens for calls by gRPC, after the replica's __init__, to this machine alone."""
    from ray.serve._private import constants, replica

    if getattr(constants, "RAY_SERVE_USE_GRPC_BY_DEFAULT", False):
        return
    add_port = getattr(replica, "add_port_to_grpc_server", None)
    if add_port is None:  # another Ray than 2.60
        LOG.warning(
            "replicas of this Ray version listen on every network interface; set RAY_AUTH_MODE=token to protect them"
        )
        return
    vars(replica)["add_port_to_grpc_server"] = lambda server, _: add_port(server, "127.0.0.1:0")


@contextmanager
def replicas(checkpoint: Path, engine: Engine, device: str, count: int, seconds: float) -> Iterator[Replicas]:
    """The towers of `count` replicas, which stop with the block. seconds: the longest that a batch may take.

    Raises ConfigError where Ray Serve is not installed, RunError where the replicas do not begin.
    """
    try:
        from ray import serve
    except ImportError as e:
        raise ConfigError("--replicas", f"needs Ray Serve ({first_line(e)}): {install('ray,serve')}") from None
    cores = os.cpu_count() or 1
    with cluster(cpus=max(count, cores)):
        name = f"wenlan-serve-{os.getpid()}"
        serve.start(proxy_location="Disabled")
        deployed: Any = serve.deployment(Replica)
        deployment = deployed.options(
            num_replicas=count,
            max_ongoing_requests=1,  # a batch at a time: another one is better off with another replica
            ray_actor_options={"num_cpus": 1, "num_gpus": _gpus(engine, device)},
            health_check_period_s=2,
            health_check_timeout_s=10,
        )
        threads = max(1, cores // count)
        try:
            bound = deployment.bind(str(checkpoint.resolve()), engine, device, threads)
            try:
                handle = serve.run(bound, name=name, route_prefix=None)
            except RuntimeError as e:
                raise RunError("replicas", f"did not start: {first_line(e)}; see Ray's log") from None
            yield Replicas(handle, seconds)
        finally:
            serve.delete(name)


def _gpus(engine: Engine, device: str) -> int:
    """GPUs of a replica: one where there are any in the cluster and the towers may use it."""
    import ray

    some = ray.cluster_resources().get("GPU", 0) > 0  # type: ignore[no-untyped-call]
    return int(some and engine != "onnx" and device in ("auto", "cuda"))
