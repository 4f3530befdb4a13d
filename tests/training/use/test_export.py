"""Checkpoints in other programs' formats, against onnxruntime and safetensors."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from tests.checkpoints import save
from tests.exported import Exported
from training import cli
from training.config import Config, from_dict
from training.data.tokenizer import load_tokenizer, vocabulary_text
from training.errors import ConfigError
from training.moco import BriVL
from training.outputs.checkpoint import RunState
from training.records import Batch
from training.resolve import resolve
from training.run.optimizer import build_optimizer
from training.use.export import export
from training.weights.load import load

runtime = pytest.importorskip("onnxruntime")


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Path, BriVL, Config]:
    torch.manual_seed(0)
    config = resolve("tiny")
    model = BriVL(config).eval()
    state = RunState(1, 8, 0, (), (), "grid")
    optimizer = build_optimizer(model, config.optim)
    return save(tmp_path / "run", model, optimizer, config, load_tokenizer("gb2312"), state, 1), model, config


def test_safetensors_holds_the_query_towers_with_what_one_must_know_to_use_them(
    saved: tuple[Path, BriVL, Config], tmp_path: Path
) -> None:
    folder, model, config = saved
    export(folder, "safetensors", tmp_path / "towers.safetensors")
    query = {n: t for n, t in model.state_dict().items() if n.startswith(("image_query.", "text_query."))}
    with safe_open(tmp_path / "towers.safetensors", "pt") as file:
        assert set(file.keys()) == set(query)
        assert all(torch.equal(file.get_tensor(name), tensor) for name, tensor in query.items())
        about = file.metadata()
    assert from_dict(json.loads(about["config"])) == config
    assert about["vocabulary"].split("\n")[:4] == ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]


@pytest.mark.slow
def test_onnx_towers_equal_torch_at_other_sizes_than_they_were_traced_with(exported: Exported) -> None:
    loaded = load(exported.checkpoint, "cpu")
    model, towers = loaded.model, (loaded.checkpoint.folder / "towers.safetensors").read_bytes()
    image, text = (runtime.InferenceSession(exported.folder / f"m.{name}.onnx") for name in ("image", "text"))
    for session in (image, text):
        about = session.get_modelmeta().custom_metadata_map
        assert from_dict(json.loads(about["config"])) == loaded.checkpoint.config
        assert about["vocabulary"] == vocabulary_text(load_tokenizer("gb2312"))
        assert about["towers_sha256"] == hashlib.sha256(towers).hexdigest()
        sizes = {name: about[name] for name in ("image_size", "max_boxes", "max_tokens", "feature_dim")}
        assert sizes == {"image_size": "64", "max_boxes": "4", "max_tokens": "16", "feature_dim": "32"}
        assert (about["recipe"], about["tokenizer"], about["detector"]) == ("tiny", "gb2312", "grid")
    generator = torch.Generator().manual_seed(0)
    for count, boxes, length in ((1, 1, 2), (2, 3, 5), (5, 5, 16)):
        corners = torch.rand(count, boxes, 2, 2, generator=generator) * 64
        images = {
            "images": torch.randn(count, 3, 64, 64, generator=generator),
            "boxes": torch.cat([corners.amin(2), corners.amax(2)], -1),
            "n_boxes": torch.linspace(boxes, 1, count).long(),
        }
        texts = {
            "input_ids": torch.randint(0, 8192, (count, length), generator=generator),
            "n_tokens": torch.linspace(length, 1, count).long(),
        }
        of_image = Batch.of(images_B3HW=images["images"], boxes_BR4=images["boxes"], n_boxes_B=images["n_boxes"])
        of_text = Batch.of(token_ids_BL=texts["input_ids"], n_tokens_B=texts["n_tokens"])
        (found,) = image.run(["image_features"], {name: tensor.numpy() for name, tensor in images.items()})
        np.testing.assert_allclose(found, model.encode_image(of_image).numpy(), atol=1e-5)
        (found,) = text.run(["text_features"], {name: tensor.numpy() for name, tensor in texts.items()})
        np.testing.assert_allclose(found, model.encode_text(of_text).numpy(), atol=1e-5)


BERT = (
    "text.encoder=bert_text",
    "text.backbone_width=32",
    "text.backbone_layers=2",
    "text.frozen_layers=1",
    "text.backbone_heads=4",
    "text.backbone_ffn=48",
    "text.vocab_size=8192",
)


def of_image_tower(family: str) -> tuple[str, ...]:
    """The image tower of a family of transformers, small, with BriVL's regions beside its own pool."""
    vision = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    vision |= {"patch_size": 16} | ({"num_patches": 16} if family == "siglip2" else {"image_size": 64})
    return (
        "image.encoder=clip_image",
        f"image.backbone=transformers/{family}",
        f"image.backbone_options={json.dumps(vision)}",
    )


def of_transformers(family: str) -> tuple[str, ...]:
    """Both towers of a family."""
    text = {"projection_size": 32, "pad_token_id": 0} if family.startswith("siglip") else {"eos_token_id": 3}
    return (
        *of_image_tower(family),
        "text.encoder=clip_text",
        f"text.backbone={family}",
        f"text.backbone_options={json.dumps(text)}",
        *(f"text.{name}" for name in ("backbone_width=32", "backbone_layers=2", "backbone_heads=4", "backbone_ffn=48")),
        "text.frozen_layers=1",
        "text.vocab_size=8192",
    )


KINDS = {
    "compat": ("compat=brivl-1.0", *BERT),
    "convolutions and positions": (
        "image.backbone=timm/test_resnet",
        "image.frozen_stages=2",
        "image.box_embedding=true",
        "image.position_embedding=true",
        "text.position_embedding=true",
        *BERT,
    ),
    "patches": ("image.backbone=timm/test_vit", "image.frozen_stages=2"),
    **{family: of_transformers(family) for family in ("clip", "chinese_clip", "siglip", "siglip2")},
    "clip without regions": (*of_image_tower("clip"), "data.max_boxes=0"),
}


@pytest.mark.drill(15)
@pytest.mark.parametrize("kind", KINDS)
def test_onnx_towers_of_every_kind_equal_torch(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Regions are pooled in the graph: any number of boxes, of pictures and of tokens, and those that only pad."""
    pytest.importorskip("onnxscript")
    torch.manual_seed(0)
    config = resolve("tiny", KINDS[kind])
    model = BriVL(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # what begins at zero, such as a region's addition, must count too
            parameter.add_(0.05 * torch.randn_like(parameter))
    state, optimizer = RunState(1, 8, 0, (), (), "grid"), build_optimizer(model, config.optim)
    folder = save(tmp_path / "run", model, optimizer, config, load_tokenizer("gb2312"), state, 1)
    assert cli.main(["export", str(folder), "--to", "onnx", "--out", str(tmp_path / "m.onnx"), "--json"]) == 0
    written = json.loads(capsys.readouterr().out)["out"]
    assert written == [str(tmp_path / "m.image.onnx"), str(tmp_path / "m.text.onnx")]
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    image, text = (runtime.InferenceSession(file, options) for file in written)
    generator = torch.Generator().manual_seed(0)
    most = config.data.max_tokens
    for count, boxes, length in ((1, 1, 3), (2, 3, 5), (5, 5, most), (3, 1, most)):
        boxes = boxes if config.data.max_boxes else 1
        corners = torch.rand(count, boxes, 2, 2, generator=generator) * 64
        given = {
            "images": torch.randn(count, 3, 64, 64, generator=generator),
            "boxes": torch.cat([corners.amin(2), corners.amax(2)], -1),
            "n_boxes": torch.linspace(boxes, 1, count).long(),
            "input_ids": torch.randint(4, 8000, (count, length), generator=generator),
            "n_tokens": torch.linspace(length, 2, count).long(),
        }
        of_image = Batch.of(images_B3HW=given["images"], boxes_BR4=given["boxes"], n_boxes_B=given["n_boxes"])
        of_text = Batch.of(token_ids_BL=given["input_ids"], n_tokens_B=given["n_tokens"])
        for session, expected in ((image, model.encode_image(of_image)), (text, model.encode_text(of_text))):
            names = {wanted.name for wanted in session.get_inputs()}
            [found] = session.run(None, {name: given[name].numpy() for name in names})
            np.testing.assert_allclose(found, expected.detach().numpy(), atol=1e-4)
    if config.data.max_boxes and count > 1:
        moved = {**given, "boxes": given["boxes"].roll(1, 0) * 0.5}
        names = {wanted.name for wanted in image.get_inputs()}
        [other] = image.run(None, {name: moved[name].numpy() for name in names})
        [same] = image.run(None, {name: given[name].numpy() for name in names})
        assert np.abs(other - same).max() > 1e-4  # the boxes are looked at


@pytest.mark.drill(10)
def test_the_weights_of_a_large_tower_are_named_and_go_where_it_goes(
    saved: tuple[Path, BriVL, Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The exporter's own limit is 1.5 GB.
    monkeypatch.setattr("torch.onnx._internal.exporter._onnx_program._LARGE_MODEL_THRESHOLD", 0)
    written = export(saved[0], "onnx", tmp_path / "made" / "m.onnx")
    names = ["m.image.onnx", "m.image.onnx.data", "m.text.onnx", "m.text.onnx.data"]
    assert [Path(file).name for file in written["out"]] == names
    assert sorted(path.name for path in (tmp_path / "made").iterdir()) == names
    for name in names:
        (tmp_path / "moved").mkdir(exist_ok=True)
        (tmp_path / "made" / name).rename(tmp_path / "moved" / name)
    text = runtime.InferenceSession(tmp_path / "moved" / "m.text.onnx")
    ids, counts = torch.tensor([[5, 6, 7], [8, 9, 0]]), torch.tensor([3, 2])
    [found] = text.run(["text_features"], {"input_ids": ids.numpy(), "n_tokens": counts.numpy()})
    with torch.inference_mode():
        expected = saved[1].encode_text(Batch.of(token_ids_BL=ids, n_tokens_B=counts)).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.slow
def test_onnx_without_its_packages_says_what_to_install(
    saved: tuple[Path, BriVL, Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda package: None if package == "onnxscript" else object())
    with pytest.raises(ConfigError, match=r"--to onnx: onnxscript is not installed: pip install .*\[onnx\]'"):
        export(saved[0], "onnx", tmp_path / "m.onnx")
