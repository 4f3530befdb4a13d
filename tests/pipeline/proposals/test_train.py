"""train: the file that is written is what the detector reads, and a training that was killed goes on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.detectors.proposals import SIDE
from pipeline.proposals import composites
from pipeline.proposals.cutouts import Cutouts


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


def test_the_folder_of_the_file_is_there_before_a_training_begins(
    tmp_path: Path, cutouts: Cutouts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a folder that was not there the weights of an hour were lost."""
    from pipeline.proposals import __main__, train
    from pipeline.proposals import cutouts as material

    out, seen = tmp_path / "new" / "p.onnx", list[bool]()
    monkeypatch.setattr(material, "load", lambda *arguments: cutouts)
    monkeypatch.setattr(train, "train", lambda *arguments: seen.append(out.parent.is_dir()))
    monkeypatch.setattr(train, "onnx_of", lambda net: b"weights")
    assert __main__.main(["train", "--out", str(out)]) == 0
    assert seen == [True]
    assert out.read_bytes() == b"weights"


@pytest.mark.slow
def test_the_file_of_a_training_is_what_the_detector_reads(imagenet: Path, cutouts: Cutouts) -> None:
    import onnxruntime
    import torch

    from pipeline.detectors._yolox import decoded as yolox_decoded
    from pipeline.proposals.net import Proposer, cells, decoded, loss_of
    from pipeline.proposals.train import DETECTED, Plan, onnx_of, train

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


@pytest.mark.slow
def test_a_training_that_was_killed_goes_on_as_if_it_had_not_been(
    imagenet: Path, tmp_path: Path, cutouts: Cutouts, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    from pipeline.proposals import train as module

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


def test_the_rates_of_a_training_rise_stay_and_fall_and_its_small_pictures_come_before() -> None:
    from pipeline.proposals.train import SMALL, Plan

    short, long = Plan(steps=1000, batch=16), Plan(steps=2000, batch=16)
    paces = [short.pace(step) for step in range(1000)]
    assert paces[:100] == sorted(paces[:100])
    assert set(paces[99:851]) == {1.0}
    assert paces[850:] == sorted(paces[850:], reverse=True)
    assert 0 < paces[-1] < 0.01
    assert [short.side(step) for step in range(846, 850)] == [composites.SIDE, SMALL, composites.SIDE, SMALL]
    assert {short.side(step) for step in range(850, 1000)} == {composites.SIDE}
    before = range(850)  # what a training does before its rates fall does not depend on how long it will be
    assert [(short.pace(s), short.side(s)) for s in before] == [(long.pace(s), long.side(s)) for s in before]
