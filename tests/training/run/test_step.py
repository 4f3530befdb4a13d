"""A step whose gradient is not finite moves nothing."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from training import moco
from training.config import Config
from training.errors import RunError
from training.outputs import checkpoint
from training.records import Batch
from training.resolve import resolve
from training.run.optimizer import build_optimizer
from training.run.train import fit

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]

MakeShards = Callable[..., Path]


def config(steps: int, samples: int, *more: str) -> Config:
    return resolve("tiny", [f"run.epochs={steps * 8 / samples}", *more])


def test_a_step_that_is_not_finite_moves_nothing(
    make_shards: MakeShards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    seen: list[torch.Tensor] = []
    forward, after_step = moco.BriVL.forward, moco.BriVL.after_step

    def forward_with_a_nan(self: moco.BriVL, batch: object, samples: float | None = None) -> moco.StepOutput:
        calls.append(1)
        seen.append(self.text_query.trunk.tokens.weight.detach().clone())
        output = forward(self, batch, samples)  # type: ignore[arg-type]
        return replace(output, loss=output.loss * math.nan) if len(calls) == 2 else output

    entered: list[int] = []

    def recorded(self: moco.BriVL, outputs: list[moco.StepOutput], step: int) -> None:
        entered.append(step)
        after_step(self, outputs, step)

    monkeypatch.setattr(moco.BriVL, "forward", forward_with_a_nan)
    monkeypatch.setattr(moco.BriVL, "after_step", recorded)
    result = fit(config(4, 16), [str(make_shards(train=(16,)))], tmp_path / "run")
    assert entered == [0, 2, 3]
    assert torch.equal(seen[1], seen[2])
    assert not torch.equal(seen[0], seen[1])
    assert result.skipped == 1
    assert math.isfinite(result.loss or math.nan)


def test_a_step_without_enough_memory_says_what_saves_some(
    make_shards: MakeShards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(moco.BriVL, "forward", full)
    with pytest.raises(RunError, match=r"^step 0: the memory of cpu is full; set run.recompute=pointwise"):
        fit(config(1, 16), [str(make_shards(train=(16,)))], tmp_path / "run")


def test_what_is_not_finite_does_not_stay_in_the_batch_norms(
    make_shards: MakeShards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A forward moves their statistics before anyone knows; the average would carry a NaN into the key tower."""
    calls: list[int] = []
    features = moco.BriVL.features

    def with_a_nan(self: moco.BriVL, batch: Batch, **options: bool) -> moco.Features:
        calls.append(1)
        if len(calls) == 2:
            batch = replace(batch, images_B3HW=torch.full(batch.images_B3HW.shape, math.nan))
        return features(self, batch, **options)

    monkeypatch.setattr(moco.BriVL, "features", with_a_nan)
    result = fit(config(4, 16), [str(make_shards(train=(16,)))], tmp_path / "run")
    assert result.skipped == 1
    assert math.isfinite(result.loss or math.nan)
    opened = checkpoint.open_checkpoint(tmp_path / "run")
    model = moco.BriVL(opened.config)
    opened.load_training(model, build_optimizer(model, opened.config.optim))  # refuses a NaN
    assert not torch.equal(model.image_query.trunk.backbone.blocks_4[0].bn1.running_mean, torch.zeros(1))
