"""What pair scores by words are worth: marks of people, on sites that the weights were not fitted to.

words.csv has a row for each pair that was read by eye: its site by number, whether the text says what the picture shows
(1) or not (0), and the features of `pipeline.curate._words`. Texts and pictures belong to their sites and are not here.

The pairs of each site are scored by weights that are fitted to the other sites. Figures: AUC over all pairs, what is
right of the best seven tenths, and whether `_words` holds the weights that are fitted to all of them.
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tests.benchmarks.harness import at_least, quick, report, told

PRIOR = 1.0
"""Precision of the weights' prior: a few hundred pairs say little of a feature that few of them have."""

Floats = npt.NDArray[np.float64]


def fitted(x_ND: Floats, right_N: Floats) -> Floats:
    """[1 + D] intercept and weights of a logistic regression with a Gaussian prior, by Newton's method."""
    design = np.column_stack([np.ones(len(x_ND)), x_ND])
    prior, weights = np.diag([1e-6, *[PRIOR] * x_ND.shape[1]]), np.zeros(design.shape[1])
    for _ in range(30):
        p = 1 / (1 + np.exp(-design @ weights))
        hessian = design.T @ (design * (p * (1 - p))[:, None]) + prior
        weights -= np.linalg.solve(hessian, design.T @ (p - right_N) + prior @ weights)
    return weights


def auc(scores: Floats, right: Floats) -> float:
    """Chance that a right pair has a higher score than another one; ties count half."""
    good, bad = scores[right == 1], scores[right == 0]
    return float(((good[:, None] > bad).mean() + (good[:, None] >= bad).mean()) / 2)


def main() -> int:

    from pipeline.curate import _words

    quick(__doc__)
    with Path(__file__).with_name("words.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    names = [name for name in rows[0] if name not in ("site", "right")]
    x_ND = np.array([[float(row[name]) for name in names] for row in rows])
    sites, right = np.array([int(row["site"]) for row in rows]), np.array([float(row["right"]) for row in rows])
    scores = np.zeros(len(rows))
    for site in np.unique(sites):
        weights = fitted(x_ND[sites != site], right[sites != site])
        scores[sites == site] = 1 / (1 + np.exp(-(weights[0] + x_ND[sites == site] @ weights[1:])))
    order = np.argsort(scores, kind="stable")
    told(f"{len(rows)} pairs of {len(np.unique(sites))} sites, {right.mean():.3f} right")
    for part in np.array_split(order, 5):
        told(f"a fifth with a mean score of {scores[part].mean():.2f}: {right[part].mean():.2f} right")
    kept = {share: float(right[order[round(len(rows) * (1 - share)) :]].mean()) for share in (0.9, 0.8, 0.7)}
    told("right with top_share " + ", ".join(f"{share:g}: {of:.3f}" for share, of in kept.items()))
    intercept, *weights = fitted(x_ND, right).round(2).tolist()
    told(f"INTERCEPT = {intercept}\nWEIGHTS = {dict(zip(names, weights, strict=True))}")
    figures = {
        "auc": at_least(auc(scores, right), 0.7, "area"),
        "right_at_top_share_0.7": at_least(kept[0.7], 0.85, "share"),
        "weights_are_those_of_the_code": at_least(
            float((intercept, dict(zip(names, weights, strict=True))) == (_words.INTERCEPT, _words.WEIGHTS)), 1.0, ""
        ),
    }
    return report(figures)


if __name__ == "__main__":
    sys.exit(main())
