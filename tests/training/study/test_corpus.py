"""Galleries hold what their names say, and every arm sees the same pairs in the same order."""

from __future__ import annotations

import numpy as np
import torch

from training.study.corpus import Corpus, Stream, cell_boxes, cells
from training.study.split import family, part_of
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


def test_the_style_gallery_shows_trained_emoji_in_styles_that_are_not(corpus: Corpus) -> None:
    style = [g for g in corpus.galleries if g.name == "style"]
    trained = set(corpus.select("train", "train").emoji_N.tolist())
    for gallery in style:
        assert {corpus.styles[s].style.part for s in gallery.pictures.style_N} == {"val"}
        assert set(gallery.emoji_M.tolist()) <= trained
    assert {corpus.styles[s].style.part for g in corpus.galleries if g.name == "dev" for s in g.pictures.style_N} == {
        "dev"
    }


def test_batches_of_any_size_are_cut_from_one_stream(corpus: Corpus) -> None:
    small, large = Stream(corpus, 5), Stream(corpus, 5)
    ids = torch.cat([small.batch(p, 4).text_ids_B for p in range(-8, 200, 4)])
    assert torch.equal(ids, torch.cat([large.batch(p, 26).text_ids_B for p in range(-8, 200, 26)]))
    assert not torch.equal(ids, torch.cat([Stream(corpus, 6).batch(p, 4).text_ids_B for p in range(-8, 200, 4)]))


def test_every_drawing_comes_once_an_epoch_with_a_text_of_its_emoji(corpus: Corpus) -> None:
    stream = Stream(corpus, 1)
    batch = stream.batch(0, len(stream))
    assert len(set(batch.sample_ids_B.tolist())) == len(stream)
    assert torch.equal(batch.text_ids_B, batch.image_ids_B)
    named = 0
    for row, emoji in enumerate(batch.image_ids_B.tolist()):
        own = corpus.emoji[emoji]
        texts = [own.name, *(f"{own.name}，{keyword}" for keyword in own.keywords)]
        known = [corpus.tokens([text])[0][0].tolist() for text in texts]
        tokens = batch.token_ids_BL[row][: int(batch.n_tokens_B[row])].tolist()
        assert tokens in known
        named += tokens == known[0]
    assert 0.3 < named / len(stream) < 0.7


def test_shuffled_pairs_keep_the_pictures_and_break_the_pairs(corpus: Corpus) -> None:
    plain, shuffled = (Stream(corpus, 1, shuffled=s).batch(0, 60) for s in (False, True))
    assert torch.equal(plain.images_B3HW, shuffled.images_B3HW)
    assert (plain.text_ids_B != shuffled.text_ids_B).float().mean() > 0.5


def test_pooling_returns_each_cached_region_as_it_is() -> None:
    regions = np.random.default_rng(0).normal(size=(3, 5, 7)).astype(np.float32)
    pooled = pool_regions(cells(regions), cell_boxes(5).expand(3, -1, -1), (1, 5), grid=1)
    assert torch.equal(pooled, torch.from_numpy(regions))
    whole = pool_regions(cells(regions, whole_only=True), cell_boxes(1).expand(3, -1, -1), (1, 1), grid=1)
    assert torch.equal(whole[:, 0], torch.from_numpy(regions[:, -1]))
