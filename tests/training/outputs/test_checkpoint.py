from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.checkpoints import save
from training.config import Config
from training.data.tokenizer import load_tokenizer
from training.errors import CheckpointError
from training.method.key_queue import SampleIds
from training.moco import BriVL
from training.outputs.checkpoint import TOWERS, RunState, clean, latest, open_checkpoint
from training.resolve import resolve
from training.run.optimizer import build_optimizer

STATE = RunState(4, 32, 1, ("c" * 64,), ("grid",), "grid")
Saved = tuple[Path, BriVL, torch.optim.AdamW, Config]


def small() -> Config:
    config = resolve("tiny")
    return replace(config, moco=replace(config.moco, queue_size=10))


def build(seed: int) -> tuple[BriVL, torch.optim.AdamW]:
    torch.manual_seed(seed)
    model = BriVL(small())
    optimizer = build_optimizer(model, small().optim)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    model.text_queue.keys_KD.normal_()
    model.text_queue.entered_K += 3
    return model, optimizer


@pytest.fixture
def saved(tmp_path: Path) -> Saved:
    model, optimizer = build(0)
    folder = save(tmp_path / "run", model, optimizer, small(), load_tokenizer("gb2312"), STATE, keep_last=2)
    return folder, model, optimizer, small()


@pytest.mark.slow
def test_everything_comes_back(saved: Saved) -> None:
    folder, model, optimizer, config = saved
    opened = open_checkpoint(folder)
    assert opened.config == config
    assert opened.tokenizer.encode("红船", 9) == load_tokenizer("gb2312").encode("红船", 9)
    other, its_optimizer = build(1)
    assert opened.load_training(other, its_optimizer) == STATE
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name
    for mine, theirs in zip(model.parameters(), other.parameters(), strict=True):
        for moment, value in optimizer.state.get(mine, {}).items():
            assert torch.equal(value, its_optimizer.state[theirs][moment])


@pytest.mark.slow
@pytest.mark.parametrize("size", [4, 25])
def test_queues_come_back_in_another_size_with_their_newest_keys(
    saved: Saved, size: int, caplog: pytest.LogCaptureFixture
) -> None:
    folder, model, optimizer, config = saved
    for step, count in ((7, 8), (8, 5)):
        numbers = torch.arange(count) + 100 * step
        model.text_queue.enqueue(torch.randn(count, 32), SampleIds(numbers, numbers, numbers, numbers >= 0), step)
    folder = save(folder.parent.parent, model, optimizer, config, load_tokenizer("gb2312"), STATE, keep_last=2)
    other = BriVL(replace(config, moco=replace(config.moco, queue_size=size)))
    open_checkpoint(folder).load_training(other, build_optimizer(other, config.optim))
    newest = [*range(703, 708), *range(800, 805)][-size:]
    assert other.text_queue.sample_ids_K[other.text_queue.filled_K].tolist() == newest
    assert torch.equal(
        other.text_queue.keys_KD[len(newest) - 1], model.text_queue.keys_KD[2]
    )  # slot 12 of a ring of 10
    assert f"text_queue had 10 slots and has {size} now" in caplog.text


def test_a_learned_temperature_comes_back_and_towers_alone_begin_with_a_fresh_one(tmp_path: Path) -> None:
    config = replace(small(), moco=replace(small().moco, objective="siglip"))
    models = [BriVL(config) for _ in range(3)]
    with torch.no_grad():
        models[0].logits.log_scale.fill_(1.5)
        models[0].logits.bias.fill_(-3)
    optimizer = build_optimizer(models[0], config.optim)
    folder = save(tmp_path / "run", models[0], optimizer, config, load_tokenizer("gb2312"), STATE, keep_last=2)
    open_checkpoint(folder).load_training(models[1], build_optimizer(models[1], config.optim))
    open_checkpoint(folder).load_towers(models[2])
    assert [m.logits.bias.item() for m in models] == [-3, -3, -10]
    assert [m.logits.log_scale.item() for m in models] == pytest.approx([1.5, 1.5, math.log(1 / 0.07)])


@pytest.mark.slow
def test_towers_alone_start_a_new_model_whose_key_towers_are_copies(saved: Saved) -> None:
    folder, model, _, _ = saved
    other, _ = build(1)
    open_checkpoint(folder.parent.parent).load_towers(other)  # the run's folder names its newest checkpoint
    assert torch.equal(other.text_query.trunk.tokens.weight, model.text_query.trunk.tokens.weight)
    for key, query in zip(other.text_key.parameters(), other.text_query.trunk.parameters(), strict=True):
        assert torch.equal(key, query)


def test_shared_tensors_are_stored_once(saved: Saved) -> None:
    folder, model, _, _ = saved
    shared = model.shared_tensors()
    assert shared
    keys = load_file(folder / "key_towers.safetensors")
    assert not set(shared) & set(keys)
    assert set(shared.values()) <= set(load_file(folder / "towers.safetensors"))


def test_the_last_n_are_kept_and_half_written_ones_removed(saved: Saved) -> None:
    folder, model, optimizer, config = saved
    run = folder.parent.parent
    (run / "checkpoints" / ".step-00000009.1.tmp").mkdir()
    for step in (6, 12):
        save(run, model, optimizer, config, load_tokenizer("gb2312"), replace(STATE, step=step), keep_last=2)
    clean(run)
    assert sorted(p.name for p in (run / "checkpoints").iterdir()) == ["step-00000006", "step-00000012"]
    newest = latest(run)
    assert newest is not None
    assert newest.name == "step-00000012"


def _edit_index(folder: Path, change: Callable[[dict], None]) -> None:  # type: ignore[type-arg]
    index = json.loads((folder / "checkpoint.json").read_text())
    change(index)
    (folder / "checkpoint.json").write_text(json.dumps(index))


def _vouch(folder: Path, name: str) -> None:
    """Let the index name the file as it is now."""
    data = (folder / name).read_bytes()
    entry = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    _edit_index(folder, lambda index: index["files"].update({name: entry}))


def _newer(folder: Path) -> None:
    _edit_index(folder, lambda index: index.update(checkpoint_version=3))


def _older(folder: Path) -> None:
    _edit_index(folder, lambda index: index.update(checkpoint_version=1))


def _cut(folder: Path) -> None:
    path = folder / "towers.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def _flip(folder: Path) -> None:
    path = folder / "towers.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))


def _nan(folder: Path) -> None:
    path = folder / "towers.safetensors"
    tensors = load_file(path)
    tensors["text_query.trunk.tokens.weight"][5, 5] = float("nan")
    save_file(tensors, path)
    _vouch(folder, path.name)


def _missing(folder: Path) -> None:
    (folder / "queues.safetensors").unlink()


def _other_shape(folder: Path) -> None:
    path = folder / "towers.safetensors"
    save_file({k: v for k, v in load_file(path).items() if "tokens" not in k}, path)
    _vouch(folder, path.name)


def _unknown_key(folder: Path) -> None:
    path = folder / "config.json"
    path.write_text(path.read_text().replace('"momentum"', '"momentun"'))
    _vouch(folder, path.name)


def _replace(name: str, data: bytes) -> Callable[[Path], None]:
    """Other bytes in a file, with an index that vouches for them."""

    def damage(folder: Path) -> None:
        (folder / name).write_bytes(data)
        if name != "checkpoint.json":
            _vouch(folder, name)

    return damage


DEEP, ENDLESS = b"[" * 100_000, b'{"step": ' + b"9" * 5000 + b"}"


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (_replace("checkpoint.json", DEEP), r"checkpoint.json: not the index of a wenlan checkpoint"),
        (
            _replace("checkpoint.json", b'{"checkpoint_version": 2, "files": {"a": {"bytes": 1e999, "sha256": ""}}}'),
            r"checkpoint.json: not the index of a wenlan checkpoint",
        ),
        (_replace("config.json", ENDLESS), r"config.json: not JSON \(.*digits"),
        (_replace("config.json", b'{"config": 5, "detector": ""}'), r"config.json: 5: input should be an object"),
        (_newer, r"checkpoint.json: checkpoint version 3 is newer.*; upgrade wenlan"),
        (_older, r"checkpoint.json: checkpoint version 1 is older than .*\(2\); train again, or import again$"),
        (_cut, r"towers.safetensors: \d+ bytes, but \d+ in checkpoint.json: truncated"),
        (_flip, r"towers.safetensors: its sha256 differs from"),
        (_nan, r"towers.safetensors: text_query.trunk.tokens.weight contains NaN"),
        (_missing, r"queues.safetensors: missing"),
        (
            _other_shape,
            r"step-00000004: does not match this model: 1 tensors differ, first text_query.trunk.tokens.weight",
        ),
        (_replace("config.json", b"[]"), r"config.json: not a JSON object"),
        (_replace("vocab.txt", b"\xff\n"), r"vocab.txt: not UTF-8 at byte 0"),
        (_unknown_key, r"config.json: moco.momentun: unknown key; did you mean momentum"),
    ],
)
@pytest.mark.slow
def test_a_checkpoint_that_is_not_whole_is_refused_in_one_sentence(
    saved: Saved, damage: Callable[[Path], None], sentence: str
) -> None:
    folder = saved[0]
    damage(folder)
    model, _ = build(1)
    with pytest.raises(CheckpointError, match=sentence) as e:
        open_checkpoint(folder).load_towers(model)
    assert "\n" not in str(e.value)


def test_a_pickle_and_a_foreign_folder_are_refused(tmp_path: Path) -> None:
    torch.save({}, tmp_path / "model.pth")
    with pytest.raises(CheckpointError, match=r"model.pth: a file, but a checkpoint is a folder; pickle files"):
        open_checkpoint(tmp_path / "model.pth")
    with pytest.raises(CheckpointError, match="not a wenlan checkpoint"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("state", "sentence"),
    [
        (ENDLESS.decode(), r"state.json: not JSON"),
        ('{"step": 1}', r"state.json: position: missing$"),
        ({"step": "x"}, r"state.json: step: 'x': input should be a valid integer"),
        ({"content_digests": 5}, r"state.json: content_digests: 5: input should be a valid"),
        ({"weights": ["a"]}, r"state.json: weights: "),
    ],
)
def test_a_state_that_is_none_is_refused_in_one_sentence(
    saved: Saved, state: str | dict[str, object], sentence: str
) -> None:
    path = saved[0] / "state.json"
    text = state if isinstance(state, str) else json.dumps(json.loads(path.read_text()) | state)
    _replace("state.json", text.encode())(saved[0])
    with pytest.raises(CheckpointError, match=sentence) as e:
        open_checkpoint(saved[0]).state()
    assert "\n" not in str(e.value)


@pytest.mark.slow
def test_moments_that_are_missing_or_of_another_shape_are_refused(saved: Saved) -> None:
    path = saved[0] / "optimizer.safetensors"
    whole = load_file(path)
    name = next(name for name in whole if name.startswith("exp_avg_sq/"))
    for wrong in ({}, {name: torch.zeros(1, 2, 3, 4, 5)}):
        save_file({k: v for k, v in whole.items() if k != name} | wrong, path)
        _vouch(saved[0], path.name)
        with pytest.raises(CheckpointError, match=r"optimizer.safetensors: .* has a different shape"):
            open_checkpoint(saved[0]).load_training(*build(1))


@pytest.mark.slow
def test_the_towers_alone_are_enough_to_use_a_checkpoint(saved: Saved) -> None:
    folder, model, *_ = saved
    for name in ("queues", "optimizer", "key_towers"):
        path = folder / f"{name}.safetensors"
        data = path.read_bytes()
        path.unlink()
        if name != "queues":
            path.write_bytes(data[:-9] if name == "optimizer" else data[:-1] + bytes([data[-1] ^ 1]))
    other, optimizer = build(1)
    open_checkpoint(folder, TOWERS).load_towers(other)
    assert torch.equal(other.text_query.trunk.tokens.weight, model.text_query.trunk.tokens.weight)
    with pytest.raises(CheckpointError, match=r"\.safetensors: "):
        open_checkpoint(folder).load_training(other, optimizer)
    _cut(folder)
    with pytest.raises(CheckpointError, match=r"towers.safetensors: \d+ bytes, but \d+ in checkpoint.json"):
        open_checkpoint(folder, TOWERS)


@pytest.mark.slow
def test_a_start_takes_the_queues_along_in_the_new_size_with_the_ages_of_their_keys(saved: Saved) -> None:
    folder, model, _, config = saved
    for size in (10, 6, 25):
        other = BriVL(replace(config, moco=replace(config.moco, queue_size=size)))
        open_checkpoint(folder).load_start(other, queues=True)
        kept = min(size, 10)
        assert torch.equal(other.text_queue.keys_KD[:kept], model.text_queue.keys_KD[10 - kept :])
        ages = STATE.step - model.text_queue.entered_K[10 - kept :]
        assert torch.equal(0 - other.text_queue.entered_K[:kept], ages)
    (folder / "queues.safetensors").unlink()
    _edit_index(folder, lambda index: index["files"].pop("queues.safetensors"))
    with pytest.raises(CheckpointError, match=r"contains no queues; leave out moco.init_queues"):
        open_checkpoint(folder).load_start(other, queues=True)


@pytest.mark.parametrize("name", ["../elsewhere/towers.safetensors", "/etc/hostname"])
def test_an_index_that_names_another_folder_is_refused(saved: Saved, name: str) -> None:
    folder = saved[0]
    elsewhere = folder.parent / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "towers.safetensors").write_bytes((folder / "towers.safetensors").read_bytes())
    index = json.loads((folder / "checkpoint.json").read_text())
    index["files"][name] = index["files"].pop("towers.safetensors")
    (folder / "checkpoint.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="missing from the checkpoint"):
        open_checkpoint(folder)
