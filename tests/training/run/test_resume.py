"""What a run that goes on must have in common with what it began as."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from training.config import Config
from training.errors import ConfigError, RunError
from training.outputs.journal import read_metrics
from training.resolve import resolve
from training.run.train import fit

MakeShards = Callable[..., Path]
StoppedAfter = Callable[[int], AbstractContextManager[None]]


def config(steps: int, samples: int, *more: str) -> Config:
    return resolve("tiny", [f"run.epochs={steps * 8 / samples}", *more])


def test_a_resumed_run_must_be_the_same_run(make_shards: MakeShards, tmp_path: Path) -> None:
    data = [str(make_shards(train=(9,)))]
    fit(config(1, 9), data, tmp_path / "run")
    with pytest.raises(ConfigError, match=r"optim.lr was 0.001, is 0.01\); use the same recipe or another --out"):
        fit(config(1, 9, "optim.lr=0.01"), data, tmp_path / "run")
    with pytest.raises(RunError, match="was trained on other data"):
        fit(config(1, 9), [str(make_shards(train=(8,), name="other"))], tmp_path / "run")


@pytest.mark.parametrize("size", [20, 60])
def test_a_resumed_run_may_have_another_queue_and_says_so(
    size: int, make_shards: MakeShards, tmp_path: Path, stopped_after: StoppedAfter, caplog: pytest.LogCaptureFixture
) -> None:
    data = [str(make_shards(train=(16,)))]
    with stopped_after(5):
        fit(config(8, 16, "run.checkpoint_every=4"), data, tmp_path / "run")
    result = fit(config(8, 16, "run.checkpoint_every=4", f"moco.queue_size={size}"), data, tmp_path / "run")
    assert (result.resumed_from, result.steps) == (4, 8)
    said = [r.getMessage() for r in caplog.records if "slots" in r.getMessage()]
    assert len(said) == 2
    assert f"image_queue had 48 slots and has {size} now; its newest keys are kept" in said[0]
    last = read_metrics(tmp_path / "run")[-1]
    assert last["text_queue_fill"] == 1  # 48 old keys, or the newest 20 of them, and 32 new ones
    assert last["text_queue_oldest"] == (3 if size == 20 else 8)


def test_a_run_goes_on_with_another_batch_from_the_same_position_and_says_so(
    make_shards: MakeShards, tmp_path: Path, stopped_after: StoppedAfter, caplog: pytest.LogCaptureFixture
) -> None:
    data = [str(make_shards(train=(20, 12)))]
    with stopped_after(5):
        fit(config(8, 32, "run.checkpoint_every=4"), data, tmp_path / "run")
    result = fit(config(8, 32, "run.checkpoint_every=4", "run.batch_size=16"), data, tmp_path / "run")
    assert (result.resumed_from, result.steps, result.position) == (4, 6, 64)
    assert "step 4: batch: was 8, is 16 now" in caplog.text
    lines = read_metrics(tmp_path / "run")
    assert [(line["step"], line["position"]) for line in lines] == [
        *((n, 8 * n) for n in range(1, 5)),
        (5, 48),
        (6, 64),
    ]
