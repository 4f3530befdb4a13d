"""Classes from frozen image features: a linear probe and nearest neighbours.

    linear    logistic regression on the unit features (scikit-learn, L-BFGS), as CLIP is probed (arXiv 2103.00020,
              A.3): the inverse regularisation C is the best of GRID on dev, then train and dev are trained on together
    knn       the k nearest training images by cosine vote, one vote each; a tie is broken
              by the mean cosine of their voters

Training images are those of split train, dev those of split dev. Without a dev split a fifth of train is dev, and
without any splits a fifth of all is evaluated, both by the sha256 of the images: copies of one image never straddle it.

Limits: features of all splits are in memory. A class that no training image has is never said.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from data_specs.command.extras import require
from training.errors import ConfigError, InputError
from training.evaluation.classification import classify, cosines, figures
from training.evaluation.hits import Features, Ids, Mask
from training.evaluation.labelled import classes_digest, open_labelled
from training.evaluation.results import Result, by_seen, parts, share
from training.evaluation.tasks import Request, Task
from training.evaluation.tasks._shared import (
    EmbeddedImages,
    class_lines,
    embed_labelled,
    labelled_examples,
    result_of,
    seen_in_train,
)
from training.weights.load import load

GRID = (0.01, 0.1, 1.0, 10.0, 100.0, 1_000.0, 10_000.0)
"""Values of C that are tried. Features are units, so that much of it is little regularisation."""

ITERATIONS = 1_000

HIT = "a hit is the image's class"

FIFTH = 5


@dataclass(frozen=True)
class _Set:
    features_ND: Features
    label_N: Ids

    def and_(self, other: _Set) -> _Set:
        return _Set(
            np.concatenate([self.features_ND, other.features_ND]), np.concatenate([self.label_N, other.label_N])
        )


def run(request: Request) -> Result:
    """`classification.figures` of the linear probe, and the same of the neighbours as `knn`; `c` and `dev_top1` by C.

    Raises CheckpointError, InputError, ContractError, ConfigError (no train split, k).
    """
    if request.k < 1:
        raise ConfigError("--k", f"{request.k} neighbours; at least 1 is needed")
    require("sklearn")
    loaded = load(request.checkpoint, request.device, request.towers)
    detector = request.detector or loaded.checkpoint.detector
    labelled = open_labelled(request.source, request.split, detector)
    embedded = {labelled.split: embed_labelled(loaded, labelled)}
    others = () if labelled.split == "all" else ("train", "dev")
    for name in others:
        if name == request.split:
            raise ConfigError("--split", f"a probe is trained on {name}; evaluate it on another split")
        if name in labelled.splits:
            embedded[name] = embed_labelled(loaded, open_labelled(request.source, name, detector))
        elif name == "train":
            raise ConfigError("--data", f"{labelled.name} lacks a train split, which a probe is trained on")
    asked, train, dev, how = _parts(embedded, labelled.split)
    best, scores = fit(train, dev, asked.features_ND, len(labelled.classes))
    everything = train.and_(dev)
    k = min(request.k, len(everything.label_N))
    linear = classify(scores, asked.label_N)
    knn = classify(
        votes(everything.features_ND, everything.label_N, asked.features_ND, len(labelled.classes), k), asked.label_N
    )
    names = [one.names[0] for one in labelled.classes]
    seen_N = seen_in_train(request, asked.leaders)
    protocol = {
        "data": labelled.name,
        "split": labelled.split,
        "images": len(asked.label_N),
        "train_images": len(train.label_N),
        "dev_images": len(dev.label_N),
        "parts": how,
        "classes": len(names),
        "classes_sha256": classes_digest(labelled.classes),
        "probe": f"logistic regression, C {best.c:g} by dev",
        "neighbours": f"{k} nearest by cosine",
        "hit": HIT,
    }
    candidates = (
        f"{len(asked.label_N):,} images, {len(names):,} classes; trained on {len(train.label_N):,} images and, with C "
        f"{best.c:g} chosen on them, {len(dev.label_N):,} of dev ({how}); k {k}"
    )
    result = result_of(request, "probe", loaded, protocol, candidates, sum(e.corrupt for e in embedded.values()))

    def of_part(asks_N: Mask | None) -> dict[str, Any]:
        values = figures(linear, names, asks_N)
        return {**values, "knn": figures(knn, names, asks_N)} if values["n"] else values

    result |= {"c": best.c, "dev_top1": best.dev_top1, "converged": best.converged, **by_seen(seen_N, of_part)}
    if request.pictures:
        result["examples"] = labelled_examples("probe", linear, labelled, asked.items, seen_N)
    return result


def _parts(embedded: Mapping[str, EmbeddedImages], split: str) -> tuple[EmbeddedImages, _Set, _Set, str]:
    """Parts to evaluate, to train on and to tune on; and how they were made."""
    if split == "all":
        (asked, train), how = _split_fifth(embedded["all"]), "fifths by sha256 of images"
    else:
        asked, train, how = embedded[split], embedded["train"], "splits train and dev"
    if "dev" in embedded:
        dev = embedded["dev"]
    else:
        dev, train = _split_fifth(train, salt=1)
        how = how if split == "all" else "a fifth of train is dev"
    if not len(asked.label_N) or len(np.unique(train.label_N)) < 2 or not len(dev.label_N):
        raise InputError("probe", f"too few images: {len(train.label_N)} to train on, {len(dev.label_N)} of dev")
    return asked, _Set(train.features_ND, train.label_N), _Set(dev.features_ND, dev.label_N), how


def _split_fifth(embedded: EmbeddedImages, salt: int = 0) -> tuple[EmbeddedImages, EmbeddedImages]:
    """A fifth of the images and the others, by the digits of their digest; `salt` takes other digits."""
    digits_N = (embedded.copy_N.astype(np.uint64) >> np.uint64(20 * salt)) % np.uint64(FIFTH)
    return _select(embedded, digits_N == 0), _select(embedded, digits_N != 0)


def _select(embedded: EmbeddedImages, mask_N: Mask) -> EmbeddedImages:
    items = tuple(item for item, taken in zip(embedded.items, mask_N, strict=True) if taken)
    return EmbeddedImages(embedded.features_ND[mask_N], embedded.label_N[mask_N], embedded.copy_N[mask_N], items, 0)


# --- the two ways


@dataclass(frozen=True)
class Fitted:
    """The chosen C, top-1 on dev by C, and whether the solver said that it had converged."""

    c: float
    dev_top1: dict[str, float]
    converged: bool


def fit(train: _Set, dev: _Set, asked_ND: Features, classes: int) -> tuple[Fitted, Features]:
    """The probe of the best C (of equally good ones the smallest), and its scores [N, C] of what is asked."""
    dev_top1 = {}
    for c in GRID:
        scores_NC, _ = _probe(train, c, dev.features_ND, classes)
        dev_top1[c] = float((classify(scores_NC, dev.label_N).rank_N == 1).mean())
    best = max(GRID, key=lambda c: (dev_top1[c], -c))
    scores_NC, converged = _probe(train.and_(dev), best, asked_ND, classes)
    return Fitted(best, {f"{c:g}": value for c, value in dev_top1.items()}, converged), scores_NC


def _probe(train: _Set, c: float, asked_ND: Features, classes: int) -> tuple[Features, bool]:
    """Scores [N, C] (-inf for classes without a training image) of a regression on `train`, and if it converged."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=c, max_iter=ITERATIONS)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", ConvergenceWarning)
        model.fit(train.features_ND.astype(np.float64), train.label_N)
    raw: npt.NDArray[np.float64] = model.decision_function(asked_ND.astype(np.float64))
    columns_NK = np.stack([-raw, raw], axis=1) if raw.ndim == 1 else raw  # of two classes there is one column
    scores_NC = np.full((len(asked_ND), classes), -np.inf, np.float32)
    scores_NC[:, model.classes_] = columns_NK
    return scores_NC, not any(issubclass(w.category, ConvergenceWarning) for w in said)


def votes(train_ND: Features, label_N: Ids, asked_MD: Features, classes: int, k: int) -> Features:
    """Scores [M, C]: how many of the k nearest are of each class, and added to it a quarter of their mean cosine."""
    scores_MC = np.zeros((len(asked_MD), classes), np.float32)
    for start in range(0, len(asked_MD), 256):  # never a matrix of all pairs
        similar_BN = cosines(asked_MD[start : start + 256], train_ND)
        nearest_BK = np.argpartition(-similar_BN, k - 1, axis=1)[:, :k] if k < similar_BN.shape[1] else None
        for row, similar_N in enumerate(similar_BN):
            near = np.arange(len(similar_N)) if nearest_BK is None else nearest_BK[row]
            counts_C = np.bincount(label_N[near], minlength=classes)
            sums_C = np.bincount(label_N[near], similar_N[near], minlength=classes)
            # the cosine is in -1 .. 1: a part of it in -1/4 .. 1/4 never outweighs a vote
            scores_MC[start + row] = counts_C + sums_C / np.maximum(counts_C, 1) / 4
    return scores_MC


def summary(result: Mapping[str, Any]) -> list[str]:
    """Lines for people about a result of `run`."""
    lines = class_lines(result)
    for name, of_part in parts(result):
        knn = of_part["knn"]
        lines.append(f"{name}: nearest neighbours: top-1 {share(knn['top1'], knn['top1_interval'])}")
    return lines if result["converged"] else [*lines, f"the probe had not converged after {ITERATIONS} iterations"]


TASK = Task(run, summary)
