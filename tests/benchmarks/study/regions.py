"""The second question: does the region tower beat the whole picture alone, and a detector's boxes those of a grid?

The same towers and the same loss (the queue) on the same pictures; only what the image tower sees differs:

    whole       the whole picture, one region
    grid        3 x 3 cells and the whole picture
    proposals   up to nine boxes of the detector and the whole picture, as BriVL has it
    things      the true boxes of what a scene shows, and the whole picture: what a perfect detector would bring

Pictures, boxes and texts come through the project's own loader from datasets that `wenlan-data build` has made
(scenes.py); the frozen backbone runs once over each of them. Length is chosen on the dev split, by the mean of R@1, R@5
and R@10 over the seeds; figures are those of val. A hit is any pair of the same text. real.py asks the first question
of such pairs, with the same runs.

Limits: hundreds of photos and a few thousand scenes; one objective.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from data_specs.shard import Split
from tests.benchmarks.study.arms import Arm, Setting, config_of
from tests.benchmarks.study.corpus import cell_boxes
from tests.benchmarks.study.features import SIDE, Backbone, weights_id
from tests.benchmarks.study.scenes import Source
from tests.benchmarks.study.trial import TwoTowers, compute_ratio, one_thread, packed
from training.config import Config
from training.data.index import open_dataset
from training.data.loader import Loader, Share
from training.data.order import Order
from training.data.tokenizer import CLS, PAD, SEP, UNK, load_tokenizer
from training.evaluation.hits import Clusters
from training.evaluation.retrieval import figures, rank
from training.records import Batch
from training.towers.layers import length_mask

LOG = logging.getLogger("wenlan.study")

Sight = Literal["whole", "grid", "proposals", "things"]
SIGHTS: tuple[Sight, ...] = ("whole", "grid", "proposals", "things")
"""`things` only where the true boxes are known: on scenes."""

BOXES = 9
MAX_TOKENS = 24
POINTS = (1 / 4, 1 / 2, 3 / 4, 1.0)
VERSION = 3
QUEUE = Arm("moco", queue=512)


@dataclass(frozen=True)
class Half:
    """One split as tensors: features [N, R, C] in half precision, and a batch of everything else with N rows."""

    regions_NRC: Tensor
    rest: Batch

    def __len__(self) -> int:
        return len(self.rest)

    def batch(self, rows: Sequence[int], sight: Sight) -> Batch:
        """The pairs of these rows as the model takes them."""
        which = torch.tensor(list(rows))
        regions_BRC, count_B = self.regions_NRC[which].float(), self.rest.n_boxes_B[which]
        if sight == "whole":  # the last of each picture's regions
            regions_BRC = regions_BRC[torch.arange(len(which)), count_B - 1][:, None]
            count_B = torch.ones_like(count_B)
        boxes_R4, rest = cell_boxes(regions_BRC.shape[1]), self.rest.take(which)
        return replace(
            rest,
            token_ids_BL=rest.token_ids_BL[:, : int(rest.n_tokens_B.max())],
            images_B3HW=regions_BRC.transpose(1, 2).unsqueeze(2),
            boxes_BR4=boxes_R4.expand(len(which), -1, -1),
            n_boxes_B=count_B,
        )


@dataclass(frozen=True, slots=True)
class Run:
    """The record of one run: R@1 and R@10 of val, R@1 of train, and the mean of R@1, R@5 and R@10 of dev, both ways
    together, at each point.

    `hits`: at each point whether each val pair's picture and text find each other at 1 and at 10 (`packed`); records
    keep them where intervals are over names too (real.py)."""

    source: str
    arm: str
    sight: Sight
    temperature: float
    rate: float
    seed: int
    samples: tuple[int, ...]
    val: tuple[float, ...]
    val10: tuple[float, ...]
    dev: tuple[float, ...]
    train: tuple[float, ...]
    hits: tuple[tuple[str, ...], ...]
    chance: float
    pairs: tuple[int, int, int]
    seconds: float


def run_of(values: Mapping[str, Any]) -> Run:
    """The inverse of `asdict`. Raises TypeError on another object."""
    return Run(**{name: _tuples(value) for name, value in values.items()})


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list | tuple) else value


@dataclass(frozen=True)
class Job:
    """One run to be done, and what it needs. Its file name says which it is. An arm without key towers goes on to as
    many samples as cost what `samples` cost the queue."""

    source: Source
    sight: Sight
    seed: int
    samples: int
    folder: Path
    weights: Path
    arm: Arm = field(default=QUEUE)
    temperature: float = 0.07
    rate: float = 5e-4

    @property
    def file(self) -> Path:
        """Its record."""
        setting = f"t{self.temperature:g}.r{self.rate:g}.seed{self.seed}"
        return self.folder / f"{self.source.name}.{self.arm.name}.{self.sight}.{setting}.json"

    def key(self) -> list[object]:
        """Dependencies of the record."""
        return [*_made_of(self.source.manifest, self.weights), self.samples, asdict(self.arm)]

    def record(self) -> Run | None:
        """The finished run, or None where it has still to be done."""
        try:
            values = json.loads(self.file.read_text(encoding="utf-8"))
            if values["key"] != self.key():
                return None
            return run_of(values["run"])
        except (OSError, ValueError, KeyError, TypeError):
            return None


def jobs_of(
    sources: Sequence[Source], samples: Mapping[str, int], seeds: Sequence[int], folder: Path, weights: Path
) -> list[Job]:
    """All runs of the second question, seed by seed."""
    there = [source for source in sources if not source.skipped]
    return [Job(s, sight, n, samples[s.name], folder, weights) for n in seeds for s in there for sight in sights(s)]


def sights(source: Source) -> list[Sight]:
    """The part of a dataset that may be seen."""
    return [sight for sight in SIGHTS if sight != "things" or source.true_boxes is not None]


def do(job: Job) -> float:
    """Do a run and write its record; returns the seconds it took. Raises TrainingError."""
    began = time.monotonic()
    splits: tuple[Split, ...] = ("train", "dev", "val")
    with one_thread():
        run = _train(job, *(half_of(job.source, split, job.sight, job.weights) for split in splits))
    job.folder.mkdir(parents=True, exist_ok=True)
    new = job.file.with_suffix(".new")
    new.write_text(json.dumps({"key": job.key(), "run": asdict(run)}, indent=1) + "\n", encoding="utf-8")
    new.replace(job.file)
    return time.monotonic() - began


def _config(job: Job, train: Half) -> tuple[Arm, Config]:
    # A queue of a third of a small dataset at most: a longer one would hold little but the batch's own neighbours.
    arm = replace(job.arm, queue=min(job.arm.queue, len(train) // 3))
    vocabulary = int(train.rest.token_ids_BL.max()) + 1
    config = config_of(arm, Setting(temperature=job.temperature, rate=job.rate), job.seed, vocabulary)
    boxes = 0 if job.sight == "whole" else BOXES
    data = replace(config.data, max_boxes=boxes, max_tokens=MAX_TOKENS)
    return arm, replace(config, data=data, text=replace(config.text, max_positions=MAX_TOKENS))


class _Order:
    """The training pairs of one seed as `TwoTowers` asks for them."""

    def __init__(self, half: Half, sight: Sight, seed: int) -> None:
        self._half, self._sight = half, sight
        self._order = Order([len(half)], seed, 1)

    def batch(self, position: int, size: int) -> Batch:
        """As in `Pairs`; what is seen is the run's own sight."""
        return self._half.batch([self._order.entry(position + i)[1] for i in range(size)], self._sight)


def compact(train: Half, *others: Half) -> list[Half]:
    """The splits with the characters of the first numbered without gaps; what it has not seen is [UNK] in the others.

    A table of all characters would be mostly rows that are never trained, and most of a step.
    """
    marks = torch.tensor([PAD, UNK, CLS, SEP])
    seen = torch.unique(torch.cat([marks, train.rest.token_ids_BL.flatten()]))  # sorted, so the marks stay 0 to 3
    most = max(int(half.rest.token_ids_BL.max()) for half in (train, *others))
    number = torch.full((max(most, int(seen[-1])) + 1,), UNK)
    number[seen] = torch.arange(len(seen))
    return [Half(h.regions_NRC, replace(h.rest, token_ids_BL=number[h.rest.token_ids_BL])) for h in (train, *others)]


def _train(job: Job, *splits: Half) -> Run:
    train, dev, val = compact(*splits)
    arm, config = _config(job, train)
    stream = _Order(train, job.sight, job.seed)
    began = time.process_time()
    towers = TwoTowers(arm, config, stream)
    shares = {*POINTS, *(() if arm.has_keys else (compute_ratio(arm, config.text.vocab_size),))}
    ends = [max(1, round(job.samples * share / arm.batch)) for share in sorted(shares)]
    some = Half(train.regions_NRC[: len(val)], train.rest.rows(0, len(val)))
    number, reached = 0, []
    for end in ends:
        while number < end:
            position = number * arm.batch
            towers.step(stream.batch(position, arm.batch), number, position)
            number += 1
        reached.append([_measure(towers, half, job.sight) for half in (val, dev, some)])
    return Run(
        job.source.name,
        job.arm.name,
        job.sight,
        job.temperature,
        job.rate,
        job.seed,
        tuple(end * arm.batch for end in ends),
        val=tuple(v.recall[1] for v, _, _ in reached),
        val10=tuple(v.recall[10] for v, _, _ in reached),
        dev=tuple(fmean((d.recall[1], d.recall[5], d.recall[10])) for _, d, _ in reached),
        train=tuple(t.recall[1] for _, _, t in reached),
        hits=tuple(v.hits for v, _, _ in reached),
        chance=reached[-1][0].chance,
        pairs=(len(train), len(dev), len(val)),
        seconds=round(time.process_time() - began, 3),
    )


@dataclass(frozen=True, slots=True)
class _Reached:
    """Recall at 1, 5 and 10 and the chance of R@1, each the mean of both directions, and the hits at 1 and at 10."""

    recall: dict[int, float]
    chance: float
    hits: tuple[str, str]


def _measure(towers: TwoTowers, half: Half, sight: Sight) -> _Reached:
    parts = [half.batch(range(start, min(start + 512, len(half))), sight) for start in range(0, len(half), 512)]
    images, texts = (
        np.concatenate([encode(part).numpy() for part in parts])
        for encode in (towers.model.encode_image, towers.model.encode_text)
    )
    clusters = Clusters(np.arange(len(half)), half.rest.text_ids_B.numpy())
    ranks = rank(images, texts, clusters)
    found, ranks_2N = figures(ranks), np.stack([ranks.image_N, ranks.text_M])  # each has its own pair as a hit
    both = (found.image_to_text, found.text_to_image)
    recall = {k: fmean(d.recall[k] for d in both) for k in (1, 5, 10)}
    return _Reached(recall, fmean(d.chance[1] for d in both), (packed(ranks_2N <= 1), packed(ranks_2N <= 10)))


@lru_cache(maxsize=16)
def half_of(source: Source, split: Split, sight: Sight, weights: Path) -> Half:
    """A split's features and texts, computed once per process and kept in a file. Raises TrainingError."""
    manifest = source.manifest
    detector = next(d for d in _detectors(manifest) if d.startswith("proposals" if sight == "proposals" else "grid"))
    key = hashlib.sha256(json.dumps([*_made_of(manifest, weights), BOXES, MAX_TOKENS]).encode()).hexdigest()[:12]
    path = manifest.parent / f"{split}.{'things' if sight == 'things' else detector}.{key}.pt"
    if path.is_file():
        saved = torch.load(path, weights_only=True)
    else:
        saved = _computed(source, split, detector, weights, true_boxes=sight == "things")
        new = path.with_suffix(f".{time.time_ns()}")
        torch.save(saved, new)
        new.replace(path)
    regions = saved.pop("regions_NRC")
    return Half(regions, Batch.of(**saved))


def _computed(source: Source, split: Split, detector: str, weights: Path, *, true_boxes: bool) -> dict[str, Tensor]:
    dataset = open_dataset([str(source.manifest)], split, detector=detector)
    arm_free = config_of(Arm(""), Setting(), 0, 10).data
    data = replace(arm_free, max_boxes=BOXES, max_tokens=MAX_TOKENS, num_workers=0, detector=detector)
    loader = Loader(dataset, data, load_tokenizer("gb2312"), Share(32, 0, 1, 1), seed=0, train=False)
    backbone, columns = Backbone(weights), ("n_boxes", "n_tokens", "sample_ids", "image_ids", "text_ids")
    regions, tokens, rest, done = [], [], [], 0
    for batch in loader.once():
        batch = batch.rows(0, int(batch.valid_B.sum()))
        if true_boxes:
            keys = [dataset.row(number).key for number in range(done, done + len(batch))]
            batch = with_boxes(batch, source.boxes_of(split, keys))
        done += len(batch)
        pictures = batch.images_B3HW.permute(0, 2, 3, 1).numpy()
        assert pictures.shape[1] == SIDE, "the study's sizes are the starter recipe's"
        found = torch.from_numpy(backbone(pictures, batch.boxes_BR4))
        found[~length_mask(batch.n_boxes_B, found.shape[1])] = 0  # a box that is missing reads a point
        regions.append(torch.nn.functional.pad(found, (0, 0, 0, BOXES + 1 - found.shape[1])))
        tokens.append(torch.nn.functional.pad(batch.token_ids_BL, (0, MAX_TOKENS - batch.token_ids_BL.shape[1])))
        rest.append({f"{c}_B": getattr(batch, f"{c}_B") for c in columns})
    joined = {name: torch.cat([r[name] for r in rest]) for name in rest[0]}
    return {"regions_NRC": torch.cat(regions), "token_ids_BL": torch.cat(tokens), **joined}


def with_boxes(batch: Batch, boxes: Sequence[Sequence[Sequence[float]]]) -> Batch:
    """The batch with other boxes, given as shares of the picture's sides; the whole picture comes after them."""
    boxes_BR4 = torch.zeros(len(batch), BOXES + 1, 4)
    for row_R4, of_picture in zip(boxes_BR4, boxes, strict=True):
        row_R4[: len(of_picture) + 1] = torch.tensor([*of_picture, (0.0, 0.0, 1.0, 1.0)]) * SIDE
    return replace(batch, boxes_BR4=boxes_BR4, n_boxes_B=torch.tensor([len(of_picture) + 1 for of_picture in boxes]))


def _made_of(manifest: Path, weights: Path) -> list[object]:
    """Dependencies of the features of a dataset, beside the boxes: this code's version, the pictures, the backbone."""
    digest = json.loads(manifest.read_text(encoding="utf-8"))["content_digest"]
    return [VERSION, digest, weights_id(weights)]


def _detectors(manifest: Path) -> list[str]:
    names: list[str] = json.loads(manifest.read_text(encoding="utf-8"))["detectors"]
    return names
