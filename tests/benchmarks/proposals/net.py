"""The net of the detector `proposals`: MobileNetV2's first layers, a light feature pyramid, and heads for box and
score.

Its output is that of a YOLOX with one class (`pipeline.detectors.onnx` decodes it): for each cell of grids of strides
8, 16 and 32 a box and a score. The score is the IoU that the box is expected to have with some thing, so that things
of kinds never seen are ranked by how well they are outlined and not by what they are (as in Kim et al., "Learning
Open-World Object Proposals without Learning to Classify", 2022). 0.8 million parameters.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

WIDTH = 96
STRIDES = (8, 16, 32)
FROZEN, TAPS = 7, (13, 14)
"""Blocks of the backbone that keep their ImageNet weights (their output is the finest map), and those whose output
makes the coarser maps."""

MEAN, STD = (0.406, 0.456, 0.485), (0.225, 0.224, 0.229)
"""Mean and standard deviation of ImageNet's pictures, 0 to 1, BGR."""


class Proposer(nn.Module):
    """BGR pictures 0 to 255 [B, 3, S, S] -> rows [B, N, 6]: x, y, log w, log h in cells, score, 1."""

    def __init__(self, imagenet: Mapping[str, Tensor] | None = None) -> None:
        super().__init__()
        from torchvision.models import mobilenet_v2

        whole = mobilenet_v2()
        if imagenet is not None:
            whole.load_state_dict(imagenet)
        first = next(whole.parameters())
        with torch.no_grad():
            first.copy_(first.flip(1))  # it was trained on RGB, pictures here are BGR
        self.features = nn.ModuleList([*whole.features.children()][:15])
        self.mean, self.std = (nn.Buffer(torch.tensor(v).view(1, 3, 1, 1) * 255) for v in (MEAN, STD))
        self.laterals = nn.ModuleList(_plain(width, WIDTH, 1) for width in (32, 96, 160))
        self.whole = nn.Conv2d(WIDTH, WIDTH, 1)
        self.deep = nn.Sequential(_separable(), _separable())
        self.down = nn.ModuleList(_separable() for _ in range(2))
        self.boxes = nn.Sequential(_separable(), _separable(), nn.Conv2d(WIDTH, 4, 1))
        last = nn.Conv2d(WIDTH, 1, 1)
        if last.bias is not None:
            nn.init.constant_(last.bias, -4.0)  # few cells have a thing
        self.scores = nn.Sequential(_separable(), _separable(), last)
        self.scales = nn.Parameter(torch.ones(len(STRIDES)))

    def train(self, mode: bool = True) -> Proposer:
        """Training mode, except that the backbone keeps ImageNet's averages: batches are too small for better ones."""
        super().train(mode)
        self.features.eval()
        return self

    def forward(self, pictures: Tensor) -> Tensor:
        return self.rows(self.stem(pictures))

    def stem(self, pictures: Tensor) -> Tensor:
        """Output of the frozen blocks [B, 32, S / 8, S / 8]."""
        x: Tensor = (pictures - self.mean) / self.std
        for block in self.features[:FROZEN]:
            x = block(x)
        return x

    def rows(self, x: Tensor) -> Tensor:
        """Rows [B, N, 6] from the output of the stem."""
        maps = [x]
        for number, block in enumerate(self.features[FROZEN:], FROZEN):
            x = block(x)
            if number in TAPS:
                maps.append(x)
        fine, middle, coarse = (lateral(m) for lateral, m in zip(self.laterals, maps, strict=True))
        coarse = self.deep(coarse + self.whole(coarse.mean((2, 3), keepdim=True)))
        middle = self.down[0](middle + nn.functional.interpolate(coarse, scale_factor=2.0))
        fine = self.down[1](fine + nn.functional.interpolate(middle, scale_factor=2.0))
        rows = []
        for number, m in enumerate((fine, middle, coarse)):
            boxes = self.boxes(m) * self.scales[number]
            score = self.scores(m).sigmoid()
            rows.append(torch.cat([boxes, score, torch.ones_like(score)], dim=1).flatten(2))
        return torch.cat(rows, dim=2).transpose(1, 2)


def _plain(before: int, after: int, kernel: int, groups: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(before, after, kernel, padding=kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(after), nn.ReLU6())


def _separable() -> nn.Sequential:
    return nn.Sequential(_plain(WIDTH, WIDTH, 3, WIDTH), _plain(WIDTH, WIDTH, 1))


def cells(side: int) -> Tensor:
    """[N, 3]: x and y of each row's cell, and its stride; finest stride first."""
    parts = []
    for stride in STRIDES:
        y, x = torch.meshgrid(torch.arange(side // stride), torch.arange(side // stride), indexing="ij")
        parts.append(torch.stack([x.flatten(), y.flatten(), torch.full((x.numel(),), stride)], dim=1))
    return torch.cat(parts).float()


def decoded(rows: Tensor, grid: Tensor) -> Tensor:
    """Boxes [B, N, 4] xyxy in pixels from rows [B, N, >= 4], as YOLOX decodes them."""
    centre = (rows[..., :2] + grid[:, :2]) * grid[:, 2:]
    half = rows[..., 2:4].clamp(-10, 8).exp() * grid[:, 2:] / 2
    return torch.cat([centre - half, centre + half], dim=-1)


def overlap(a: Tensor, b: Tensor, generalised: bool = False) -> Tensor:
    """IoU of boxes [..., 4], with broadcasting, or generalised IoU (Rezatofighi et al., 2019)."""
    low, high = torch.maximum(a[..., :2], b[..., :2]), torch.minimum(a[..., 2:], b[..., 2:])
    shared = (high - low).clamp(min=0).prod(-1)
    union = (a[..., 2:] - a[..., :2]).prod(-1) + (b[..., 2:] - b[..., :2]).prod(-1) - shared
    iou = shared / union.clamp(min=1e-6)
    if not generalised:
        return iou
    hull = (torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])).prod(-1).clamp(min=1e-6)
    return iou - (hull - union) / hull


def loss_of(rows: Tensor, things: Tensor, grid: Tensor) -> Tensor:
    """Loss of rows [B, N, 6] against things [B, T, 4] (all zero: no thing).

    Each thing is assigned to the 9 cells inside it whose score and box fit it best (Feng et al., "TOOD", 2021). The
    target of their scores is the IoU of their boxes, that of all other scores is zero; boxes learn by generalised IoU.
    """
    boxes, score = decoded(rows, grid), rows[..., 4]
    is_thing = things[..., 2] > things[..., 0]  # [B, T]
    with torch.no_grad():
        centre = (grid[:, :2] + 0.5) * grid[:, 2:]
        inside = (centre > things[:, :, None, :2]).all(-1) & (centre < things[:, :, None, 2:]).all(-1)
        iou = overlap(things[:, :, None], boxes[:, None])  # [B, T, N]
        fit = score[:, None].clamp(min=1e-4).sqrt() * iou**4 * (inside & is_thing[..., None])
        best = fit.topk(9, dim=-1)
        assigned = torch.zeros_like(fit).scatter_(-1, best.indices, best.values)
        fit_of_owner, owner = assigned.max(dim=1)  # [B, N]: a cell serves the thing that it fits best
        positive = fit_of_owner > 0
        target = torch.where(positive, iou.gather(1, owner[:, None])[:, 0], 0.0)
        goal = things.gather(1, owner[..., None].expand(-1, -1, 4))
    weight = torch.where(positive, target, 0.75 * score.detach() ** 2)
    logits = torch.logit(score, eps=1e-6)
    of_scores = nn.functional.binary_cross_entropy_with_logits(logits, target, weight, reduction="sum")
    of_boxes = ((1 - overlap(boxes[positive], goal[positive], generalised=True)) * target[positive]).sum()
    total = target.sum().clamp(min=1)
    return (of_scores + 2 * of_boxes) / total
