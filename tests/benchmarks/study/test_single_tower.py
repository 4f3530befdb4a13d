"""The single tower: every pair is scored, its size is the two towers', and it learns what matches."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.benchmarks.study.arms import ARMS, Setting, chosen, config_of
from tests.benchmarks.study.corpus import Corpus
from tests.benchmarks.study.single_tower import SingleTower
from tests.benchmarks.study.trial import smaller

ARM = chosen(["single-tower"], ARMS)[0]


@pytest.mark.slow
def test_scores_are_those_of_each_pair_alone(corpus: Corpus) -> None:
    tower = SingleTower(config_of(ARM, Setting(), 0, len(corpus.tokenizer.vocabulary)))
    gallery = smaller(corpus.galleries[0], 5)
    scores_NM, names_MM = tower.scores(corpus, gallery)
    assert (names_MM == np.eye(5)).all()
    name = corpus.emoji[gallery.emoji_M[3]].name
    batch = corpus.batch(gallery.pictures.take(slice(1, 2)), [name])
    tower.model.eval()
    with torch.no_grad():
        alone = tower.model(batch.images_B3HW.squeeze(2).transpose(1, 2), batch.token_ids_BL, batch.n_tokens_B)
    assert abs(scores_NM[1, 3] * 100 - float(alone)) < 1e-4
