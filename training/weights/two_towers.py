"""Conversion of two-tower transformers folders into our format and back: CLIP, Chinese-CLIP, SigLIP and SigLIP 2.

This module knows the names of their state dicts. A folder says by its config.json what its towers are, so it stands for
overrides of a recipe: `fit --init FOLDER` takes them before those of `--set`, and `import-transformers` makes a
checkpoint of it that eval, embed and export read without any training.

    theirs                                        ours, in image_query or text_query
    vision_model.embeddings, .pre_layrnorm        {prefix|trunk}.backbone.embeddings.{inner, norm}
    vision_model.encoder.layers.N                 {prefix|trunk}.backbone.layer_N.inner
    vision_model.post_layernorm, .head            trunk.backbone.pool.{norm, head}
    visual_projection                             trunk.backbone.pool.projection
    text_model.embeddings                         {prefix|trunk}.backbone.embeddings.inner
    text_model.encoder.layer[s].N                 {prefix|trunk}.backbone.layer_N.inner
    text_model.final_layer_norm                   trunk.backbone.pool.norm
    text_projection, or text_model.head           trunk.backbone.pool.projection

Features are theirs where pixels and tokens are: a picture is scaled to a square here, without their crop. Regions add
nothing at the beginning (training/encoders/clip_image.py), and may by the end of a training.

Limits: a learned logit scale comes along as `moco.temperature`, within 0.01 and 1; SigLIP's bias only by
`import-transformers`, for an export. Reading runs no code of the folder.
"""

from __future__ import annotations

import importlib
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training.config import Config
from training.data.tokenizer import load_tokenizer
from training.errors import CheckpointError, InputError, first_line
from training.outputs.atomic_files import all_finite
from training.outputs.checkpoint import save_imported
from training.resolve import resolve
from training.towers.text_backbones import architecture, quiet_transformers
from training.towers.two_tower_parts import FAMILIES

if TYPE_CHECKING:
    from torch import Tensor

    from training.moco import BriVL

RECIPE = "two_towers"
"""Recipe of an imported folder: what its config.json does not say."""

_TEXT_SIZES = {
    "vocab_size": "vocab_size",
    "max_positions": "max_position_embeddings",
    "backbone_width": "hidden_size",
    "backbone_layers": "num_hidden_layers",
    "backbone_heads": "num_attention_heads",
    "backbone_ffn": "intermediate_size",
}
_MOST_TOKENS = {"chinese_clip": 52}
"""Tokens of a text that a family was trained with, where its positions are more."""

_NOT_ARCHITECTURE = re.compile(
    r"transformers_version|model_type|_name_or_path|architectures|(torch_)?dtype|initializer_\w+|projection_(dim|size)"
    r"|attn_implementation|_attn_implementation_autoset|\w*dropout\w*|is_decoder|add_cross_attention|use_cache"
)
_RENAMED = (
    (r"vision_model\.embeddings\.(.+)", r"image_query.backbone.embeddings.inner.\1"),
    (r"vision_model\.pre_layrnorm\.(.+)", r"image_query.backbone.embeddings.norm.\1"),
    (r"vision_model\.encoder\.layers\.(\d+)\.(.+)", r"image_query.backbone.layer_\1.inner.\2"),
    (r"vision_model\.post_layernorm\.(.+)", r"image_query.backbone.pool.norm.\1"),
    (r"vision_model\.head\.(.+)", r"image_query.backbone.pool.head.\1"),
    (r"visual_projection\.(.+)", r"image_query.backbone.pool.projection.\1"),
    (r"text_model\.embeddings\.(.+)", r"text_query.backbone.embeddings.inner.\1"),
    (r"text_model\.encoder\.layers?\.(\d+)\.(.+)", r"text_query.backbone.layer_\1.inner.\2"),
    (r"text_model\.final_layer_norm\.(.+)", r"text_query.backbone.pool.norm.\1"),
    (r"text_model\.head\.(.+)", r"text_query.backbone.pool.projection.\1"),
    (r"text_projection\.(.+)", r"text_query.backbone.pool.projection.\1"),
)
"""Names of theirs, and ours without `prefix` or `trunk`: which of the two follows from how much is frozen."""


def is_two_towers(path: Path) -> bool:
    """True if a folder is a transformers folder of two supported towers."""
    try:
        described = json.loads((path / "config.json").read_bytes())
        return isinstance(described, dict) and described.get("model_type") in FAMILIES
    except (OSError, ValueError, RecursionError):
        return False


def overrides_of(folder: Path) -> list[str]:
    """The overrides of a recipe that make its towers those of a folder. Raises InputError."""
    described = _read_config(folder)
    family, text = str(described.model_type), described.text_config
    vision_options, text_options = (_options(part) for part in (described.vision_config, text))
    for name in _TEXT_SIZES.values():
        text_options.pop(name, None)
    tokenizer = load_tokenizer(str(folder))
    if family.startswith("siglip"):
        text_options["pad_token_id"] = _padding(folder)
    logit_scale = _learned_number(folder, "logit_scale")
    dimension = text.projection_size if family.startswith("siglip") else described.projection_dim
    size = getattr(described.vision_config, "image_size", None)
    if size is None:
        size = math.isqrt(described.vision_config.num_patches) * described.vision_config.patch_size
    mean, std = _pixels(folder, family)
    values: dict[str, Any] = {
        "image.encoder": "clip_image",
        "image.backbone": f"transformers/{family}",
        "image.backbone_options": vision_options,
        "image.weights": "",
        "image.mean": mean,
        "image.std": std,
        "text.encoder": "clip_text",
        "text.backbone": family,
        "text.backbone_options": text_options,
        "text.weights": "",
        "text.backbone_dropout": float(getattr(text, "hidden_dropout_prob", getattr(text, "attention_dropout", 0.0))),
        "text.position_embedding": False,
        **{f"text.{ours}": getattr(text, theirs) for ours, theirs in _TEXT_SIZES.items()},
        "moco.feature_dim": dimension,
        "data.image_size": size,
        "data.max_tokens": min(text.max_position_embeddings, _MOST_TOKENS.get(family, text.max_position_embeddings)),
        "data.tokenizer": str(folder.resolve()),
    }
    if len(tokenizer.vocabulary) > text.vocab_size:
        raise InputError(
            str(folder), f"its tokenizer has {len(tokenizer.vocabulary)} tokens, its towers {text.vocab_size}"
        )
    if logit_scale is not None:
        values["moco.temperature"] = math.exp(min(0.0, max(math.log(0.01), -logit_scale)))
    return [f"{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in values.items()]


def family_config(config: Config) -> Any:
    """The config of transformers for a model of both towers. Raises ConfigError."""
    kinds: Any = importlib.import_module("transformers").CONFIG_MAPPING
    text, family = config.text, config.text.backbone
    dimension: dict[str, Any] = {"projection_dim": config.moco.feature_dim}
    options = dict(text.backbone_options)
    if family.startswith("siglip"):
        dimension, options = {}, {**options, "projection_size": config.moco.feature_dim}
    vision = architecture(f"{family}_vision_model", config.image.backbone_options, "image")
    words = architecture(f"{family}_text_model", options, "text", text)
    with quiet_transformers():
        return kinds[family](text_config=words.to_dict(), vision_config=vision.to_dict(), **dimension)


def fill_towers(model: BriVL, folder: Path) -> None:
    """Fill the query towers from a folder, and make the key towers copies of them. Raises InputError."""
    import torch

    from training.method.key_towers import update_average

    tensors = ours_of(read_tensors(folder), model.state_dict(), str(folder))
    with torch.no_grad():
        model.load_state_dict(tensors, strict=False)
        if model.has_keys:
            update_average(model.image_key, model.image_query.trunk, 0.0)
            update_average(model.text_key, model.text_query.trunk, 0.0)


def import_transformers(folder: Path, out: Path) -> dict[str, Any]:
    """Convert a folder into a checkpoint; returns a summary as JSON values. Raises InputError, ConfigError."""
    from training.moco import BriVL

    bias = _learned_number(folder, "logit_bias")
    config = resolve(RECIPE, [*overrides_of(folder), *([] if bias is None else [f"moco.bias={bias!r}"])])
    model = BriVL(config, load_weights=False)
    fill_towers(model, folder)
    towers = {name: tensor for name, tensor in model.state_dict().items() if name.split(".")[0].endswith("_query")}
    save_imported(out, config, load_tokenizer(str(folder)), towers, {}, {}, {"imported": folder.name})
    family = config.text.backbone
    return {"out": str(out), "recipe": RECIPE, "model_type": family, "tensors": len(towers)}


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """The state dict of a folder's model in float32, by their names. Raises InputError."""
    import torch
    from transformers import AutoModel

    _check_shards(folder)
    try:
        with quiet_transformers():
            model, about = AutoModel.from_pretrained(folder, output_loading_info=True, trust_remote_code=False)
    except Exception as e:  # transformers raises many types on a foreign folder
        raise InputError(str(folder), f"transformers could not load it ({first_line(e)})") from None
    missing = sorted(about["missing_keys"])
    if missing:
        raise InputError(str(folder), f"its weights lack {len(missing)} tensors, first {missing[0]}")
    tensors: dict[str, Tensor] = {k: v.detach().to(torch.float32) for k, v in model.state_dict().items()}
    damaged = [name for name, tensor in tensors.items() if not all_finite(tensor)]
    if damaged:
        raise InputError(str(folder), f"{damaged[0]} contains NaN or infinity; these weights are damaged")
    return tensors


def _check_shards(folder: Path) -> None:
    """Raise InputError for an index of weights that names files elsewhere; transformers would read them."""
    for index in sorted(folder.glob("*.index.json")):
        try:
            named = {str(name) for name in json.loads(index.read_bytes())["weight_map"].values()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            continue  # if it is the one that is needed, transformers says what is wrong with it
        elsewhere = sorted(name for name in named if Path(name).name != name)
        if elsewhere:
            raise InputError(str(index), f"names {elsewhere[0]!r}, which is not beside it")


def ours_of(theirs: Mapping[str, Tensor], ours: Mapping[str, Tensor], subject: str) -> dict[str, Tensor]:
    """Their tensors by our names; `ours` gives the expected names and shapes. Raises CheckpointError.

    What is ours alone (regions) is left out; so is their logit scale.
    """
    places = _names_by_part(ours)
    found: dict[str, Tensor] = {}
    for name, tensor in theirs.items():
        place = _our_name(name)
        if place is None:
            continue
        full = places.get(place, "")
        if not full or ours[full].shape != tensor.shape:
            raise CheckpointError(subject, f"{name} does not match these towers; leave the sizes to the folder")
        found[full] = tensor
    lacking = [name for place, name in places.items() if name not in found]
    if lacking:
        raise CheckpointError(subject, f"lacks {len(lacking)} tensors of these towers, first {lacking[0]}")
    return found


def theirs_of(ours: Mapping[str, Tensor], names: Mapping[str, Tensor], subject: str) -> dict[str, Tensor]:
    """The inverse: our tensors by transformers' names. Raises CheckpointError if they do not match the model."""
    places = _names_by_part(ours)
    wanted = {name: _our_name(name) for name in names}
    lacking = [name for name, place in wanted.items() if place is not None and place not in places]
    extra = sorted(set(places) - set(wanted.values()))
    if lacking or extra:
        raise CheckpointError(subject, f"does not match a transformers model: {(lacking + extra)[0]}")
    return {name: ours[places[place]] for name, place in wanted.items() if place is not None}


def _our_name(name: str) -> str | None:
    for pattern, replacement in _RENAMED:
        if re.fullmatch(pattern, name):
            return re.sub(pattern, replacement, name)
    return None  # logit_scale, logit_bias


def _names_by_part(ours: Mapping[str, Tensor]) -> dict[str, str]:
    """Name without `prefix` or `trunk` -> name, of the query towers' tensors that a folder may hold."""
    named = {re.sub(r"^(\w+_query)\.(?:prefix|trunk)\.", r"\1.", name): name for name in ours}
    return {place: name for place, name in named.items() if re.match(r"\w+_query\.backbone\.", place)}


def _read_config(folder: Path) -> Any:
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except Exception as e:  # transformers raises many types on values that fit no config
        raise InputError(str(folder), f"not a config.json of transformers ({first_line(e)})") from None


def _options(part: Any) -> dict[str, Any]:
    """Options of a tower's config that differ from its type's defaults."""
    usual, given = type(part)().to_dict(), part.to_dict()
    differ = {k: v for k, v in given.items() if k in usual and v != usual[k] and not _NOT_ARCHITECTURE.fullmatch(k)}
    return {k: v for k, v in differ.items() if isinstance(v, (bool, int, float, str))}


def _pixels(folder: Path, family: str) -> tuple[list[float], list[float]]:
    """Mean and standard deviation by which the folder's images are normalised; its family's where it does not say."""
    half = [0.5, 0.5, 0.5]
    usual = (half, half) if family.startswith("siglip") else (list(_CLIP_MEAN), list(_CLIP_STD))
    for name in ("preprocessor_config.json", "processor_config.json"):
        try:
            about = json.loads((folder / name).read_bytes())
            about = about.get("image_processor", about)
            mean, std = ([float(x) for x in about[name]] for name in ("image_mean", "image_std"))
            if not all(x > 0 for x in std):
                raise ValueError(f"image_std is {std}")
            return mean, std
        except FileNotFoundError:
            continue
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
            raise InputError(str(folder / name), f"image_mean and image_std are missing ({first_line(e)})") from None
    return usual


_CLIP_MEAN, _CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def _padding(folder: Path) -> int:
    """Id of the tokenizer's padding, which SigLIP's towers see. Raises InputError."""
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    number = tokenizer.pad_token_id
    if tokenizer.padding_side != "right":
        raise InputError(str(folder), "its tokenizer pads on the left; set its padding_side to right")
    if number is None:
        raise InputError(str(folder), "its tokenizer lacks a padding token, which its text tower was trained with")
    return int(number)


def _learned_number(folder: Path, name: str) -> float | None:
    """A learned number of a folder of safetensors; None if it is missing or in another form."""
    from safetensors import SafetensorError, safe_open

    for file in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(file, "pt") as opened:
                if name in set(opened.keys()):
                    return float(opened.get_tensor(name))
        except (SafetensorError, RuntimeError, ValueError) as e:  # no file of them, or no single number
            raise InputError(str(file), f"{name} cannot be read from it ({first_line(e)})") from None
    return None
