"""Captions of pictures that were held out: learnt ones, the nearest training caption, and what is said about both."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file

from training import cli
from training.captions import checkpoint
from training.captions.decoder import CaptionerConfig
from training.captions.evaluate import caption_files, evaluate_captioning, summary
from training.captions.metrics import figures
from training.captions.train import fit_captioner
from training.errors import ConfigError, InputError
from training.use.embed import embed_files

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]

CONFIG = CaptionerConfig(
    width=32, layers=1, heads=2, ffn=64, dropout=0.1, max_characters=12, lr=4e-3, batch_size=8, epochs=30, patience=0
)


@pytest.fixture(scope="module")
def captioner(towers: Path, pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("captioner")
    fit_captioner(towers, [f"folder:{pictures / 'train'}"], out, CONFIG, device="cpu", cache=pictures.parent / "cache")
    return out


@pytest.mark.drill(4)
def test_it_names_the_colours_that_it_has_learnt(captioner: Path, pictures: Path) -> None:
    files = [str(path) for path in sorted((pictures / "test").glob("*.jpg"))]
    written = caption_files(captioner, files, [None] * len(files), device="cpu")
    assert [one["image"] for one in written] == files
    right = [one["caption"][2:3] == name for one, name in zip(written, "红绿蓝黄" * 2, strict=True)]
    assert sum(right) >= 6, written
    assert all(one["log_probability"] < 0 for one in written)


def test_figures_are_those_of_its_captions_and_of_the_nearest_training_captions(
    captioner: Path, pictures: Path, tmp_path: Path
) -> None:
    data = [f"folder:{pictures / 'test'}"]
    result = evaluate_captioning(captioner, data, "val", tokens="characters", device="cpu")
    files = [str(path) for path in sorted((pictures / "test").glob("*.jpg"))]
    references = [path.read_text(encoding="utf-8").split("\n") for path in sorted((pictures / "test").glob("*.txt"))]
    ours = [one["caption"] for one in caption_files(captioner, files, [None] * len(files), device="cpu")]
    assert result["captioner"]["cider"] == pytest.approx(figures(ours, references, "characters").cider)

    gallery = checkpoint.read(sorted((captioner / "checkpoints").glob("step-*"))[-1]).captions
    assert set(gallery) == {text for name in "红绿蓝黄" for text in (f"一面{name}色的墙。", f"{name}色")}
    (tmp_path / "texts.txt").write_text("\n".join(gallery), encoding="utf-8")
    embed_files(captioner, files, None, tmp_path / "texts.txt", tmp_path / "f.safetensors", device="cpu")
    features = load_file(tmp_path / "f.safetensors")
    nearest = [gallery[i] for i in (features["image_features"] @ features["text_features"].T).argmax(1).tolist()]
    assert result["nearest"]["cider"] == pytest.approx(figures(nearest, references, "characters").cider)
    assert result["difference"]["cider"] == pytest.approx(result["captioner"]["cider"] - result["nearest"]["cider"])
    assert result["captioner"]["cider"] > result["nearest"]["cider"], "random towers retrieve at random"
    low, high = result["captioner"]["cider_interval"]
    assert low <= result["captioner"]["cider"] <= high
    assert result["unseen"] is None


def test_images_whose_references_are_no_training_captions_are_told_apart(
    captioner: Path, pictures: Path, tmp_path: Path
) -> None:
    for number, text in enumerate(("一面红色的墙。", "红红的一堵墙")):
        Image.new("RGB", (40, 40), (200, 20, 20 + number)).save(tmp_path / f"{number}.jpg")
        (tmp_path / f"{number}.txt").write_text(text, encoding="utf-8")
    result = evaluate_captioning(captioner, [f"folder:{tmp_path}"], "val", tokens="characters", device="cpu")
    assert result["unseen"]["images"] == 1
    assert (result["protocol"]["images"], result["protocol"]["references"]) == (2, 2)


@pytest.mark.drill(1)
def test_the_protocol_names_what_the_figures_depend_on(captioner: Path, pictures: Path) -> None:
    data = f"folder:{pictures / 'test'}"
    result = evaluate_captioning(captioner, [data], "val", beams=1, device="cpu")
    newest = sorted((captioner / "checkpoints").glob("step-*"))[-1]
    digest = hashlib.sha256((newest / "checkpoint.json").read_bytes()).hexdigest()
    line = result["protocol"]["line"]
    assert line.startswith(f"{data}, val: 8 images, 16 references; tokens: jieba 0.")
    for part in ("beam width 1", "nearest of 8 training captions", "cider: pycocoevalcap"):
        assert part in line
    assert line.endswith(f"checkpoint {digest[:12]}")
    assert summary(result)[0] == line


def test_the_command_line_prints_figures_and_captions(
    captioner: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = str(sorted((pictures / "test").glob("*.jpg"))[0])
    assert cli.main(["caption", str(captioner), "--images", image, "--device", "cpu"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"{image}\t")
    assert cli.main(["caption", str(captioner), "--images", image, "--device", "cpu", "--json"]) == 0
    [one] = json.loads(capsys.readouterr().out)["captions"]
    assert shown == f"{image}\t{one['caption']}\n"
    data = ["--data", f"folder:{pictures / 'test'}", "--task", "captioning", "--device", "cpu", "--json"]
    assert cli.main(["eval", str(captioner), *data, "--tokens", "characters"]) == 0
    printed = capsys.readouterr()
    result = json.loads(printed.out)
    assert result["protocol"]["line"] in printed.err
    assert np.isfinite(result["nearest"]["bleu_4"])
    assert cli.main(["caption", str(captioner), "--images", image, "--beams", "0"]) == 2


def test_bad_input_is_one_line(captioner: Path, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"^\S+a.jpg: "):
        caption_files(captioner, [str(tmp_path / "a.jpg")], [None], device="cpu")
    with pytest.raises(ConfigError, match=r"--split: test: datasets have only the splits"):
        evaluate_captioning(captioner, ["x/manifest.json"], "test", device="cpu")
