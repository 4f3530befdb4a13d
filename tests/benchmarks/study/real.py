"""The claim on real pairs: `python -m tests.benchmarks.study.real`, on the dataset that packages.py builds.

    moco        the paper's queue of 1,024 keys, batch 16
    moco-k0     its key towers without the queue: the batch's own keys are the only negatives
    clip        in-batch CLIP, at equal samples and at equal compute

The image tower sees the whole picture alone. Held-out pairs share neither picture nor text with those trained on: the
pictures and the names of val are both unseen. Runs are those of the second question (regions.py). Each arm's
temperature and length are chosen on dev, by the mean of R@1, R@5 and R@10; the figures are val's. They are kept in
real.json beside this file, and the page makes its section of them without training.

Limits: a few epochs, which is short for a queue; `--samples` trains for longer. Frozen features; one rate for all arms;
a pair's primary text alone, 24 tokens of it. Intervals are over the seeds, not over other pairs. Packages of other
versions give other figures.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from tests.benchmarks.study import packages, regions
from tests.benchmarks.study.arms import BASE, CLIP, TEMPERATURES
from tests.benchmarks.study.paired import difference, interval
from tests.benchmarks.study.regions import POINTS, Job, Part, Row, Run, at_best, half_of, run_of, signed, verdict
from tests.benchmarks.study.results import Words
from tests.benchmarks.study.runs import TUNING_SEED, WEIGHTS, Workers
from tests.benchmarks.study.scenes import Source
from training.errors import InputError, TrainingError

LOG = logging.getLogger("wenlan.study")

RECORDS = Path(__file__).with_name("real.json")
SEEDS, SAMPLES, TUNING = (0, 1, 2), 40_000, 4_000
SOURCE = Source(
    "packages", ("Real pairs", "真实图文对"), ("packages of Debian and npm", "取自 Debian 和 npm 的软件包"),
    packages.OUT / "build/shards/manifest.json",
)  # fmt: skip

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
    except TrainingError as e:
        sys.stderr.write(f"wenlan study: {e}\n")
        return 1
    record = {
        "dataset": _dataset(SOURCE.manifest),
        "temperature": {job.arm.name: job.temperature for job in best},
        "runs": {arm.name: [asdict(_done(job)) for job in jobs if job.arm == arm] for arm in ARMS},
    }
    RECORDS.write_text(json.dumps(record, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    found = _figures(record)
    said = [f"{row.name[0]}: {row.r1}, R@10 {row.r10}" for row in _rows(found)] + [words[0] for words in _says(found)]
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


def _dataset(manifest: Path) -> dict[str, Any]:
    """Pairs by split and by source, and how many leaders of pictures and of texts stand in more than one split."""
    import pyarrow.parquet as pq

    columns = ["source", "split", "image_leader", "texts"]
    rows = [r for p in sorted(manifest.parent.glob("*.parquet")) for r in pq.read_table(p, columns=columns).to_pylist()]
    splits_of: dict[tuple[str, str], set[str]] = {}
    for row in rows:
        texts = (("text", text["text_leader"]) for text in row["texts"])
        for leader in (("image", row["image_leader"]), *texts):
            splits_of.setdefault(leader, set()).add(row["split"])
    astride = Counter(kind for (kind, _), splits in splits_of.items() if len(splits) > 1)
    return {
        "content_digest": json.loads(manifest.read_text(encoding="utf-8"))["content_digest"],
        "splits": dict(sorted(Counter(row["split"] for row in rows).items())),
        "sources": dict(sorted(Counter(row["source"] for row in rows).items())),
        "in_two_splits": {kind: astride[kind] for kind in ("image", "text")},
    }


# --- the page


@dataclass(frozen=True)
class Reached:
    """R@1 and R@10 of val, and R@1 of train, of an arm within a budget, by seed."""

    r1: dict[int, float]
    r10: dict[int, float]
    train: dict[int, float]


_SAID: dict[str, Words] = {
    "clip": ("in-batch CLIP, equal samples", "批内 CLIP，样本数相等"),
    "clip-compute": ("in-batch CLIP, equal compute", "批内 CLIP，计算量相等"),
    "moco-k0": ("key towers without a queue", "没有队列的动量塔"),
    "moco": ("towers with the queue", "带队列的双塔"),
}

_QUESTIONS = (("moco", "clip"), ("moco", "clip-compute"), ("moco-k0", "clip"), ("moco", "moco-k0"))


def _figures(record: Mapping[str, Any]) -> dict[str, Reached]:
    runs = {name: [run_of(values) for values in of_arm] for name, of_arm in record["runs"].items()}
    most = max(runs["moco"][0].samples)
    budgets = {**{name: (of_arm, most) for name, of_arm in runs.items()}, "clip-compute": (runs["clip"], 2 * most)}
    return {
        name: Reached(*(at_best(of_arm, what, limit) for what in ("val", "val10", "train")))
        for name, (of_arm, limit) in budgets.items()
    }


def _rows(figures: Mapping[str, Reached]) -> list[Row]:
    rows = []
    for name, said in _SAID.items():
        own, gain = figures[name], difference(figures[name].r1, figures["clip"].r1)
        state = regions.STATES[gain.outcome] if gain is not None and name != "clip" else ""
        shown = (interval(list(by_seed.values())) for by_seed in (own.r1, own.r10))
        r1, r10 = (f"{100 * i.mean:.1f} ± {100 * (i.high - i.mean):.1f}" for i in shown)
        train = f"{100 * fmean(own.train.values()):.1f}"
        rows.append(Row(said, r1, signed(gain) if name != "clip" else "", state, r10, train, len(own.r1)))
    return rows


def _says(figures: Mapping[str, Reached]) -> list[Words]:
    """The claim and its controls, by R@1 and by R@10."""
    sentences = []
    for one, other in _QUESTIONS:
        for by in ("r1", "r10"):
            gain = difference(getattr(figures[one], by), getattr(figures[other], by))
            assert gain is not None, "all arms have the same seeds"
            english, chinese = verdict(_SAID[one], _SAID[other], gain)
            sentences.append((f"R@{by[1:]}: {english}", f"R@{by[1:]}：{chinese}"))
    return sentences


def content(path: Path = RECORDS) -> dict[str, Any]:
    """Section of the page on real pairs, of the records in the repository."""
    record = json.loads(path.read_text(encoding="utf-8"))
    splits, first = record["dataset"]["splits"], record["runs"]["moco"][0]
    total, sources = sum(splits.values()), len(record["dataset"]["sources"])
    counts = f"{splits['train']:,}", f"{splits['dev']:,}", f"{splits['val']:,}", f"{100 * first['chance']:.2f}%"
    samples = max(first["samples"])
    length = f"{samples:,}", f"{samples / splits['train']:.1f}"
    note: Words = (
        f"{total:,} pairs of {sources} sources; {counts[0]} to train, {counts[1]} dev, {counts[2]} val; "
        f"{length[0]} samples at batch 16 are {length[1]} epochs; chance {counts[3]}",
        f"{sources} 个来源的 {total:,} 对；训练 {counts[0]} 对，dev {counts[1]}，val {counts[2]}；"
        f"批大小 16，{length[0]} 个样本即 {length[1]} 轮；随机 {counts[3]}",
    )
    about: Words = (
        "Drawings, icons, maps, units of a game and pictures of manuals with the Chinese names their packages have. "
        "Neither the pictures nor the names of val were trained on.",
        "图画、图标、地图、游戏单位和手册插图，配各软件包自带的中文名称。val 的图片和名称都没有训练过。",
    )
    figures = _figures(record)
    return {
        "title": ("Real pairs", "真实图文对"),
        "what": ("arm", "组"),
        "against": ("against in-batch CLIP", "与批内 CLIP 之差"),
        "about": about,
        "parts": [Part(SOURCE.title, note, tuple(_rows(figures)), tuple(_says(figures)))],
    }


if __name__ == "__main__":
    raise SystemExit(main())
