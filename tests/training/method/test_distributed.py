"""Two and four gloo processes end with the loss, the queue and the weights of one process with the whole batch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from training.method import distributed

ROOT = Path(__file__).parents[3]


def run(folder: Path, most: int) -> dict[int, list[dict[str, Tensor]]]:
    """What each rank ended with, by the number of ranks: 1, 2 and so on to `most`."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    program = str(Path(__file__).with_name("ranks.py"))
    words = [sys.executable, program, str(folder), f"{most}"]
    done = subprocess.run(words, env=environment, stderr=subprocess.PIPE, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    return {
        world: [torch.load(folder / f"{world}-{rank}.pt", weights_only=True) for rank in range(world)]
        for world in (1, 2, 4)
        if world <= most
    }


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("most", [2, pytest.param(4, marks=pytest.mark.drill(30))])
def test_one_two_and_four_processes_have_one_loss_and_end_equal(tmp_path: Path, most: int) -> None:
    """Of every objective, whole and in micro-batches: the trace of the loss, weights, key towers and queues."""
    found = run(tmp_path, most)
    for world, results in found.items():
        for result in results:
            assert result.pop("gathered").tolist() == [n + rank for rank in range(world) for n in (0, 10)]
            assert result.pop("gathered_bool").tolist() == [rank == 1 for rank in range(world)]
    (one,) = found[1]
    others = [(world, result) for world in found if world > 1 for result in found[world]]
    for name, value in one.items():
        for world, other in others:
            same = torch.allclose(value, other[name], atol=1e-9) if value.is_floating_point() else None
            assert same or torch.equal(value, other[name]), (world, name)
        if name.startswith("micros of "):
            whole = one[name.removeprefix("micros of ")]
            assert torch.allclose(value.double(), whole.double(), atol=1e-9), name
    assert all(other.keys() == one.keys() for _, other in others)
    assert one["moco/text_queue.filled_K"].sum() > 10
    assert all(value[1:].min() > 0.1 for name, value in one.items() if name.endswith("/losses"))


def test_without_a_group_there_is_one_rank() -> None:
    x = torch.arange(3.0, requires_grad=True)
    assert (distributed.rank(), distributed.world_size(), distributed.active()) == (0, 1, False)
    assert torch.equal(distributed.gather(x), x.detach())
    assert not distributed.gather(x).requires_grad
    assert distributed.gather_with_grad(x) is x
    distributed.average_([x])
    assert x.tolist() == [0, 1, 2]
