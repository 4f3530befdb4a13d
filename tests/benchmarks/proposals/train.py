"""Training of the net of `proposals` on composites, and its export to ONNX. One thread, about an hour, and a
process that makes the composites.

The same seed means the same pictures in the same order. Training starts from ImageNet weights of a MobileNetV2 (the
study's, `demo/weights`). It uses nothing on which the detector is judged: no photo of the benchmark, and no box of
another detector. Where it is killed, the same command with the same `--checkpoint` goes on.
"""

from __future__ import annotations

import copy
import io
import logging
import time
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from tests.benchmarks.proposals.composites import SIDE, composite
from tests.benchmarks.proposals.cutouts import Cutouts
from tests.benchmarks.proposals.net import FROZEN, Proposer, cells, decoded, loss_of, overlap

log = logging.getLogger("wenlan")

MOST = 40
"""Things per picture that training uses at most."""

SMALL = 224
"""Side of every other batch until the rates fall: half the work, and what is learnt carries over."""

DETECTED = 160
"""Side of what the exported net takes, that of the detector (pipeline/detectors/proposals.py)."""

WARM, FALL = 100, 0.15
"""Steps in which the rates rise, and the share of a training, at its end, in which they fall to zero. In between they
stay, so that a training can be continued with more steps than were asked for at first."""

SAVED = 50
"""Steps after which a checkpoint is written."""

HELD_OUT = 100_000_000
"""Composites from this number on are for measuring progress only."""


@dataclass(frozen=True)
class Plan:
    """How long a training is, and what it draws."""

    steps: int
    batch: int
    seed: int = 0

    def falls(self, step: int) -> bool:
        return step >= (1 - FALL) * self.steps

    def pace(self, step: int) -> float:
        """Factor of the learning rates at a step."""
        return min(1.0, (step + 1) / WARM, (self.steps - step) / (FALL * self.steps))

    def side(self, step: int) -> int:
        return SMALL if step % 2 and not self.falls(step) else SIDE


def train(cutouts: Cutouts, imagenet: Path, plan: Plan, checkpoint: Path | None = None) -> Proposer:
    """The trained net: an average of its weights over the last steps. Logs loss and recall on held-out composites.

    Composites are made in a process beside it. A checkpoint that exists is continued.
    """
    torch.manual_seed(plan.seed)
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    net = Proposer(torch.load(imagenet, weights_only=True))
    net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    average = copy.deepcopy(net)
    average.eval()
    tuned = list(net.features[FROZEN:].parameters())
    others = [p for name, p in net.named_parameters() if not name.startswith("features.")]
    rates = (3e-4, 1.5e-3)
    optimizer = torch.optim.AdamW([{"params": tuned}, {"params": others}], weight_decay=1e-4)
    state = {"net": net, "average": average, "optimizer": optimizer}
    first = _restore(state, checkpoint)
    started, total = time.process_time(), 0.0
    net.train()
    for step, (pictures, things) in enumerate(_batches(cutouts, plan, first), first):
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * plan.pace(step)
        with torch.autocast("cpu", torch.bfloat16):
            with torch.no_grad():
                stem = net.stem(pictures)
            rows = net.rows(stem)
        loss = loss_of(rows.float(), things, cells(pictures.shape[-1]))
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_([*tuned, *others], 10.0)
        optimizer.step()
        _follow(average, net, min(0.995, (step + 1) / (step + 10)))
        total += float(loss.detach())
        if (step + 1) % SAVED == 0:
            spent = time.process_time() - started
            log.info("step %d of %d: loss %.3f, %.0f s of CPU", step + 1, plan.steps, total / SAVED, spent)
            total = 0.0
            _save(state, step + 1, checkpoint)
        if (step + 1) % 500 == 0:
            log.info("recall at 36 boxes on held-out composites: %.3f", recall(average, cutouts))
    return average


def _restore(state: Mapping[str, Any], checkpoint: Path | None) -> int:
    """Fill the state from a checkpoint that exists. Returns the number of steps that it has behind it."""
    if checkpoint is None or not checkpoint.exists():
        return 0
    saved = torch.load(checkpoint, weights_only=True)
    for name, part in state.items():
        part.load_state_dict(saved[name])
    return int(saved["steps"])


def _save(state: Mapping[str, Any], steps: int, checkpoint: Path | None) -> None:
    if checkpoint is not None:
        new = checkpoint.with_name(f".{checkpoint.name}")
        torch.save({"steps": steps, **{name: part.state_dict() for name, part in state.items()}}, new)
        new.replace(checkpoint)


def _follow(average: Proposer, net: Proposer, keep: float) -> None:
    """Move the moving average of the weights towards the net's."""
    with torch.no_grad():
        for mine, theirs in zip(average.state_dict().values(), net.state_dict().values(), strict=True):
            if mine.is_floating_point():
                mine.lerp_(theirs, 1 - keep)
            else:
                mine.copy_(theirs)


def _batches(cutouts: Cutouts, plan: Plan, first: int) -> Iterator[tuple[Tensor, Tensor]]:
    """The batches of a run from a step on; another seed has composites of other numbers."""
    batches = _Batches(cutouts, plan)
    steps = range(first, plan.steps)
    yield from DataLoader(batches, batch_size=None, sampler=steps, num_workers=1, multiprocessing_context="fork")


class _Batches(Dataset[tuple[Tensor, Tensor]]):
    """The batch of a step."""

    def __init__(self, cutouts: Cutouts, plan: Plan) -> None:
        self._cutouts, self._plan = cutouts, plan

    def __getitem__(self, step: int) -> tuple[Tensor, Tensor]:
        plan = self._plan
        return _batch(self._cutouts, plan.seed * 1_000_000 + step * plan.batch, plan.batch, plan.side(step))


def _batch(cutouts: Cutouts, first: int, count: int, side: int = SIDE) -> tuple[Tensor, Tensor]:
    """Pictures [B, 3, side, side] and things [B, MOST, 4]."""
    squares, things = [], np.zeros((count, MOST, 4), np.float32)
    for i in range(count):
        made = composite(first + i, cutouts, side)
        squares.append(made.square)
        kept = made.boxes[:MOST]
        things[i, : len(kept)] = kept
    pictures = torch.from_numpy(np.stack(squares)).permute(0, 3, 1, 2).float()
    return pictures.contiguous(memory_format=torch.channels_last), torch.from_numpy(things)


@torch.no_grad()
def recall(net: Proposer, cutouts: Cutouts, pictures: int = 128) -> float:
    """Share of the things of held-out composites that one of a picture's 36 best boxes covers with an IoU of 0.5."""
    from torchvision.ops import nms

    grid, covered, total = cells(SIDE), 0, 0
    for first in range(HELD_OUT, HELD_OUT + pictures, 32):
        squares, things = _batch(cutouts, first, 32)
        rows = net(squares)
        for boxes, scores, wanted in zip(decoded(rows, grid), rows[..., 4], things, strict=True):
            wanted = wanted[wanted[:, 2] > wanted[:, 0]]
            best = boxes[nms(boxes, scores, 0.6)[:36]]
            total += len(wanted)
            covered += int((overlap(wanted[:, None], best[None]).amax(1) >= 0.5).sum()) if len(wanted) else 0
    return covered / max(total, 1)


def onnx_of(net: Proposer) -> bytes:
    """The net as an ONNX model: input `images` [B, 3, DETECTED, DETECTED], output `output` [B, N, 6]."""
    out = io.BytesIO()
    plain = copy.deepcopy(net)
    plain.eval()
    plain.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    for module in plain.modules():  # the exporter takes a quarter of its time to undo what is done in place
        if isinstance(module, torch.nn.ReLU6):
            module.inplace = False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's exporter warns of its own deprecations
        program = torch.onnx.export(
            plain,
            (torch.zeros(2, 3, DETECTED, DETECTED),),
            input_names=["images"],
            output_names=["output"],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    program.save(out)  # type: ignore[arg-type]
    return out.getvalue()
