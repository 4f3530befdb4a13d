"""The loop on a small study: it finds shuffled captions without being told, and is the same each time."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from training.study import curation
from training.study.curation import Inputs, Noisy, area, best, cross_scores, fits, known, outcome, record, trained

if TYPE_CHECKING:
    from training.study.corpus import Corpus


@pytest.fixture(scope="module")
def inputs(corpus: Corpus) -> Inputs:
    return Inputs.of(corpus)


def test_captions_are_shuffled_among_themselves_and_the_others_left_alone(corpus: Corpus) -> None:
    noisy = Noisy.of(corpus, 0)
    assert (noisy.pictures.emoji_N[~noisy.wrong_N] == noisy.told_N[~noisy.wrong_N]).all()
    assert (noisy.pictures.emoji_N[noisy.wrong_N] != noisy.told_N[noisy.wrong_N]).all()
    assert sorted(noisy.told_N) == sorted(noisy.pictures.emoji_N), "no caption is lost"
    assert 0.2 < noisy.wrong_N.mean() <= curation.SHUFFLED
    assert (Noisy.of(corpus, 1).told_N != noisy.told_N).any()


def test_the_area_is_that_of_scikit_learn() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    wrong, scores = rng.random(200) < 0.3, np.round(rng.random(200), 1)  # with ties
    assert area(scores, wrong) == pytest.approx(metrics.roc_auc_score(~wrong, scores))


def test_the_best_are_a_share_and_of_equal_ones_the_first() -> None:
    assert best(np.array([0.1, 0.9, 0.9, 0.5]), 0.5).tolist() == [False, True, True, False]
    assert best(np.zeros(4), 0.5).tolist() == [True, True, False, False]


def test_the_inputs_are_the_names_and_the_drawings(inputs: Inputs) -> None:
    corpus = inputs.corpus
    characters = corpus.tokenizer.vocabulary
    for number in (0, 7):
        ids = [i for i in inputs.names(np.array([number]))[0].tolist() if i]
        known_ones = [c for c in corpus.emoji[number].name if c in characters]
        assert [characters[i] for i in ids if characters[i] in known_ones] == known_ones
        assert len(ids) == len(corpus.emoji[number].name), "marks are taken off"
    pictures = corpus.select("train", "train")
    assert inputs.images(pictures).shape[0] == len(pictures)


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


def test_a_model_learns_which_name_belongs_to_which_drawing(inputs: Inputs) -> None:
    pictures = inputs.corpus.select("train", "train")
    names = np.unique(pictures.emoji_N)
    heads = trained(inputs, pictures, pictures.emoji_N, 12_800, 0)
    right, cosine = fits(heads, inputs, pictures, pictures.emoji_N, names)
    other, _ = fits(heads, inputs, pictures, np.roll(pictures.emoji_N, 1), names)
    assert np.mean(right > other) > 0.95
    assert np.abs(cosine).max() <= 1.0001


def test_the_loop_finds_shuffled_captions_and_the_same_each_time(inputs: Inputs, tmp_path: Path) -> None:
    one, again = (outcome(inputs, 3, 6_400, 3_200) for _ in range(2))
    assert one == again
    assert one.rounds[-1].auc > 0.6, "of 82 pairs, where each name was drawn twice"
    assert one.kept_wrong < 0.9 * one.wrong
    assert set(one.recall) == set(curation.ARMS)
    assert sum(map(sum, one.scores.values())) == one.pairs
    assert {row["style"] for row in one.examples["dropped_wrong"]} <= {"Noto", "Twemoji"}


def test_a_record_is_read_back_and_one_of_something_else_is_not(
    inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = outcome(inputs, 1, 640, 640)
    monkeypatch.setattr(curation, "outcome", lambda inputs, seed: small)
    assert known(tmp_path, "k", 1) is None
    assert record(tmp_path, inputs, "k", 1) == small
    assert known(tmp_path, "k", 1) == small
    assert known(tmp_path, "other", 1) is None
    (tmp_path / "seed1.json").write_text("{", encoding="utf-8")
    assert known(tmp_path, "k", 1) is None
