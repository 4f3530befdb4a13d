"""clip_benchmark measures a checkpoint by our registration, with the figures that `wenlan-train eval` has."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from data_specs.pictures.boxes import cleaned
from pipeline.detectors._boxes import raw_boxes, rows_of
from pipeline.detectors.proposals import Proposals
from pipeline.pictures.decode import decode
from pipeline.store.store import Store
from tests.places import ROOT
from tests.processes import Forks
from tests.training.conftest import retrieval_of
from training.errors import ConfigError
from training.evaluation.file_regions import RegionTable
from training.use.clip_benchmark import load_wenlan
from training.use.encode import open_encoder

IMAGES, EACH = 24, 2


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


Measure = Callable[[str, Path, Path, str], dict[str, float]]

AS_A_MODULE = "import runpy; runpy.run_module('training.use.clip_benchmark', run_name='__main__', alter_sys=True)"
"""What `python -m training.use.clip_benchmark` does."""


@pytest.fixture(scope="module")
def forks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forks]:
    """Processes that have imported clip_benchmark, and nothing of this package."""
    pytest.importorskip("clip_benchmark", reason="clip-benchmark is not installed (extra: dev)")
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}
    started = Forks("import clip_benchmark.cli\n", tmp_path_factory.mktemp("forks"), environment)
    yield started
    started.close()


@pytest.fixture
def measure(forks: Forks) -> Measure:
    """clip_benchmark's metrics of a checkpoint, by a script in a process of its own."""

    def measure(script: str, folder: Path, checkpoint: Path, towers: str) -> dict[str, float]:
        words = ["eval", "--model_type", "wenlan", "--no_amp"]
        words += ["--model", str(checkpoint), "--pretrained", towers, "--dataset", "wds/pictures"]
        words += ["--dataset_root", str(folder / "wds"), "--task", "zeroshot_retrieval", "--recall_k", "1", "5", "10"]
        words += ["--output", str(folder / "out.json"), "--num_workers", "0", "--batch_size", "7", "--split", "test"]
        forks(script, *words)
        metrics: dict[str, float] = json.loads((folder / "out.json").read_bytes())["metrics"]
        return metrics

    return measure


def assert_same(theirs: dict[str, float], ours: dict[str, Any]) -> None:
    assert (ours["samples"], ours["t2i"]["queries"]) == (IMAGES, IMAGES * EACH)
    for k in (1, 5, 10):
        assert theirs[f"text_retrieval_recall@{k}"] == pytest.approx(ours["i2t"][f"r{k}"])
        assert theirs[f"image_retrieval_recall@{k}"] == pytest.approx(ours["t2i"][f"r{k}"])
    assert 0 < ours["t2i"]["r10"] < 1


@pytest.mark.parametrize("towers", ["query", "key"])
@pytest.mark.drill(12)
def test_its_recalls_are_ours(towers: str, measure: Measure, checkpoint: Path, tmp_path: Path) -> None:
    write_both(tmp_path)
    theirs = measure(AS_A_MODULE, tmp_path, checkpoint, towers)
    assert_same(theirs, retrieval_of(checkpoint, f"folder:{tmp_path / 'files'}", towers=towers))


@pytest.mark.drill(20)
def test_a_detectors_boxes_reach_it_and_are_those_of_the_region_cache(
    measure: Measure, checkpoint: Path, tmp_path: Path
) -> None:
    """Made inside by the shipped detector there; here found by the files' sha256 in STORE, as a build filled it."""
    write_both(tmp_path)
    detector, store = Proposals(), Store(str(tmp_path / "store"))
    state, files = detector.load(), sorted((tmp_path / "files").glob("*.png"))
    raw = {
        hashlib.sha256(file.read_bytes()).hexdigest(): raw_boxes(detector, state, [decode(file.read_bytes()).pixels])[0]
        for file in files
    }
    store.regions(detector.detector_id).put(rows_of(raw))
    regions = tmp_path / "store" / "regions" / detector.detector_id
    script = "import wenlan; wenlan.clip_benchmark('proposals')"
    ours = retrieval_of(checkpoint, f"folder:{tmp_path / 'files'}", regions=regions)
    assert_same(measure(script, tmp_path, checkpoint, "query"), ours)

    content, size = files[0].read_bytes(), (70, 50)
    found = RegionTable.open(regions).boxes_of(content, "0")
    boxes = cleaned(raw[hashlib.sha256(content).hexdigest()], *size, 1000)[0]
    assert np.array_equal(np.array(found, np.float32), boxes)
    assert len(boxes) > 4
    encoder = open_encoder(checkpoint, "cpu")
    model, transform, _ = load_wenlan(str(checkpoint), boxes_of=lambda _: boxes.tolist())
    features = model.encode_image(transform(pixels(0))[None])
    assert np.allclose(features, encoder.encode_image(content, [boxes.tolist()]), atol=1e-6)
    assert not np.allclose(features, encoder.encode_image(content), atol=1e-3)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P", "CMYK", "1"])
def test_pictures_of_any_mode_become_the_same_tensor(mode: str, checkpoint: Path) -> None:
    _, transform, tokenizer = load_wenlan(str(checkpoint))
    tensor = transform(pixels(1).convert(mode))
    assert (tuple(tensor.shape), tensor.dtype) == ((3 * 64 * 64 + 2 + 16 * 5,), torch.uint8)
    assert len(tokenizer(["一", "二二"]).to("cpu")) == 2


@pytest.mark.slow
def test_towers_are_query_or_key(checkpoint: Path) -> None:
    with pytest.raises(ConfigError, match="name the towers"):
        load_wenlan(str(checkpoint), "laion400m")
