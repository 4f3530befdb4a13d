"""A calibrated checkpoint: its scores against those counted by hand, and in everything that is made of it."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pyarrow.parquet as pq
import pytest
from safetensors import safe_open
from safetensors.torch import load_file

from tests.synthetic import encode
from tests.training.conftest import retrieval_of
from training import cli
from training.commands import fit
from training.errors import CheckpointError, InputError
from training.evaluation import calibrate as calibrate_module
from training.evaluation.calibrate import calibrate
from training.evaluation.tasks.retrieval import summary
from training.outputs.atomic_files import add_tensors
from training.outputs.checkpoint import open_checkpoint
from training.use.embed import embed_data
from training.use.encode import open_encoder
from training.use.export import export

MakeShards = Callable[..., Path]
TRAIN = 60


@pytest.fixture(scope="module")
def manifest(shards_of_module: MakeShards) -> Path:
    return shards_of_module(train=(40, TRAIN - 40), val=(20,))


@pytest.fixture
def plain(checkpoint_with_moved_keys: Path) -> Path:
    return checkpoint_with_moved_keys


@pytest.fixture(scope="module")
def calibrated(checkpoint_with_moved_keys: Path, manifest: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("calibrated") / "checkpoint"
    shutil.copytree(checkpoint_with_moved_keys, folder)
    calibrate(folder, [str(manifest)], device="cpu", cache=folder.parent)
    return folder


def unrelated(checkpoint: Path, manifest: Path, tmp_path: Path) -> Any:
    """Cosines of all training images with the texts of other samples, by what embed gives."""
    embed_data(checkpoint, [str(manifest)], "train", tmp_path / "train.safetensors", device="cpu")
    of = {name: tensor.numpy() for name, tensor in load_file(tmp_path / "train.safetensors").items()}
    same = [np.equal.outer(of[name], of[name]) for name in ("image_ids", "text_ids")]
    return (of["image_features"] @ of["text_features"].T)[~(same[0] | same[1])]


@pytest.mark.slow
def test_a_score_is_the_share_of_unrelated_training_pairs_below(
    calibrated: Path, manifest: Path, tmp_path: Path
) -> None:
    encoder = open_encoder(calibrated, "cpu")
    images, texts = [encode("png", i, (60, 40)) for i in range(5)], ["红船", "山水相连", "一只小猫"]
    cosines = encoder.similarity(images, texts)
    scores = encoder.similarity(images, texts, calibrated=True)
    counted = unrelated(calibrated, manifest, tmp_path)
    assert scores == pytest.approx((counted < cosines[..., None]).mean(-1), abs=2e-3)
    assert scores.std() > 0.01


@pytest.mark.slow
def test_two_at_once_write_into_a_checkpoint_one_after_the_other(
    plain: Path, manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both would write the same temporary files, and an index of what the other had."""

    def write(folder: Path, *more: Any) -> None:
        handle = os.open(folder, os.O_RDONLY)
        with pytest.raises(BlockingIOError):
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.close(handle)
        add_tensors(folder, *more)

    shutil.copytree(plain, tmp_path / "checkpoint")
    monkeypatch.setattr(calibrate_module, "add_tensors", write)
    calibrate(tmp_path / "checkpoint", [str(manifest)], images=4, device="cpu", cache=tmp_path)
    assert open_checkpoint(tmp_path / "checkpoint").background() is not None


def test_a_gallery_is_of_the_size_that_is_asked_for(plain: Path, manifest: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(plain, tmp_path / "some")
    counted = calibrate(folder, [str(manifest)], images=32, device="cpu")
    assert (counted["images"], counted["texts"]) == (32, 32)
    assert 0 < counted["pairs"] <= 32 * 31
    with pytest.raises(InputError, match="no two of its 1 samples are unrelated"):
        calibrate(folder, [str(manifest)], images=1, device="cpu")
    assert open_checkpoint(folder).background().images == 32  # type: ignore[union-attr]


def test_a_run_on_a_caption_set_is_calibrated_on_it(plain: Path, tmp_path: Path) -> None:
    checkpoint, captions = shutil.copytree(plain, tmp_path / "some"), tmp_path / "set"
    captions.mkdir()
    for number in range(12):
        (captions / f"{number}.png").write_bytes(encode("png", number, (60, 40)))
        (captions / f"{number}.txt").write_text(f"第{number}张", encoding="utf-8")
    config = open_checkpoint(checkpoint).config
    end_of_fit = Namespace(data=[f"folder:{captions}"], cache=tmp_path / "cache")
    fit._add_background(config, end_of_fit, checkpoint)
    background = open_checkpoint(checkpoint).background()
    assert background is not None
    assert 0 < background.images <= 12

    # A finished run does not fail for want of it.
    shutil.rmtree(checkpoint)
    shutil.copytree(plain, checkpoint)
    fit._add_background(config, Namespace(data=[str(tmp_path / "gone.json")], cache=tmp_path), checkpoint)
    assert open_checkpoint(checkpoint).background() is None


@pytest.mark.slow
def test_eval_says_what_matching_pairs_score(calibrated: Path, plain: Path, manifest: Path, tmp_path: Path) -> None:
    result = retrieval_of(calibrated, str(manifest), device="cpu")
    embed_data(calibrated, [str(manifest)], "val", tmp_path / "val.safetensors", device="cpu")
    features = load_file(tmp_path / "val.safetensors")
    own = (features["image_features"] * features["text_features"]).sum(1).numpy()
    background = [features[f"background_{name}"].numpy() for name in ("cosines", "shares")]
    assert result["scores"]["median_cosine"] == pytest.approx(float(np.median(own)), abs=1e-6)
    assert result["scores"]["median_score"] == pytest.approx(np.median(np.interp(own, *background)), abs=1e-4)
    assert result["scores"]["background"]["images"] == TRAIN
    assert "of the background" in summary(result)[-1]

    without = retrieval_of(plain, str(manifest), device="cpu")
    assert without["scores"] is None
    assert summary(without)[-1].endswith(f"add one with wenlan-train calibrate {plain} --data TRAIN")
    key = retrieval_of(calibrated, str(manifest), device="cpu", towers="key")
    assert (key["scores"], summary(key)[-1]) == (
        None,
        "scores: cosines only; a background belongs to the query towers",
    )
    assert [result[name] for name in ("i2t", "t2i")] == [without[name] for name in ("i2t", "t2i")]


@pytest.mark.slow
def test_what_is_made_of_it_carries_it(calibrated: Path, tmp_path: Path) -> None:
    background = open_checkpoint(calibrated).background()
    assert background is not None
    export(calibrated, "safetensors", tmp_path / "towers.safetensors")
    with safe_open(tmp_path / "towers.safetensors", "pt") as file:
        assert file.metadata()["background"] == background.to_json()
    (tmp_path / "0.png").write_bytes(encode("png", 0, (60, 40)))
    row = {"image_id": "0.png", "sentences": [["alt_text", "红船"]], "bbox": [[0, 0, 20, 20]]}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row))
    (tmp_path / "t.txt").write_text("红船\n", encoding="utf-8")
    for kind, given, out in (("--jsonl", "rows.jsonl", "rows.parquet"), ("--texts", "t.txt", "t.safetensors")):
        assert cli.main(["embed", str(calibrated), kind, str(tmp_path / given), "--out", str(tmp_path / out)]) == 0
    about = pq.read_schema(tmp_path / "rows.parquet").metadata
    assert about[b"wenlan.background"].decode() == background.to_json()
    with safe_open(tmp_path / "t.safetensors", "np") as file:
        assert (file.get_tensor("background_cosines") == background.cosines_Q).all()


def test_a_checkpoint_without_one_is_as_good_and_says_how_to_add_it(plain: Path) -> None:
    encoder = open_encoder(plain, "cpu")
    image = encode("png", 0, (60, 40))
    assert encoder.similarity([image], ["红"]).shape == (1, 1)
    with pytest.raises(InputError, match=r"lacks a background; add it with wenlan-train calibrate .* --data TRAIN"):
        encoder.similarity([image], ["红"], calibrated=True)


@pytest.mark.slow
def test_the_checkpoint_stays_whole_and_one_byte_changed_is_seen(
    calibrated: Path, manifest: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(calibrated, tmp_path / "copy")
    opened = open_checkpoint(folder)
    opened.sealed.verify_all()
    before = opened.background()
    calibrate(folder, [str(manifest)], device="cpu")
    opened = open_checkpoint(folder)
    opened.sealed.verify_all()
    assert before is not None
    assert (opened.background().cosines_Q == before.cosines_Q).all()  # type: ignore[union-attr]
    file = folder / "background.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(CheckpointError, match="its sha256 differs from"):
        open_checkpoint(folder).background()
    file.unlink()
    assert open_checkpoint(folder, ("config.json", "vocab.txt")).background() is None


@pytest.mark.slow
def test_fit_adds_it_at_its_end(manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["fit", "--recipe", "tiny", "--data", str(manifest), "--out", str(tmp_path / "run")]
    assert cli.main([*words, "--set", "run.background=0"]) == 0
    assert open_checkpoint(tmp_path / "run").background() is None
    assert cli.main(words) == 0  # goes on, which is nothing but this
    background = open_checkpoint(tmp_path / "run").background()
    assert background is not None
    assert background.images == TRAIN
    monkeypatch.setattr("training.evaluation.calibrate.calibrate", None)  # it is there: not made again
    assert cli.main(words) == 0


@pytest.mark.drill(2)
def test_fit_calibrates_the_best_beside_the_last(make_shards: MakeShards, tmp_path: Path) -> None:
    """Whoever takes the one that early stopping chose has scores as well."""
    data, settings = (
        make_shards(train=(16,), dev=(12,)),
        ["optim.lr=0", "run.epochs=20", "run.eval_every=2", "run.patience=3"],
    )
    words = ["fit", "--recipe", "tiny", "--data", str(data), "--out", str(tmp_path / "run")]
    assert cli.main([*words, *(word for setting in settings for word in ("--set", setting))]) == 0
    best = open_checkpoint(tmp_path / "run" / "checkpoints" / "best")
    assert best.state().step < open_checkpoint(tmp_path / "run").state().step
    assert best.background() is not None
    assert open_checkpoint(tmp_path / "run").background() is not None
    (best.folder / "towers.safetensors").write_bytes(b"")  # a run that is done is not undone by it
    assert cli.main([*words, *(word for setting in settings for word in ("--set", setting))]) == 0


@pytest.mark.drill(2)
def test_a_fit_killed_before_its_background_was_copied_copies_it_the_next_time(
    manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mirror = tmp_path / "mirror"
    words = ["fit", "--recipe", "tiny", "--data", str(manifest), "--out", str(tmp_path / "run")]
    words += ["--set", f"run.mirror={mirror}"]
    with monkeypatch.context() as killed:
        killed.setattr("training.outputs.saver.copy_again", Mock(side_effect=KeyboardInterrupt))
        assert cli.main(words) == 130
    last = open_checkpoint(tmp_path / "run").folder
    assert (open_checkpoint(last).background(), open_checkpoint(mirror / last.name).background()).count(None) == 1
    assert cli.main(words) == 0
    assert open_checkpoint(mirror / last.name).background() is not None
    monkeypatch.setattr("training.outputs.saver._copy", None)  # it is there: not copied again
    assert cli.main(words) == 0
