"""Drills of training on Ray: kills, and changes of the number of workers.

    train_ray     kills of a worker, of rank 0 and of the driver of a run of two workers: `kills_TARGET`, and
                  `repeated_most`: most steps that were done twice after one kill, as a share of run.checkpoint_every
    elastic       an epoch on 2, 1 and 2 workers: `elastic_complete`, share of its samples that are in the queue exactly
                  once (K is the number of samples, so the queue is the order in which they were consumed);
                  `elastic_sizes`, changes; `elastic_away`, seconds from the loss of a node until the run goes on

One run of `train_ray` takes all kills of its target: Ray starts lost workers again, this program a lost driver.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.benchmarks.drilling import Row, Scene, environment_of
from tests.benchmarks.harness import ROOT, Figure, at_least, at_most, told
from tests.benchmarks.services import DrillFailed

EVERY, BATCH, SAMPLES, WORKERS = 5, 12, 240, 2
TOLERANCE = 1e-5
PATIENCE_S = 400.0


def prepare(scene: Scene) -> None:
    """The dataset of the tests' own making, small JPEGs in four shards, if it is not there."""
    from tests.training import conftest as made

    root = manifest_of(scene).parent
    if manifest_of(scene).exists():
        return
    root.mkdir(parents=True)
    shards = []
    for number in range(4):
        numbers = range(number * SAMPLES // 4, (number + 1) * SAMPLES // 4)
        pictures, samples = [made.picture(n) for n in numbers], [made.sample(n, "train") for n in numbers]
        shards.append(made.write_shard(root, "train", number, samples, pictures, None))
    made.write_manifest(root, shards)


def manifest_of(scene: Scene) -> Path:
    return scene.reference / "data" / "shards" / "manifest.json"


def settings(steps: int, *more: str) -> list[str]:
    return [
        f"run.epochs={steps * BATCH / SAMPLES}",
        f"run.batch_size={BATCH}",
        f"run.checkpoint_every={EVERY}",
        "run.log_every=1",
        "run.tracker=none",
        "run.stop_on_collapse=false",  # pictures of noise: there is little to learn
        "data.window_shards=2",
        *more,
    ]


class Run:
    """A training as processes of a session of their own, watched through its folder."""

    def __init__(self, out: Path, command: list[str]) -> None:
        self.out, self.command, self.log = out, command, out.with_name(f"{out.name}.log")

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command, cwd=ROOT, env=environment_of(), stdout=log, stderr=log, start_new_session=True
            )

    def said(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")

    def step(self) -> int:
        """Last recorded step."""
        return max((int(line["step"]) for line in self.lines()), default=0)

    def lines(self) -> list[dict[str, Any]]:
        try:
            text = (self.out / "metrics.jsonl").read_text(encoding="utf-8")
        except OSError:
            return []
        found = []
        for line in text.splitlines():
            try:
                found.append(json.loads(line))
            except ValueError:
                break
        return found

    def first(self) -> int:
        """The process of rank 0, 0 if it has not begun."""
        with contextlib.suppress(OSError, ValueError):
            return int(json.loads((self.out / "environment.json").read_text(encoding="utf-8"))["pid"])
        return 0

    def starts(self) -> list[int]:
        """The steps from which the run began and went on, as its log says."""
        with contextlib.suppress(OSError):
            text = (self.out / "log.txt").read_text(encoding="utf-8")
            return [int(step or 0) for step, _ in re.findall(r"(?:resumes from step (\d+)|(begins)):", text)]
        return []

    def until(self, condition: Callable[[], bool]) -> bool:
        """Wait until a condition holds; False if the run has ended before, or it takes too long."""
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            if condition():
                return True
            if self.process.poll() is not None:
                return bool(condition())
            time.sleep(0.01)
        return False

    def finished(self, steps: int) -> list[float] | None:
        """Losses of all steps, or None if the run did not end well."""
        try:
            code = self.process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            code = -1
        self.end()
        losses = {line["step"]: line["loss"] for line in self.lines() if "loss" in line}
        whole = code == 0 and sorted(losses) == [*range(1, steps + 1)]
        return [losses[s] for s in range(1, steps + 1)] if whole else None

    def end(self) -> None:
        """Kill what is left of its session (Ray's daemons leave the group, not the session)."""
        for pid in of_session(self.process.pid):
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)


def fit(manifest: Path, out: str, config: list[str]) -> list[str]:
    """The words of `wenlan-train fit` behind `python`."""
    words = ["-m", "training", "fit", "--recipe", "tiny", "--data", str(manifest), "--out", out, "--json"]
    return [*words, *(word for setting in config for word in ("--set", setting))]


def of_session(session: int) -> list[int]:
    """Live processes of a session that this program began."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == session and fields[0] != "Z":
            found.append(int(path.parent.name))
    return found


def command_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def compared(losses: list[float] | None, expected: list[float]) -> tuple[bool, str]:
    """Whether the losses are the expected ones, and in words."""
    if losses is None or len(losses) != len(expected):
        return False, "NO TRACE: the run did not end well"
    worst = max(abs(a - b) for a, b in zip(losses, expected, strict=True))
    good = all(math.isclose(a, b, rel_tol=0, abs_tol=TOLERANCE) for a, b in zip(losses, expected, strict=True))
    return good, f"{len(losses)} losses {'equal' if good else 'DIFFER'}, by {worst:.2g} at most"


class OnRay(Run):
    """The command `wenlan-train fit --workers`."""

    def __init__(self, manifest: Path, out: Path, workers: int, steps: int) -> None:
        words = [*fit(manifest, str(out), settings(steps)), "--workers", str(workers), "--max-failures", "100"]
        super().__init__(out, [sys.executable, *words])
        self.start()

    def workers(self) -> dict[int, int]:
        """pid by rank of the live workers. The first is in environment.json; others differ in nothing that matters."""
        every = [pid for pid in of_session(self.process.pid) if "RayTrainWorker" in command_of(pid)]
        first = self.first()
        others = [pid for pid in every if pid != first]
        return ({0: first} if first in every else {}) | dict(enumerate(others, 1))


def train_ray(scene: Scene) -> Iterator[Row]:
    """A worker, rank 0 and the driver of a run on Ray Train are killed at random steps: it ends with equal losses."""
    kills = 1 if scene.quick else scene.kills
    steps = 12 * EVERY * max(1, kills // 5) if kills > 1 else 8 * EVERY
    repeated = [0]
    whole = OnRay(manifest_of(scene), scene.folder / "whole", WORKERS, steps)
    expected = whole.finished(steps)
    if expected is None:
        raise DrillFailed(f"the undisturbed run failed: {whole.said()[-1500:]}")
    for target in ("worker", "first", "driver"):
        out = scene.folder / target
        run = OnRay(manifest_of(scene), out, WORKERS, steps)
        again = disturb(run, target, kills, steps, random.Random(f"{target}{WORKERS}"))
        repeated += again
        good, words = compared(run.finished(steps), expected)
        held = good and len(again) == kills
        scene.figures[f"kills_{target}"] = at_least(float(held), 1.0, "share")
        done = f"{len(again)} kills of {target} of {WORKERS} workers; {again} steps were done twice"
        yield Row("step", done, "went on" if good else run.said()[-1500:], same=words, held=held)
        shutil.rmtree(out, ignore_errors=True)
    scene.figures["repeated_most"] = at_most(max(repeated) / EVERY, 1.0, "of checkpoint_every")


def disturb(run: OnRay, target: str, kills: int, steps: int, chance: random.Random) -> list[int]:
    """Kill the target at random steps; how many steps were done twice each time."""
    at = sorted(chance.sample(range(2, steps - 2), kills))
    again = []
    for step in at:
        if not run.until(lambda step=step: run.step() >= step):  # type: ignore[misc]
            break
        pids = run.workers()
        victim = run.process.pid if target == "driver" else pids.get(0 if target == "first" else max(pids, default=0))
        if victim is None:
            break
        reached, known = run.step(), len(run.starts())
        os.kill(victim, signal.SIGKILL)
        if target == "driver":
            run.process.wait()
            run.end()
            run.start()
        # It may have gone on between the kill and the first look; then the journal has been cut.
        if not run.until(lambda known=known: len(run.starts()) > known):  # type: ignore[misc]
            break
        resumed = run.starts()[-1]
        again.append(max(reached - resumed, 0))
        told(f"{target}: killed {victim} at step {reached}, went on from {resumed}")
    return again


ELASTIC = """
import json, os, subprocess, sys, threading, time
from pathlib import Path
import ray
from ray.cluster_utils import Cluster
from training.resolve import resolve
from training.outputs.journal import read_metrics
from training.run import ray_job

manifest, out, *config = sys.argv[1:]
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
second = [cluster.add_node(num_cpus=1)]
ray.init(cluster.address)

def reached(step):
    while max((line["step"] for line in read_metrics(Path(out))), default=0) < step:
        time.sleep(0.05)

def shrink_and_grow():
    reached(150)
    cluster.remove_node(second[0], allow_graceful=False)
    print("removed a node", time.time(), file=sys.stderr, flush=True)
    reached(300)
    ray_command = str(Path(sys.executable).with_name("ray"))  # Cluster.add_node wants the main thread
    subprocess.run([ray_command, "start", "--address", cluster.address, "--num-cpus", "1"], check=True)
    print("added a node", file=sys.stderr, flush=True)

threading.Thread(target=shrink_and_grow, daemon=True).start()
ray_job._RESIZE_S = 2.0
result = ray_job.fit_on_ray(resolve("tiny", config), [manifest], Path(out), (1, 2), max_failures=100)
print(json.dumps(result))
ray.shutdown()
cluster.shutdown()
"""


def elastic(scene: Scene) -> Iterator[Row]:
    """A node is lost and another one joins while a run trains: each sample of each epoch is used exactly once."""
    from safetensors.torch import load_file

    passes = 120  # Ray looks for new nodes every 20 seconds: the run has to last until it has seen one
    steps = SAMPLES // BATCH * passes
    config = settings(steps, f"moco.queue_size={SAMPLES}")
    run = Run(scene.folder / "elastic", [])
    run.command = [sys.executable, "-c", ELASTIC, str(manifest_of(scene)), str(run.out), *config]
    run.start()
    try:
        code = run.process.wait(2 * PATIENCE_S)
    except subprocess.TimeoutExpired:
        code = -1
    run.end()
    if code:
        raise DrillFailed(f"the run did not end well: {run.said()[-3000:]}")
    ids = load_file(run.out / "checkpoints" / f"step-{steps:08d}" / "queues.safetensors")["image_queue.sample_ids_K"]
    log = (run.out / "log.txt").read_text(encoding="utf-8")
    sizes = [int(n) for n in re.findall(r"trained parameters, (\d+) process", log)]
    changes = sum(a != b for a, b in itertools.pairwise(sizes))
    removed = re.search(r"removed a node ([\d.]+)", run.said())
    again = [at for at in opened(log) if removed is not None and at > float(removed[1])]
    away = again[0] - float(removed[1]) if removed is not None and again else math.nan
    figures: dict[str, Figure] = {
        "elastic_complete": at_least(len(set(ids.tolist())) / SAMPLES, 1.0, "share"),
        "elastic_sizes": at_least(changes, 2, "changes"),
        "elastic_away": at_most(away, 60.0, "s"),
    }
    scene.figures |= figures
    done = f"{passes} epochs of {SAMPLES} samples on {sizes} workers"
    outcome = f"{len(set(ids.tolist()))} ids in the queue; {away:.0f} s until the run went on without the node"
    yield Row("step", done, outcome, held=all(figure.holds for figure in figures.values()))


def opened(log: str) -> list[float]:
    """When, in seconds since 1970, the run of a log began and went on."""
    found = re.findall(r"^(\S+ \S+),(\d+) INFO \w+ (?:begins|resumes from)", log, re.MULTILINE)
    return [time.mktime(time.strptime(at, "%Y-%m-%d %H:%M:%S")) + int(ms) / 1000 for at, ms in found]
