"""One run: one arm, one seed, one setting, and what it reaches on every gallery at each point of its length.

Everything that trains is the project's own: `BriVL` with its losses, queues and key towers, `backward`, the optimiser
and its rates. Only the frozen backbone is replaced by what it returned for the same pictures (features.py). Weights
follow from the seed before anything of the arm is used, and random numbers of a step from (seed, step), so arms of one
seed begin alike and see the same pairs.

The rate is constant after the warm-up. So a run of any length is the beginning of every longer one, the length can be
chosen afterwards, and one run serves equal samples and equal compute: it goes on to whichever comes last.

    equal samples   N samples for every arm
    equal compute   N samples for the base arm, and for another one as many as cost the same floating-point operations:
                    trained towers forward and backward, key towers forward (training/run/flops.py), and similarities
    equal steps     an arm of a larger batch may go on to as many steps as the base arm takes for N samples

Limits: one thread. Batch norms there are none, except in the CNN from scratch.
"""

from __future__ import annotations

import base64
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from tests.benchmarks.study.arms import BASE, Arm, Setting, config_of
from tests.benchmarks.study.corpus import Corpus, Gallery, Stream
from training.config import Config
from training.data.order import seed_of
from training.evaluation.hits import Captions, Features
from training.evaluation.retrieval import rank
from training.moco import BriVL
from training.records import Batch
from training.run.flops import Meter, forward_flops
from training.run.optimizer import batch_factor, build_optimizer, schedule
from training.run.step import backward

POINTS = (1 / 8, 1 / 4, 1 / 2, 3 / 4, 1.0)
"""Shares of N at which a run is measured, beside the ends of equal compute and equal steps: a measurement takes as long
as 100 steps."""

POINTS_OF_STEPS = (1 / 2, 3 / 4)
"""The same of the samples of equal steps, beside their end."""

POINTS_OF_PAIRS = (1 / 4, 1 / 2, 1.0)
"""The same of a single tower, which needs longer to be measured than to be trained."""

SMALL_GALLERY = 64
"""Candidates of the smaller galleries on which a single tower can be measured too: it scores every pair anew."""

_AT_ONCE = 512

REPORTED = ("style", "names")
"""Galleries whose hits are kept one by one, for intervals over names and styles."""

DEV = ("dev", "dev_names")
"""Galleries on which everything is chosen: the mean of both."""


@dataclass(frozen=True, slots=True)
class Point:
    """Progress of a run after `samples`: R@1 both ways by gallery, in [0, 1], and the seconds trained so far.

    `hits`: of a reported gallery and for each style, whether each name's drawing and name find each other (`packed`).
    """

    samples: int
    seconds: float
    loss: float
    i2t: dict[str, float]
    t2i: dict[str, float]
    hits: dict[str, list[str]]


@dataclass(frozen=True, slots=True)
class Trial:
    """The record of one run. `ratio`: operations of a sample of the base arm per those of this arm's."""

    arm: str
    seed: int
    setting: Setting
    samples: int
    ratio: float
    step_ms: float
    points: tuple[Point, ...]
    search: dict[str, float]

    def to_json(self) -> dict[str, Any]:
        """As a JSON object; `of_json` reads it back."""
        return asdict(self)

    @staticmethod
    def of_json(values: dict[str, Any]) -> Trial:
        """The inverse of `to_json`. Raises KeyError or TypeError on another object."""
        points = tuple(Point(**point) for point in values["points"])
        return Trial(**{**values, "points": points, "setting": Setting(**values["setting"])})


def dev(point: Point) -> float:
    """The figure by which everything is chosen: R@1 both ways, mean of dev styles and dev names; of a single tower, on
    smaller galleries."""
    names = [name if name in point.i2t else f"{name}_small" for name in DEV]
    return sum(point.i2t[name] + point.t2i[name] for name in names) / (2 * len(names))


class Learner(Protocol):
    """A model in training: takes steps, and scores a gallery."""

    def step(self, batch: Batch, number: int, position: int) -> float:
        """Train on a batch; returns its loss."""

    def scores(self, corpus: Corpus, gallery: Gallery) -> tuple[Features, Features]:
        """Features [N, D] and [M, D] whose products rank drawings and names, or for a single tower the scores [N, M]
        of all pairs and an identity."""


class Pairs(Protocol):
    """The training pairs of one seed."""

    def batch(self, position: int, size: int) -> Batch:
        """Entries position .. position + size - 1 of the stream; negative ones lie before its beginning."""


class Cached(nn.Module):
    """Prefix that is done already: passes the batch's features on."""

    def forward(self, batch: Batch) -> Tensor:
        return batch.images_B3HW


def build_model(config: Config) -> BriVL:
    """The arm's model: weights follow from the seed alone. The frozen prefix of the image tower is the cached one."""
    torch.manual_seed(config.seed)
    model = BriVL(config, load_weights=False).train()
    model.image_query.prefix = Cached()
    return model


class TwoTowers:
    """BriVL on cached features, one optimiser step at a time."""

    def __init__(self, arm: Arm, config: Config, stream: Pairs) -> None:
        self._arm, self._config = arm, config
        self.model = build_model(config)
        self._optimizer = build_optimizer(self.model, config.optim)
        self._parameters = [p for group in self._optimizer.param_groups for p in group["params"]]
        if arm.has_keys and arm.queue:
            steps = math.ceil(arm.queue / arm.batch)
            for number in range(-steps, 0):
                self.model.prefill(stream.batch(number * arm.batch, arm.batch), number)

    def step(self, batch: Batch, number: int, position: int) -> float:
        """As in `Learner`."""
        torch.manual_seed(seed_of("step", self._config.seed, number))
        set_rate(self._optimizer, self._config, position)
        (output,) = backward(self.model, [batch], len(batch))
        nn.utils.clip_grad_norm_(self._parameters, self._config.optim.clip)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self.model.after_step(output, number)
        if self._arm.has_keys and not self._arm.queue:
            for queue in (self.model.image_queue, self.model.text_queue):
                queue.filled_K.zero_()  # the one slot that a queue must have stays empty: it counts for nothing
        return float(output.loss.detach())

    def scores(self, corpus: Corpus, gallery: Gallery) -> tuple[Features, Features]:
        """As in `Learner`."""
        names = [corpus.emoji[number].name for number in gallery.emoji_M]
        images = []
        for start in range(0, len(gallery.pictures), _AT_ONCE):
            some = gallery.pictures.take(slice(start, start + _AT_ONCE))
            batch = corpus.batch(some, [names[0]] * len(some))
            images.append(self.model.encode_image(batch).numpy())
        ids_ML, length_M = corpus.tokens(names)
        text_MD = self.model.encode_text(Batch.of(token_ids_BL=ids_ML, n_tokens_B=length_M)).numpy()
        return np.concatenate(images), text_MD


def set_rate(optimizer: torch.optim.Optimizer, config: Config, position: int) -> None:
    """Set the learning rate of a step that begins at `position`."""
    # The schedule is constant after its warm-up, so the run's length, its third argument, does not matter.
    factor = schedule(config.optim, position, 1) * batch_factor(config.optim, config.run.batch_size)
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor


def learner_of(arm: Arm, config: Config, stream: Stream) -> Learner:
    """The model of an arm, before its first step."""
    if arm.objective == "matching":
        from tests.benchmarks.study.single_tower import SingleTower

        return SingleTower(config)
    return TwoTowers(arm, config, stream)


def run(
    arm: Arm,
    seed: int,
    setting: Setting,
    samples: int,
    corpus: Corpus,
    *,
    dev_only: bool = False,
) -> Trial:
    """Train an arm on N = `samples` samples, or on as many as equal compute or equal steps allow where that is more.

    `dev_only` measures on dev alone, and ends at N (or at equal steps): for choosing a setting. The same arguments give
    the same trial, its times aside.
    """
    with one_thread():
        return _run(arm, seed, setting, samples, corpus, dev_only)


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute on one thread: the number of threads changes the order of sums, and so the last digits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _run(arm: Arm, seed: int, setting: Setting, samples: int, corpus: Corpus, dev_only: bool) -> Trial:
    config = config_of(arm, setting, seed, len(corpus.tokenizer.vocabulary))
    ratio = 1.0 if dev_only else compute_ratio(arm, len(corpus.tokenizer.vocabulary))
    ends = _ends(arm, samples, ratio, dev_only)
    stream = Stream(corpus, seed, shuffled=arm.shuffled, captions=setting.captions)
    learner = learner_of(arm, config, stream)
    points, losses, seconds, number = [], [], 0.0, 0
    for end in ends:
        began = time.process_time()
        while number < end:
            position = number * arm.batch
            losses.append(learner.step(stream.batch(position, arm.batch), number, position))
            number += 1
        seconds += time.process_time() - began
        found = measure(learner, corpus, arm, dev_only=dev_only)
        points.append(Point(number * arm.batch, round(seconds, 3), float(np.mean(losses[-100:])), *found))
    search = {} if dev_only else cost_of_search(learner, corpus)
    step_ms = 1000 * seconds / number
    return Trial(arm.name, seed, setting, samples, ratio, step_ms, tuple(points), search)


def _ends(arm: Arm, samples: int, ratio: float, dev_only: bool) -> list[int]:
    """Steps at which a run is measured; N and the samples of equal compute and equal steps are among them."""
    points = POINTS_OF_PAIRS if arm.objective == "matching" else POINTS
    at = {samples * arm.reach}
    if not dev_only:
        at |= {samples * ratio, *(samples * share for share in points)}
        at |= {samples * arm.reach * share for share in POINTS_OF_STEPS if arm.by_steps}
    return sorted({max(1, round(x / arm.batch)) for x in at})


def measure(
    learner: Learner, corpus: Corpus, arm: Arm, *, dev_only: bool = False
) -> tuple[dict[str, float], dict[str, float], dict[str, list[str]]]:
    """R@1 from drawing to name and from name to drawing, by gallery, and the hits of reported ones. Each style is
    searched alone; of several with one name the mean.

    Each gallery also has a smaller one, `NAME_small`, the only one on which a single tower is measured.
    """
    i2t: dict[str, list[float]] = {}
    t2i: dict[str, list[float]] = {}
    kept: dict[str, list[str]] = {}
    for gallery in corpus.galleries:
        if dev_only and gallery.name not in DEV:
            continue
        styles = gallery.by_style()
        parts = [(gallery.name + "_small", smaller(styles[0]))]
        if arm.objective != "matching":
            parts += [(gallery.name, one) for one in styles]
        for name, part in parts:
            hits_2M = _hits(*learner.scores(corpus, part), part)
            i2t.setdefault(name, []).append(float(hits_2M[0].mean()))
            t2i.setdefault(name, []).append(float(hits_2M[1].mean()))
            if name in REPORTED:
                kept.setdefault(name, []).append(packed(hits_2M))
    return _means(i2t), _means(t2i), kept


def _means(figures: dict[str, list[float]]) -> dict[str, float]:
    return {name: float(np.mean(values)) for name, values in figures.items()}


def smaller(gallery: Gallery, most: int = SMALL_GALLERY) -> Gallery:
    """`most` emoji of the gallery of one style, drawn once and for all."""
    drawn = np.sort(np.random.default_rng(0).permutation(gallery.emoji_M)[:most])
    return Gallery(gallery.name, gallery.pictures.take(np.flatnonzero(np.isin(gallery.pictures.emoji_N, drawn))), drawn)


def _hits(image_ND: Features, text_MD: Features, gallery: Gallery) -> npt.NDArray[np.bool_]:
    """[2, M] of the gallery of one style: whether the drawing of each name finds it, and whether the name finds it."""
    column_N = np.searchsorted(gallery.emoji_M, gallery.pictures.emoji_N)
    hits = Captions(len(gallery.pictures), len(gallery.emoji_M), np.arange(len(column_N)), column_N)
    ranks = rank(image_ND, text_MD, hits)
    return np.stack([ranks.image_N[np.argsort(column_N)] == 1, ranks.text_M == 1])


def packed(hits_2M: npt.NDArray[np.bool_]) -> str:
    """Hits as text: bits in base 64, first all of one way."""
    return base64.b64encode(np.packbits(hits_2M.reshape(-1)).tobytes()).decode()


def unpacked(text: str, names: int) -> npt.NDArray[np.bool_]:
    """The inverse of `packed`: [2, names]."""
    bits = np.unpackbits(np.frombuffer(base64.b64decode(text), np.uint8), count=2 * names)
    return bits.reshape(2, names).astype(bool)


# --- what it costs


def sample_flops(arm: Arm, vocabulary: int) -> float:
    """Operations of one training sample: trained towers forward and backward, key towers forward, similarities.

    The frozen backbone, which no run computes, is not counted.
    """
    return _sample_flops(arm.objective, arm.batch, arm.queue, vocabulary)


@lru_cache(maxsize=256)
def _sample_flops(objective: Any, batch: int, queue: int, vocabulary: int) -> float:
    arm = Arm("", objective, batch, queue)
    config = config_of(arm, Setting(), 0, vocabulary)
    if objective == "matching":
        from tests.benchmarks.study.single_tower import sample_flops as of_single

        return of_single(config)
    towers = Meter(config, torch.device("cpu")).sample_flops()
    frozen = forward_flops(config, "image", config.data.max_boxes + 1)["backbone"]
    candidates = batch if not arm.has_keys else queue or batch
    candidates += batch if objective == "albef" and queue else 0
    # Both directions: a product with every candidate, and again for the query's gradient (clip: for the keys' too).
    passes = {"moco": 2, "albef": 3, "clip": 3, "siglip": 3}[objective] * (1 if objective == "siglip" else 2)
    return towers - frozen + passes * 2.0 * candidates * config.moco.feature_dim


def compute_ratio(arm: Arm, vocabulary: int) -> float:
    """Samples of an arm that cost as much as one of the base arm."""
    return sample_flops(BASE, vocabulary) / sample_flops(arm, vocabulary)


def cost_of_search(learner: Learner, corpus: Corpus) -> dict[str, float]:
    """Processor seconds of asking with one name among the drawings of the first small gallery, whose features two
    towers have already: `pairs` scored, `seconds` for each query."""
    gallery = smaller(next(g for g in corpus.galleries if g.name == "style"))
    one = Gallery(gallery.name, gallery.pictures, gallery.emoji_M[:1])
    queries: Sequence[int] = range(5)
    began = time.process_time()
    if isinstance(learner, TwoTowers):
        image_ND, _ = learner.scores(corpus, gallery)
        began = time.process_time()
        for _ in queries:
            ids_ML, length_M = corpus.tokens([corpus.emoji[one.emoji_M[0]].name])
            text_MD = learner.model.encode_text(Batch.of(token_ids_BL=ids_ML, n_tokens_B=length_M)).numpy()
            (image_ND @ text_MD.T).argmax(0)
    else:
        for _ in queries:
            learner.scores(corpus, one)
    return {"pairs": float(len(gallery.pictures)), "seconds": (time.process_time() - began) / len(queries)}
