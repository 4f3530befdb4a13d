"""One rank of test_distributed.py: trains a few steps and saves what it ended with. Run as a program, not by pytest.

python two_ranks.py RANK WORLD STORE OUT: STORE is the file by which the ranks meet, OUT where the result goes.
"""

from __future__ import annotations

import sys

import torch
import torch.distributed as dist
from torch import Tensor

from training import distributed
from training.config import resolve
from training.moco import BriVL
from training.records import Batch

GLOBAL_BATCH = 8
OBJECTIVES = {
    "queue": ("moco.queue_size=13",),
    "in_batch_keys": ("moco.queue_size=13", "moco.in_batch_keys=true"),
    "clip": ("moco.objective=clip",),
}


def global_batch(seed: int) -> Batch:
    """Eight pairs, one of which could not be read."""
    generator = torch.Generator().manual_seed(seed)
    ids = [torch.randint(-(2**62), 2**62, (GLOBAL_BATCH,), generator=generator) for _ in range(3)]
    boxes_BR4 = torch.tensor([0.0, 0.0, 64.0, 64.0]).expand(GLOBAL_BATCH, 1, 4).clone()
    return Batch(
        torch.randint(0, 256, (GLOBAL_BATCH, 3, 64, 64), dtype=torch.uint8, generator=generator),
        boxes_BR4,
        torch.ones(GLOBAL_BATCH, dtype=torch.int64),
        torch.randint(4, 50, (GLOBAL_BATCH, 6), generator=generator),
        torch.full((GLOBAL_BATCH,), 6),
        *ids,
        torch.arange(GLOBAL_BATCH) != seed,
    )


def train(overrides: tuple[str, ...]) -> dict[str, Tensor]:
    """Three steps; the gradient is averaged over the ranks as DistributedDataParallel does."""
    rank, world = distributed.rank(), distributed.world_size()
    share = GLOBAL_BATCH // world
    torch.manual_seed(0)
    model = BriVL(resolve("tiny", ("image.frozen_stages=7", "image.dropout=0", "text.dropout=0", *overrides)))
    model.double().train()
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(parameters, 0.1)
    for step in range(3):
        output = model(global_batch(step).rows(rank * share, (rank + 1) * share), samples=(GLOBAL_BATCH - 1) / world)
        optimizer.zero_grad()
        output.loss.backward()
        distributed.average_([p.grad for p in parameters if p.grad is not None])
        optimizer.step()
        model.after_step(output, step)
    return dict(model.state_dict())


def main() -> None:
    rank, world, store, out = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
    torch.set_num_threads(1)
    if world > 1:
        dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
    results = {f"{name}/{key}": v for name, o in OBJECTIVES.items() for key, v in train(o).items()}
    results["gathered"] = distributed.gather(torch.tensor([rank, 10 + rank]))
    results["gathered_bool"] = distributed.gather(torch.tensor([rank == 1]))
    torch.save(results, out)
    if world > 1:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
