"""The loop: what it computes is the same whatever interrupts it."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from PIL import Image
from torch import Tensor

from data_specs.shard import ContractError
from training.config import Config
from training.errors import RunError
from training.method.losses import Candidates, Logits
from training.objectives import moco
from training.outputs import checkpoint
from training.outputs.journal import Journal, read_metrics
from training.resolve import resolve
from training.run.train import fit

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]

MakeShards = Callable[..., Path]
StoppedAfter = Callable[[int], AbstractContextManager[None]]


STEADY = ("image.dropout=0", "text.dropout=0", "image.frozen_stages=7")
"""Without dropout and batch statistics a step is the same on one rank and on two."""


def config(steps: int, samples: int, *more: str) -> Config:
    return resolve("tiny", [f"run.epochs={steps * 8 / samples}", *more])


def losses(out: Path) -> list[float]:
    return [line["loss"] for line in read_metrics(out) if "loss" in line]


@pytest.mark.parametrize(
    "objective", ["moco", *(pytest.param(name, marks=pytest.mark.drill(4)) for name in ("clip", "siglip", "albef"))]
)
def test_every_objective_trains_and_micro_steps_do_not_change_it(
    objective: str, make_shards: MakeShards, tmp_path: Path, stopped_after: StoppedAfter
) -> None:
    """Also through a stop and another start with other micro-steps; what an objective learns is in its metrics."""
    data = [str(make_shards(train=(20, 12), damage={3: b"\xff\xd8"}))]
    asked = [*STEADY, f"moco.objective={objective}", "moco.learn_temperature=true", "run.checkpoint_every=6"]
    fit(config(16, 32, *asked), data, tmp_path / "one")
    whole = losses(tmp_path / "one")
    assert sum(whole[-4:]) < sum(whole[:4])
    with stopped_after(8):
        fit(config(16, 32, *asked, "run.accumulate=4"), data, tmp_path / "four")
    result = fit(config(16, 32, *asked, "run.accumulate=2"), data, tmp_path / "four")
    assert result.resumed_from == 6
    assert losses(tmp_path / "four") == pytest.approx(whole, abs=1e-3)
    last = read_metrics(tmp_path / "four")[-1]
    assert 0.01 <= last["temperature"] <= 1
    assert last["temperature"] != pytest.approx(0.07, abs=1e-5)
    assert ("bias" in last) == (objective == "siglip")
    assert ("image_queue_fill" in last) == (objective in ("moco", "albef"))


def test_init_takes_the_towers_and_begins_at_step_0(make_shards: MakeShards, tmp_path: Path) -> None:
    data = [str(make_shards(train=(16,)))]
    fit(config(4, 16), data, tmp_path / "first")
    result = fit(config(1, 16, "seed=5"), data, tmp_path / "second", init=tmp_path / "first")
    fit(config(1, 16, "seed=5"), data, tmp_path / "third")
    assert result.steps == 1
    assert losses(tmp_path / "second")[0] != pytest.approx(losses(tmp_path / "third")[0], abs=1e-3)


def test_a_run_whose_every_gradient_is_not_finite_stops(
    make_shards: MakeShards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def not_finite(
        logits: Logits, queries_BD: Tensor, keys_BD: Tensor, candidates: Candidates
    ) -> tuple[Tensor, Tensor]:
        return queries_BD.sum(1) * math.nan, candidates.similar(queries_BD)

    monkeypatch.setattr(moco, "contrast", not_finite)
    with pytest.raises(RunError, match="step 10: 11 steps in a row"):
        fit(config(40, 16), [str(make_shards(train=(16,)))], tmp_path / "run")


@pytest.mark.drill(3)
def test_the_dev_split_is_measured_while_training_and_bf16_trains(make_shards: MakeShards, tmp_path: Path) -> None:
    data = [str(make_shards(train=(16,), dev=(12,), detector="yolo"))]
    asked = config(4, 16, "run.eval_every=2", "run.precision=bf16", "data.max_boxes=2", "moco.objective=clip")
    result = fit(asked, data, tmp_path / "run")
    measured = [line for line in read_metrics(tmp_path / "run") if "dev.i2t.r1" in line]
    assert [line["step"] for line in measured] == [2, 4]
    assert result.dev is not None
    assert result.dev["samples"] == 12


def test_a_dataset_without_training_samples_is_an_error(make_shards: MakeShards, tmp_path: Path) -> None:
    with pytest.raises(ContractError, match="no samples in the train split"):
        fit(config(1, 1), [str(make_shards(train=(), val=(3,)))], tmp_path / "run")


def test_recalls_on_a_dev_split_that_a_build_does_not_have_are_refused(make_shards: MakeShards, tmp_path: Path) -> None:
    manifest = make_shards(train=(9,), val=(3,))
    with pytest.raises(
        ContractError, match=r"no samples in the dev split .* or train without .* run.eval_every=0"
    ) as e:
        fit(config(1, 9, "run.eval_every=1"), [str(manifest)], tmp_path / "run")
    assert str(manifest) in str(e.value)
    plain = str(manifest.parent / "train-000000.tar")
    assert fit(config(1, 9, "run.eval_every=1"), [plain], tmp_path / "plain").dev is None, "plain tars have none ever"


def test_a_signal_to_end_saves_and_the_same_command_goes_on(make_shards: MakeShards, tmp_path: Path) -> None:
    data = [str(make_shards(train=(20, 12)))]
    advance = Journal.advance

    def terminating(self: Journal, step: int) -> None:
        advance(self, step)
        if step == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Journal, "advance", terminating)
        with pytest.raises(
            RunError, match=r"^step 4: stopped by a signal; saved, run the same command with --out .*run to resume"
        ):
            fit(config(8, 32), data, tmp_path / "run")
    result = fit(config(8, 32), data, tmp_path / "run")
    assert (result.resumed_from, result.steps) == (4, 8)


@pytest.mark.parametrize(("every", "steps"), [("5min", [4, 8, 10]), ("0.00001min", [*range(1, 11)]), ("0", [10])])
def test_checkpoints_come_by_minutes_and_epochs_or_by_steps(
    every: str, steps: list[int], make_shards: MakeShards, tmp_path: Path
) -> None:
    """And a run that goes on from one at the end of an epoch has the losses of one that was not stopped."""
    data = [str(make_shards(train=(20, 12)))]
    asked = config(10, 32, f"run.checkpoint_every={every}", "run.keep_last=99")
    fit(asked, data, tmp_path / "run")
    folders = checkpoint.folders(tmp_path / "run")
    assert sorted(map(checkpoint.step_of, folders)) == steps
    if every != "5min":
        return
    whole = losses(tmp_path / "run")
    for folder in folders:
        if checkpoint.step_of(folder) > steps[0]:
            shutil.rmtree(folder)
    assert fit(asked, data, tmp_path / "run").resumed_from == steps[0]
    assert losses(tmp_path / "run") == pytest.approx(whole, abs=1e-5)


def test_recalls_may_be_asked_for_by_epochs(make_shards: MakeShards, tmp_path: Path) -> None:
    data = [str(make_shards(train=(16,), dev=(12,)))]
    fit(config(7, 16, "run.eval_epochs=1.5"), data, tmp_path / "run")
    assert [line["step"] for line in read_metrics(tmp_path / "run") if "dev.mean_recall" in line] == [3, 6, 7]


@pytest.mark.drill(4)
def test_a_caption_set_is_fine_tuned_on_from_a_checkpoint_with_a_dev_part_of_its_own(
    make_shards: MakeShards, tmp_path: Path
) -> None:
    fit(config(2, 16), [str(make_shards(train=(16,)))], tmp_path / "first")
    begin = checkpoint.open_checkpoint(tmp_path / "first")
    root = tmp_path / "set"
    for number in range(40):
        for name in ("猫", "狗"):
            (root / name).mkdir(parents=True, exist_ok=True)
            colour = (6 * number, 200 if name == "猫" else 20, 90)  # every picture another: copies stay on one side
            Image.new("RGB", (40, 40), colour).save(root / name / f"{number}.jpg")
    more = ["run.epochs=1", "run.eval_epochs=0.5", "image.frozen_stages=1", "run.tracker=none"]
    asked = resolve("finetune_classes", more, begin.config)
    data = [f"classes:{root}"]
    result = fit(asked, data, tmp_path / "tuned", init=tmp_path / "first")
    assert result.samples < 80
    assert result.dev is not None
    assert result.samples + result.dev["samples"] == 80
    again = fit(asked, data, tmp_path / "tuned", init=tmp_path / "first")
    assert (again.resumed_from, again.steps) == (result.steps, result.steps)


def test_a_run_stops_when_recall_no_longer_rises_and_keeps_its_best(make_shards: MakeShards, tmp_path: Path) -> None:
    data = [str(make_shards(train=(16,), dev=(12,)))]
    asked = config(40, 16, "optim.lr=0", "run.eval_every=2", "run.patience=3", "run.keep_last=1")
    result = fit(asked, data, tmp_path / "run")  # nothing is learned: the first recall stays the highest
    assert (result.stopped_early, result.steps, result.best_step) == (True, 8, 2)
    assert checkpoint.open_checkpoint(tmp_path / "run" / "checkpoints" / "best").state().step == 2
    again = fit(asked, data, tmp_path / "run")
    assert (again.resumed_from, again.steps) == (8, 8)


@pytest.mark.drill(2)
def test_the_profiler_writes_a_trace(make_shards: MakeShards, tmp_path: Path) -> None:
    fit(config(6, 16, "run.profile_steps=1"), [str(make_shards(train=(16,)))], tmp_path / "run")
    [trace] = (tmp_path / "run" / "profile").glob("*.json")
    assert "traceEvents" in json.loads(trace.read_text())
