"""The loop on a small study: it finds shuffled captions without being told, and is the same each time."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from tests.benchmarks.study import curation
from tests.benchmarks.study.curation import (
    Inputs,
    Noisy,
    area,
    best,
    cross_scores,
    outcome,
)

if TYPE_CHECKING:
    from tests.benchmarks.study.corpus import Corpus


@pytest.fixture(scope="module")
def inputs(corpus: Corpus) -> Inputs:
    return Inputs.of(corpus)


@pytest.mark.slow
def test_the_area_is_that_of_scikit_learn() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    wrong, scores = rng.random(200) < 0.3, np.round(rng.random(200), 1)  # with ties
    assert area(scores, wrong) == pytest.approx(metrics.roc_auc_score(~wrong, scores))


def test_a_fold_is_scored_by_models_that_have_not_seen_it(inputs: Inputs, monkeypatch: pytest.MonkeyPatch) -> None:
    noisy = Noisy.of(inputs.corpus, 0)
    seen: list[set[tuple[int, int]]] = []
    scored: list[set[tuple[int, int]]] = []

    def places(pictures: object) -> set[tuple[int, int]]:
        return set(zip(pictures.style_N.tolist(), pictures.row_N.tolist(), strict=True))  # type: ignore[attr-defined]

    def train(inputs: Inputs, pictures: object, *rest: object) -> str:
        seen.append(places(pictures))
        return "heads"

    def score(heads: object, inputs: Inputs, pictures: object, told: object, names: object) -> object:
        scored.append(places(pictures))
        return np.arange(len(scored[-1]), dtype=np.float64), np.arange(len(scored[-1]), dtype=np.float64)

    monkeypatch.setattr(curation, "trained", train)
    monkeypatch.setattr(curation, "fits", score)
    among = best(np.random.default_rng(0).random(len(noisy.wrong_N)), 0.5)
    scores, _ = cross_scores(inputs, noisy, among, 100, 0)
    assert len(seen) == len(scored) == curation.FOLDS
    assert all(not (a & b) for a, b in zip(seen, scored, strict=True))
    assert set.union(*scored) == places(noisy.pictures)
    assert set.union(*seen) == places(noisy.take(among)[0])
    assert scores.min() > 0
    assert scores.max() < 1


@pytest.mark.drill(4)
def test_the_loop_finds_shuffled_captions_and_the_same_each_time(inputs: Inputs, tmp_path: Path) -> None:
    one, again = (outcome(inputs, 3, 6_400, 3_200) for _ in range(2))
    assert one == again
    assert one.rounds[-1].auc > 0.6, "of 82 pairs, where each name was drawn twice"
    assert one.kept_wrong < 0.9 * one.wrong
    assert set(one.recall) == set(curation.ARMS)
