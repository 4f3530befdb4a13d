"""The int8 text tower: smaller, near to the float one, and honest about how near."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.exported import Exported
from training import cli
from training.use.quantise import quantise_text
from training.weights.load import load

pytest.importorskip("onnxscript")
runtime = pytest.importorskip("onnxruntime")

pytestmark = pytest.mark.slow


def test_its_loss_is_measured_said_and_kept_in_the_file(exported: Exported, tmp_path: Path) -> None:
    loss = exported.written["int8_loss"]
    names = [Path(name).name for name in exported.written["out"]]
    assert names == ["m.image.onnx", "m.text.onnx", "m.text.int8.onnx"]
    assert loss["texts"] == 20
    assert 0.9 < loss["least_cosine"] <= loss["mean_cosine"] <= 1.0001
    assert loss["bytes"]["int8"] < loss["bytes"]["float"]
    assert f"R@1 i2t {loss['r1']['i2t']['float']:.1%} -> {loss['r1']['i2t']['int8']:.1%}" in exported.said

    float_file, int8_file = (runtime.InferenceSession(exported.folder / f"m.text{n}.onnx") for n in ("", ".int8"))
    about = int8_file.get_modelmeta().custom_metadata_map
    assert json.loads(about["int8_loss"]) == loss
    own = float_file.get_modelmeta().custom_metadata_map
    assert {name: value for name, value in about.items() if name != "int8_loss"} == own

    loaded = load(exported.checkpoint, "cpu")
    cosines = []
    for batch in loaded.split_loader([str(exported.manifest)], "val", tmp_path / "cache").once():
        inputs = {"input_ids": batch.token_ids_BL.numpy(), "n_tokens": batch.n_tokens_B.numpy()}
        [a], [b] = (session.run(None, inputs) for session in (float_file, int8_file))
        cosines += np.einsum("nd,nd->n", a, b).tolist()
    assert loss["mean_cosine"] == pytest.approx(np.mean(cosines), abs=1e-4)
    assert loss["least_cosine"] == pytest.approx(np.min(cosines), abs=1e-4)


def test_without_a_dataset_random_texts_of_all_lengths_tell_it(exported: Exported, tmp_path: Path) -> None:
    loss = quantise_text(load(exported.checkpoint, "cpu"), exported.folder / "m.text.onnx", tmp_path / "int8.onnx")
    assert (loss["texts"], loss["of"], "r1" in loss) == (256, "random texts", False)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--to", "safetensors", "--int8"], "--int8: is a form of --to onnx"),
        (["--to", "onnx", "--data", "x"], "--data: measures what --int8 loses"),
    ],
)
def test_options_that_do_not_go_together_are_bad_usage(
    words: list[str], line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["export", "run", "--out", str(tmp_path / "x"), *words]) == 2
    assert line in capsys.readouterr().err
