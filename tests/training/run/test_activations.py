"""The memory that a step takes is counted before it, and decides what is computed again, which no result shows."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from training.outputs.checkpoint import open_checkpoint
from training.resolve import resolve
from training.run import activations
from training.run.activations import activation_bytes, with_recompute
from training.run.footprint import footprint
from training.run.train import fit
from training.towers.recompute import CHOICES

pytestmark = pytest.mark.usefixtures("one_thread")

MakeShards = Callable[..., Path]
StoppedAfter = Callable[[int], AbstractContextManager[None]]
CPU = torch.device("cpu")


@pytest.mark.drill(8)
def test_the_bytes_are_those_of_a_whole_step_under_autocast() -> None:
    from tests.benchmarks.rehearsal import ranks, rehearse

    settings = ("image.weights=", "image.frozen_stages=2", "run.precision=bf16", "run.batch_size=512")
    config = resolve("starter", [*settings, "run.recompute=pointwise"])
    with ranks():
        rehearsed = rehearse(config, "cpu").peak - footprint(config).floor_bytes
    assert activation_bytes(config, "pointwise", world=8) == pytest.approx(rehearsed, rel=0.06)


@pytest.mark.slow
def test_the_first_that_fits_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    config = resolve("tiny", ["run.batch_size=256"])
    needs = [footprint(config).floor_bytes + activation_bytes(config, choice, world=2) for choice in CHOICES]
    assert needs == sorted(set(needs), reverse=True)
    counted = dict(zip(CHOICES, (size - footprint(config).floor_bytes for size in needs), strict=True))
    monkeypatch.setattr(activations, "activation_bytes", lambda _, choice, world: counted[choice])  # it takes long
    for free, taken in (
        *((1.01 * size / 0.9, choice) for size, choice in zip(needs, CHOICES, strict=True)),
        (0.99 * needs[0] / 0.9, "pointwise"),
        (0.99 * needs[1] / 0.9, "blocks"),
        (0.0, "blocks"),  # the least there is; a run without room ends with advice
        (math.inf, "nothing"),
    ):
        monkeypatch.setattr(activations, "free_memory", lambda _, free=free: free)
        assert with_recompute(config, CPU, world=2).run.recompute == taken
    monkeypatch.setattr(activations, "free_memory", lambda _: 0.0)
    assert with_recompute(resolve("tiny", ["run.compile=true"]), CPU, 1).run.recompute == "nothing"
    assert with_recompute(resolve("tiny", ["run.recompute=pointwise"]), CPU, 1).run.recompute == "pointwise"
    monkeypatch.undo()
    assert with_recompute(config, CPU, world=2).run.recompute == "nothing"


@pytest.mark.slow
def test_a_run_that_goes_on_with_other_memory_has_equal_weights(
    make_shards: MakeShards, tmp_path: Path, stopped_after: StoppedAfter, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = [str(make_shards(train=(16,)))]
    config = resolve("tiny", ["run.epochs=2", "run.checkpoint_every=2", "image.frozen_stages=1"])
    fit(config, data, tmp_path / "whole")
    monkeypatch.setattr(activations, "free_memory", lambda _: 0.0)
    with stopped_after(3):
        fit(config, data, tmp_path / "resumed")
    assert open_checkpoint(tmp_path / "resumed").config.run.recompute == "blocks"
    monkeypatch.undo()
    assert fit(config, data, tmp_path / "resumed").resumed_from == 2
    ends = [open_checkpoint(tmp_path / name) for name in ("whole", "resumed")]
    assert [end.config.run.recompute for end in ends] == ["nothing", "nothing"]
    for file in ("towers", "key_towers", "queues", "optimizer"):
        whole, resumed = (load_file(end.folder / f"{file}.safetensors") for end in ends)
        assert all(torch.equal(whole[name], tensor) for name, tensor in resumed.items())
