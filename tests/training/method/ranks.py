"""What each rank of tests/training/run/ranks.py trains, to be compared with one process. No test by itself."""

from __future__ import annotations

import torch
from torch import Tensor

from training.method import distributed
from training.moco import BriVL
from training.records import Batch
from training.resolve import resolve
from training.run.gradient_exchange import GradientExchange
from training.run.step import backward

GLOBAL_BATCH = 8
STEPS = 3
OBJECTIVES = {
    "moco": ("moco.queue_size=13",),
    "positives": ("moco.queue_size=13", "moco.false_negatives=positives", "moco.learn_temperature=true"),
    "in_batch_keys": ("moco.queue_size=13", "moco.in_batch_keys=true"),
    "shuffle": ("moco.queue_size=13", "moco.key_norm=shuffle"),
    "clip": ("moco.objective=clip",),
    "siglip": ("moco.objective=siglip",),
    "albef": ("moco.objective=albef", "moco.queue_size=13", "moco.learn_temperature=true"),
}


def global_batch(seed: int) -> Batch:
    """Eight pairs of few different texts, with one to four boxes; one of them could not be read."""
    generator = torch.Generator().manual_seed(seed)
    sample_ids, image_ids = (torch.randint(-(2**62), 2**62, (GLOBAL_BATCH,), generator=generator) for _ in range(2))
    boxes_BR4 = torch.rand(GLOBAL_BATCH, 4, 4, generator=generator) * 32
    boxes_BR4[..., 2:] += 32
    return Batch(
        torch.randint(0, 256, (GLOBAL_BATCH, 3, 64, 64), dtype=torch.uint8, generator=generator),
        boxes_BR4,
        torch.randint(1, 5, (GLOBAL_BATCH,), generator=generator),
        torch.randint(4, 50, (GLOBAL_BATCH, 6), generator=generator),
        torch.full((GLOBAL_BATCH,), 6),
        sample_ids,
        image_ids,
        torch.randint(0, 9, (GLOBAL_BATCH,), generator=generator),
        torch.arange(GLOBAL_BATCH) != seed,
    )


def of_this_rank(step: int, micros: int) -> list[Batch]:
    """Micro-step m of all ranks, in rank order, is the m-th slice; each rank pads to its own most boxes."""
    batch, rank, world = global_batch(step), distributed.rank(), distributed.world_size()
    share = GLOBAL_BATCH // world // micros
    parts = []
    for micro in range(micros):
        start = (micro * world + rank) * share
        part = batch.rows(start, start + share)
        most = int(part.n_boxes_B.max())
        parts.append(Batch(**{**vars(part), "boxes_BR4": part.boxes_BR4[:, :most]}))
    return parts


def train(overrides: tuple[str, ...], micros: int) -> dict[str, Tensor]:
    """A few steps."""
    torch.manual_seed(0)
    model = BriVL(resolve("tiny", ("image.frozen_stages=7", "image.dropout=0", "text.dropout=0", *overrides)))
    model.double().train()
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(parameters, 0.1)
    exchange, samples = GradientExchange(model), (GLOBAL_BATCH - 1) / distributed.world_size()
    losses = []
    for step in range(STEPS):
        exchange.clear(optimizer)
        outputs = backward(model, of_this_rank(step, micros), samples, exchange=exchange)
        optimizer.step()
        model.after_step(outputs, step)
        losses.append(torch.stack([output.loss.detach() for output in outputs]).sum())
    distributed.average_(losses)
    return {**model.state_dict(), "losses": torch.stack(losses)}


def work() -> dict[str, Tensor]:
    """Everything that a rank computes."""
    results = {f"{name}/{key}": v for name, o in OBJECTIVES.items() for key, v in train(o, 1).items()}
    for name in ("moco", "siglip", "albef"):
        results |= {f"micros of {name}/{key}": v for key, v in train(OBJECTIVES[name], 2).items()}
    rank = distributed.rank()
    results["gathered"] = distributed.gather(torch.tensor([rank, 10 + rank]))
    results["gathered_bool"] = distributed.gather(torch.tensor([rank == 1]))
    return results
