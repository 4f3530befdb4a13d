"""The single tower: every pair is scored, its size is the two towers', and it learns what matches."""

from __future__ import annotations

import numpy as np
import torch

from training.study.arms import ARMS, BASE, chosen, config_of
from training.study.corpus import Corpus, Stream
from training.study.single_tower import Matcher, SingleTower
from training.study.trial import build_model, smaller

ARM = chosen(["single-tower"], ARMS)[0]


def test_it_is_about_as_large_as_the_two_towers():
    two = sum(p.numel() for p in build_model(config_of(BASE, 0.07, 0, 1500)).parameters() if p.requires_grad)
    one = sum(p.numel() for p in Matcher(config_of(ARM, 0.07, 0, 1500)).parameters())
    assert 0.9 < one / two < 1.1


def test_scores_are_those_of_each_pair_alone(corpus: Corpus) -> None:
    tower = SingleTower(config_of(ARM, 0.07, 0, len(corpus.tokenizer.vocabulary)))
    gallery = smaller(corpus.galleries[0], 5)
    scores_NM, names_MM = tower.scores(corpus, gallery)
    assert (names_MM == np.eye(5)).all()
    name = corpus.emoji[gallery.emoji_M[3]].name
    batch = corpus.batch(gallery.pictures.take(slice(1, 2)), [name])
    tower.model.eval()
    with torch.no_grad():
        alone = tower.model(batch.images_B3HW.squeeze(2).transpose(1, 2), batch.token_ids_BL, batch.n_tokens_B)
    assert abs(scores_NM[1, 3] * 100 - float(alone)) < 1e-4


def test_it_learns_what_matches(corpus: Corpus) -> None:
    stream = Stream(corpus, 0)
    tower = SingleTower(config_of(ARM, 0.07, 0, len(corpus.tokenizer.vocabulary)))
    losses = [tower.step(stream.batch(16 * n, 16), n, 16 * n + 10_000) for n in range(120)]
    assert np.mean(losses[-20:]) < 0.8 * np.mean(losses[:20])
