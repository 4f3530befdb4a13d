"""The sides of the training-step benchmark, each stepped on command in a process of its own, and the ladder's rungs.

    released            tests/benchmarks/released.py under torch's Adam, with the C library's allocator as it comes
    released_keep       the same with our allocator setting
    ours                our step as `fit` runs it; with our allocator setting, as `fit` sets it
    ours_blocks         the same with gradient checkpointing
    ours_bf16           the same under bf16 autocast

Why processes of their own: the peak of a process's memory never falls, and an allocator setting is for a whole process.
The ladder undoes in our own model what the release does another way, and puts back one change after the other.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from released import ReleasedBriVL
from torch import Tensor, nn

from training import moco
from training.config import Config
from training.device import keep_memory
from training.encoders.cnn_regions import Trunk
from training.method.key_towers import update_average
from training.moco import BriVL
from training.records import Batch
from training.resolve import resolve
from training.run.accumulate import backward
from training.run.optimizer import build_optimizer
from training.towers.region_pooling import pool_regions

THREADS = 2
SIDES = {"released": "", "released_keep": "", "ours": "", "ours_blocks": "run.recompute=blocks"}
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


Change = tuple[str, Callable[[], object]]


def ladder(step: OurStep) -> Iterator[str]:
    """Undo every change of ours, then put them back one by one; before each step of the caller, what is in force."""
    model = step.model
    trunks = [t for t in (model.image_query.trunk, model.image_key) if isinstance(t, Trunk)]
    fused, keys, recompute = step.optimizer, model._keys, trunks[0].recompute
    for trunk in trunks:
        trunk.regions = _released_regions(trunk)  # type: ignore[method-assign]
        trunk.recompute = "nothing"
    model._keys = lambda _image, _text, batch: keys(  # type: ignore[method-assign]
        model.image_query.prefix(batch), model.text_query.prefix(batch), batch
    )
    moco.update_average = _loop_average
    model.image_key.train()
    model.text_key.train()
    _lay_out(model, torch.contiguous_format)
    parameters = [p for p in model.parameters() if p.requires_grad]
    step.optimizer = torch.optim.Adam(parameters, lr=1e-4, foreach=False, fused=False)

    def matmul() -> None:
        for trunk in trunks:
            trunk.regions = _convolved_first(trunk)  # type: ignore[method-assign]

    def mean_first() -> None:
        for trunk in trunks:
            del trunk.regions

    def share() -> None:
        model._keys = keys  # type: ignore[method-assign]

    def foreach() -> None:
        moco.update_average = update_average

    def eval_keys() -> None:
        model.image_key.eval()
        model.text_key.eval()

    def fused_adamw() -> None:
        step.optimizer = fused

    def pointwise() -> None:
        for trunk in trunks:
            trunk.recompute = recompute

    yield "nothing"
    changes: list[Change] = [("matmul_pooling", matmul), ("conv_after_mean", mean_first), ("shared_prefix", share)]
    changes += [("foreach_ema", foreach), ("key_towers_in_eval", eval_keys)]
    changes += [("channels_last", lambda: _lay_out(model, torch.channels_last)), ("fused_adamw", fused_adamw)]
    changes += [("recompute_pointwise", pointwise)]
    if step.device.type == "cpu":
        changes.append(("allocator", keep_memory))
    for name, change in changes:
        change()
        gc.collect()
        yield name


def _released_regions(trunk: Trunk) -> Callable[[Tensor, Batch], Tensor]:
    """Image by image, box by box: 16 samples, the 1x1 convolution on each, their mean."""

    def regions(map_BCHW: Tensor, batch: Batch) -> Tensor:
        weight, bias = trunk.project.weight[..., None, None], trunk.project.bias
        side, found = batch.images_B3HW.shape[-1], []
        for map_CHW, boxes_R4 in zip(map_BCHW, batch.boxes_BR4, strict=True):
            x1, y1, x2, y2 = (2 * boxes_R4 / side - 1).unbind(1)
            nothing = torch.zeros_like(x1)
            across = torch.stack([(x2 - x1) / 2, nothing, (x1 + x2) / 2], dim=1)
            down = torch.stack([nothing, (y2 - y1) / 2, (y1 + y2) / 2], dim=1)
            shape = [len(boxes_R4), len(map_CHW), trunk.grid, trunk.grid]
            where = F.affine_grid(torch.stack([across, down], dim=1), shape, align_corners=False)
            with torch.backends.cudnn.flags(enabled=False):
                points = F.grid_sample(
                    map_CHW.expand(len(boxes_R4), -1, -1, -1), where.to(map_CHW), align_corners=False
                )
                found.append(F.avg_pool2d(F.conv2d(points, weight, bias), trunk.grid, stride=1).flatten(1))
        return torch.stack(found)

    return regions


def _convolved_first(trunk: Trunk) -> Callable[[Tensor, Batch], Tensor]:
    """One matrix product for all boxes, on a map to which the 1x1 convolution was applied before."""

    def regions(map_BCHW: Tensor, batch: Batch) -> Tensor:
        convolved_BDHW = F.conv2d(map_BCHW, trunk.project.weight[..., None, None], trunk.project.bias)
        side = batch.images_B3HW.shape[-1]
        return pool_regions(convolved_BDHW.float(), batch.boxes_BR4, (side, side), grid=trunk.grid)

    return regions


def _loop_average(key: nn.Module, query: nn.Module, momentum: float) -> None:
    for k, q in zip(key.parameters(), query.parameters(), strict=True):
        if k is not q:
            k.data = k.data * momentum + q.data * (1 - momentum)


def _lay_out(model: BriVL, layout: torch.memory_format) -> None:
    """The image tower's weights and maps in a memory format; an optimiser's moments follow at its next use."""
    model.image_query.prefix.layout = layout
    model.image_query.to(memory_format=layout)  # type: ignore[call-overload]
    model.image_key.to(memory_format=layout)  # type: ignore[call-overload]


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
    """Step once for every line `step` on stdin, answer its seconds; at the end of stdin, answer the memory."""
    torch.set_num_threads(THREADS)
    if side != "released":
        keep_memory()
    config = config_of(recipe, SIDES[side])
    step: Any = ReleasedStep(config, pairs) if side.startswith("released") else OurStep(config, pairs)
    for _ in sys.stdin:
        start = time.perf_counter()
        step()
        answer({"seconds": time.perf_counter() - start})
    answer(memory(step.model, step.optimizer))


def serve_ladder(recipe: str, pairs: int, rounds: int) -> None:
    """Answer, for each rung, its name and the seconds of the quickest of `rounds` steps after one that warms it up."""
    torch.set_num_threads(THREADS)
    step = OurStep(config_of(recipe), pairs)
    for rung in ladder(step):
        seconds = []
        for turn in range(rounds + 1):
            start = time.perf_counter()
            step()
            if turn:
                seconds.append(time.perf_counter() - start)
        answer({"rung": rung, "seconds": min(seconds)})


def serve_loss(recipe: str, pairs: int) -> None:
    """Answer the loss of the release and of ours in compat, same weights, dropout 0, batch norms in eval."""
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
        mine = float(ours(batch).loss)
        answer({"ours": mine, "released": float(theirs(as_floats(batch)))})


def answer(values: dict[str, Any]) -> None:
    print(json.dumps(values), flush=True)


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    name, recipe, pairs, rounds = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    if name == "ladder":
        serve_ladder(recipe, pairs, rounds)
    elif name == "loss":
        serve_loss(recipe, pairs)
    else:
        serve(name, recipe, pairs)
