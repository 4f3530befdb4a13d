"""Galleries hold what their names say, and every arm sees the same pairs in the same order."""

from __future__ import annotations

import numpy as np
import torch

from tests.benchmarks.study.corpus import Corpus, Stream, cell_boxes, cells
from tests.benchmarks.study.split import family, part_of
from training.towers.region_pooling import pool_regions


def test_no_held_out_emoji_and_no_held_out_style_is_trained_on(corpus: Corpus) -> None:
    trained = corpus.select("train", "train")
    assert len(trained)
    assert {corpus.styles[s].style.part for s in trained.style_N} == {"train"}
    names = next(g for g in corpus.galleries if g.name == "names")
    families = [{family(corpus.emoji[e].code) for e in pictures.emoji_N} for pictures in (trained, names.pictures)]
    assert families[0]
    assert families[1]
    assert not families[0] & families[1]
    assert all(part_of(corpus.emoji[e].code) == "val" for e in names.emoji_M)
    chosen_on = next(g for g in corpus.galleries if g.name == "dev_names")
    assert len(chosen_on.emoji_M)
    assert all(part_of(corpus.emoji[e].code) == "dev" for e in chosen_on.emoji_M)
    assert not {family(corpus.emoji[e].code) for e in chosen_on.emoji_M} & (families[0] | families[1])


def test_batches_of_any_size_are_cut_from_one_stream(corpus: Corpus) -> None:
    small, large = Stream(corpus, 5), Stream(corpus, 5)
    ids = torch.cat([small.batch(p, 4).text_ids_B for p in range(-8, 200, 4)])
    assert torch.equal(ids, torch.cat([large.batch(p, 26).text_ids_B for p in range(-8, 200, 26)]))
    assert not torch.equal(ids, torch.cat([Stream(corpus, 6).batch(p, 4).text_ids_B for p in range(-8, 200, 4)]))


def test_pooling_returns_each_cached_region_as_it_is() -> None:
    regions = np.random.default_rng(0).normal(size=(3, 5, 7)).astype(np.float32)
    pooled = pool_regions(cells(regions), cell_boxes(5).expand(3, -1, -1), (1, 5), grid=1)
    assert torch.equal(pooled, torch.from_numpy(regions))
