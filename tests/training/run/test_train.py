"""The loop: what it computes is the same whatever interrupts it."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from data_specs.shard import ContractError
from training import moco
from training.config import Config
from training.errors import ConfigError, RunError
from training.outputs import checkpoint
from training.outputs.journal import Journal, read_metrics
from training.records import Batch
from training.resolve import resolve
from training.run import footprint
from training.run.dry_run import dry_run
from training.run.launch import owned
from training.run.optimizer import build_optimizer
from training.run.train import fit

MakeShards = Callable[..., Path]
STEADY = ("image.dropout=0", "text.dropout=0", "image.frozen_stages=7")
"""Without dropout and batch statistics a step is the same on one rank and on two."""


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def config(steps: int, samples: int, *more: str) -> Config:
    return resolve("tiny", [f"run.epochs={steps * 8 / samples}", *more])


def losses(out: Path) -> list[float]:
    return [line["loss"] for line in read_metrics(out) if "loss" in line]


@contextmanager
def stopped_after(last: int) -> Iterator[None]:
    """What runs within is interrupted at that step, as by a person."""
    advance = Journal.advance

    def stopping(self: Journal, step: int) -> None:
        advance(self, step)
        if step == last:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Journal, "advance", stopping)
        with pytest.raises(KeyboardInterrupt):
            yield


def test_a_run_stopped_in_the_middle_gives_the_losses_of_one_that_was_not(
    make_shards: MakeShards, tmp_path: Path
) -> None:
    data = [str(make_shards(train=(20, 12)))]
    asked = config(20, 32, "run.checkpoint_every=5")
    fit(asked, data, tmp_path / "whole")
    with stopped_after(12):
        fit(asked, data, tmp_path / "cut")
    result = fit(asked, data, tmp_path / "cut")
    assert result.resumed_from == 10
    assert len(losses(tmp_path / "whole")) == 20
    assert losses(tmp_path / "cut") == pytest.approx(losses(tmp_path / "whole"), abs=1e-5)
    again = fit(asked, data, tmp_path / "cut")
    assert (again.resumed_from, again.steps, again.loss) == (20, 20, result.loss)


def _command(manifest: Path, out: Path, steps: int) -> list[str]:
    settings = [f"run.epochs={steps * 8 / 32}", "run.checkpoint_every=5"]
    command = [sys.executable, "-m", "training", "fit", "--recipe", "tiny", "--data", str(manifest), "--out", str(out)]
    return [*command, *(part for setting in settings for part in ("--set", setting)), "--json"]


@pytest.mark.slow
def test_kill_9_and_the_same_command_again_give_the_same_final_loss(make_shards: MakeShards, tmp_path: Path) -> None:
    manifest, steps = make_shards(train=(20, 12)), 60
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = _command(manifest, tmp_path / "killed", steps)
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while len(read_metrics(tmp_path / "killed")) < 8 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=True)
    killed = json.loads(done.stdout.splitlines()[-1])
    assert 5 <= killed["resumed_from"] < steps
    whole = fit(config(steps, 32, "run.checkpoint_every=5"), [str(manifest)], tmp_path / "whole")
    assert killed["loss"] == pytest.approx(whole.loss, abs=1e-5)
    assert [line["step"] for line in read_metrics(tmp_path / "killed")] == list(range(1, steps + 1))


@pytest.mark.parametrize("objective", ["moco", "clip", "siglip", "albef"])
def test_every_objective_trains_and_micro_steps_do_not_change_it(
    objective: str, make_shards: MakeShards, tmp_path: Path
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


@pytest.mark.slow
def test_two_ranks_give_the_losses_of_one(make_shards: MakeShards, tmp_path: Path) -> None:
    manifest = make_shards(train=(20, 12), damage={3: b"\xff\xd8"})
    fit(config(6, 32, *STEADY), [str(manifest)], tmp_path / "one")
    settings = [part for s in (*STEADY, f"run.epochs={6 * 8 / 32}") for part in ("--set", s)]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "training"]
    command = ["fit", "--recipe", "tiny", "--data", str(manifest), "--out", str(tmp_path / "two"), *settings, "--json"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([*launcher, *command], env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["world_size"] == 2
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), abs=2e-4)


def test_a_resumed_run_must_be_the_same_run(make_shards: MakeShards, tmp_path: Path) -> None:
    data = [str(make_shards(train=(9,)))]
    fit(config(1, 9), data, tmp_path / "run")
    with pytest.raises(ConfigError, match=r"optim.lr was 0.001, is 0.01\); use the same recipe or another --out"):
        fit(config(1, 9, "optim.lr=0.01"), data, tmp_path / "run")
    with pytest.raises(RunError, match="was trained on other data"):
        fit(config(1, 9), [str(make_shards(train=(8,), name="other"))], tmp_path / "run")


@pytest.mark.parametrize("size", [20, 60])
def test_a_resumed_run_may_have_another_queue_and_says_so(
    size: int, make_shards: MakeShards, tmp_path: Path, caplog: pytest.LogCaptureFixture
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


def test_init_takes_the_towers_and_begins_at_step_0(make_shards: MakeShards, tmp_path: Path) -> None:
    data = [str(make_shards(train=(16,)))]
    fit(config(4, 16), data, tmp_path / "first")
    result = fit(config(1, 16, "seed=5"), data, tmp_path / "second", init=tmp_path / "first")
    fit(config(1, 16, "seed=5"), data, tmp_path / "third")
    assert result.steps == 1
    assert losses(tmp_path / "second")[0] != pytest.approx(losses(tmp_path / "third")[0], abs=1e-3)


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


def test_a_run_whose_every_gradient_is_not_finite_stops(
    make_shards: MakeShards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(moco, "info_nce", lambda *args: args[0].sum(1) * math.nan)
    with pytest.raises(RunError, match="step 10: 11 steps in a row"):
        fit(config(40, 16), [str(make_shards(train=(16,)))], tmp_path / "run")


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


def test_a_run_goes_on_with_another_batch_from_the_same_position_and_says_so(
    make_shards: MakeShards, tmp_path: Path, caplog: pytest.LogCaptureFixture
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


def test_sigterm_saves_and_the_same_command_goes_on(make_shards: MakeShards, tmp_path: Path) -> None:
    data = [str(make_shards(train=(20, 12)))]
    advance = Journal.advance

    def terminating(self: Journal, step: int) -> None:
        advance(self, step)
        if step == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Journal, "advance", terminating)
        with pytest.raises(RunError, match=r"^step 4: told to end; saved, and the same command goes on"):
            fit(config(8, 32), data, tmp_path / "run")
    result = fit(config(8, 32), data, tmp_path / "run")
    assert (result.resumed_from, result.steps) == (4, 8)
    fit(config(8, 32), data, tmp_path / "whole")
    assert losses(tmp_path / "run") == pytest.approx(losses(tmp_path / "whole"), abs=1e-5)


def test_a_run_stops_when_recall_no_longer_rises_and_keeps_its_best(make_shards: MakeShards, tmp_path: Path) -> None:
    data = [str(make_shards(train=(16,), dev=(12,)))]
    asked = config(40, 16, "optim.lr=0", "run.eval_every=2", "run.patience=3", "run.keep_last=1")
    result = fit(asked, data, tmp_path / "run")  # nothing is learned: the first recall stays the highest
    assert (result.stopped_early, result.steps, result.best_step) == (True, 8, 2)
    assert checkpoint.open_checkpoint(tmp_path / "run" / "checkpoints" / "best").state().step == 2
    again = fit(asked, data, tmp_path / "run")
    assert (again.resumed_from, again.steps) == (8, 8)


def test_only_one_run_writes_into_a_folder(tmp_path: Path) -> None:
    with owned(tmp_path), pytest.raises(RunError, match="another run writes into it"), owned(tmp_path, wait=0):
        pass
    with owned(tmp_path, wait=0):
        pass


def test_a_model_that_cannot_fit_is_refused_before_it_is_built(
    make_shards: MakeShards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(footprint, "machine_memory", lambda: 10**6)
    with pytest.raises(RunError, match=r"recipe tiny: does not fit: it needs \d\.\d GB .* has 0.0 GB"):
        fit(config(1, 16), [str(make_shards(train=(16,)))], tmp_path / "run")


def test_the_footprint_is_that_of_the_real_model() -> None:
    asked = resolve("tiny")
    model, found = moco.BriVL(asked), footprint.footprint(asked)
    optimizer = build_optimizer(model, asked.optim)
    assert found.trained == sum(p.numel() for group in optimizer.param_groups for p in group["params"])
    assert found.trained + found.frozen + found.averaged == sum(p.numel() for p in model.parameters())
    held = sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers()))
    assert held == found.weights_bytes + found.queues_bytes


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


def test_the_profiler_writes_a_trace(make_shards: MakeShards, tmp_path: Path) -> None:
    fit(config(6, 16, "run.profile_steps=1"), [str(make_shards(train=(16,)))], tmp_path / "run")
    [trace] = (tmp_path / "run" / "profile").glob("*.json")
    assert "traceEvents" in json.loads(trace.read_text())
