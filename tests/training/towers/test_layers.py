"""Encoder layers against torch's own, and the masks of both towers."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from training.towers.layers import EncoderLayer, Head, length_mask, masked_mean


def test_an_encoder_layer_is_torchs_with_the_same_weights() -> None:
    torch.manual_seed(0)
    theirs = nn.TransformerEncoderLayer(16, 4, 24, dropout=0.0, batch_first=True).double()
    ours = EncoderLayer(16, 4, 24, dropout=0.0).double()
    ours.load_state_dict(theirs.state_dict())  # strict: names and shapes are torch's
    x = torch.randn(3, 5, 16, dtype=torch.float64)
    mask = length_mask(torch.tensor([5, 1, 3]), 5)
    expected, found = theirs(x, src_key_padding_mask=~mask), ours(x, mask)
    assert torch.allclose(found[mask], expected[mask], atol=1e-12)


def test_padding_changes_nothing_and_counts_for_nothing() -> None:
    torch.manual_seed(0)
    head = Head(16, 4, 24, layers=2, dropout=0.1, hidden=20, feature_dim=8).double().eval()
    x = torch.randn(2, 6, 16, dtype=torch.float64)
    short = head(x[:, :3], length_mask(torch.tensor([3, 2]), 3))
    x[0, 3:], x[1, 2:] = 99.0, -99.0
    assert torch.allclose(head(x, length_mask(torch.tensor([3, 2]), 6)), short, atol=1e-12)
    assert torch.allclose(short.norm(dim=1), torch.ones(2, dtype=torch.float64))


def test_a_mean_counts_what_is_present() -> None:
    x = torch.tensor([[[1.0], [3.0], [100.0]]])
    assert masked_mean(x, length_mask(torch.tensor([2]), 3)).item() == pytest.approx(2.0)
