"""Key towers follow query towers by an average, batch norms included."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from training.method.key_towers import key_trunk, update_average


def test_the_average_is_that_of_a_loop_and_takes_batch_norm_along() -> None:
    torch.manual_seed(0)
    query = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(5, 5))
    key = copy.deepcopy(query).requires_grad_(False)
    query.train()(torch.randn(2, 3, 7, 7))
    with torch.no_grad():
        for p in query.parameters():
            p.add_(torch.randn_like(p))
    before = {name: value.clone() for name, value in key.state_dict().items()}
    update_average(key, query, 0.9)
    for name, value in key.state_dict().items():
        now = query.state_dict()[name]
        expected = 0.9 * before[name] + 0.1 * now if now.is_floating_point() else now
        assert torch.allclose(value, expected, atol=1e-6), name
    assert not torch.equal(key.state_dict()["1.running_mean"], before["1.running_mean"])


def test_half_precision_weights_get_no_average() -> None:
    query = nn.Linear(2, 2).bfloat16()
    with pytest.raises(AssertionError):
        update_average(copy.deepcopy(query), query, 0.99)


def test_a_key_trunk_shares_what_is_frozen() -> None:
    """Guards the tests of the ten faults: a key tower that shared trained weights would pass them."""
    trunk = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    trunk[0].requires_grad_(False)
    key = key_trunk(trunk)
    assert [a is b for a, b in zip(key.parameters(), trunk.parameters(), strict=True)] == [True, True, False, False]
