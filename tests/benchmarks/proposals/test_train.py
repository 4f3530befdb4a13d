"""train: the file that is written is what the detector reads, and a training that was killed goes on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.detectors.proposals import SIDE
from tests.benchmarks.proposals import composites
from tests.benchmarks.proposals.cutouts import Cutouts


@pytest.fixture
def imagenet(tmp_path: Path) -> Iterator[Path]:
    """Weights of a MobileNetV2, drawn at random; one thread, as a training sets it, for the test alone."""
    import torch
    from torchvision.models import mobilenet_v2

    torch.manual_seed(0)
    threads = torch.get_num_threads()
    torch.save(mobilenet_v2().state_dict(), tmp_path / "m.pth")
    yield tmp_path / "m.pth"
    torch.set_num_threads(threads)


@pytest.mark.drill(15)
def test_the_file_of_a_training_is_what_the_detector_reads(imagenet: Path, cutouts: Cutouts) -> None:
    import onnxruntime
    import torch

    from pipeline.detectors.onnx import decode as yolox_decoded
    from tests.benchmarks.proposals.net import Proposer, cells, decoded, loss_of
    from tests.benchmarks.proposals.train import DETECTED, Plan, onnx_of, train

    assert DETECTED == SIDE
    net = train(cutouts, imagenet, Plan(steps=3, batch=2))
    data = onnx_of(net)
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    fed = (
        np.stack([composites.composite(n, cutouts, SIDE).square for n in range(3)])
        .transpose(0, 3, 1, 2)
        .astype(np.float32)
    )
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


@pytest.mark.drill(30)
def test_a_training_that_was_killed_goes_on_as_if_it_had_not_been(
    imagenet: Path, tmp_path: Path, cutouts: Cutouts, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    from tests.benchmarks.proposals import train as module

    monkeypatch.setattr(module, "SAVED", 2)
    plan, checkpoint, save = module.Plan(steps=4, batch=2), tmp_path / "state.pt", module._save
    whole = module.train(cutouts, imagenet, plan)

    def killed(state: Any, steps: int, path: Path | None) -> None:
        save(state, steps, path)
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "_save", killed)
    with pytest.raises(KeyboardInterrupt):
        module.train(cutouts, imagenet, plan, checkpoint)
    monkeypatch.setattr(module, "_save", save)
    assert torch.load(checkpoint, weights_only=True)["steps"] == 2
    continued = module.train(cutouts, imagenet, plan, checkpoint)
    for mine, theirs in zip(continued.state_dict().values(), whole.state_dict().values(), strict=True):
        torch.testing.assert_close(mine, theirs)
