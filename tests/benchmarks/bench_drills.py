"""What becomes of a run whose processes are killed, and of one whose number of workers changes while it runs.

    kills_TARGET_N       whether a run on N Ray workers finished with the losses of an undisturbed run (to 1e-5, step by
                         step) after `kill -9` of the TARGET (worker, first: rank 0, driver) at random steps
    repeated_most        most steps that were done twice after one kill, as a share of run.checkpoint_every
    elastic_complete     share of the epoch's samples that are in the queue exactly once after an epoch on 2, 1 and 2
                         workers: K is the number of samples, so the queue is the order in which they were consumed
    elastic_sizes        how often the number of workers changed
    elastic_away         seconds from the loss of a node until the run goes on without it

One run takes all kills of its target: Ray starts lost workers again, this program a lost driver. `--quick` does one
kill of each on 2 workers and no elastic drill. Limits: one machine; a node is a raylet of its own.
"""

from __future__ import annotations

import argparse
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
import tempfile
import time
from pathlib import Path
from typing import Any

from harness import Figure, at_least, at_most, report

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

EVERY, BATCH, SAMPLES = 5, 12, 240
TOLERANCE = 1e-5
PATIENCE_S = 900.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one kill of each target on 2 workers, under 5 minutes")
    parser.add_argument("--kills", type=int, default=10, help="kills of each target")
    parser.add_argument("--workers", type=int, help="kill drills at this number of workers only")
    parser.add_argument("--elastic-only", action="store_true")
    given = parser.parse_args()
    kills, worlds = (1, (2,)) if given.quick else (given.kills, (1, 2))
    worlds = (given.workers,) if given.workers else worlds
    with tempfile.TemporaryDirectory(prefix="wenlan-drills-") as name:
        folder = Path(name)
        manifest = make_dataset(folder)
        figures: dict[str, Figure] = {}
        if not given.elastic_only:
            figures |= kill_drills(folder, manifest, kills, worlds)
        if not given.quick and not given.workers:
            figures |= elastic_drill(folder, manifest)
    return report(figures)


def make_dataset(folder: Path) -> Path:
    """A dataset of the tests' own making: small JPEGs in four shards."""
    import importlib.util

    spec = importlib.util.spec_from_file_location("made", ROOT / "tests" / "training" / "conftest.py")
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    root = folder / "shards"
    root.mkdir()
    shards = []
    for number in range(4):
        numbers = range(number * SAMPLES // 4, (number + 1) * SAMPLES // 4)
        images = [made.picture(n) for n in numbers]
        shards.append(made.write_shard(root, "train", number, [made.sample(n, "train") for n in numbers], images, None))
    path: Path = made.write_manifest(root, shards)
    return path


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
    """The command `wenlan-train fit --workers`, watched through its folder."""

    def __init__(self, manifest: Path, out: Path, workers: str, config: list[str]) -> None:
        self.out = out
        words = [
            sys.executable,
            "-m",
            "training",
            "fit",
            "--recipe",
            "tiny",
            "--data",
            str(manifest),
            "--out",
            str(out),
        ]
        words += [w for s in config for w in ("--set", s)]
        self.command = [*words, "--workers", workers, "--max-failures", "100", "--json"]
        self.log = out.with_suffix(".log")
        self.restarts = 0
        self.start()

    def start(self) -> None:
        environment = os.environ | {"OMP_NUM_THREADS": "1", "RAY_TRAIN_ENABLE_STATE_TRACKING": "0"}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command, cwd=ROOT, env=environment, stdout=log, stderr=log, start_new_session=True
            )

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

    def workers(self) -> dict[int, int]:
        """pid by rank of the live workers. The first is in environment.json; others differ in nothing that matters."""
        try:
            first = int(json.loads((self.out / "environment.json").read_text())["pid"])
        except (OSError, ValueError):
            return {}
        every = [pid for pid in of_session(self.process.pid) if "RayTrainWorker" in command_of(pid)]
        others = [pid for pid in every if pid != first]
        return ({0: first} if first in every else {}) | dict(enumerate(others, 1))

    def end(self) -> None:
        """Kill what is left of it, with all that it started."""
        sweep(self.process.pid)


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


def sweep(session: int) -> None:
    """Kill what is left of a session that this program began (Ray's daemons leave the group, not the session)."""
    for pid in of_session(session):
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)


def kill_drills(folder: Path, manifest: Path, kills: int, worlds: tuple[int, ...]) -> dict[str, Figure]:
    steps = 12 * EVERY * max(1, kills // 5) if kills > 1 else 8 * EVERY
    figures, repeated = {}, [0]
    for world in worlds:
        whole = Run(manifest, folder / f"whole-{world}", str(world), settings(steps))
        expected = finished(whole, steps)
        assert expected is not None, whole.log.read_text(errors="replace")[-3000:]
        for target in ("worker", "first", "driver"):
            out = folder / f"{target}-{world}"
            run = Run(manifest, out, str(world), settings(steps))
            again = disturb(run, target, kills, steps, random.Random(f"{target}{world}"))
            repeated += again
            found = finished(run, steps)
            good = found is not None and all(
                math.isclose(a, b, rel_tol=0, abs_tol=TOLERANCE) for a, b in zip(found, expected, strict=True)
            )
            worst = math.nan if found is None else max(abs(a - b) for a, b in zip(found, expected, strict=True))
            told(f"{target} x {len(again)}, {world} worker(s): losses differ by {worst:.2g} at most, repeated {again}")
            if not good:
                told(run.log.read_text(errors="replace")[-3000:])
            figures[f"kills_{target}_{world}"] = at_least(float(good and len(again) == kills), 1.0, "share")
            shutil.rmtree(out)
    return {**figures, "repeated_most": at_most(max(repeated) / EVERY, 1.0, "of checkpoint_every")}


def disturb(run: Run, target: str, kills: int, steps: int, chance: random.Random) -> list[int]:
    """Kill the target at random steps; how many steps were done twice each time."""
    at = sorted(chance.sample(range(2, steps - 2), kills))
    again = []
    for step in at:
        if not wait(lambda step=step: run.step() >= step, run):
            break
        pids = run.workers()
        victim = run.process.pid if target == "driver" else pids.get(0 if target == "first" else max(pids, default=0))
        if victim is None:
            break
        reached = run.step()
        os.kill(victim, signal.SIGKILL)
        if target == "driver":
            run.process.wait()
            run.end()
            run.start()
        resumed = resumed_after(run, victim, reached)
        if resumed is None:
            break
        again.append(max(reached - resumed, 0))
        told(f"{target}: killed {victim} at step {reached}, went on from {resumed}")
    return again


def resumed_after(run: Run, victim: int, reached: int) -> int | None:
    """The step that the run said it goes on from, once it has gone on."""
    known = len(starts(run))

    def gone_on() -> bool:
        return len(starts(run)) > known

    # It may already have said so between the kill and the first look; then the journal has been cut.
    return starts(run)[-1] if wait(gone_on, run) else None


def starts(run: Run) -> list[int]:
    text = (run.out / "log.txt").read_text(encoding="utf-8") if (run.out / "log.txt").exists() else ""
    found = re.findall(r"(?:goes on from step (\d+)|(begins)):", text)
    return [int(step or 0) for step, _ in found]


def wait(condition: Any, run: Run) -> bool:
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        if condition():
            return True
        if run.process.poll() is not None:
            return bool(condition())
        time.sleep(0.01)
    return False


def finished(run: Run, steps: int) -> list[float] | None:
    """Losses of all steps, or None if the run did not end well."""
    try:
        code = run.process.wait(PATIENCE_S)
    except subprocess.TimeoutExpired:
        code = -1
    run.end()
    losses = {line["step"]: line["loss"] for line in run.lines() if "loss" in line}
    return [losses[s] for s in range(1, steps + 1)] if code == 0 and sorted(losses) == [*range(1, steps + 1)] else None


ELASTIC = """
import json, os, subprocess, sys, threading, time
from pathlib import Path
import ray
from ray.cluster_utils import Cluster
from training.resolve import resolve
from training.outputs.journal import read_metrics
from training.run.ray_job import fit_on_ray

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
result = fit_on_ray(resolve("tiny", config), [manifest], Path(out), (1, 2), max_failures=100, resize_every=2.0)
print(json.dumps(result))
ray.shutdown()
cluster.shutdown()
"""


def elastic_drill(folder: Path, manifest: Path) -> dict[str, Figure]:
    from safetensors.torch import load_file

    passes = 120  # Ray looks for new nodes every 20 seconds: the run has to last until it has seen one
    steps = SAMPLES // BATCH * passes
    config = settings(steps, f"moco.queue_size={SAMPLES}")
    out = folder / "elastic"
    words = [sys.executable, "-c", ELASTIC, str(manifest), str(out), *config]
    process = subprocess.Popen(
        words,
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=(folder / "elastic.log").open("wb"),
        start_new_session=True,
    )
    try:
        code = process.wait(PATIENCE_S)
    except subprocess.TimeoutExpired:
        code = -1
    sweep(process.pid)
    if code:
        told((folder / "elastic.log").read_text(errors="replace")[-4000:])
        return {"elastic_complete": at_least(0.0, 1.0, "share")}
    ids = load_file(out / "checkpoints" / f"step-{steps:08d}" / "queues.safetensors")["image_queue.sample_ids_K"]
    log = (out / "log.txt").read_text(encoding="utf-8")
    sizes = [int(n) for n in re.findall(r"trained parameters, (\d+) process", log)]
    told(f"elastic: {passes} epochs of {SAMPLES} samples on {sizes} workers, {len(set(ids.tolist()))} ids in the queue")
    changes = sum(a != b for a, b in itertools.pairwise(sizes))
    removed = re.search(r"removed a node ([\d.]+)", (folder / "elastic.log").read_text(errors="replace"))
    again = [at for at in opened(log) if removed is not None and at > float(removed[1])]
    away = again[0] - float(removed[1]) if removed is not None and again else math.nan
    return {
        "elastic_complete": at_least(len(set(ids.tolist())) / SAMPLES, 1.0, "share"),
        "elastic_sizes": at_least(changes, 2, "changes"),
        "elastic_away": at_most(away, 60.0, "s"),
    }


def opened(log: str) -> list[float]:
    """When, in seconds since 1970, the run of a log began and went on."""
    found = re.findall(r"^(\S+ \S+),(\d+) INFO \w+ (?:begins|goes on from)", log, re.MULTILINE)
    return [time.mktime(time.strptime(at, "%Y-%m-%d %H:%M:%S")) + int(ms) / 1000 for at, ms in found]


def told(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
