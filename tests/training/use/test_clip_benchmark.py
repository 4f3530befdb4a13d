"""clip_benchmark measures a checkpoint by our registration, with the figures that `wenlan-train eval` has."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from training.data.tokenizer import load_tokenizer
from training.errors import ConfigError
from training.moco import BriVL
from training.outputs.checkpoint import RunState, save
from training.resolve import resolve
from training.run.optimizer import build_optimizer
from training.use.clip_benchmark import load_wenlan
from training.use.evaluate import evaluate_retrieval

IMAGES, EACH = 24, 2


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    config = resolve("tiny")
    model = BriVL(config)
    with torch.no_grad():
        for parameter in (*model.image_key.parameters(), *model.text_key.parameters()):
            parameter.add_(0.1 * torch.randn_like(parameter))
    state, folder = RunState(1, 8, 0, (), (), ""), tmp_path_factory.mktemp("run")
    return save(folder, model, build_optimizer(model, config.optim), config, load_tokenizer("gb2312"), state, 1)


def pixels(number: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(number).integers(0, 256, (50, 70, 3), dtype=np.uint8))


def captions(number: int) -> list[str]:
    return [f"第{number}张图片", f"编号是{number * 7}的照片"][:EACH]


def write_both(folder: Path) -> None:
    """The same pictures and captions as clip_benchmark reads them, and as a folder."""
    (folder / "files").mkdir()
    (folder / "wds" / "test").mkdir(parents=True)
    (folder / "wds" / "dataset_type.txt").write_text("retrieval")
    (folder / "wds" / "test" / "nshards.txt").write_text("1")
    with tarfile.open(folder / "wds" / "test" / "0.tar", "w") as tar:
        for i in range(IMAGES):
            data = io.BytesIO()
            pixels(i).save(data, "PNG")
            texts = "\n".join(captions(i)).encode()
            for suffix, content in (("png", data.getvalue()), ("txt", texts)):
                info = tarfile.TarInfo(f"{i:04d}.{suffix}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
                (folder / "files" / info.name).write_bytes(content)


@pytest.mark.parametrize("towers", ["query", "key"])
def test_its_recalls_are_ours(towers: str, checkpoint: Path, tmp_path: Path) -> None:
    pytest.importorskip("clip_benchmark", reason="clip-benchmark is not installed (extra: dev)")
    write_both(tmp_path)
    command = [sys.executable, "-m", "training.use.clip_benchmark", "eval", "--model_type", "wenlan", "--no_amp"]
    command += ["--model", str(checkpoint), "--pretrained", towers, "--dataset", "wds/pictures"]
    command += ["--dataset_root", str(tmp_path / "wds"), "--task", "zeroshot_retrieval", "--recall_k", "1", "5", "10"]
    command += ["--output", str(tmp_path / "out.json"), "--num_workers", "0", "--batch_size", "7", "--split", "test"]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr[-3000:]
    theirs = json.loads((tmp_path / "out.json").read_bytes())["metrics"]
    ours = evaluate_retrieval(checkpoint, [f"folder:{tmp_path / 'files'}"], "val", towers=towers)  # type: ignore[arg-type]
    assert (ours["samples"], ours["t2i"]["queries"]) == (IMAGES, IMAGES * EACH)
    for k in (1, 5, 10):
        assert theirs[f"text_retrieval_recall@{k}"] == pytest.approx(ours["i2t"][f"r{k}"])
        assert theirs[f"image_retrieval_recall@{k}"] == pytest.approx(ours["t2i"][f"r{k}"])
    assert 0 < ours["t2i"]["r10"] < 1


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P", "CMYK", "1"])
def test_pictures_of_any_mode_become_the_same_tensor(mode: str, checkpoint: Path) -> None:
    _, transform, tokenizer = load_wenlan(str(checkpoint))
    tensor = transform(pixels(1).convert(mode))
    assert (tuple(tensor.shape), tensor.dtype) == ((3, 64, 64), torch.uint8)
    assert len(tokenizer(["一", "二二"]).to("cpu")) == 2


def test_towers_are_query_or_key(checkpoint: Path) -> None:
    with pytest.raises(ConfigError, match="name the towers"):
        load_wenlan(str(checkpoint), "laion400m")
