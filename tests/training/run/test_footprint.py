"""What a run will need, and that one which cannot fit is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from unittest.mock import Mock

import pytest

from training import moco
from training.config import Config
from training.data.batch_maker import BatchMaker
from training.errors import ConfigError, RunError
from training.resolve import resolve
from training.run import footprint
from training.run.optimizer import build_optimizer
from training.run.train import fit

pytestmark = pytest.mark.usefixtures("one_thread")

MakeShards = Callable[..., Path]


def config(steps: int, samples: int, *more: str) -> Config:
    return resolve("tiny", [f"run.epochs={steps * 8 / samples}", *more])


def test_a_model_that_cannot_fit_is_refused_before_it_is_built(
    make_shards: MakeShards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(footprint, "machine_memory", lambda: 10**6)
    with pytest.raises(RunError, match=r"recipe tiny: does not fit in memory: it needs \d\.\d GB .* has 0.0 GB"):
        fit(config(1, 16), [str(make_shards(train=(16,)))], tmp_path / "run")


@pytest.mark.slow
def test_a_batch_whose_pixels_cannot_fit_is_refused_before_a_picture_is_read(
    make_shards: MakeShards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A typing error of some zeros. A batch of more samples than there are is as good as any, if it fits."""
    monkeypatch.setattr(footprint, "machine_memory", lambda: 10**10)
    monkeypatch.setattr(BatchMaker, "__getitem__", Mock(side_effect=AssertionError("a picture was read")))
    data = [str(make_shards(train=(16,)))]
    line = r"run.batch_size: 100000000: the pixels of one step alone take 1228.8 GB in each process, .* has 10.0 GB"
    with pytest.raises(ConfigError, match=line):
        fit(config(1, 16, "run.batch_size=100000000"), data, tmp_path / "run")
    monkeypatch.undo()
    assert fit(config(1, 16, "run.batch_size=40"), data, tmp_path / "run").steps == 1
    assert "run.batch_size: 40 exceeds the 16 training samples; a step uses some of them more than" in caplog.text


def test_the_footprint_is_that_of_the_real_model() -> None:
    asked = resolve("tiny")
    model, found = moco.BriVL(asked), footprint.footprint(asked)
    optimizer = build_optimizer(model, asked.optim)
    assert found.trained == sum(p.numel() for group in optimizer.param_groups for p in group["params"])
    assert found.trained + found.frozen + found.averaged == sum(p.numel() for p in model.parameters())
    held = sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers()))
    assert held == found.weights_bytes + found.queues_bytes
    longer = footprint.footprint(resolve("tiny", ["moco.queue_size=480", "run.epochs=9"]))
    assert longer.queues_bytes > 9 * found.queues_bytes
    assert longer.weights_bytes == found.weights_bytes
