"""A dry run measures and leaves nothing."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from training.config import Config
from training.errors import ConfigError
from training.resolve import resolve
from training.run.dry_run import dry_run

pytestmark = pytest.mark.usefixtures("one_thread")

MakeShards = Callable[..., Path]


def config(steps: int, samples: int, *more: str) -> Config:
    return resolve("tiny", [f"run.epochs={steps * 8 / samples}", *more])


def test_a_dry_run_finds_a_tracker_that_cannot_be_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ConfigError, match=r"^run.tracker: wandb is not installed"):
        dry_run(config(1, 16, "run.tracker=wandb"), [str(tmp_path)])


@pytest.mark.slow
def test_a_dry_run_measures_and_leaves_nothing(
    make_shards: MakeShards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = make_shards(train=(16,))
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.iterdir())
    found = dry_run(config(100, 16), [str(manifest)], cache=tmp_path / "shards")
    assert sorted(tmp_path.iterdir()) == before
    assert (found["samples"], found["steps"]) == (16, 100)
    assert found["seconds"] == pytest.approx(800 / found["samples_per_second"])
    assert found["memory"]["peak_bytes"] > found["memory"]["floor_bytes"] > 4 * found["parameters"]["trained"]
