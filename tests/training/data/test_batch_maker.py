"""What is in a batch: pixels, boxes, tokens, ids, and the slots of samples that cannot be decoded."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.training.data.test_loader import CONFIG, loader
from training.data.batch_maker import short_id
from training.data.index import open_dataset
from training.data.loader import Share

MakeShards = Callable[..., Path]


@pytest.mark.slow
def test_a_corrupt_sample_leaves_its_slot_and_is_named_once(
    make_shards: MakeShards, caplog: pytest.LogCaptureFixture
) -> None:
    whole = make_shards(name="whole")
    hurt = make_shards(name="hurt", damage={4: b"\xff\xd8\xff\xe0 cut", 9: b"\xff\xd8"})
    source = loader(hurt, Share(7))
    expected = list(loader(whole, Share(7)).batches(0, 42))
    with caplog.at_level(logging.WARNING):
        found = list(source.batches(0, 42))
    assert sum(int((~b.valid_B).sum()) for b in found) == 4  # two samples, two epochs
    for before, after in zip(expected, found, strict=True):
        assert torch.equal(before.sample_ids_B, after.sample_ids_B)
        assert torch.equal(before.images_B3HW[after.valid_B], after.images_B3HW[after.valid_B])
        assert int(after.n_boxes_B.min()) >= 1
    assert source.corrupt == 2
    data = open_dataset([str(hurt)], "train")
    for number in (4, 9):
        assert sum(data.row(number).key in r.getMessage() for r in caplog.records) == 1


def test_regions_are_scaled_cut_and_followed_by_the_whole_image(make_shards: MakeShards) -> None:
    manifest = make_shards(detector="yolo")
    batch = next(loader(manifest, Share(4)).batches(0))
    scaled = torch.tensor([[0, 0, 32, 32], [16, 12.8, 64, 64], [0, 0, 64, 64]])  # 40x30 to 64x64
    assert torch.allclose(batch.boxes_BR4, scaled.expand(4, 3, 4))
    assert batch.n_boxes_B.tolist() == [3] * 4
    batch = next(loader(manifest, Share(4), config=replace(CONFIG, max_boxes=1)).batches(0))
    assert torch.allclose(batch.boxes_BR4, scaled[[0, 2]].expand(4, 2, 4))


def test_without_regions_boxes_are_a_grid_and_that_is_said(
    make_shards: MakeShards, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        batch = next(loader(make_shards(), Share(4)).batches(0))
    assert batch.boxes_BR4[0].tolist() == [
        [0, 0, 32, 32],
        [32, 0, 64, 32],
        [0, 32, 32, 64],
        [32, 32, 64, 64],
        [0, 0, 64, 64],
    ]
    assert sum("grid" in record.getMessage() for record in caplog.records) == 1


def test_batches_of_a_device_are_those_of_the_cpu(make_shards: MakeShards) -> None:
    manifest = make_shards(damage={4: b"\xff\xd8\xff\xe0 cut"})
    there = loader(manifest, Share(4), decode_on=torch.device("cpu"))
    for mine, theirs in zip(there.batches(0, 12), loader(manifest, Share(4)).batches(0, 12), strict=True):
        assert torch.equal(mine.sample_ids_B, theirs.sample_ids_B)
        assert torch.equal(mine.valid_B, theirs.valid_B)
        assert torch.equal(mine.boxes_BR4, theirs.boxes_BR4)
        assert (mine.images_B3HW.int() - theirs.images_B3HW.int()).abs().max() <= 2


def test_short_ids_are_the_first_64_bits_signed() -> None:
    assert short_id("ff" * 32) == -1
    assert short_id("00" * 7 + "01" + "ff" * 24) == 1


def test_unmasked_towers_get_every_text_padded_to_the_full_length(make_shards: MakeShards) -> None:
    share = Share(4)
    padded = next(loader(make_shards(), share, as_released=True).batches(0))
    plain = next(loader(make_shards(name="again"), share).batches(0))
    assert padded.token_ids_BL.shape == (4, CONFIG.max_tokens)
    length = plain.token_ids_BL.shape[1]
    assert length < CONFIG.max_tokens
    assert torch.equal(padded.token_ids_BL[:, :length], plain.token_ids_BL)
    assert not padded.token_ids_BL[:, length:].any()
    assert torch.equal(padded.n_tokens_B, plain.n_tokens_B)
