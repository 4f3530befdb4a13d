"""What decides about workers of Ray before and after there are any; training on workers, and embedding on actors."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from training.errors import ConfigError
from training.resolve import resolve
from training.run import ray_job
from training.run.launch import TIMEOUT, Leave, process_group

if importlib.util.find_spec("ray") is None:  # to import ray.train takes a second
    pytest.skip("needs the extra ray", allow_module_level=True)

from data_specs.search.folder import read_index
from tests.places import ROOT
from tests.processes import QUIET, Forks, descendants, free_ports, wait_until
from training.run.ray_job import METRICS, Preemption, exported_metrics, fit_on_ray, parse_workers, torch_config
from training.use.indexing import Inputs, embed_index

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(("text", "found"), [("4", (4, 4)), ("2:8", (2, 8)), ("1:1", (1, 1))])
def test_workers_are_a_number_or_a_range(text: str, found: tuple[int, int]) -> None:
    assert parse_workers(text) == found


@pytest.mark.parametrize("text", ["", "two", "0", "3:2", "2:", "-1:4", "1:2:3"])
def test_what_is_neither_is_bad_usage(text: str) -> None:
    with pytest.raises(ConfigError, match=r"^--workers: "):
        parse_workers(text)


@pytest.mark.slow
def test_a_batch_that_some_number_of_workers_cannot_share_is_refused_before_any_starts(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"run.batch_size: 8 cannot be divided among 3 of 1:4 workers"):
        fit_on_ray(resolve("tiny"), ["x"], tmp_path, (1, 4))


@pytest.mark.slow
def test_ray_s_process_group_is_torchrun_s(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the arguments with which Ray's own setup, and ours, ask torch for a group: here is no NCCL."""
    from ray.train.torch.config import _setup_torch_process_group

    asked = list[tuple[str, timedelta]]()
    monkeypatch.setattr(dist, "init_process_group", lambda backend, *, timeout, **_: asked.append((backend, timeout)))
    monkeypatch.setattr(dist, "destroy_process_group", lambda: None)
    monkeypatch.setattr(torch.cuda, "set_device", lambda _: None)
    for name, value in {"WORLD_SIZE": "2", "TORCH_NCCL_ASYNC_ERROR_HANDLING": "1"}.items():
        monkeypatch.setenv(name, value)
    for kind in ("cpu", "cuda:0"):
        with process_group(torch.device(kind)):
            of_ray = torch_config(kind != "cpu")
            _setup_torch_process_group(of_ray.backend, 1, 2, "env://", of_ray.timeout_s)
    assert asked == [("gloo", TIMEOUT)] * 2 + [("cpu:gloo,cuda:nccl", TIMEOUT)] * 2


@pytest.mark.slow
def test_an_announcement_that_a_node_will_go_is_answered_once(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray.train

    announced: list[str | None] = [None, "node 1", "node 1", "node 2"]
    monkeypatch.setattr(ray.train, "get_preemption_info", lambda: announced.pop(0), raising=False)
    leave_signal = Preemption(every=2)
    answers = [leave_signal() for _ in range(8)]
    assert answers == [Leave.NO, Leave.NO, Leave.NO, Leave.SAVE, Leave.NO, Leave.NO, Leave.NO, Leave.SAVE]


def test_finite_values_of_logged_steps_are_exported() -> None:
    logged = {"loss": 2.5, "samples_per_second": 100.0, "waiting_for_data": 0.1, "skipped": 3, "lr": 0.1}
    assert exported_metrics(1, logged | {"tflops": 300.0, "mfu": 0.3}).keys() == METRICS.keys()
    found = exported_metrics(20, logged | {"loss": math.nan})
    assert {name.removeprefix("wenlan_train_"): value for name, value in found.items()} == {
        "step": 20,
        "loss_finite": 0,
        "skipped_steps": 3,
        "samples_per_second": 100,
        "waiting_for_data": 0.1,
    }
    assert exported_metrics(1, {"dev.mean_recall": 0.5}) == {}


def test_without_a_cluster_the_ray_of_training_is_one_of_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `start_ray` starts with these options listens to this machine alone: tests/pipeline/test_cluster.py."""
    import ray

    started: list[dict[str, Any]] = []
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    monkeypatch.setattr(ray_job, "start_ray", lambda _, **options: started.append(options))
    with ray_job.cluster(99):
        assert started == [{"num_cpus": 99, "include_dashboard": False}]


# --- on a cluster

RAY = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "a-token-of-this-test-alone-0123456789"}

_IMPORTS = "import ray.train.torch, timm, torchvision.transforms.v2.functional, training.cli, training.run.ray_job\n"

_COMMAND = """
import os, sys
from training import cli
address, *words = sys.argv[1:]
if words[0] == "embed":
    words += ["--address", address]
else:
    os.environ["RAY_ADDRESS"] = address
print("exit", cli.main([*words, "--workers", "2", "--json"]))
"""


@dataclass(frozen=True)
class Said:
    """What a command left: its exit code, the object that it printed last, and every line."""

    code: int
    result: dict[str, Any]
    lines: list[str]

    @staticmethod
    def of(lines: list[str]) -> Said:
        code = next(int(line.split()[1]) for line in lines[::-1] if line.startswith("exit "))
        return Said(code, json.loads(next(line for line in lines[::-1] if line.startswith("{"))), lines)


@dataclass(frozen=True)
class Raylet:
    """A Ray with two CPUs, by `ray start`, that knows nothing of this process. pid: of its node."""

    address: str
    pid: int
    forks: Forks

    def run(self, *words: object) -> Said:
        """A command of wenlan-train on two workers, in a process of its own on a machine of the cluster."""
        return Said.of(self.forks(_COMMAND, self.address, *words))

    def actors(self) -> list[int]:
        """Processes that embed."""
        return [p for p, title in descendants(self.pid).items() if title.startswith(b"ray::_Embedding")]


def environment() -> dict[str, str]:
    own = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return {**own, **QUIET, **RAY, "PYTHONPATH": str(ROOT)}


@pytest.fixture(scope="module")
def raylet() -> Iterator[Raylet]:
    folder = Path(tempfile.mkdtemp(prefix="wr"))  # short: a socket's path holds 107 bytes
    port, *free = free_ports(4)
    words = [str(Path(sys.executable).with_name("ray")), "start", "--head", "--port", str(port)]
    words += ["--include-dashboard", "false", "--temp-dir", str(folder), "--block", "--disable-usage-stats"]
    names = ("dashboard-agent-listen-port", "metrics-export-port", "runtime-env-agent-port")
    words += [f"--{name}={own}" for name, own in zip(names, free, strict=True)]
    words += ["--min-worker-port=0", "--max-worker-port=0", "--object-store-memory=80000000"]
    words += ["--node-ip-address=127.0.0.1", "--num-cpus=2", "--num-gpus=0"]
    log = folder / "start.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            words,
            env=environment() | {"RAY_ADDRESS": f"127.0.0.1:{port}"},  # else workers look for one among all processes
            stdout=out,
            stderr=out,
        )
    try:
        wait_until(lambda: b"Ray runtime started" in log.read_bytes() or process.poll() is not None, "a raylet")
        assert process.poll() is None, log.read_text()[-2000:]
        forks = Forks(_IMPORTS, folder, environment())
        yield Raylet(f"127.0.0.1:{port}", process.pid, forks)
        forks.close()
    finally:
        below = [*descendants(process.pid), process.pid]
        for pid in below:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait(240)
        wait_until(lambda: not [pid for pid in below if Path(f"/proc/{pid}").exists()], "the end of Ray")
        shutil.rmtree(folder, ignore_errors=True)


# --- training

FIT = ("fit", "--recipe", "tiny", "--set", "run.epochs=1")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_training_on_ray_workers_is_the_same_loop(
    raylet: Raylet, make_shards: Callable[..., Path], tmp_path: Path
) -> None:
    said = raylet.run(*FIT, "--data", make_shards(train=(16,)), "--out", tmp_path / "run")
    assert said.code == 0, said.lines
    assert (said.result["world_size"], said.result["steps"]) == (2, 2)


@pytest.mark.drill(30)
def test_training_on_ray_workers_gives_the_same_errors(
    raylet: Raylet, make_shards: Callable[..., Path], tmp_path: Path
) -> None:
    manifest = make_shards(train=(16,))
    (manifest.parent / "train-000000.tar").write_bytes(b"")
    said = raylet.run(*FIT, "--data", manifest, "--out", tmp_path / "run")
    assert said.code == 1
    assert said.result["ok"] is False
    lines = [line for line in said.lines if "train-000000.tar: 0 bytes, the manifest says" in line]
    assert any(line.startswith(f"wenlan-train: {manifest.parent}") for line in lines)  # ours, without Ray's traceback
    decisions = {line.partition("[FailurePolicy] ")[2] for line in said.lines if "[FailurePolicy] " in line}
    assert decisions == {"RAISE"}, "what is final is not tried again"


# --- embedding


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.drill(40)
def test_an_embedding_on_a_cluster_that_loses_a_worker_leaves_what_one_process_leaves(
    raylet: Raylet, checkpoint_with_moved_keys: Path, make_shards: Callable[..., Path], tmp_path: Path
) -> None:
    manifest = make_shards(train=(30, 27), val=(3,), damage={4: b"\xff\xd8junk"})
    inputs, cache = Inputs(data=(str(manifest),), cache=str(tmp_path / "cache")), tmp_path / "cache"
    embed_index(checkpoint_with_moved_keys, inputs, tmp_path / "alone", rows=1)

    def committed() -> dict[str, int]:
        """When each part was written."""
        place = tmp_path / "ray"
        if not (place / "index.json").exists():
            return {}
        index = read_index(place, unfinished=True)
        files = [part.files["rows"].path for part in (*index.waiting, *index.parts)]
        return {path: (place / path).stat().st_mtime_ns for path in files}

    words = ("--data", manifest, "--index", tmp_path / "ray", "--cache", cache, "--part-rows", 1)
    command = ThreadPoolExecutor(1)
    for _ in range(5):
        running = command.submit(raylet.run, "embed", checkpoint_with_moved_keys, *words)
        wait_until(lambda: len(raylet.actors()) == 2 or running.done(), "two actors")  # noqa: B023
        actors = raylet.actors()
        wait_until(lambda: bool(committed()) or running.done(), "a part")  # noqa: B023
        if not running.done():
            break
        assert running.result().code == 0, "on a busy machine it may be over before it is seen to have begun"
        shutil.rmtree(tmp_path / "ray")
    os.kill(actors[0], signal.SIGKILL)
    before = committed()
    seen = dict(before)
    wait_until(lambda: (seen.update(committed()), running.done())[1], "the end")  # type: ignore[func-returns-value]
    command.shutdown()
    assert running.result().code == 0, running.result().lines
    assert 0 < len(before) < 60, "it was killed in the middle"
    assert before.items() <= seen.items(), "what was committed was not made again"
    written = running.result().result
    assert {name: written[name] for name in ("rows", "parts", "revision")} == {"rows": 59, "parts": 59, "revision": 1}
    assert bytes_of(tmp_path / "ray") == bytes_of(tmp_path / "alone")


@pytest.mark.drill(10)
def test_an_error_of_ours_on_an_actor_is_the_same_line_here(
    raylet: Raylet, checkpoint_with_moved_keys: Path, make_shards: Callable[..., Path], tmp_path: Path
) -> None:
    manifest = make_shards(train=(4,))
    tar = manifest.parent / "train-000000.tar"
    tar.write_bytes(tar.read_bytes()[:2048])
    said = raylet.run("embed", checkpoint_with_moved_keys, "--data", manifest, "--index", tmp_path / "i")
    assert said.code == 1, said.lines
    assert re.fullmatch(r"[^\n]*train-000000.tar: [^\n]*", said.result["error"])
    assert [line for line in said.lines if line.startswith("wenlan-train: ")], said.lines
