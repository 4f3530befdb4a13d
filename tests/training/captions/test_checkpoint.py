"""Checkpoints of a captioner: all of it comes back, and what is damaged is said in one line."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from data_specs.storage.whole_files import sha256_of
from tests.training.conftest import moved_checkpoint
from training.captions import checkpoint
from training.captions.checkpoint import ABOUT, Captioner, CaptionerState, read, read_training, write
from training.captions.decoder import CaptionerConfig
from training.errors import CheckpointError, ConfigError
from training.outputs.atomic_files import VerifiedFolder, add_tensors
from training.outputs.background import BACKGROUND_FILE, Background
from training.outputs.checkpoint import open_checkpoint

pytestmark = pytest.mark.usefixtures("one_thread")

CONFIG = CaptionerConfig(width=16, layers=1, heads=2, ffn=16, max_characters=5)


def stepped(captioner: Captioner) -> torch.optim.AdamW:
    optimizer = torch.optim.AdamW(captioner.decoder.parameters())
    captioner.decoder(torch.tensor([[1, 4]]), torch.ones(1, 2, 6), torch.ones(1, 2, dtype=torch.bool)).sum().backward()
    optimizer.step()
    return optimizer


@pytest.fixture
def written(towers: Path, tmp_path: Path) -> tuple[Path, Captioner, torch.optim.AdamW]:
    captioner = Captioner.begin(CONFIG, 6, "a" * 64, "b" * 32, ["红船", "红 船", "红船", "船\n歌"])
    optimizer = stepped(captioner)
    return write(tmp_path, captioner, optimizer, CaptionerState(7, 0.5, 3), towers, best=True), captioner, optimizer


@pytest.mark.slow
def test_everything_comes_back(written: tuple[Path, Captioner, torch.optim.AdamW], towers: Path) -> None:
    folder, captioner, optimizer = written
    again = read(folder)
    assert (again.config, again.vocabulary, again.towers, again.data) == (
        CONFIG,
        captioner.vocabulary,
        "a" * 64,
        "b" * 32,
    )
    assert again.captions == ("红船", "红 船", "船 歌"), "each once, on one line"
    for name, tensor in captioner.decoder.state_dict().items():
        assert torch.equal(tensor, again.decoder.state_dict()[name]), name
    other = torch.optim.AdamW(again.decoder.parameters())
    assert read_training(folder, again, other) == CaptionerState(7, 0.5, 3)
    for ours, theirs in zip(captioner.decoder.parameters(), again.decoder.parameters(), strict=True):
        assert optimizer.state[ours].keys() == other.state[theirs].keys()
        assert all(torch.equal(optimizer.state[ours][key], other.state[theirs][key]) for key in optimizer.state[ours])
    assert (folder / "towers.safetensors").read_bytes() == (towers / "towers.safetensors").read_bytes()


def test_captions_of_which_no_character_is_left_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"min_count: no character occurs 3 times in the training captions"):
        Captioner.begin(replace(CONFIG, min_count=3), 6, "a" * 64, "b" * 32, ["红船", "红 船"])


@pytest.mark.slow
def test_the_newest_and_the_best_are_kept(
    written: tuple[Path, Captioner, torch.optim.AdamW], towers: Path, tmp_path: Path
) -> None:
    _, captioner, optimizer = written
    for step in (8, 9):
        write(tmp_path, captioner, optimizer, CaptionerState(step, 0.5, 3), towers)
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["best", "step-00000007", "step-00000009"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"captioner": {"layers": 0}}, r"not a valid captioner.json \(captioner.layers: 0: input should be greater"),
        ({"characters": "红"}, r"not a valid captioner.json \(Error\(s\) in loading state_dict"),
        ({"towers": None, "captioner": 3}, r"not a valid captioner.json"),
        ({"region_width": -1}, r"not a valid captioner.json"),
    ],
)
def test_a_description_that_does_not_fit_is_one_line(
    written: tuple[Path, Captioner, torch.optim.AdamW], change: dict[str, object], line: str
) -> None:
    folder, *_ = written
    about = json.loads((folder / ABOUT).read_bytes()) | change
    (folder / ABOUT).write_text(json.dumps(about), encoding="utf-8")
    index = json.loads((folder / "checkpoint.json").read_bytes())
    index["files"][ABOUT] = {"bytes": (folder / ABOUT).stat().st_size, "sha256": sha256_of(folder / ABOUT)}
    (folder / "checkpoint.json").write_text(json.dumps(index), encoding="utf-8")
    with pytest.raises(CheckpointError, match=line):
        read(folder)


def test_a_training_that_does_not_fit_is_one_line(written: tuple[Path, Captioner, torch.optim.AdamW]) -> None:
    folder, captioner, optimizer = written
    name = "captioner_training.safetensors"
    moments = VerifiedFolder.open(folder).tensors(name)
    cut = {**moments, "exp_avg_sq/project.bias": torch.zeros(3)}
    for tensors in (cut, {k: v for k, v in moments.items() if k != "exp_avg/project.bias"}):
        add_tensors(folder, name, tensors)
        with pytest.raises(CheckpointError, match=r"_training.safetensors: project.bias has a different shape"):
            read_training(folder, captioner, optimizer)


def test_keys_that_decide_nothing_may_change() -> None:
    assert (
        checkpoint.changes(CONFIG, CaptionerConfig(width=16, layers=1, heads=2, ffn=16, max_characters=5, beams=9))
        == {}
    )
    other = CaptionerConfig(width=16, layers=2, heads=2, ffn=16, max_characters=5)
    assert checkpoint.changes(CONFIG, other) == {"layers": (1, 2)}


def test_a_tokenizer_that_is_no_berts_and_a_background_come_along(tmp_path: Path) -> None:
    backend = Tokenizer(models.WordLevel({"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3, "红": 4, "船": 5}, "<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    marks = [("<s>", 1), ("</s>", 2)]
    backend.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=marks)
    (tmp_path / "tokenizer.json").write_text(backend.to_str(), encoding="utf-8")
    towers = moved_checkpoint(tmp_path / "towers", tokenizer=str(tmp_path / "tokenizer.json"))
    add_tensors(towers, BACKGROUND_FILE, Background.of(np.linspace(-1, 1, 50, dtype=np.float32), 5, 10).tensors())
    captioner = Captioner.begin(CONFIG, 6, "a" * 64, "b" * 32, ["红船"])
    opened = open_checkpoint(write(tmp_path / "run", captioner, stepped(captioner), CaptionerState(1), towers))
    encoded = opened.tokenizer.encode("红船", 8)
    assert encoded == open_checkpoint(towers).tokenizer.encode("红船", 8)
    assert (encoded[0], encoded[-1]) == (1, 2)
    background = opened.background()
    assert background is not None
    assert background.pairs == 50
