"""The claim on real pairs: `python -m tests.benchmarks.study.real`, on the dataset that packages.py builds.

    moco        the paper's queue of 1,024 keys, batch 16
    moco-k0     its key towers without the queue: the batch's own keys are the only negatives
    clip        in-batch CLIP, at equal samples and at equal compute

The image tower sees the whole picture alone. Held-out pairs share neither picture nor text with those trained on: the
pictures and the names of val are both unseen. Runs are those of the second question (regions.py). Each arm's
temperature and length are chosen on dev, by the mean of R@1, R@5 and R@10; the figures are val's. The runs are added
to the repository's records (records.py).

Limits: a few epochs, which is short for a queue; `--samples` trains for longer. Frozen features; one rate for all arms;
a pair's primary text alone, 24 tokens of it. Intervals are over the seeds, not over other pairs. Packages of other
versions give other figures.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tests.benchmarks.study import packages, regions
from tests.benchmarks.study.arms import BASE, CLIP, TEMPERATURES
from tests.benchmarks.study.records import COMMITTED, add, load
from tests.benchmarks.study.regions import POINTS, Job, Run, half_of
from tests.benchmarks.study.runs import TUNING_SEED, WEIGHTS, Workers
from tests.benchmarks.study.scenes import Source
from tests.benchmarks.study.sections import sections
from training.errors import InputError, TrainingError

LOG = logging.getLogger("wenlan.study")

SEEDS, SAMPLES, TUNING = (0, 1, 2), 40_000, 4_000
SOURCE = Source("packages", packages.OUT / "build/shards/manifest.json")

ARMS = (BASE, replace(BASE, name="moco-k0", queue=0), CLIP)


def main(arguments: Sequence[str] | None = None) -> int:
    """Do the runs that are not done, then write their records; an error is one line on stderr and status 1."""
    program = "python -m tests.benchmarks.study"
    parser = argparse.ArgumentParser(prog=f"{program}.real", description="the claim on real pairs")
    parser.add_argument("--out", type=Path, default=Path("demo/study/real"), help="where runs are kept")
    parser.add_argument("--weights", type=Path, default=WEIGHTS, help="ImageNet weights of the backbone")
    parser.add_argument("--jobs", type=int, default=2, help="processes, of one thread each")
    parser.add_argument("--samples", type=int, default=SAMPLES, help="N of equal samples")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    try:
        if not SOURCE.manifest.is_file():
            raise InputError(str(SOURCE.manifest), f"is not there; run `{program}.packages` first")
        for split in ("train", "dev", "val"):
            LOG.info("%s: %d pairs", split, len(half_of(SOURCE, split, "whole", options.weights)))
        plain = Job(SOURCE, "whole", TUNING_SEED, TUNING, options.out, options.weights)
        tried = [[replace(plain, arm=arm, temperature=t) for t in TEMPERATURES] for arm in ARMS]
        _do([job for jobs in tried for job in jobs], options.jobs)
        best = [max(jobs, key=lambda job: _done(job).dev[len(POINTS) - 1]) for jobs in tried]
        jobs = [replace(job, seed=seed, samples=options.samples) for seed in SEEDS for job in best]
        _do(jobs, options.jobs)
        runs = tuple(_done(job) for arm in ARMS for job in jobs if job.arm == arm)
        own = replace(load(COMMITTED), tried=(), trials=(), datasets={SOURCE.name: _facts(SOURCE)}, pairs=runs)
        add(own, COMMITTED)
        (section,) = sections(own.pairs, own.datasets)
        (part,) = section["parts"]
        said = [f"{row.name[0]}: {row.r1}, R@10 {row.r10}" for row in part.rows] + [words[0] for words in part.says]
    except TrainingError as e:
        sys.stderr.write(f"wenlan study: {e}\n")
        return 1
    sys.stderr.write("".join(f"{line}\n" for line in said))
    return 0


def _do(jobs: Sequence[Job], processes: int) -> None:
    left = [job for job in jobs if job.record() is None]
    with Workers(processes) as workers:
        for number, (job, seconds) in enumerate(workers.all(regions.do, left), 1):
            LOG.info("%d of %d runs done (%s, %.0f s)", number, len(left), job.file.stem, seconds)


def _done(job: Job) -> Run:
    run = job.record()
    assert run is not None, "the caller has done it"
    return run


def _facts(source: Source) -> dict[str, Any]:
    """Pairs by split and by source, and how many leaders of pictures and of texts stand in more than one split."""
    import pyarrow.parquet as pq

    columns = ["source", "split", "image_leader", "texts"]
    tables = (pq.read_table(path, columns=columns) for path in sorted(source.manifest.parent.glob("*.parquet")))
    rows = [row for table in tables for row in table.to_pylist()]
    splits_of: dict[tuple[str, str], set[str]] = {}
    for row in rows:
        texts = (("text", text["text_leader"]) for text in row["texts"])
        for leader in (("image", row["image_leader"]), *texts):
            splits_of.setdefault(leader, set()).add(row["split"])
    astride = Counter(kind for (kind, _), splits in splits_of.items() if len(splits) > 1)
    return {
        **source.facts(),
        "splits": dict(sorted(Counter(row["split"] for row in rows).items())),
        "sources": dict(sorted(Counter(row["source"] for row in rows).items())),
        "in_two_splits": {kind: astride[kind] for kind in ("image", "text")},
    }


if __name__ == "__main__":
    raise SystemExit(main())
