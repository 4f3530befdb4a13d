"""Region pooling against torchvision's roi_align and torch's grid_sample."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from training.towers.region_pooling import pool_regions


def random_boxes(regions: int, size: tuple[int, int], seed: int) -> Tensor:
    """[2, R, 4] double, the last box the whole image, one of them thin."""
    generator = torch.Generator().manual_seed(seed)
    a, b = torch.rand(2, 2, regions, 2, generator=generator, dtype=torch.float64)
    scale = torch.tensor([size[1], size[0]], dtype=torch.float64)
    boxes = torch.cat([torch.minimum(a, b) * scale, torch.maximum(a, b) * scale], dim=-1)
    boxes[:, 0, 2] = boxes[:, 0, 0] + 0.5
    boxes[:, -1] = torch.tensor([0, 0, size[1], size[0]], dtype=torch.float64)
    return boxes


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    cells=st.tuples(st.integers(1, 13), st.integers(1, 13)),
    stride=st.sampled_from([8, 16, 32]),
    grid=st.integers(1, 6),
    regions=st.integers(1, 9),
)
def test_equals_roi_align_and_mean_with_gradient(
    seed: int, cells: tuple[int, int], stride: int, grid: int, regions: int
) -> None:
    from torchvision.ops import roi_align

    size = (cells[0] * stride, cells[1] * stride)
    generator = torch.Generator().manual_seed(seed)
    ours = torch.randn(2, 5, *cells, generator=generator, dtype=torch.float64, requires_grad=True)
    theirs = ours.detach().clone().requires_grad_()
    boxes = random_boxes(regions, size, seed)
    weight = torch.randn(2, regions, 5, generator=generator, dtype=torch.float64)

    pooled = pool_regions(ours, boxes, size, grid=grid)
    aligned = roi_align(theirs, list(boxes), (grid, grid), 1 / stride, sampling_ratio=1, aligned=True).mean((-2, -1))
    (pooled * weight).sum().backward()
    (aligned.view(2, regions, 5) * weight).sum().backward()

    assert (pooled - aligned.view(2, regions, 5)).abs().max() < 1e-9
    assert (ours.grad - theirs.grad).abs().max() < 1e-9  # type: ignore[operator]


def test_float32_and_a_channels_last_map_agree_with_roi_align() -> None:
    from torchvision.ops import roi_align

    map_BCHW = torch.randn(2, 40, 12, 12, generator=torch.Generator().manual_seed(0))
    boxes = random_boxes(37, (384, 384), seed=3).float()
    expected = roi_align(map_BCHW, list(boxes), (4, 4), 1 / 32, sampling_ratio=1, aligned=True).mean((-2, -1))
    for layout in (torch.contiguous_format, torch.channels_last):
        pooled = pool_regions(map_BCHW.contiguous(memory_format=layout), boxes, (384, 384))
        assert pooled.dtype == torch.float32
        assert torch.allclose(pooled, expected.view(2, 37, 40), atol=1e-5)


def test_no_boxes_give_no_regions() -> None:
    assert pool_regions(torch.ones(2, 3, 4, 4), torch.zeros(2, 0, 4), (128, 128)).shape == (2, 0, 3)
