"""Exported folders, as transformers and mteb use them."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.nn.functional import normalize

from tests.checkpoints import save
from tests.training.conftest import moved_checkpoint, retrieval_of
from training import cli
from training.data.tokenizer import load_tokenizer
from training.errors import ConfigError, RunError
from training.moco import BriVL
from training.outputs.checkpoint import RunState
from training.resolve import resolve
from training.run.optimizer import build_optimizer
from training.use.encode import open_encoder
from training.use.export import export
from training.weights.transformers_folder import export_transformers

pytestmark = pytest.mark.slow

TEXTS = ["红色的船", "山水相连， 白云 飞", "A small  cat　on the hill", "猫"]

Found = dict[str, Any]


def used(folder: Path, files: Sequence[Path], padding: Any) -> Found:
    """Features by transformers alone: its own classes load the folder, which holds no code."""
    from transformers import AutoModel, AutoProcessor, AutoTokenizer

    model: Any = AutoModel.from_pretrained(folder).eval()
    processor: Any = AutoProcessor.from_pretrained(folder)
    longest = processor.tokenizer.model_max_length
    texts = processor(text=TEXTS, padding=padding, truncation=True, max_length=longest, return_tensors="pt")
    patches = getattr(processor.image_processor, "max_num_patches", None)
    more = {"max_num_patches": patches} if patches else {}  # SigLIP 2's processor has a default of its own
    images = processor(images=[Image.open(file).convert("RGB") for file in files], return_tensors="pt", **more)
    with torch.no_grad():
        text = normalize(model.get_text_features(**texts).pooler_output, dim=-1)
        image = normalize(model.get_image_features(**images).pooler_output, dim=-1)
        given = {k: v for k, v in {**texts, **images}.items() if k != "token_type_ids"}
        logits = model(**given).logits_per_image
    assert AutoTokenizer.from_pretrained(folder)("x")["input_ids"]
    bias = getattr(model, "logit_bias", torch.zeros(1))
    assert torch.allclose(logits, model.logit_scale.exp() * image @ text.T + bias, atol=1e-3)
    return {"text": text.tolist(), "image": image.tolist(), "class": type(model).__name__}


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    generator, paths = np.random.default_rng(0), []
    for i in range(3):
        paths.append(tmp_path / f"{i}.png")
        pixels = generator.integers(0, 256, (4 + i, 5, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((90, 64 + 20 * i), Image.Resampling.BICUBIC).save(paths[-1])
    return paths


def two_tower_tests() -> ModuleType:
    path = Path(__file__).with_name("test_two_towers.py")
    spec = importlib.util.spec_from_file_location("two_tower_tests", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def assert_same(found: dict[str, Any], checkpoint: Path, files: list[Path]) -> None:
    encoder = open_encoder(checkpoint, "cpu")
    assert np.allclose(found["text"], encoder.encode_text(TEXTS), atol=1e-5)
    assert np.allclose(found["image"], encoder.encode_image(files), atol=1e-5)
    assert np.std(found["image"], axis=0).max() > 1e-3


@pytest.mark.parametrize("out", [".", ""])
def test_a_folder_without_a_name_is_one_line(
    out: str, checkpoint_with_moved_keys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RunError, match=r"\.: does not end in a name; give the path of the file or folder to write"):
        export_transformers(checkpoint_with_moved_keys, Path(out))


@pytest.mark.parametrize(
    "family", ["chinese_clip", "siglip2", *(pytest.param(f, marks=pytest.mark.drill(2)) for f in ("siglip", "clip"))]
)
def test_clips_towers_are_transformers_own(family: str, files: list[Path], tmp_path: Path) -> None:
    """From a folder, fine-tuned or not, and to a folder again: no code beside the weights."""
    made = two_tower_tests()
    made.make_folder(family, tmp_path / "their")
    assert cli.main(["import-transformers", str(tmp_path / "their"), "--out", str(tmp_path / "ck")]) == 0
    written = export(tmp_path / "ck", "transformers", tmp_path / "folder")
    assert written["model_type"] == family
    assert not list((tmp_path / "folder").glob("*.py"))
    if family == "siglip2":  # whose own processor keeps the aspect
        files, _ = made.pictures(tmp_path)
    padding = "max_length" if "siglip" in family else True
    found = used(tmp_path / "folder", files, padding)
    assert found["class"] == {"clip": "CLIPModel", "chinese_clip": "ChineseCLIPModel"}.get(
        family, f"{family.capitalize()}Model"
    )
    assert_same(found, tmp_path / "ck", files)
    if family == "siglip2":  # whose texts sentence-transformers does not cut at the tower's length
        return
    sentences: Any = importlib.import_module("sentence_transformers")  # which mteb brings
    theirs = sentences.SentenceTransformer(str(tmp_path / "folder"), device="cpu")
    pictures = [Image.open(file).convert("RGB") for file in files]
    given = {"text": TEXTS, "image": pictures}
    assert_same({k: theirs.encode(v, normalize_embeddings=True) for k, v in given.items()}, tmp_path / "ck", files)


MTEB = """
import json, sys
from pathlib import Path
import mteb
from datasets import Dataset, Image
from mteb.models.model_implementations.siglip_models import SiglipModelWrapper
from mteb.models.model_meta import ModelMeta, ScoringFunction
folder, pairs = sys.argv[1:]
images = sorted(map(str, Path(pairs).glob("*.png")))
texts = [Path(image).with_suffix(".txt").read_text(encoding="utf-8").strip() for image in images]
ids = [str(i) for i in range(len(images))]
of = {
    "I": Dataset.from_dict({"id": ids, "image": images}).cast_column("image", Image()),
    "T": Dataset.from_dict({"id": ids, "text": texts}),
}
model = SiglipModelWrapper(folder, revision=None, device="cpu")
about = {"name": "x/y", "revision": "1", "similarity_fn_name": ScoringFunction.COSINE, "modalities": ["image", "text"]}
model.mteb_model_meta = ModelMeta.create_empty(about)
found = {}
for queries, corpus in ("IT", "TI"):
    task = mteb.get_task(f"Flickr30k{queries}2{corpus}Retrieval")  # the protocol; the pairs are those above
    pairs = {"relevant_docs": {i: {i: 1} for i in ids}, "top_ranked": None}
    task.dataset = {"default": {"test": {"corpus": of[corpus], "queries": of[queries], **pairs}}}
    task.data_loaded = True
    [result] = mteb.evaluate(model, task, cache=None, show_progress_bar=False, co2_tracker=False).task_results
    [scores] = result.scores["test"]
    found[f"{queries}2{corpus}".lower()] = [scores[f"recall_at_{k}"] for k in (1, 5, 10)]
print(json.dumps(found))
"""


@pytest.mark.drill(40)
def test_mteb_measures_a_folder_with_the_recalls_of_eval(tmp_path: Path) -> None:
    """By its own wrapper for SigLIP."""
    if importlib.util.find_spec("mteb") is None:
        pytest.skip("mteb is not installed (extra: dev)")
    torch.manual_seed(0)
    two_tower_tests().make_folder("siglip", tmp_path / "their")
    assert cli.main(["import-transformers", str(tmp_path / "their"), "--out", str(tmp_path / "ck")]) == 0
    export(tmp_path / "ck", "transformers", tmp_path / "folder")
    (tmp_path / "pairs").mkdir()
    for i in range(24):
        generator = np.random.default_rng(i)
        pixels = generator.integers(0, 256, (4, 5, 3), dtype=np.uint8)
        large = Image.fromarray(pixels).resize((70, 50), Image.Resampling.BICUBIC)
        large.save(tmp_path / "pairs" / f"{i:02}.png")
        text = "".join(generator.choice(list("红色的船山水相连白云飞"), 5))
        (tmp_path / "pairs" / f"{i:02}.txt").write_text(f"{text} a small cat {i}\n", encoding="utf-8")
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf")}
    command = [sys.executable, "-c", MTEB, str(tmp_path / "folder"), str(tmp_path / "pairs")]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    theirs = json.loads(done.stdout.splitlines()[-1])
    ours = retrieval_of(tmp_path / "ck", f"folder:{tmp_path / 'pairs'}", device="cpu")
    for direction in ("i2t", "t2i"):
        assert theirs[direction] == pytest.approx([ours[direction][f"r{k}"] for k in (1, 5, 10)], abs=1e-5)
    assert 0 < ours["t2i"]["r10"] < 1


@pytest.mark.parametrize(
    ("overrides", "what"),
    [
        (None, "towers cnn_regions and char_text"),
        (["data.max_boxes=4"], r"regions \(data.max_boxes is 4\)"),
        (["data.tokenizer=gb2312"], "the tokenizer gb2312"),
        (["data.image_size=96"], "positions of a picture of 96 pixels"),
    ],
)
def test_towers_that_transformers_has_no_class_for_are_refused(
    overrides: list[str] | None, what: str, tmp_path: Path
) -> None:
    from training.weights.two_towers import overrides_of

    words, tokenizer = [], "gb2312"
    if overrides is not None:
        two_tower_tests().make_folder("chinese_clip", tmp_path / "their")
        words = [*overrides_of(tmp_path / "their"), "data.max_boxes=0", *overrides]
        tokenizer = str(tmp_path / "their") if "tokenizer" not in what else tokenizer
    checkpoint = moved_checkpoint(tmp_path / "run", *words, tokenizer=tokenizer)
    with pytest.raises(
        ConfigError, match=rf"^--to transformers: transformers does not have a class for {what}; it supports"
    ):
        export(checkpoint, "transformers", tmp_path / "folder")
    assert not (tmp_path / "folder").exists()


def trained(their: Path, run: Path, objective: str, **logits: float) -> Path:
    """A checkpoint of towers from a folder, as a training with these learned numbers of its logits leaves it."""
    from training.weights.two_towers import overrides_of

    words = [*overrides_of(their), f"moco.objective={objective}", "moco.learn_temperature=true", "data.max_boxes=0"]
    config = resolve("tiny", [*words, "moco.temperature=0.07"])
    model, state = BriVL(config), RunState(1, 8, 0, (), (), "grid")
    with torch.no_grad():
        for name, value in logits.items():
            getattr(model.logits, name).fill_(value)
    optimizer, tokenizer = build_optimizer(model, config.optim), load_tokenizer(str(their))
    return save(run, model, optimizer, config, tokenizer, state, 1)


def test_the_temperature_and_bias_that_were_learned_come_along(tmp_path: Path) -> None:
    their = tmp_path / "their"
    two_tower_tests().make_folder("siglip", their)
    checkpoint = trained(their, tmp_path / "run", "siglip", log_scale=3.25, bias=-12.0)
    export(checkpoint, "transformers", tmp_path / "a")
    ours = load_file(tmp_path / "a" / "model.safetensors")
    assert (float(ours["logit_scale"]), float(ours["logit_bias"])) == (3.25, -12.0)
    (checkpoint / "queues.safetensors").unlink()  # which is not needed where the towers are used
    export(checkpoint, "transformers", tmp_path / "b")
    assert float(load_file(tmp_path / "b" / "model.safetensors")["logit_scale"]) == pytest.approx(-np.log(0.07))


def test_siglips_bias_comes_along_from_a_folder(tmp_path: Path) -> None:
    two_tower_tests().make_folder("siglip", tmp_path / "their")
    theirs = load_file(tmp_path / "their" / "model.safetensors")
    theirs["logit_bias"] = torch.tensor([-7.5])
    save_file(theirs, tmp_path / "their" / "model.safetensors", {"format": "pt"})
    assert cli.main(["import-transformers", str(tmp_path / "their"), "--out", str(tmp_path / "ck")]) == 0
    export(tmp_path / "ck", "transformers", tmp_path / "imported")
    ours = load_file(tmp_path / "imported" / "model.safetensors")
    assert (float(ours["logit_scale"]), float(ours["logit_bias"])) == pytest.approx((3.0, -7.5))
