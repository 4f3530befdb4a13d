"""Training of a captioner: it learns, its result is the same whatever interrupts it, and its towers come along."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from training.captions import checkpoint, regions
from training.captions.decoder import CaptionerConfig
from training.captions.train import fit_captioner
from training.errors import CheckpointError, ConfigError, RunError
from training.outputs.checkpoint import latest
from training.outputs.journal import read_metrics
from training.use.embed import embed_files

pytestmark = pytest.mark.usefixtures("one_thread")

StoppedAfter = Callable[[int], AbstractContextManager[None]]

SMALL = CaptionerConfig(
    width=32, layers=1, heads=2, ffn=64, dropout=0.1, max_characters=12, lr=4e-3, batch_size=8, epochs=2, patience=0
)


def fitted(towers: Path, pictures: Path, out: Path, config: CaptionerConfig = SMALL) -> dict[str, Any]:
    data = [f"folder:{pictures / 'train'}"]
    return fit_captioner(towers, data, out, config, device="cpu", cache=pictures.parent / "cache")


def weights(out: Path) -> dict[str, list[float]]:
    newest = latest(out)
    assert newest is not None
    return {name: tensor.flatten().tolist() for name, tensor in load_file(newest / checkpoint.WEIGHTS).items()}


@pytest.mark.slow
def test_a_training_stopped_in_the_middle_ends_as_one_that_was_not(
    towers: Path, pictures: Path, tmp_path: Path, stopped_after: StoppedAfter
) -> None:
    config = replace(SMALL, checkpoint_every=3)
    whole = fitted(towers, pictures, tmp_path / "whole", config)
    with stopped_after(7):
        fitted(towers, pictures, tmp_path / "cut", config)
    again = fitted(towers, pictures, tmp_path / "cut", config)
    assert (whole["steps"], whole["resumed_from"], again["resumed_from"]) == (again["steps"], 0, 6)
    assert weights(tmp_path / "cut") == weights(tmp_path / "whole")
    assert read_metrics(tmp_path / "cut")[-1]["dev.cider"] == read_metrics(tmp_path / "whole")[-1]["dev.cider"]


@pytest.mark.slow
def test_a_signal_to_end_is_heard_while_the_features_are_made(
    towers: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They take hours of a large dataset, and a scheduler kills after seconds."""
    seen = []

    def see(*given: Any) -> Any:
        seen.append(1)
        if len(seen) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return regions_see(*given)

    regions_see = regions.region_features
    monkeypatch.setattr("training.weights.load.BATCH", 8)
    monkeypatch.setattr(regions, "region_features", see)
    data = [f"folder:{pictures / 'train'}"]
    with pytest.raises(RunError, match=r"stopped by a signal.*run the same command to start over"):
        fit_captioner(towers, data, tmp_path / "run", SMALL, device="cpu", cache=tmp_path / "cache")
    assert len(seen) == 2
    assert [file.suffix for file in (tmp_path / "cache" / "captions").iterdir()] == [".lock"]
    monkeypatch.undo()
    fit_captioner(towers, data, tmp_path / "run", SMALL, device="cpu", cache=tmp_path / "cache")


@pytest.mark.slow
def test_patience_ends_it_and_the_best_is_kept(towers: Path, pictures: Path, tmp_path: Path) -> None:
    """At a rate of 0 nothing is learnt: the first CIDEr stays the highest."""
    config = replace(SMALL, lr=0.0, epochs=20, eval_epochs=0.5, patience=2)
    result = fitted(towers, pictures, tmp_path / "run", config)
    assert (result["stopped_early"], result["best_step"]) == (True, 3)
    assert result["steps"] == 9
    assert Path(result["best"]).resolve().name == "step-00000003"
    assert fitted(towers, pictures, tmp_path / "run", config)["steps"] == 9


@pytest.mark.slow
def test_a_checkpoint_of_it_is_one_of_its_towers_too(towers: Path, pictures: Path, tmp_path: Path) -> None:
    fitted(towers, pictures, tmp_path / "run", replace(SMALL, epochs=0.2, eval_epochs=0.0))
    image = sorted((pictures / "test").glob("*.jpg"))[0]
    for name, path in (("towers", towers), ("captioner", tmp_path / "run")):
        embed_files(path, [str(image)], None, None, tmp_path / f"{name}.safetensors", device="cpu")
    ours, theirs = (load_file(tmp_path / f"{name}.safetensors")["image_features"] for name in ("towers", "captioner"))
    assert ours.equal(theirs)


@pytest.mark.slow
def test_going_on_otherwise_is_refused(towers: Path, pictures: Path, tmp_path: Path) -> None:
    config = replace(SMALL, epochs=0.2, eval_epochs=0.0)
    fitted(towers, pictures, tmp_path / "run", config)
    line = r"the run was started with other settings \(lr was 0.004, is 0.1\); choose another"
    with pytest.raises(ConfigError, match=line):
        fitted(towers, pictures, tmp_path / "run", replace(config, lr=0.1))
    assert fitted(towers, pictures, tmp_path / "run", replace(config, beams=2))["steps"] == 2
    with pytest.raises(RunError, match=r"was trained on other data, regions or towers"):
        fit_captioner(towers, [f"folder:{pictures / 'test'}"], tmp_path / "run", config, device="cpu")


def test_weights_by_which_nothing_would_be_mixed_are_refused(towers: Path, pictures: Path, tmp_path: Path) -> None:
    data = [f"folder:{pictures / 'train'}@3", f"folder:{pictures / 'test'}"]
    with pytest.raises(ConfigError, match=r"--data: .*train@3: every image is used once per epoch; leave out @3"):
        fit_captioner(towers, data, tmp_path / "run", SMALL, device="cpu")
    assert not (tmp_path / "run").exists()


def test_a_checkpoint_without_a_captioner_says_how_to_get_one(towers: Path) -> None:
    with pytest.raises(CheckpointError, match=r"contains no captioner; train one with wenlan-train fit-captioner"):
        checkpoint.read(towers)
