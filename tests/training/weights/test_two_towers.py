"""Folders of transformers with two towers: small random ones, made by transformers, in and out again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from training import cli
from training.config import Config
from training.errors import ConfigError, InputError
from training.moco import BriVL
from training.outputs.checkpoint import open_checkpoint
from training.records import Batch
from training.resolve import resolve
from training.use.encode import open_encoder
from training.weights.two_towers import fill_towers, import_transformers, is_two_towers, overrides_of

pytestmark = pytest.mark.slow

SIZE, PATCH = 64, 16
TEXTS = ["红色的船", "山水相连，白云飞", "a small cat on the hill", "猫"]

MakeShards = Callable[..., Path]


def make_tokenizer(family: str, folder: Path) -> Any:
    """A tokenizer of the family's kind, saved as transformers saves it."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import BertTokenizer, PreTrainedTokenizerFast

    if family == "chinese_clip":
        tokens = [
            "[PAD]",
            "[UNK]",
            "[CLS]",
            "[SEP]",
            *"红色的船山水相连白云飞猫",
            "a",
            "##b",
            "small",
            "cat",
            "on",
            "the",
        ]
        tokenizer: Any = BertTokenizer(vocab={token: i for i, token in enumerate(tokens)}, do_lower_case=True)
        tokenizer.save_pretrained(folder)
        (folder / "vocab.txt").write_text("".join(f"{token}\n" for token in tokens), encoding="utf-8")
        return tokenizer
    backend = Tokenizer(models.BPE() if family == "clip" else models.Unigram())
    marks = ["<pad>", "<unk>", "<s>", "</s>"] if family == "clip" else ["<pad>", "</s>", "<unk>"]
    backend.normalizer = normalizers.Lowercase()
    if family == "clip":
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer: Any = trainers.BpeTrainer(vocab_size=400, special_tokens=marks, initial_alphabet=alphabet)
    else:
        backend.pre_tokenizer = pre_tokenizers.Metaspace()
        trainer = trainers.UnigramTrainer(vocab_size=60, special_tokens=marks, unk_token="<unk>")
    backend.train_from_iterator(TEXTS * 20, trainer)
    single = "<s> $A </s>" if family == "clip" else "$A </s>"
    special = [(mark, backend.token_to_id(mark)) for mark in ("<s>", "</s>") if backend.token_to_id(mark) is not None]
    backend.post_processor = processors.TemplateProcessing(single=single, special_tokens=special)
    names = {"pad_token": "<pad>", "unk_token": "<unk>", "eos_token": "</s>", "padding_side": "right"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=20, **names)
    tokenizer.save_pretrained(folder)
    return tokenizer


def make_folder(family: str, folder: Path) -> tuple[Any, Any]:
    """A small random model of a family with its tokenizer, as a user would find it on the hub."""
    from transformers import CONFIG_MAPPING, AutoModel, AutoTokenizer

    tokenizer = make_tokenizer(family, folder)
    vision: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3}
    vision |= {"num_attention_heads": 4, "patch_size": PATCH, "hidden_act": "gelu", "layer_norm_eps": 1e-4}
    vision |= {"num_patches": (SIZE // PATCH) ** 2} if family == "siglip2" else {"image_size": SIZE}
    text: dict[str, Any] = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2}
    text |= {"num_attention_heads": 4, "max_position_embeddings": 20, "vocab_size": max(len(tokenizer), 60) + 4}
    text |= {"pad_token_id": tokenizer.pad_token_id, "bos_token_id": 2, "eos_token_id": tokenizer.eos_token_id or 3}
    text |= {"projection_size": 32} if family.startswith("siglip") else {}
    torch.manual_seed(0)
    described = CONFIG_MAPPING[family](text_config=text, vision_config=vision, projection_dim=16)
    model: Any = AutoModel.from_config(described).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # of biases and norms too, which begin as 0 and 1
            parameter.add_(0.1 * torch.randn_like(parameter))
        model.logit_scale.fill_(3.0)
    model.save_pretrained(folder)
    mean, std = [0.4, 0.5, 0.6], [0.2, 0.25, 0.3]
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_mean": mean, "image_std": std}))
    return model, AutoTokenizer.from_pretrained(folder)  # of the family's class, if it has one


@pytest.fixture(
    scope="module",
    params=[
        "chinese_clip",
        "siglip2",
        *(pytest.param(n, marks=pytest.mark.drill(2)) for n in ("clip", "siglip")),
    ],
)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, Any, Any]:
    place = tmp_path_factory.mktemp(request.param)
    return request.param, place, *make_folder(request.param, place)


def image_features(model: Any, family: str, pixels_B3SS: Tensor) -> Tensor:
    """transformers' own, of normalised pixels."""
    given: dict[str, Any] = {"pixel_values": pixels_B3SS}
    if family == "siglip2":
        from transformers.models.siglip2.image_processing_siglip2 import convert_image_to_patches

        patches = torch.stack([convert_image_to_patches(image, PATCH) for image in pixels_B3SS])
        side = SIZE // PATCH
        given = {"pixel_values": patches, "pixel_attention_mask": torch.ones(patches.shape[:2])}
        given["spatial_shapes"] = torch.tensor([[side, side]] * len(patches))
    with torch.no_grad():
        return unit(model.get_image_features(**given))


def text_features(model: Any, family: str, tokenizer: Any, texts: list[str]) -> Tensor:
    """transformers' own, padded as the family was trained."""
    padding = "max_length" if family.startswith("siglip") else True
    given = tokenizer(texts, padding=padding, truncation=True, max_length=20, return_tensors="pt")
    given.pop("token_type_ids", None)
    if family.startswith("siglip"):  # trained without a mask, and its processors give none
        given.pop("attention_mask", None)
    with torch.no_grad():
        return unit(model.get_text_features(**given))


def unit(output: Any) -> Tensor:
    features: Tensor = output if isinstance(output, Tensor) else output.pooler_output
    return torch.nn.functional.normalize(features, dim=-1)


def pictures(tmp_path: Path) -> tuple[list[Path], Tensor]:
    """PNG files of the towers' size, and their pixels as the folder normalises them."""
    generator, paths = np.random.default_rng(0), []
    for i in range(5):
        paths.append(tmp_path / f"{i}.png")
        Image.fromarray(generator.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)).save(paths[-1])
    pixels = torch.stack([torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1) for path in paths]) / 255
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in ([0.4, 0.5, 0.6], [0.2, 0.25, 0.3]))
    return paths, (pixels - mean) / std


def test_an_imported_folder_has_the_features_of_transformers(
    folder: tuple[str, Path, Any, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    family, place, model, tokenizer = folder
    assert is_two_towers(place)
    assert cli.main(["import-transformers", str(place), "--out", str(tmp_path / "ck"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["model_type"] == family
    encoder = open_encoder(tmp_path / "ck", "cpu")
    paths, pixels = pictures(tmp_path)
    theirs = image_features(model, family, pixels)
    assert np.allclose(encoder.encode_image(paths), theirs, atol=1e-5)
    assert theirs.std(0).max() > 1e-2, "all alike: this would say nothing"
    theirs = text_features(model, family, tokenizer, TEXTS)
    assert np.allclose(encoder.encode_text(TEXTS), theirs, atol=1e-5)
    assert np.allclose(encoder.encode_text(TEXTS[3]), theirs[3:], atol=1e-5)
    assert theirs.std(0).max() > 1e-2
    config = open_checkpoint(tmp_path / "ck").config
    assert config.moco.temperature == pytest.approx(np.exp(-3.0))
    assert config.data.max_tokens == 20


@pytest.mark.parametrize("frozen", [0, 2])
def test_regions_add_nothing_at_the_first_step_and_learn(folder: tuple[str, Path, Any, Any], frozen: int) -> None:
    """And with leading layers frozen, which query and key tower share, the features are the same."""
    family, place, model, _ = folder
    more = ["data.max_boxes=4", f"image.frozen_stages={frozen}", f"text.frozen_layers={frozen}", "moco.queue_size=8"]
    ours = BriVL(config_of(place, *more)).eval()
    fill_towers(ours, place)
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randn(3, 3, SIZE, SIZE, generator=generator)
    corners = torch.rand(3, 4, 2, 2, generator=generator) * SIZE
    whole = torch.tensor([[[0.0, 0.0, SIZE, SIZE]]] * 3)
    boxes = torch.cat([torch.cat([corners.amin(2), corners.amax(2)], -1), whole], 1)
    batch = Batch.of(images_B3HW=pixels, boxes_BR4=boxes, n_boxes_B=torch.tensor([5, 5, 2]))
    features = ours.encode_image(batch)
    assert torch.allclose(features, image_features(model, family, pixels), atol=1e-5)
    assert torch.allclose(ours.image_key(ours.image_query.prefix(batch), batch), features, atol=1e-6)
    assert [bool(list(tower.prefix.parameters())) for tower in (ours.image_query, ours.text_query)] == [frozen > 0] * 2

    optimizer = torch.optim.SGD(ours.image_query.parameters(), lr=2.0)
    target = unit(torch.randn(features.shape, generator=generator))
    for _ in range(3):
        optimizer.zero_grad()
        (1 - (ours.image_query(batch) * target).sum(-1)).mean().backward()
        optimizer.step()
    other = Batch.of(images_B3HW=pixels, boxes_BR4=whole, n_boxes_B=torch.tensor([1, 1, 1]))
    moved = ours.encode_image(batch)
    assert not torch.allclose(moved, ours.encode_image(other), atol=1e-5), "boxes count by now"


def test_a_step_leaves_out_half_of_the_patches_and_keys_and_features_none(folder: tuple[str, Path, Any, Any]) -> None:
    _, place, _, _ = folder
    half = ["image.frozen_stages=2", "data.max_boxes=0", "image.patch_dropout=0.5", "moco.queue_size=8"]
    model = BriVL(config_of(place, *half)).train()
    batch = Batch.of(images_B3HW=torch.randn(3, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1)))
    counts: list[int] = []
    for tower in (model.image_query.trunk, model.image_key):
        last = next(stage for name, stage in reversed(tower.backbone.items()) if name.startswith("layer"))
        last.register_forward_pre_hook(lambda _, args: counts.append(args[0].shape[1]))
    prefix = model.image_query.prefix(batch)
    dropped, _ = model.image_query.trunk(prefix, batch), model.image_key(prefix, batch)
    half_seen, all_seen = counts
    patches = (SIZE // PATCH) ** 2
    assert all_seen - half_seen == patches // 2
    assert not torch.allclose(dropped, model.image_query.trunk(prefix, batch), atol=1e-4), "others in each step"
    whole = BriVL(config_of(place, *half, "image.patch_dropout=0")).eval()
    whole.load_state_dict(model.state_dict())
    assert torch.equal(model.eval().encode_image(batch), whole.encode_image(batch))


@pytest.mark.drill(3)
def test_fit_begins_from_a_folder(
    folder: tuple[str, Path, Any, Any], make_shards: MakeShards, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    family, place, model, tokenizer = folder
    manifest = make_shards(train=(16,), val=(6,))
    words = ["fit", "--recipe", "tiny", "--data", str(manifest), "--out", str(tmp_path / "run"), "--init", str(place)]
    words += ["--set", "optim.lr=0", "--set", "run.background=0", "--set", "data.max_boxes=0", "--json"]
    assert cli.main(words) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["steps"] == 2
    encoder = open_encoder(tmp_path / "run", "cpu")
    paths, pixels = pictures(tmp_path)
    assert np.allclose(encoder.encode_image(paths), image_features(model, family, pixels), atol=1e-5)
    assert np.allclose(encoder.encode_text(TEXTS), text_features(model, family, tokenizer, TEXTS), atol=1e-5)
    assert cli.main(words) == 0  # is over already: nothing to do, and no fault


def config_of(place: Path, *more: str) -> Config:
    return resolve("tiny", [*overrides_of(place), *more])


def test_what_does_not_fit_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = tmp_path / "f"
    make_folder("chinese_clip", place)
    for override, line in (
        (
            "image.frozen_stages=9",
            "image.frozen_stages: 9 exceeds the 4 stages of transformers/chinese_clip (embeddings, layer_0",
        ),
        ("text.frozen_layers=3", "text.frozen_layers: 3 exceeds the 2 layers"),
        ("data.image_size=65", "data.image_size: 65 is not a multiple of the patch size 16"),
        (
            "image.backbone=transformers/vit",
            "image.backbone: 'transformers/vit' is not a two-tower family (clip, chinese_clip, siglip",
        ),
        (
            'image.backbone_options={"hidden_akt": 1}',
            "image.backbone_options.hidden_akt: unknown option of chinese_clip_vision_model",
        ),
        (
            "image.patch_dropout=0.5",
            "image.patch_dropout: a region is the mean of all its patches",
        ),
        ("image.weights=x", "image.weights: clip_image loads both towers from a transformers folder"),
    ):
        with pytest.raises(ConfigError) as caught:
            BriVL(config_of(place, override))
        assert str(caught.value).startswith(line)
    assert cli.main(["eval", str(place), "--data", "x", "--task", "retrieval"]) == 1
    assert (
        f"for a transformers folder run wenlan-train import-transformers {place} --out DIR" in capsys.readouterr().err
    )
    (place / "model.safetensors").write_bytes(b"no")
    with pytest.raises(InputError) as broken:
        import_transformers(place, tmp_path / "ck")
    assert "\n" not in str(broken.value)
    assert not (tmp_path / "ck").exists()
    assert not is_two_towers(tmp_path)
    assert cli.main(["import-transformers", str(tmp_path), "--out", str(tmp_path / "ck")]) == 2
    assert "not a transformers folder of two supported towers" in capsys.readouterr().err


def damaged(place: Path, name: str, change: Callable[[Any], Any]) -> None:
    """Change the JSON value of a file of a folder."""
    value = json.loads((place / name).read_bytes())
    (place / name).write_text(json.dumps(change(value)), encoding="utf-8")


class Code:
    """What a stranger's pickle may ask for."""

    def __reduce__(self) -> tuple[Any, ...]:
        return exec, ("raise SystemExit('its code was run')",)


def test_whatever_is_wrong_with_a_foreign_folder_is_one_line(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    sound = tmp_path / "sound"
    make_folder("chinese_clip", sound)
    weights = load_file(sound / "model.safetensors")

    def of_config(part: str, **values: Any) -> Callable[[Path], object]:
        def edit(config: Any) -> Any:
            (config[part] if part else config).update(values)
            return config

        return lambda place: damaged(place, "config.json", edit)

    def of_weights(**values: Tensor) -> Callable[[Path], object]:
        return lambda place: save_file({**weights, **values}, place / "model.safetensors", {"format": "pt"})

    def pickled(value: Any) -> Callable[[Path], object]:
        return lambda place: [(place / "model.safetensors").unlink(), torch.save(value, place / "pytorch_model.bin")]

    def index(content: Any) -> Callable[[Path], object]:
        def write(place: Path) -> None:
            (place / "model.safetensors").rename(place / "model-1.safetensors")
            (place / "model.safetensors.index.json").write_text(json.dumps(content), encoding="utf-8")

        return write

    def pixels(text: str) -> Callable[[Path], object]:
        return lambda place: (place / "preprocessor_config.json").write_text(text, encoding="utf-8")

    damages: dict[str, Callable[[Path], object]] = {
        "a list for a config": of_config("", text_config=[]),
        "a word for a size": of_config("text_config", vocab_size="many"),
        "no head": of_config("vision_config", num_attention_heads=0),
        "an unknown activation of texts": of_config("text_config", hidden_act="none such"),
        "an empty scale": of_weights(logit_scale=torch.zeros(0)),
        "a pickle with code": pickled({"a": Code()}),
        "a pickled list": pickled([1, 2]),
        "an index of another's files": index({"weight_map": dict.fromkeys(weights, "../sound/model.safetensors")}),
        "an index of a file that is none": index({"weight_map": dict.fromkeys(weights, "/dev/null")}),
        "an index that is a list": index([1]),
        "an index without one of its files": index(
            {"weight_map": dict.fromkeys(weights, "model-1.safetensors") | {"logit_scale": "model-2.safetensors"}}
        ),
        "nested pixels": pixels("[" * 100_000),
        "a deviation of nought": pixels('{"image_mean": [0, 0, 0], "image_std": [0, 0, 0]}'),
    }
    wrong = []
    for name, damage in damages.items():
        place = tmp_path / name
        shutil.copytree(sound, place)
        damage(place)
        try:
            import_transformers(place, tmp_path / "ck")
            wrong.append(f"{name}: was taken")
        except (ConfigError, InputError) as e:
            wrong += [f"{name}: several lines"] if "\n" in str(e) else []
        except Exception as e:
            wrong.append(f"{name}: {type(e).__name__}")
    assert wrong == []
    assert not (tmp_path / "ck").exists()
    # As a snapshot without *.bin has it: an index of what is not there, beside what is.
    (sound / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": {"logit_scale": "model-1.bin"}}))
    import_transformers(sound, tmp_path / "ck")
    of_weights(logit_scale=torch.tensor(-1e6))(sound)
    assert "moco.temperature=1.0" in overrides_of(sound)
