"""Exported folders, as whoever has transformers and not this package uses them."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file, save_file

from tests.processes import Forks
from tests.training.conftest import moved_checkpoint
from training import cli
from training.data.tokenizer import CharTokenizer, gb2312_vocabulary, load_tokenizer
from training.errors import ConfigError, RunError
from training.evaluation.evaluate import evaluate_retrieval
from training.moco import BriVL
from training.outputs.checkpoint import RunState, save
from training.resolve import resolve
from training.run.optimizer import build_optimizer
from training.use.encode import open_encoder
from training.use.export import export
from training.weights.transformers_folder import _characters, export_transformers

TEXTS = ["红色的船", "山水相连， 白云 飞", "A small  cat　on the hill", "猫"]

IMPORTS = """
import torch
from transformers import AutoImageProcessor, AutoModel, AutoProcessor, AutoTokenizer, BertModel, CLIPModel
"""
"""What costs five seconds of every process that uses a folder."""

USER = """
import json, sys
import torch
import torch.nn.functional as F
from PIL import Image
from transformers import AutoModel, AutoProcessor, AutoTokenizer
folder, remote, padding, texts, files = json.loads(sys.argv[1])
assert "training" not in sys.modules
model = AutoModel.from_pretrained(folder, trust_remote_code=remote).eval()
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=remote)
longest = processor.tokenizer.model_max_length
texts = processor(text=texts, padding=padding, truncation=True, max_length=longest, return_tensors="pt")
patches = getattr(processor.image_processor, "max_num_patches", None)
more = {"max_num_patches": patches} if patches else {}  # SigLIP 2's processor has a default of its own
images = processor(images=[Image.open(file).convert("RGB") for file in files], return_tensors="pt", **more)
with torch.no_grad():
    text = F.normalize(model.get_text_features(**texts).pooler_output, dim=-1)
    image = F.normalize(model.get_image_features(**images).pooler_output, dim=-1)
    given = {k: v for k, v in {**texts, **images}.items() if k != "token_type_ids"}
    logits = model(**given).logits_per_image
assert not any(name.split(".")[0] in ("training", "pipeline", "data_specs") for name in sys.modules)
assert AutoTokenizer.from_pretrained(folder, trust_remote_code=remote)("x")["input_ids"]
bias = getattr(model, "logit_bias", torch.zeros(1))
assert torch.allclose(logits, model.logit_scale.exp() * image @ text.T + bias, atol=1e-3)
print(json.dumps({"text": text.tolist(), "image": image.tolist(), "class": type(model).__name__}))
"""


Found = dict[str, Any]


@pytest.fixture(scope="module")
def forks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forks]:
    """Processes that have imported transformers and do not see this package."""
    folder = tmp_path_factory.mktemp("forks")
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    environment |= {"HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "hf"), "PYTHONNOUSERSITE": "1"}
    started = Forks(IMPORTS, folder, environment)
    yield started
    started.close()


Use = Callable[..., Found]


@pytest.fixture
def use(forks: Forks, files: list[Path]) -> Use:
    """Features by ten lines of transformers, in a process that does not see this package."""

    def use(folder: Path, files: list[Path] = files, *, remote: bool, padding: Any = "max_length") -> Found:
        words = json.dumps([str(folder), remote, padding, TEXTS, [str(file) for file in files]])
        [line] = [line for line in forks(USER, words) if line.startswith("{")]
        result: Found = json.loads(line)
        return result

    return use


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


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("image.backbone=timm/test_vit", "image.box_embedding=true", "image.std=[0.5,0.4,0.3]", "data.image_size=96"),
    ],
)
def test_brivls_towers_come_with_their_sources(
    overrides: tuple[str, ...], use: Use, files: list[Path], tmp_path: Path
) -> None:
    checkpoint = moved_checkpoint(tmp_path / "run", *overrides)
    words = ["export", str(checkpoint), "--to", "transformers", "--out", str(tmp_path / "folder")]
    assert cli.main(words) == 0
    found = use(tmp_path / "folder", remote=True)
    assert found["class"] == "WenlanModel"
    assert_same(found, checkpoint, files)
    assert cli.main(words) == 2  # is there already


@pytest.mark.parametrize("out", [".", ""])
def test_a_folder_without_a_name_is_one_line(
    out: str, checkpoint_with_moved_keys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RunError, match=r"\.: has no name; give the path of what is to be written"):
        export_transformers(checkpoint_with_moved_keys, Path(out))


@pytest.mark.slow
def test_a_berts_towers_come_with_their_sources(use: Use, files: list[Path], tmp_path: Path) -> None:
    bert = ["text.encoder=bert_text", "text.backbone_layers=2", "text.frozen_layers=1", "text.backbone_heads=4"]
    bert += ["text.backbone_ffn=48", "text.vocab_size=21128", "data.tokenizer=bert_chinese"]
    checkpoint = moved_checkpoint(tmp_path / "run", *bert, tokenizer="bert_chinese")
    export(checkpoint, "transformers", tmp_path / "folder")
    assert_same(use(tmp_path / "folder", remote=True, padding=True), checkpoint, files)


@pytest.mark.parametrize("family", ["chinese_clip", "siglip", "clip", "siglip2"])
def test_clips_towers_are_transformers_own(family: str, use: Use, files: list[Path], tmp_path: Path) -> None:
    """From a folder, fine-tuned or not, and to a folder again: no code beside the weights."""
    made = two_tower_tests()
    made.make_folder(family, tmp_path / "their")
    assert cli.main(["import-transformers", str(tmp_path / "their"), "--out", str(tmp_path / "ck")]) == 0
    written = export(tmp_path / "ck", "transformers", tmp_path / "folder")
    assert (written["model_type"], written["trust_remote_code"]) == (family, False)
    assert not list((tmp_path / "folder").glob("*.py"))
    if family == "siglip2":  # whose own processor keeps the aspect
        files, _ = made.pictures(tmp_path)
    padding = "max_length" if "siglip" in family else True
    found = use(tmp_path / "folder", files, remote=False, padding=padding)
    assert found["class"] == {"clip": "CLIPModel", "chinese_clip": "ChineseCLIPModel"}.get(
        family, f"{family.capitalize()}Model"
    )
    assert_same(found, tmp_path / "ck", files)


@pytest.mark.slow
def test_regions_need_their_sources(use: Use, files: list[Path], tmp_path: Path) -> None:
    made = two_tower_tests()
    made.make_folder("chinese_clip", tmp_path / "their")
    from training.weights.two_towers import overrides_of

    checkpoint = moved_checkpoint(
        tmp_path / "run", *overrides_of(tmp_path / "their"), tokenizer=str(tmp_path / "their")
    )
    written = export(checkpoint, "transformers", tmp_path / "folder")
    assert written["trust_remote_code"]
    assert_same(use(tmp_path / "folder", remote=True, padding=True), checkpoint, files)


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


@pytest.mark.slow
def test_mteb_measures_a_folder_with_the_recalls_of_eval(tmp_path: Path) -> None:
    """By its own wrapper for SigLIP, to one query: features equal to 1e-5 may swap two candidates of a random model."""
    if importlib.util.find_spec("mteb") is None:
        pytest.skip("mteb is not installed (extra: dev)")
    two_tower_tests().make_folder("siglip", tmp_path / "their")
    assert cli.main(["import-transformers", str(tmp_path / "their"), "--out", str(tmp_path / "ck")]) == 0
    export(tmp_path / "ck", "transformers", tmp_path / "folder")
    (tmp_path / "pairs").mkdir()
    for i in range(24):
        generator = np.random.default_rng(i)
        pixels = generator.integers(0, 256, (50, 70, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "pairs" / f"{i:02}.png")
        text = "".join(generator.choice(list("红色的船山水相连白云飞"), 5))
        (tmp_path / "pairs" / f"{i:02}.txt").write_text(f"{text} a small cat {i}\n", encoding="utf-8")
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf")}
    command = [sys.executable, "-c", MTEB, str(tmp_path / "folder"), str(tmp_path / "pairs")]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    theirs = json.loads(done.stdout.splitlines()[-1])
    ours = evaluate_retrieval(tmp_path / "ck", [f"folder:{tmp_path / 'pairs'}"], "val", device="cpu")
    for direction in ("i2t", "t2i"):
        assert theirs[direction] == pytest.approx([ours[direction][f"r{k}"] for k in (1, 5, 10)], abs=1 / 24 + 1e-5)
    assert 0 < ours["t2i"]["r10"] < 1


def test_a_model_that_reads_as_the_release_did_is_refused(tmp_path: Path) -> None:
    from dataclasses import replace

    from training.weights import transformers_folder

    loaded = transformers_folder.load(moved_checkpoint(tmp_path / "run"), "cpu")
    old = replace(loaded.checkpoint, config=replace(loaded.config, compat="brivl-1.0"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transformers_folder, "load", lambda *_: replace(loaded, checkpoint=old))
        with pytest.raises(ConfigError, match=r"--to transformers: a model of compat brivl-1\.0"):
            export(tmp_path / "run", "transformers", tmp_path / "folder")
    assert not (tmp_path / "folder").exists()


CHARACTERS = st.characters(exclude_categories=["Cs", "Cn"])
OURS = load_tokenizer("gb2312")
THEIRS = _characters({token: i for i, token in enumerate(gb2312_vocabulary())})


@settings(max_examples=300)
@given(
    st.text(
        st.sampled_from("红船山水ａＡ1，。 　\t\n[]CLS…①㎏é的") | st.characters(exclude_categories=["Cs", "Cn"]),
        max_size=12,
    )
)
def test_characters_are_the_same_tokens_there(text: str) -> None:
    """But for letters whose lower case depends on their place or on the version of Unicode."""
    assert isinstance(OURS, CharTokenizer)
    ids = OURS.encode(text, 80)
    if "[" in text or any(len(c.lower()) > 1 for c in text):
        return
    assert THEIRS.encode(text).ids == ids


@pytest.mark.parametrize("objective", ["clip", "siglip"])
def test_the_temperature_that_was_learned_comes_along(objective: str, tmp_path: Path) -> None:
    config = resolve("tiny", [f"moco.objective={objective}", "moco.learn_temperature=true"])
    model, state = BriVL(config), RunState(1, 8, 0, (), (), "grid")
    assert model.logits.log_scale is not None
    with torch.no_grad():
        model.logits.log_scale.fill_(3.25)
    optimizer = build_optimizer(model, config.optim)
    checkpoint = save(tmp_path / "run", model, optimizer, config, load_tokenizer("gb2312"), state, 1)
    export(checkpoint, "transformers", tmp_path / "a")
    assert json.loads((tmp_path / "a" / "config.json").read_bytes())["logit_scale"] == 3.25
    assert float(load_file(tmp_path / "a" / "model.safetensors")["logit_scale"]) == 3.25
    (checkpoint / "queues.safetensors").unlink()  # which whoever only uses the towers may do
    export(checkpoint, "transformers", tmp_path / "b")
    assert float(load_file(tmp_path / "b" / "model.safetensors")["logit_scale"]) == pytest.approx(-np.log(0.07))


def test_siglips_bias_comes_along_both_ways(tmp_path: Path) -> None:
    two_tower_tests().make_folder("siglip", tmp_path / "their")
    theirs = load_file(tmp_path / "their" / "model.safetensors")
    theirs["logit_bias"] = torch.tensor([-7.5])
    save_file(theirs, tmp_path / "their" / "model.safetensors", {"format": "pt"})
    assert cli.main(["import-transformers", str(tmp_path / "their"), "--out", str(tmp_path / "ck")]) == 0
    export(tmp_path / "ck", "transformers", tmp_path / "imported")
    ours = load_file(tmp_path / "imported" / "model.safetensors")
    assert (float(ours["logit_scale"]), float(ours["logit_bias"])) == pytest.approx((3.0, -7.5))

    from training.weights.two_towers import overrides_of

    words = [*overrides_of(tmp_path / "their"), "moco.objective=siglip", "data.max_boxes=0"]
    config = resolve("tiny", words)
    model, state = BriVL(config), RunState(1, 8, 0, (), (), "grid")
    assert model.logits.bias is not None
    with torch.no_grad():
        model.logits.bias.fill_(-12.0)
    optimizer, tokenizer = build_optimizer(model, config.optim), load_tokenizer(str(tmp_path / "their"))
    checkpoint = save(tmp_path / "run", model, optimizer, config, tokenizer, state, 1)
    export(checkpoint, "transformers", tmp_path / "trained")
    assert float(load_file(tmp_path / "trained" / "model.safetensors")["logit_bias"]) == -12.0
