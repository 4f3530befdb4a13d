"""Region pooling, forward and backward on one CPU thread: our one matrix product against roi_align and a mean.

The two are compared for equality first; a faster wrong answer does not count.
"""

from __future__ import annotations

import sys

from tests.benchmarks.harness import at_least, interleaved, quick, report, told

SIDE, CELLS = 384, 12


def main() -> int:
    small = quick(__doc__)

    import torch
    from torchvision.ops import roi_align

    from training.towers.region_pooling import pool_regions

    batch, regions, channels, rounds = (4, 37, 512, 3) if small else (16, 37, 2560, 5)
    torch.manual_seed(0)
    torch.set_num_threads(1)
    maps_BCHW = torch.randn(batch, channels, CELLS, CELLS, requires_grad=True)
    corners = (torch.rand(batch, regions, 2, 2) * SIDE).sort(dim=2).values
    boxes_BR4 = corners.flatten(2)

    def ours() -> torch.Tensor:
        maps_BCHW.grad = None
        out = pool_regions(maps_BCHW, boxes_BR4, (SIDE, SIDE))
        out.sum().backward()
        return out

    def peer() -> torch.Tensor:
        maps_BCHW.grad = None
        out = roi_align(maps_BCHW, list(boxes_BR4), (4, 4), CELLS / SIDE, 1, True).mean((-2, -1))
        out.sum().backward()
        return out.view(batch, regions, channels)

    difference = float((ours() - peer()).detach().abs().max())
    if difference > 1e-4:
        raise SystemExit(f"the two differ by {difference}")
    mine, theirs = interleaved(ours, peer, rounds=rounds)
    told(f"ours {1000 * mine:.1f} ms, roi_align + mean {1000 * theirs:.1f} ms")
    return report({"pooling_speedup": at_least(theirs / mine, 10)})


if __name__ == "__main__":
    sys.exit(main())
