"""The arms of the study, each of which differs from its base in one factor.

The base is the paper's method: MoCo with batch 16, a queue of 1,024 keys and momentum .99. The other base is in-batch
CLIP on the same towers, which is what the paper compares itself with. All arms begin from the same weights, see the
same pairs in the same order, and have their temperature, rate and length chosen on dev styles and dev names alone.

Limits: one factor at a time says nothing of how two of them work together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Literal

from tests.benchmarks.study.corpus import MAX_TOKENS, Captions
from tests.benchmarks.study.features import REGIONS, SIDE
from training.config import Config
from training.recipes import starter

Objective = Literal["moco", "clip", "siglip", "albef", "matching"]
"""Those of training/moco.py, and the matching loss of a single tower (tests/benchmarks/study/single_tower.py)."""

TEMPERATURES = (0.03, 0.07, 0.15)
RATES = (2.5e-4, 5e-4, 1e-3, 2e-3)
CAPTIONS: tuple[Captions, ...] = ("half", "name", "keyword")
"""Tried on dev: temperatures and rates for every arm, captions once for all."""

WIDTH, INNER = 128, 256
"""Width of both towers and of the joint space; width of their feed-forward layers and heads."""

WARMUP = 1_600
"""Samples over which the rate rises."""


@dataclass(frozen=True, slots=True)
class Setting:
    """What is chosen on dev. `rate`: at batch 16, scaled by the root of the batch."""

    captions: Captions = "half"
    temperature: float = 0.07
    rate: float = 5e-4


@dataclass(frozen=True, slots=True)
class Arm:
    """One arm. `queue` 0 means that the other keys of the batch are the only negatives. `learned`: the temperature is
    a parameter. `by_steps`: it goes on to as many steps as the base's. `base` and `factor` say from which arm it
    differs and in which field; a base has neither."""

    name: str
    objective: Objective = "moco"
    batch: int = 16
    queue: int = 1024
    momentum: float = 0.99
    shuffled: bool = False
    learned: bool = False
    by_steps: bool = False
    base: str = ""
    factor: str = ""

    @property
    def has_keys(self) -> bool:
        """Whether key towers run beside the query towers."""
        return self.objective in ("moco", "albef")

    @property
    def tempered(self) -> bool:
        """Whether there is a temperature to choose."""
        return self.objective != "matching" and not self.learned

    @property
    def reach(self) -> float:
        """Samples of as many steps as the base's by the base's samples, where the arm goes on to them; else 1."""
        return self.batch / BASE.batch if self.by_steps else 1.0


BASE = Arm("moco")
CLIP = Arm("clip", "clip", queue=0, momentum=0.0)
"""Objectives without key towers have no queue and no momentum; both are then 0."""


def _but(base: Arm, factor: str, value: object, name: str) -> Arm:
    return replace(base, name=name, base=base.name, factor=factor, **{factor: value})  # type: ignore[arg-type]


def _without_keys(objective: Objective) -> Arm:
    return replace(CLIP, name=objective, objective=objective, base=BASE.name, factor="objective")


DECISIVE: tuple[Arm, ...] = (
    BASE,
    _without_keys("clip"),
    _but(BASE, "queue", 0, "moco-k0"),
    _but(CLIP, "learned", True, "clip-learned"),
    replace(_but(CLIP, "batch", 64, "clip-b64"), by_steps=True),
)
"""The paper's claim, the queue against in-batch CLIP, and what else could explain it: the key towers, a fixed
temperature, a batch of 16. They are trained for all of N with all seeds, before the others."""

ARMS: tuple[Arm, ...] = (
    *DECISIVE,
    _but(BASE, "batch", 8, "moco-b8"),
    _but(CLIP, "batch", 8, "clip-b8"),
    _but(BASE, "batch", 64, "moco-b64"),
    _without_keys("siglip"),
    _but(BASE, "objective", "albef", "albef"),
    _but(BASE, "queue", 4096, "moco-k4096"),
    *(_but(BASE, "momentum", m, f"moco-m{m:g}") for m in (0.0, 0.999)),
    _but(BASE, "shuffled", True, "shuffled"),
    replace(CLIP, name="single-tower", objective="matching", base=BASE.name, factor="objective"),
)
"""The arms of `make study`."""

BASES = (BASE.name, CLIP.name)
"""Those from which all others differ in one factor."""

QUICK = ("moco", "clip", "moco-k0")
"""The arms of `make study QUICK=1`."""


def differing(arm: Arm, other: Arm) -> list[str]:
    """Fields in which two arms train differently. Queue and momentum are no difference where one arm can have none."""
    unknown = {"name", "base", "factor", "by_steps"}
    if not (arm.has_keys and other.has_keys):
        unknown |= {"queue", "momentum"}
    return [f.name for f in fields(Arm) if f.name not in unknown and getattr(arm, f.name) != getattr(other, f.name)]


def chosen(names: Sequence[str], arms: Sequence[Arm]) -> list[Arm]:
    """The arms of these names, in the table's order. Raises KeyError that names what there is."""
    known = {arm.name: arm for arm in arms}
    for name in names:
        if name not in known:
            raise KeyError(f"no arm {name!r}; there are {', '.join(known)}")
    return [arm for arm in arms if arm.name in names]


def config_of(arm: Arm, setting: Setting, seed: int, vocabulary: int) -> Config:
    """The arm as a training configuration: `starter` at the study's sizes, on MobileNetV2. Raises ConfigError."""
    recipe = starter()
    image = replace(recipe.image, backbone="torchvision/mobilenet_v2", weights="", frozen_stages=19)
    image = replace(image, grid=1, width=WIDTH, ffn=INNER, hidden=INNER)
    data = replace(recipe.data, image_size=SIDE, max_boxes=REGIONS - 1, max_tokens=MAX_TOKENS)
    text = replace(recipe.text, vocab_size=vocabulary, max_positions=MAX_TOKENS, backbone_width=WIDTH, layers=1)
    text = replace(text, ffn=INNER, hidden=INNER)
    objective = "clip" if arm.objective == "matching" else arm.objective
    moco = replace(
        recipe.moco,
        objective=objective,
        queue_size=max(arm.queue, 1),  # of no queue one slot is left, which stays empty (trial.py)
        in_batch_keys=arm.has_keys and arm.queue == 0,
        momentum=arm.momentum,
        temperature=setting.temperature,
        learn_temperature=arm.learned,
        feature_dim=WIDTH,
    )
    optim = replace(recipe.optim, lr=setting.rate, lr_batch=16, lr_scaling="sqrt", schedule="constant")
    optim = replace(optim, warmup_samples=WARMUP, warmup_share=0.0)
    run = replace(recipe.run, batch_size=arm.batch, recompute="nothing", device="cpu")
    named = replace(recipe, recipe="study", seed=seed)
    return replace(named, image=image, text=text, data=data, moco=moco, optim=optim, run=run)
