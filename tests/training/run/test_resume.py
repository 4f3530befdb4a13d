"""What a run that goes on must have in common with what it began as."""

from __future__ import annotations

import shutil
import tarfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from training.config import Config
from training.errors import CheckpointError, ConfigError, RunError
from training.outputs.checkpoint import open_checkpoint
from training.outputs.journal import read_metrics
from training.resolve import resolve
from training.run.train import fit
from training.weights.load import load

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]

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


@pytest.mark.drill(2)
def test_a_plain_tar_that_was_replaced_is_other_data_until_it_is_put_back(
    make_shards: MakeShards, tmp_path: Path
) -> None:
    first, other = (make_shards(train=(9,), name=name, first=n) for name, n in (("first", 0), ("other", 20)))
    for folder in (first.parent, other.parent):
        with tarfile.open(folder / "train-000000.tar") as old, tarfile.open(folder / "plain.tar", "w") as plain:
            for number, member in enumerate(old.getmembers()):
                data = old.extractfile(member)
                member.name = f"{number // 3:09d}.{member.name.rpartition('.')[2]}"
                plain.addfile(member, data)
    steady = "optim.schedule=constant"
    for steps in (1, 2):
        fit(config(steps, 9, steady), [str(first.parent / "plain.tar")], tmp_path / "run")
    assert open_checkpoint(tmp_path / "run").state().step == 2
    tar = first.parent / "plain.tar"
    earlier = tar.read_bytes()
    (other.parent / "plain.tar").replace(tar)
    with pytest.raises(RunError, match="was trained on other data"):
        fit(config(3, 9, steady), [str(tar)], tmp_path / "run")
    fit(config(1, 9, steady), [str(tar)], tmp_path / "another")
    tar.write_bytes(earlier)
    assert fit(config(3, 9, steady), [str(tar)], tmp_path / "run").resumed_from == 2


@pytest.mark.drill(2)
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


@pytest.mark.drill(6)
@pytest.mark.parametrize("schedule", ["constant", "wsd"])
def test_a_run_is_made_longer_as_if_it_had_begun_so(
    schedule: str, make_shards: MakeShards, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """With its queues and optimiser; of a wsd run whose rate has not begun to fall at the checkpoint."""
    data, asked = [str(make_shards(train=(20, 12)))], [f"optim.schedule={schedule}", "run.checkpoint_every=6"]
    fit(config(20, 32, *asked), data, tmp_path / "whole")
    fit(config(8, 32, *asked), data, tmp_path / "longer")
    if schedule == "wsd":  # of 8 steps the last two have lower rates: go on from the checkpoint before them
        shutil.rmtree(tmp_path / "longer" / "checkpoints" / "step-00000008")
    result = fit(config(20, 32, *asked), data, tmp_path / "longer")
    assert (result.resumed_from, result.steps) == (8 if schedule == "constant" else 6, 20)
    assert "run.epochs: was 2, is 5 now" in caplog.text
    assert "rises again" not in caplog.text
    for name in ("loss", "lr", "text_queue_age"):
        whole, longer = ([line[name] for line in read_metrics(tmp_path / run)] for run in ("whole", "longer"))
        assert longer == pytest.approx(whole, abs=1e-5)


@pytest.mark.drill(3)
def test_a_length_that_the_schedule_does_not_allow_is_refused(
    make_shards: MakeShards, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = [str(make_shards(train=(16,)))]
    fit(config(4, 16), data, tmp_path / "cosine")
    with pytest.raises(ConfigError, match=r"run.epochs was 2.0, is 4.0\); its cosine ends at that length"):
        fit(config(8, 16), data, tmp_path / "cosine")
    wsd = ("optim.schedule=wsd", "run.checkpoint_every=3", "optim.decay_share=0.5")
    fit(config(4, 16, *wsd), data, tmp_path / "wsd")
    with pytest.raises(ConfigError, match=r"^run.epochs: 1 is below the 2.00 epochs already done"):
        fit(config(2, 16, *wsd), data, tmp_path / "wsd")
    result = fit(config(6, 16, *wsd), data, tmp_path / "wsd")
    assert (result.resumed_from, result.steps) == (4, 6)
    assert "had fallen to 0% of its peak and rises again to 67%" in caplog.text
    share = ("optim.schedule=wsd", "optim.warmup_share=0.8", "optim.decay_share=0.1")
    fit(config(4, 16, *share), data, tmp_path / "share")
    with pytest.raises(ConfigError, match=r"that changes the warm-up .* from 25 to 51 samples"):
        fit(config(8, 16, *share), data, tmp_path / "share")


@pytest.mark.drill(2)
def test_a_new_run_takes_the_queues_of_init_along(make_shards: MakeShards, tmp_path: Path) -> None:
    data = [str(make_shards(train=(16,)))]
    fit(config(8, 16), data, tmp_path / "first")
    fit(config(2, 16, "moco.init_queues=true"), data, tmp_path / "second", init=tmp_path / "first")
    first, second = (read_metrics(tmp_path / run) for run in ("first", "second"))
    assert (second[0]["text_queue_fill"], second[0]["text_queue_oldest"]) == (1.0, first[-1]["text_queue_oldest"])
    again = fit(config(2, 16, "moco.init_queues=true"), data, tmp_path / "second", init=tmp_path / "first")
    assert again.resumed_from == 2
    with pytest.raises(ConfigError, match=r"^moco.init_queues: .*give it with --init"):
        fit(config(2, 16, "moco.init_queues=true"), data, tmp_path / "third")
    with pytest.raises(ConfigError, match=r"^moco.init_queues: objective clip does not use queues"):
        fit(config(2, 16, "moco.init_queues=true", "moco.objective=clip"), data, tmp_path / "clip")
    assert load(tmp_path / "second", "cpu").config.moco.init_queues, "a run that began so is used as any other"


def test_a_damaged_newest_checkpoint_names_the_one_before_it(
    make_shards: MakeShards, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data, asked = [str(make_shards(train=(16,)))], config(4, 16, "run.checkpoint_every=2")
    fit(asked, data, tmp_path / "run")
    newest = tmp_path / "run" / "checkpoints" / "step-00000004"
    (newest / "queues.safetensors").write_bytes(b"")
    with pytest.raises(
        CheckpointError,
        match=r"queues.safetensors: 0 bytes.*; use an earlier checkpoint of its run, or move this one away",
    ):
        fit(asked, data, tmp_path / "run")
    (newest / "checkpoint.json").unlink()
    assert fit(asked, data, tmp_path / "run").resumed_from == 2
    assert f"{newest}: skipped, because checkpoint.json is missing: it is not a whole checkpoint" in caplog.text
    newest.rename(tmp_path / "away")
    assert fit(asked, data, tmp_path / "run").resumed_from == 2
