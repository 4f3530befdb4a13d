"""Export `transformers`: a folder that AutoModel and AutoProcessor load, with get_image_features, get_text_features.

It holds towers of CLIP's kind without regions under the classes that transformers has for them (ChineseCLIPModel ...),
with no code beside the weights. Use of a folder:

    model, processor = AutoModel.from_pretrained(FOLDER).eval(), AutoProcessor.from_pretrained(FOLDER)
    texts = processor(text=["红色的花"], padding="max_length", truncation=True, return_tensors="pt")
    images = processor(images=[image], return_tensors="pt")
    text = F.normalize(model.get_text_features(**texts).pooler_output, dim=-1)
    image = F.normalize(model.get_image_features(**images).pooler_output, dim=-1)

sentence-transformers loads it too, except SigLIP 2: `SentenceTransformer(FOLDER).encode(texts or pictures)`.

Limits: transformers lacks a class for towers with regions. The processor decodes large JPEGs at full size, `embed` at
a part of it, less than one grey level away; alpha is dropped, not laid on white. Siglip2Model's own processor keeps a
picture's aspect.
"""

from __future__ import annotations

import importlib
import json
import math
import shutil
from pathlib import Path
from typing import Any

from training.config import Config
from training.data.tokenizer import BertTokenizer, JsonTokenizer, Tokenizer
from training.errors import ConfigError
from training.outputs.atomic_files import check_name, write_errors
from training.outputs.checkpoint import QUEUES_FILE
from training.weights.load import Loaded, load
from training.weights.two_towers import family_config, theirs_of

_CLASSES = {
    "clip": "CLIP",
    "chinese_clip": "ChineseCLIP",
    "siglip": "Siglip",
    "siglip2": "Siglip2",
}
"""Beginning of the names of a family's classes in transformers."""

_BILINEAR = 2  # of PIL's resampling filters


def export_transformers(path: Path, out: Path) -> dict[str, Any]:
    """Write the query towers of a checkpoint as a folder; returns a summary as JSON values.

    Raises ConfigError where the folder is there already or transformers lacks a class for the towers, and RunError for
    a folder without a name (`.`).
    """
    check_name(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError("--out", f"{out} already exists; name a new folder")
    loaded = load(path, "cpu")
    _check_class(loaded.config, loaded.checkpoint.tokenizer)
    family = loaded.config.text.backbone
    temporary = out.with_name(f".{out.name}.tmp")
    with write_errors(out):
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        try:
            tensors = _write_model(loaded, temporary)
            _write_processor(loaded, temporary, family)
            about = {
                "recipe": loaded.config.recipe,
                "towers_sha256": loaded.checkpoint.towers,
            }
            background = loaded.background()
            more = {} if background is None else {"background": json.loads(background.to_json())}
            (temporary / "wenlan.json").write_text(json.dumps({**about, **more}, indent=1) + "\n", encoding="utf-8")
            if out.exists():
                out.rmdir()
            temporary.rename(out)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return {"out": [str(out)], "format": "transformers", "model_type": family, "tensors": tensors}


def _check_class(config: Config, tokenizer: Tokenizer) -> None:
    """Raise ConfigError for towers or a tokenizer that transformers lacks a class for."""
    image, text = config.image, config.text
    problem = ""
    if (image.encoder, text.encoder, image.backbone) != ("clip_image", "clip_text", f"transformers/{text.backbone}"):
        problem = f"towers {image.encoder} and {text.encoder}"
    elif config.data.max_boxes:
        problem = f"regions (data.max_boxes is {config.data.max_boxes})"
    elif not isinstance(tokenizer, (BertTokenizer, JsonTokenizer)):
        problem = f"the tokenizer {config.data.tokenizer}"
    elif getattr(family_config(config).vision_config, "image_size", None) not in (None, config.data.image_size):
        problem = f"positions of a picture of {config.data.image_size} pixels"  # they would have to be resampled
    if problem:
        advice = "it supports towers of CLIP, Chinese-CLIP and SigLIP without regions; use --to onnx or safetensors"
        raise ConfigError("--to transformers", f"transformers does not have a class for {problem}; {advice}")


def _write_model(loaded: Loaded, folder: Path) -> int:
    import torch

    from training.towers.text_backbones import quiet_transformers

    auto: Any = importlib.import_module("transformers").AutoModel  # whose methods say nothing of types
    described = family_config(loaded.config)
    with quiet_transformers():
        model = auto.from_config(described).float()
        tensors = theirs_of(loaded.model.state_dict(), model.state_dict(), str(loaded.checkpoint.folder))
        model.load_state_dict(tensors, strict=False)
        with torch.no_grad():
            scale, bias = _logits(loaded)
            model.logit_scale.fill_(scale)
            if hasattr(model, "logit_bias"):
                model.logit_bias.fill_(bias)
        model.save_pretrained(folder)
    return len(tensors)


def _logits(loaded: Loaded) -> tuple[float, float]:
    """log(1/T) and bias: those that the training has learned, if it did; else those of the config.

    They lie beside the queues, which an imported checkpoint lacks, and which may have been removed.
    """
    checkpoint, moco = loaded.checkpoint, loaded.config.moco
    there = checkpoint.has_file(QUEUES_FILE) and (checkpoint.folder / QUEUES_FILE).is_file()
    learned = checkpoint.tensors(QUEUES_FILE) if there else {}
    scale, bias = learned.get("logits.log_scale"), learned.get("logits.bias")
    return -math.log(moco.temperature) if scale is None else float(scale), moco.bias if bias is None else float(bias)


def _write_processor(loaded: Loaded, folder: Path, family: str) -> None:
    """Image processor and tokenizer of the family's classes, and both as one."""
    from training.towers.text_backbones import quiet_transformers

    transformers: Any = importlib.import_module("transformers")
    config = loaded.config
    with quiet_transformers():
        image_class, processor_class = (
            getattr(transformers, f"{_CLASSES[family]}{part}") for part in ("ImageProcessor", "Processor")
        )
        size = config.data.image_size
        mean, std = (getattr(loaded.model.image_query.prefix, name).flatten().tolist() for name in ("mean", "std"))
        settings: dict[str, Any] = {"resample": _BILINEAR, "image_mean": mean, "image_std": std, "do_convert_rgb": True}
        if family == "siglip2":
            patch = int(family_config(config).vision_config.patch_size)
            settings |= {"patch_size": patch, "max_num_patches": (size // patch) ** 2}
        else:
            settings |= {"size": {"height": size, "width": size}, "do_center_crop": False}
        tokenizer = _tokenizer(loaded.checkpoint.tokenizer, config, family)
        processor_class(image_processor=image_class(**settings), tokenizer=tokenizer).save_pretrained(folder)
        tokenizer.save_pretrained(folder)  # for AutoTokenizer, where the processor has it in its own file


def _tokenizer(ours: Tokenizer, config: Config, family: str) -> Any:
    """Our tokenizer as one of transformers, padding at the right."""
    library: Any = importlib.import_module("transformers")
    more: dict[str, Any] = {"model_max_length": config.data.max_tokens, "padding_side": "right"}
    if family.startswith("siglip"):
        more["model_input_names"] = ["input_ids"]  # no mask: these towers were trained to see their padding
        more["model_max_length"] = config.text.max_positions
    if not isinstance(ours, JsonTokenizer):
        vocabulary = {token: number for number, token in enumerate(ours.vocabulary)}
        return library.BertTokenizer(vocab=vocabulary, do_lower_case=True, **more)
    around = ours.encode("", 3)
    pad = int(config.text.backbone_options.get("pad_token_id", 0))
    names = {"pad_token": ours.vocabulary[pad], "eos_token": ours.vocabulary[around[-1]]} if around else {}
    if len(around) > 1:
        names["bos_token"] = ours.vocabulary[around[0]]
    from tokenizers import Tokenizer as Backend

    return library.PreTrainedTokenizerFast(tokenizer_object=Backend.from_str(ours.content), **names, **more)
