"""train: the loss goes down, and the file that is written is what the detector reads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline.detectors.proposals import SIDE
from pipeline.proposals import composites
from pipeline.proposals.cutouts import Cutouts


@pytest.mark.slow
def test_training_goes_down_and_its_file_is_what_the_detector_reads(tmp_path: Path, cutouts: Cutouts) -> None:
    import onnxruntime
    import torch

    from pipeline.detectors._yolox import decoded as yolox_decoded
    from pipeline.proposals.net import Proposer, cells, decoded, loss_of
    from pipeline.proposals.train import onnx_of, train

    torch.manual_seed(0)
    weights = tmp_path / "m.pth"
    from torchvision.models import mobilenet_v2

    torch.save(mobilenet_v2().state_dict(), weights)
    threads = torch.get_num_threads()
    try:
        net = train(cutouts, weights, steps=3, batch=2)
    finally:
        torch.set_num_threads(threads)
    data = onnx_of(net)
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    fed = np.stack([composites.composite(n, cutouts).square for n in range(3)]).transpose(0, 3, 1, 2).astype(np.float32)
    rows = session.run(None, {"images": fed})[0]
    with torch.no_grad():
        ours = net(torch.from_numpy(fed))
    assert rows == pytest.approx(ours.numpy(), abs=1e-3)
    boxes = decoded(ours[:1], cells(SIDE))[0].numpy()
    theirs = yolox_decoded(rows[0], cells(SIDE).numpy(), 1.0, 0.0, 1.0)[0]
    order = np.argsort(-rows[0, :, 4], kind="stable")[: len(theirs)]
    assert theirs == pytest.approx(boxes[order], abs=0.05)
    thing = torch.tensor([[[40.0, 40, 120, 120]]])
    grid = cells(SIDE)
    right = torch.zeros(1, len(grid), 6)
    right[..., :2] = (80 / grid[:, 2:] - grid[:, :2])[None]
    right[..., 2:4] = (80 / grid[:, 2:]).log()[None].expand(-1, -1, 2)
    right[..., 4], right[..., 5] = 0.9, 1
    wrong = right.clone()
    wrong[..., 0] += 5
    assert float(loss_of(right, thing, grid)) < float(loss_of(wrong, thing, grid))
    assert isinstance(net, Proposer)
