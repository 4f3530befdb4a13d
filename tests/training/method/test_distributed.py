"""Without a process group there is one rank. Several: tests/training/run/test_agreement.py."""

from __future__ import annotations

import torch

from training.method import distributed


def test_without_a_group_there_is_one_rank() -> None:
    x = torch.arange(3.0, requires_grad=True)
    assert (distributed.rank(), distributed.world_size(), distributed.active()) == (0, 1, False)
    assert torch.equal(distributed.gather(x), x.detach())
    assert not distributed.gather(x).requires_grad
    assert distributed.gather_with_grad(x) is x
    distributed.average_([x])
    assert x.tolist() == [0, 1, 2]
