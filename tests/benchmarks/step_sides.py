"""The sides of the training-step benchmark, each stepped on command in a process of its own.

    released            tests/benchmarks/released.py under torch's Adam, with the C library's allocator as it comes
    released_keep       the same with our allocator setting
    ours                our step as `fit` runs it; with our allocator setting, as `fit` sets it
    ours_blocks         the same with gradient checkpointing
    ours_bf16           the same under bf16 autocast

Why processes of their own: the peak of a process's memory never falls, and an allocator setting is for a whole process.
"""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.benchmarks.harness import work_on_command
from tests.benchmarks.released import ReleasedBriVL
from training.config import Config
from training.device import keep_memory
from training.moco import BriVL
from training.records import Batch
from training.resolve import resolve
from training.run.optimizer import build_optimizer
from training.run.step import backward

THREADS = 2
SIDES = {"released": "", "released_keep": "", "ours": "run.recompute=pointwise", "ours_blocks": "run.recompute=blocks"}
SIDES |= {"ours_bf16": "run.precision=bf16"}


def config_of(recipe: str, *overrides: str) -> Config:
    return resolve(recipe, ["image.weights=", "text.weights=", "run.precision=fp32", *filter(None, overrides)])


def random_batch(config: Config, pairs: int, seed: int) -> Batch:
    """Full-sized pairs: the most boxes and tokens that the recipe has, uint8 pixels."""
    generator = torch.Generator().manual_seed(seed)
    size, regions, tokens = config.data.image_size, config.data.max_boxes + 1, config.data.max_tokens
    boxes = torch.rand(pairs, regions, 2, 2, generator=generator).mul(size).sort(dim=2).values.flatten(2)
    boxes[:, -1] = torch.tensor([0.0, 0.0, size, size])
    ids = torch.arange(pairs) + 1000 * seed
    return Batch(
        images_B3HW=torch.randint(0, 256, (pairs, 3, size, size), dtype=torch.uint8, generator=generator),
        boxes_BR4=boxes,
        n_boxes_B=torch.full((pairs,), regions),
        token_ids_BL=torch.randint(1, config.text.vocab_size, (pairs, tokens), generator=generator),
        n_tokens_B=torch.full((pairs,), tokens),
        sample_ids_B=ids,
        image_ids_B=ids,
        text_ids_B=ids,
        valid_B=torch.ones(pairs, dtype=torch.bool),
    )


def as_floats(batch: Batch) -> Batch:
    """The same batch as the release gets it: pixels normalised by its loader."""
    mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    return replace(batch, images_B3HW=(batch.images_B3HW.float() / 255 - mean) / std)


class ReleasedStep:
    """One optimiser step of the release after another."""

    def __init__(self, config: Config, pairs: int) -> None:
        torch.manual_seed(0)
        self.model: nn.Module = ReleasedBriVL(config).train()
        self.optimizer: torch.optim.Optimizer = torch.optim.Adam(
            [p for p in self.model.parameters() if p.requires_grad], lr=1e-4, weight_decay=1e-5
        )
        self.batch = as_floats(random_batch(config, pairs, 1))

    def __call__(self) -> None:
        self.optimizer.zero_grad()
        self.model(self.batch).backward()
        self.optimizer.step()


class OurStep:
    """One of our steps after another, the queues full."""

    def __init__(self, config: Config, pairs: int, device: str = "cpu") -> None:
        torch.manual_seed(0)
        self.config, self.pairs, self.device = config, pairs, torch.device(device)
        self.model = BriVL(config, load_weights=False).to(self.device).train()
        for queue in (self.model.image_queue, self.model.text_queue):
            queue.keys_KD.copy_(F.normalize(torch.randn_like(queue.keys_KD), dim=1))
            queue.filled_K.fill_(True)
            queue.image_ids_K.copy_(-1 - torch.arange(queue.size))
            queue.text_ids_K.copy_(-1 - torch.arange(queue.size))
        self.optimizer: torch.optim.Optimizer = build_optimizer(self.model, config.optim)
        self.batch = random_batch(config, pairs, 1).to(self.device)
        self.steps = 0

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.run.precision == "bf16")

    def __call__(self) -> None:
        outputs = backward(self.model, [self.batch], self.pairs, self.autocast)
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        self.optimizer.step()
        self.model.after_step(outputs, self.steps)
        self.optimizer.zero_grad(set_to_none=True)
        self.steps += 1


def memory(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, float]:
    """Bytes: the most that this process ever held, its parameters with buffers, and the optimiser's state."""
    tensors = {t.untyped_storage().data_ptr(): t for t in (*model.parameters(), *model.buffers())}
    state = [t for moments in optimizer.state.values() for t in moments.values() if isinstance(t, Tensor)]
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return {
        "peak": 1024.0 * int(peak.split()[1]),
        "parameters": float(sum(t.untyped_storage().nbytes() for t in tensors.values())),
        "optimizer": float(sum(t.untyped_storage().nbytes() for t in state)),
    }


def serve(side: str, recipe: str, pairs: int) -> None:
    """Step once for every line on stdin; answer its seconds and the memory so far."""
    torch.set_num_threads(THREADS)
    if side != "released":
        keep_memory()
    config = config_of(recipe, SIDES[side])
    step: Any = ReleasedStep(config, pairs) if side.startswith("released") else OurStep(config, pairs)

    def work() -> dict[str, float]:
        step()
        return memory(step.model, step.optimizer)

    work_on_command(work)


def losses(recipe: str, pairs: int) -> dict[str, float]:
    """The loss of the release and of ours in compat, same weights, dropout 0, batch norms in eval."""
    from training.weights.released import slots_of

    torch.set_num_threads(THREADS)
    keep_memory()
    off = ("image.dropout=0", "text.dropout=0", "text.backbone_dropout=0", "run.recompute=nothing")
    config = config_of(recipe, *off, "compat=brivl-1.0")
    torch.manual_seed(0)
    theirs = ReleasedBriVL(config).train()
    batch = random_batch(config, pairs, 1)
    for row in range(1, pairs):  # captions and box lists of several lengths
        tokens, boxes = config.data.max_tokens - 7 * row, config.data.max_boxes + 1 - 5 * row
        batch.token_ids_BL[row, tokens:], batch.n_tokens_B[row] = 0, tokens
        batch.boxes_BR4[row, boxes - 1] = batch.boxes_BR4[row, -1].clone()
        batch.boxes_BR4[row, boxes:], batch.n_boxes_B[row] = 0, boxes
    norms = [m for m in theirs.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0  # random weights: statistics of this batch keep the maps in range
    with torch.no_grad():
        theirs(as_floats(batch))
    for norm in norms:
        norm.eval()
    ours = BriVL(config, load_weights=False).train()
    for module in ours.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    state, wanted = theirs.learnable.state_dict(), ours.state_dict()
    found = {s.ours: state[n].reshape(wanted[s.ours].shape) for n, s in slots_of(config).items() if s.ours in wanted}
    ours.load_state_dict(found, strict=False)
    for queue, their_queue in ((ours.image_queue, theirs.img_queue), (ours.text_queue, theirs.text_queue)):
        queue.keys_KD.copy_(their_queue.T)
        queue.filled_K.fill_(True)
        queue.image_ids_K.copy_(-1 - torch.arange(queue.size))
        queue.text_ids_K.copy_(-1 - torch.arange(queue.size))
    with torch.no_grad():
        return {"ours": float(ours(batch).loss), "released": float(theirs(as_floats(batch)))}


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    name, recipe, pairs = sys.argv[1], sys.argv[2], int(sys.argv[3])
    if name == "loss":
        work_on_command(lambda: losses(recipe, pairs))
    else:
        serve(name, recipe, pairs)
