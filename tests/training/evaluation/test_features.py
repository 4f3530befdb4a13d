"""Features for evaluation: of which samples and pictures, in which order, and what becomes of the model's mode."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.synthetic import encode
from training.errors import InputError
from training.evaluation.benchmarks import BenchmarkPicture
from training.evaluation.features import embed, embed_batches, picture_features, text_rows
from training.records import Batch
from training.towers.tower import Modality
from training.use.embed import text_features
from training.use.encode import open_encoder
from training.weights.load import Loaded, load

MakeShards = Callable[..., Path]


@pytest.mark.parametrize("trains", [True, False])
def test_without_a_batch_there_is_no_feature_and_the_model_stays_in_its_mode(checkpoint: Path, trains: bool) -> None:
    model = load(checkpoint, "cpu").model.train(trains)
    assert len(embed_batches(model, iter(()), torch.device("cpu"), "fp32").image_ND) == 0
    with pytest.raises(InputError, match="no samples in the split"):
        embed(model, iter(()), torch.device("cpu"), "fp32")
    assert model.training == trains


def test_texts_have_a_row_each_in_their_order(checkpoint: Path) -> None:
    loaded = load(checkpoint, "cpu")
    texts = [f"第{n}幅画" for n in range(70)]  # more than one batch
    text_MD = text_rows(loaded, texts)
    assert np.allclose(np.linalg.norm(text_MD, axis=1), 1, atol=1e-5)
    assert np.allclose(text_MD[[3, 69]], np.concatenate([text_rows(loaded, [texts[n]]) for n in (3, 69)]), atol=1e-5)


def test_equal_texts_are_embedded_once(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In two batches one text has features that differ by rounding, so that a tie would have a winner."""
    embedded = list[int]()

    def encode(self: Loaded, modality: Modality, batch: Batch, *more: Any) -> torch.Tensor:
        embedded.append(len(batch))
        return own(self, modality, batch, *more)

    own = Loaded.encode
    monkeypatch.setattr(Loaded, "encode", encode)
    loaded, encoder = load(checkpoint, "cpu"), open_encoder(checkpoint, "cpu")
    texts = ["红船", "山水" * 20, *(f"第{n}幅画" for n in range(40)), "红船", "山水" * 20, "红船"]
    for text_MD in (text_rows(loaded, texts), text_features(loaded, texts).numpy(), encoder.encode_text(texts)):
        assert np.array_equal(text_MD[42:], text_MD[[0, 1, 0]])
        assert not np.allclose(text_MD[:42], text_MD[0], atol=0.01)
    assert sum(embedded) == 3 * 42


def test_a_picture_that_stands_twice_in_a_benchmark_moves_no_other(checkpoint: Path) -> None:
    loaded = load(checkpoint, "cpu")
    pictures = [BenchmarkPicture(name, encode("png", ord(name), (48, 40))) for name in "abac"]
    broken = [BenchmarkPicture(name, b"nothing") for name in "bd"]
    features_ND, row_of, corrupt = picture_features(loaded, [*broken, *pictures, *broken], "some")
    assert (len(features_ND), set(row_of), corrupt) == (3, set("abc"), {"d"})
    for picture in pictures:
        alone_1D, _, _ = picture_features(loaded, [picture], "one")
        assert np.allclose(features_ND[row_of[picture.id]], alone_1D[0], atol=1e-5), picture.id
