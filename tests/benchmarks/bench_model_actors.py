"""Whether a GPU waits: tasks on two cores decode for the process that holds a model's session.

The path is that of `curate`: `model_values` on fetch partitions, through the executor, with pictures read, decoded,
squared, sent, normalised, and features cached. Only the session is not real: it sleeps as long as a GPU would compute
(`sleeping_tower.py`), at the pace of a ViT-L/14 and of a ViT-B/32 on an A100. Ray counts one GPU, whether the machine
has one or not.

busy_l14 is the time that the session had work for, of the time from its first batch to its last. cpu_fed_to_decoded is
the CPU time of a picture that the faster model is fed (tasks and holder), relative to that of tasks which read, decode
and square the pictures and hand them to nobody; fed_b32 is the rate, without a bar, since two cores decode fewer
pictures than the model takes. Both sides take turns on the same partitions. Where other programs take part of these
cores, the session is slowed by as much as decoding is (`slowdown`, 1 on an idle machine): the time of the processor
that a picture takes says what the cores could do.
"""

from __future__ import annotations

import hashlib
import json
import os
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from data_specs.command.loopback import start_ray
from pipeline.cluster import Cluster, RunPartition
from pipeline.model_runner import model_values
from pipeline.pictures.decode import decode
from pipeline.store.build import Build
from pipeline.store.images import partition_images
from tests.benchmarks.harness import at_least, at_most, quick, report, shown, told
from tests.benchmarks.sleeping_tower import SleepingTower, sleeping_tower
from tests.drawn import blobs, encoded
from tests.fetched import Got, make

L14, B32 = 312.0, 2_500.0
"""Pictures a second of CLIP's ViT-L/14 and ViT-B/32 on an A100."""

CORES, PARTS, DRAWN = 2, 4, 60


def main() -> int:
    small = quick(__doc__)
    import ray

    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])
    start_ray(ray, num_cpus=CORES, num_gpus=1, include_dashboard=False, logging_level="ERROR")
    busy, fed, cpu, cpu_fed = list[float](), list[float](), list[float](), list[float]()
    with tempfile.TemporaryDirectory(prefix="wenlan-bench-actors-") as scratch:
        build = make(Path(scratch), pictures(1_000 if small else 3_000), PARTS)
        for turn in range(2 if small else 4):
            alone, each = decoding_rate(build, Path(scratch) / f"decoding-{turn}")
            slowdown = min(1.0, alone * each / CORES)
            share, _, _ = with_model(build, sleeping_tower(L14 * slowdown, Path(scratch) / f"l14-{turn}"))
            _, rate, whole = with_model(build, sleeping_tower(B32 * slowdown, Path(scratch) / f"b32-{turn}"))
            said = (
                f"decoding {alone:.0f}/s, ms of CPU {1000 * each:.2f} ({1000 * whole:.2f} fed), slowdown {slowdown:.2f}"
            )
            told(f"turn {turn}: {said}, L/14 busy {share:.3f}, B/32 fed {rate:.0f}/s")
            if turn:  # the first one also starts workers
                busy.append(share)
                fed.append(rate / min(alone, B32 * slowdown))
                cpu.append(each)
                cpu_fed.append(whole)
    ray.shutdown()
    figures = {
        "busy_l14": at_least(statistics.median(busy), 0.95),
        "cpu_fed_to_decoded": at_most(statistics.median(cpu_fed) / statistics.median(cpu), 1.25),
        "fed_b32": shown(statistics.median(fed)),
    }
    both = {"decoded": cpu, "fed": cpu_fed}
    ms_of_cpu = {name: round(1000 * statistics.median(seconds), 2) for name, seconds in both.items()}
    return report(figures, ms_of_cpu_a_picture=ms_of_cpu, load=os.getloadavg()[0])


def pictures(count: int) -> list[Got]:
    """Photograph-like JPEGs of 512 x 384, of some 50 kB. Bytes after the end make each a file of its own."""
    rng = np.random.default_rng(0)
    files = []
    for seed in range(DRAWN):
        noise = rng.normal(0, 6, (384, 512, 3))
        files.append(encoded(Image.fromarray((blobs(seed, (512, 384)) + noise).clip(0, 255).astype(np.uint8))))
    return [Got(f"http://img.test/{n}.jpg", files[n % DRAWN] + str(n).encode()) for n in range(count)]


def run(build: Build, work: RunPartition, num_gpus: float) -> None:
    """Does `work` on every fetch partition, as a pass of a build does."""
    fresh = hashlib.sha256(os.urandom(8)).hexdigest()
    turn = replace(build, fingerprints={**build.fingerprints, "measure": fresh})
    resources = {"num_cpus": 1.0, "num_gpus": num_gpus}
    assert len(list(Cluster().each(turn, [("measure", work)], resources, build.stage("fetch").partitions()))) == PARTS


def images_of(build: Build, partition: str) -> list[str]:
    stage = build.stage("fetch")
    return list(stage.table(stage.record(partition))["sha256"].to_pylist())


def with_model(build: Build, model: SleepingTower) -> tuple[float, float, float]:
    """(share of the time that the session had work for, pictures a second from when it was loaded, CPU seconds of each
    picture in tasks and holder)."""

    def score(build: Build, partition: str) -> None:
        cpu, images = time.process_time(), images_of(build, partition)
        values = model_values(build, partition, images, [model]).values[model.id]
        assert len(values) == len(images)
        with build.stage("measure").attempt(partition) as attempt:
            attempt.commit({"scored": len(values)})
        (Path(model.folder) / partition).write_text(json.dumps({"what": "task", "cpu": time.process_time() - cpu}))

    run(build, score, 1.0)
    notes: list[dict[str, Any]] = [json.loads(path.read_text()) for path in Path(model.folder).iterdir()]
    [loaded] = [note for note in notes if note["what"] == "loaded"]
    ran = [note for note in notes if note["what"] == "ran"]
    count, last = sum(note["count"] for note in ran), max(note["ended"] for note in ran)
    busy = count / model.pace / (last - min(note["began"] for note in ran))
    cpu = sum(note["cpu"] for note in notes if note["what"] == "task")
    cpu += max(note["cpu"] for note in ran) - loaded["cpu"]
    return busy, count / (last - loaded["ended"]), cpu / count


def decoding_rate(build: Build, folder: Path) -> tuple[float, float]:
    """(pictures a second, CPU seconds of each) of tasks that decode and square them for nobody."""
    model = sleeping_tower(B32, folder)

    def look(build: Build, partition: str) -> None:
        began, cpu, images = time.monotonic(), time.process_time(), images_of(build, partition)
        for image in partition_images(build, partition, images):
            model.prepare(decode(image.data, build.spec.fetch.max_pixels, model.reduce_to).pixels, model.reduce_to)
        (folder / partition).write_text(json.dumps([began, time.monotonic(), len(images), time.process_time() - cpu]))
        with build.stage("measure").attempt(partition) as attempt:
            attempt.commit({"scored": 0})

    run(build, look, 0.0)
    began, ended, counts, seconds = zip(*(json.loads(path.read_text()) for path in folder.iterdir()), strict=True)
    return sum(counts) / (max(ended) - min(began)), sum(seconds) / sum(counts)


if __name__ == "__main__":
    sys.exit(main())
