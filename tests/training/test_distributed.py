"""Two gloo processes end with the queue and the weights of one process with the whole batch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from training import distributed

ROOT = Path(__file__).parents[2]


def run(world: int, folder: Path) -> list[dict[str, Tensor]]:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    program, store = str(Path(__file__).with_name("two_ranks.py")), str(folder / "store")
    outs = [folder / f"rank{rank}.pt" for rank in range(world)]
    ranks = [
        subprocess.Popen(
            [sys.executable, program, str(rank), str(world), store, str(out)],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank, out in enumerate(outs)
    ]
    errors = [process.communicate(timeout=120)[1] for process in ranks]
    assert [process.returncode for process in ranks] == [0] * world, "\n".join(errors)
    return [torch.load(out, weights_only=True) for out in outs]


@pytest.mark.slow
def test_one_and_two_processes_end_equal(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    (one,) = run(1, tmp_path / "one")
    first, second = run(2, tmp_path / "two")
    assert first.pop("gathered").tolist() == second.pop("gathered").tolist() == [0, 10, 1, 11]
    assert first.pop("gathered_bool").tolist() == second.pop("gathered_bool").tolist() == [False, True]
    assert one.pop("gathered").tolist() == [0, 10]
    assert one.pop("gathered_bool").tolist() == [False]
    assert one.keys() == first.keys() == second.keys()
    for name, value in one.items():
        for other in (first[name], second[name]):
            same = torch.allclose(value, other, atol=1e-9) if value.is_floating_point() else torch.equal(value, other)
            assert same, name
    assert one["queue/text_queue.filled_K"].sum() > 10


def test_without_a_group_there_is_one_rank() -> None:
    x = torch.arange(3.0, requires_grad=True)
    assert (distributed.rank(), distributed.world_size(), distributed.active()) == (0, 1, False)
    assert torch.equal(distributed.gather(x), x.detach())
    assert not distributed.gather(x).requires_grad
    assert distributed.gather_with_grad(x) is x
    distributed.average_([x])
    assert x.tolist() == [0, 1, 2]
