"""Region pooling against torchvision's roi_align and torch's grid_sample."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
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


def test_a_box_of_no_size_reads_the_map_at_its_point() -> None:
    ramp = torch.arange(4.0)[None, None, None, :].expand(1, 1, 4, 4)
    point = torch.tensor([[[64.0, 32.0, 64.0, 32.0]]])  # between the centres of the second and third cell
    assert pool_regions(ramp, point, (128, 128)).item() == pytest.approx(1.5)


def test_a_map_that_is_not_square_is_scaled_by_side() -> None:
    ramp = torch.arange(6.0)[None, None, None, :].expand(1, 1, 3, 6)
    box = torch.tensor([[[100.0, 0.0, 200.0, 30.0]]])  # the middle third of an image 300 wide
    assert pool_regions(ramp, box, (30, 300)).item() == pytest.approx(2.5)


def released_sampling(map_BCHW: Tensor, boxes_BR4: Tensor, grid: int) -> Tensor:
    """The released code (fault 3): a grid for align_corners=True, sampled with False. Boxes in cells."""
    height, width = map_BCHW.shape[-2:]
    steps = (torch.arange(grid, dtype=map_BCHW.dtype) + 0.5) / grid
    x1, y1, x2, y2 = (side[..., None] for side in boxes_BR4.unbind(-1))
    x = 2 * (x1 + (x2 - x1) * steps) / (width - 1) - 1
    y = 2 * (y1 + (y2 - y1) * steps) / (height - 1) - 1
    batch, regions = boxes_BR4.shape[:2]
    points = torch.stack(
        [x[:, :, None, :].expand(-1, -1, grid, -1), y[..., None].expand(-1, -1, -1, grid)], dim=-1
    ).reshape(batch, regions, grid * grid, 2)
    return F.grid_sample(map_BCHW, points, align_corners=False).mean(-1).transpose(1, 2)


def test_shifted_is_the_released_sampling() -> None:
    cells = 12
    map_BCHW = torch.randn(2, 4, cells, cells, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    boxes = random_boxes(8, (cells, cells), seed=1)
    released = released_sampling(map_BCHW, boxes, 4)
    shifted = pool_regions(map_BCHW, boxes, (cells, cells), shifted=True)
    assert (shifted - released).abs().max() < 1e-9
    assert (pool_regions(map_BCHW, boxes, (cells, cells)) - released).abs().max() > 0.05


def test_the_shift_is_u_over_w_minus_1() -> None:
    ramp = torch.arange(12.0, dtype=torch.float64)[None, None, None, :].expand(1, 1, 12, 12)
    box = torch.tensor([[[4.0, 4.0, 6.0, 6.0]]], dtype=torch.float64)  # samples around cell coordinate 5
    right = pool_regions(ramp, box, (12, 12)).item()
    wrong = pool_regions(ramp, box, (12, 12), shifted=True).item()
    assert right == pytest.approx(4.5)
    assert wrong - right == pytest.approx(5 / 11)
