"""The complete, typed description of a training run.

Why frozen dataclasses and no free dict: a recipe is a function that returns a whole `Config`, `--set a.b=c` is typed
by the field it changes, a checkpoint stores `to_dict(config)` and reads it back with `from_dict`, and a misspelt key
is an error that names the nearest right one instead of an option that does nothing.

Limits: values are numbers, strings, booleans, tuples of them, and two mappings (`data.text_kinds`,
`text.backbone_options`).
"""

from __future__ import annotations

import difflib
import json
import math
import types
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from data_specs.shard import SOURCE_KINDS, TEXT_KINDS
from training.errors import ConfigError

TextKinds = Mapping[str, Mapping[str, float]]
"""Source kind -> {text kind: probability}."""

DERIVED_KINDS = ("easy", "first")
"""Text kinds that are made of the surrounding text and not stored (training/data/text_choice.py)."""

Scalar = bool | int | float | str
"""A value of `text.backbone_options`."""


@dataclass(frozen=True)
class ImageTowerConfig:
    """Image tower: a CNN's feature map, pooled by box, through transformer encoder layers to one feature."""

    encoder: str = "cnn_regions"
    """File name in training/encoders."""
    backbone: str = "timm/tf_efficientnet_b5.ns_jft_in1k"
    """`timm/NAME` of any model there, or `torchvision/mobilenet_v2`."""
    weights: str = ""
    """Of the backbone: empty for random, `hub` to let timm download them, a file (.pth, .bin, .safetensors), or a
    folder with model.safetensors or pytorch_model.bin."""
    frozen_stages: int = 4
    """Leading stages that are not trained; the stem is one. They are the prefix that query and key tower share."""
    freeze_head: bool = True
    """Do not train the backbone's last 1x1 convolution and its batch norm, if it has them; gradient still flows
    through them."""
    grid: int = 4
    """Samples a side with which a box is averaged."""
    width: int = 2048
    layers: int = 4
    heads: int = 4
    ffn: int = 2048
    hidden: int = 2048
    """Width of the closing MLP's hidden layer."""
    dropout: float = 0.1
    box_embedding: bool = False
    """Add a learned linear map of a box's four sides (shares of the image's) to its region. BriVL has none."""
    position_embedding: bool = False
    """Add a learned vector by a region's place in the list of boxes. BriVL has none."""


@dataclass(frozen=True)
class TextTowerConfig:
    """Text tower: a token encoder, then transformer encoder layers, a masked mean and an MLP to one feature."""

    encoder: str = "bert_text"
    """File name in training/encoders."""
    backbone: str = "bert"
    """Model type of transformers: `bert` (which Chinese RoBERTa-wwm and MacBERT are too), `roberta`, `ernie` ..."""
    backbone_options: Mapping[str, Scalar] = field(default_factory=dict)
    """What of the architecture differs from the model type's defaults beside the sizes below."""
    weights: str = ""
    """Of the backbone: empty for random, a local folder of transformers, or a name on the hub."""
    vocab_size: int = 21128
    max_positions: int = 512
    backbone_width: int = 768
    """Width of the backbone and of the layers after it."""
    backbone_layers: int = 12
    backbone_heads: int = 12
    backbone_ffn: int = 3072
    backbone_dropout: float = 0.1
    frozen_layers: int = 8
    """Leading backbone layers that are not trained; if above 0 the embeddings are not either."""
    layers: int = 4
    heads: int = 4
    ffn: int = 2048
    hidden: int = 2048
    dropout: float = 0.1
    position_embedding: bool = False
    """Add a learned vector by a token's place again after the backbone. BriVL has none."""


@dataclass(frozen=True)
class MocoConfig:
    """The objective: the paper's MoCo over two modalities, or a baseline on the same towers (training/moco.py)."""

    objective: Literal["moco", "clip", "siglip", "albef"] = "moco"
    queue_size: int = 9600
    """K: keys kept of each modality. Any number; it need not be a multiple of the batch."""
    momentum: float = 0.99
    temperature: float = 0.07
    """T: fixed, or where a learned one begins (SigLIP's paper begins at 0.1)."""
    learn_temperature: bool = False
    """Train log(1/T), without weight decay. siglip always does, and a bias beside it."""
    temperature_range: tuple[float, float] = (0.01, 1.0)
    """Between these a learned temperature is held after every step."""
    bias: float = -10.0
    """siglip: where the learned bias of its logits begins."""
    in_batch_keys: bool = False
    """moco: count the other keys of the same batch as negatives too (BriVL 2). The other objectives always do."""
    false_negatives: Literal["masked", "positives", "negatives"] = "masked"
    """What a candidate that shares the image or the text with the sample counts as: as nothing, as one positive more
    (the target is even over all of them), or as the negative that plain MoCo takes it for."""
    soft_targets: float = 0.4
    """albef: share of the target that the key towers set; the pair itself sets the rest."""
    key_norm: Literal["eman", "shuffle"] = "eman"
    """Batch norms of the image key tower: averaged statistics, or those of a batch shuffled over the ranks."""
    prefill: bool = True
    """Fill the queues by key-only forwards before the first step."""
    feature_dim: int = 2048


@dataclass(frozen=True)
class DataConfig:
    """What of the dataset is read, and how it is turned into tensors."""

    image_size: int = 380
    max_boxes: int = 36
    """Boxes of the detector; the whole image is one more."""
    max_tokens: int = 80
    text_kinds: Literal["primary"] | TextKinds = "primary"
    """`primary`, or by source kind the probability with which a text of each kind is taken, if the sample has it.
    Beside the kinds that are stored there are `easy` and `first`, made of the surrounding text as BriVL made them."""
    color_jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.4, 0.1)
    """Strength of brightness, contrast, saturation and hue."""
    color_jitter_p: float = 0.8
    grayscale_p: float = 0.2
    detector: str = ""
    """Which detector's regions; empty for the first that the manifest names."""
    window_shards: int = 8
    """Shards within whose samples the order is shuffled."""
    num_workers: int = 2
    worker_nice: int = 19
    """How much nicer than the step, where that is on the CPU, a worker is. 0 where others fill the machine's cores."""
    decoder: Literal["cpu", "device"] = "cpu"
    """Where JPEGs are decoded and resized: by the CPU, or by the GPU that trains (nvJPEG), with num_workers=0."""
    cache_gb: float = 100.0
    """Disk that copies of remote tars may take on a machine; 0 reads every image with a request of its own."""
    boilerplate_dropout: float = 1.0
    """Probability with which a text such as 查看源网页 or IMG_1234.jpg is left out where the sample has another one."""
    tokenizer: str = "gb2312"
    """`gb2312`, `bert_chinese`, or a BERT vocabulary as local path or hub name."""


@dataclass(frozen=True)
class OptimConfig:
    """AdamW with warm-up, in samples so that another batch size keeps the curve."""

    lr: float = 1e-4
    lr_image_backbone: float = 1.0
    """Factor on lr for the trained layers of the image backbone."""
    lr_text_backbone: float = 1.0
    """Factor on lr for the trained layers of the text backbone."""
    layer_decay: float = 1.0
    """Factor on lr for each step down a backbone: once for its last stage or layer, twice for the one before ..."""
    weight_decay: float = 1e-5
    warmup_samples: int = 0
    schedule: Literal["cosine", "constant", "wsd"] = "cosine"
    """After the warm-up: down to 0 along a cosine; no change; or no change, then straight down to 0 (warm-up, stable,
    decay: arXiv 2404.06395), so that a run can be made longer without having begun otherwise."""
    decay_share: float = 0.2
    """wsd: share of the run, at its end, in which the rate falls."""
    lr_batch: int = 0
    """The batch for which lr is meant; 0 for the run's own."""
    lr_scaling: Literal["linear", "sqrt"] = "linear"
    """What lr is multiplied by where the run's batch is another than lr_batch: their ratio, or its root."""
    clip: float = 1.0
    """Largest norm of the gradient; 0 for no clipping."""
    betas: tuple[float, float] = (0.9, 0.999)


@dataclass(frozen=True)
class RunConfig:
    """How long, how large, how often."""

    batch_size: int = 256
    """Samples of one optimiser step over all ranks and micro-steps."""
    accumulate: int = 1
    """Micro-steps a step."""
    epochs: float = 1.0
    precision: Literal["fp32", "bf16"] = "fp32"
    """`bf16`: the towers under autocast; parameters, similarities, softmax, queues and averages stay in float32."""
    recompute: Literal["nothing", "pointwise", "blocks"] = "pointwise"
    """What of a forward is computed again in the backward instead of kept: nothing; in the image backbone all but
    convolutions and matrix products; every block of both towers (gradient checkpointing), which keeps the least."""
    compile: bool = False
    """torch.compile each tower. The first steps take minutes; pays on a GPU."""
    checkpoint_every: int = 1000
    """Steps; 0 for the last one only."""
    keep_last: int = 2
    keep_best: bool = True
    """Also keep the checkpoint with the highest mean recall on the dev split, as checkpoints/best."""
    save_in_background: bool = True
    """Write checkpoints while training goes on, from a copy of the state in memory."""
    mirror: str = ""
    """A folder or URL to which every checkpoint is copied as well; a run whose folder is gone goes on from there."""
    eval_every: int = 0
    """Steps between recalls on the dev split; 0 for never."""
    patience: int = 0
    """Stop after so many of them in a row without a higher mean recall; 0 for never."""
    stop_on_collapse: bool = True
    """Stop when all features of a modality have become alike; a warning if not."""
    log_every: int = 10
    tracker: Literal["tensorboard", "wandb", "mlflow", "none"] = "tensorboard"
    """Where metrics go beside metrics.jsonl. W&B and MLflow take their settings from their own environment."""
    profile_steps: int = 0
    """Steps, after the first three, of which torch's profiler writes a trace into OUT/profile."""
    device: str = "auto"


@dataclass(frozen=True)
class Config:
    """Everything that decides what a run computes. `compat="brivl-1.0"` reproduces the released code's behaviour."""

    recipe: str
    seed: int
    image: ImageTowerConfig
    text: TextTowerConfig
    moco: MocoConfig
    data: DataConfig
    optim: OptimConfig
    run: RunConfig
    compat: Literal["", "brivl-1.0"] = ""

    def __post_init__(self) -> None:
        _check(self)


def resolve(recipe: str, overrides: Sequence[str] = ()) -> Config:
    """The config of a recipe with overrides such as `moco.queue_size=512`; of two on one key the later one counts.

    Raises ConfigError on an unknown recipe or key and on a value of the wrong type or range.
    """
    from training import recipes

    found = {name: f for name, f in vars(recipes).items() if _is_recipe(f, recipes.__name__)}
    if recipe not in found:
        raise ConfigError(f"recipe {recipe}", f"unknown; {_suggest(recipe, found)}there are {', '.join(sorted(found))}")
    values = to_dict(found[recipe]())
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals:
            raise ConfigError(f"--set {override}", "write it as key=value, for example moco.queue_size=512")
        _override(values, key.strip(), value)
    return from_dict(values)  # only now: keys that must fit each other may come in any order


def to_dict(config: Config) -> dict[str, Any]:
    """Nested dict of JSON values."""
    return cast(dict[str, Any], _plain(config))


def from_dict(values: Mapping[str, Any], name: str = "config") -> Config:
    """The inverse of `to_dict`; errors name `name`, a file. Raises ConfigError on unknown or missing keys."""
    return _build(Config, values, name, "")


_Record = TypeVar("_Record")


def _is_recipe(value: object, module: str) -> bool:
    return isinstance(value, types.FunctionType) and value.__module__ == module and not value.__name__.startswith("_")


def _suggest(word: str, known: Mapping[str, object]) -> str:
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"did you mean {close[0]}? " if close else ""


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        return {f.name: _plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def _build(cls: type[_Record], values: object, name: str, path: str) -> _Record:
    if not isinstance(values, Mapping):
        raise ConfigError(name, f"{path or 'it'} must be an object of keys and values")
    hints = get_type_hints(cls)
    prefix = f"{path}." if path else ""
    for key in values:
        if key not in hints:
            hint = _suggest(str(key), hints).strip()
            raise ConfigError(name, f"{prefix}{key}: unknown key{'; ' + hint if hint else ''}")
    optional = {f.name for f in fields(cast(Any, cls)) if f.default is not MISSING or f.default_factory is not MISSING}
    for key in hints:
        if key not in values and key not in optional:
            raise ConfigError(name, f"{prefix}{key}: missing")
    built = {}
    for key, hint in hints.items():
        if key not in values:
            continue  # of an earlier version, which did what the default does
        where = f"{prefix}{key}"
        inner = hint if is_dataclass(hint) else None
        built[key] = (
            _build(cast(type[Any], inner), values[key], name, where)
            if inner
            else _typed(hint, values[key], f"{name}: {where}")
        )
    return cls(**built)


def _override(values: dict[str, Any], key: str, text: str) -> None:
    """Set one key of the nested dict `values`, typed by the field that it is."""
    record: Any = Config
    parts = key.split(".")
    for number, part in enumerate(parts, 1):
        last = number == len(parts)
        hints = get_type_hints(record)
        if part not in hints:
            hint = _suggest(part, hints).strip()
            raise ConfigError(f"--set {key}", f"unknown key {part}{'; ' + hint if hint else ''}")
        if is_dataclass(hints[part]) == last:
            problem = f"name one of its keys, {key}.NAME" if last else f"{part} has no keys in it"
            raise ConfigError(f"--set {key}", problem)
        if last:
            values[part] = _plain(_typed(hints[part], _parse(hints[part], text), f"--set {key}"))
        else:
            record, values = hints[part], values[part]


def _parse(hint: Any, text: str) -> Any:
    """JSON where the field is no string; a bare word stays a string and `_typed` judges it."""
    if hint is str:
        return text
    if get_origin(hint) is tuple and not text.lstrip().startswith("["):
        text = f"[{text}]"
    words = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
    if hint is bool and text.lower() in words:
        return words[text.lower()]
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def _typed(hint: Any, value: Any, where: str) -> Any:
    origin, choices = get_origin(hint), get_args(hint)
    if origin is Literal:
        if value in choices:
            return value
        raise ConfigError(where, f"{value!r} is none of {', '.join(repr(c) for c in choices)}")
    if origin is tuple and isinstance(value, Sequence) and not isinstance(value, str) and len(value) == len(choices):
        return tuple(_typed(choice, item, where) for choice, item in zip(choices, value, strict=True))
    if hint == Scalar:
        if isinstance(value, (bool, int, str)) or (isinstance(value, float) and math.isfinite(value)):
            return value
        raise ConfigError(where, f"{value!r} is not a number, text, true or false")
    if origin in (Union, types.UnionType):
        fitting = [c for c in choices if (get_origin(c) is not Literal) == isinstance(value, Mapping)]
        return _typed(fitting[0], value, where)
    if isinstance(origin, type) and issubclass(origin, Mapping) and isinstance(value, Mapping):
        return {str(k): _typed(choices[1], item, f"{where}.{k}") for k, item in value.items()}
    if hint is bool and isinstance(value, bool):
        return value
    if hint is int and isinstance(value, int) and not isinstance(value, bool):
        return value
    if hint is float and isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    if hint is str and isinstance(value, str):
        return value
    raise ConfigError(where, f"{value!r} is not {_wanted(hint)}")


def _wanted(hint: Any) -> str:
    if get_origin(hint) is tuple:
        return f"{len(get_args(hint))} numbers"
    names = {bool: "true or false", int: "a whole number", float: "a finite number", str: "text"}
    return names.get(hint, "an object of keys and values")


_RANGES: dict[str, tuple[float, float]] = {
    "moco.queue_size": (1, math.inf),
    "moco.momentum": (0, 1),
    "moco.temperature": (1e-4, math.inf),
    "moco.temperature_range": (1e-4, math.inf),
    "moco.soft_targets": (0, 1),
    "moco.feature_dim": (1, math.inf),
    "data.image_size": (32, math.inf),
    "data.max_boxes": (0, math.inf),
    "data.max_tokens": (3, math.inf),  # [CLS], one token, [SEP]
    "data.color_jitter": (0, math.inf),
    "data.color_jitter_p": (0, 1),
    "data.grayscale_p": (0, 1),
    "data.window_shards": (1, math.inf),
    "data.num_workers": (0, math.inf),
    "data.worker_nice": (0, 19),
    "image.frozen_stages": (0, math.inf),
    "image.grid": (1, math.inf),
    "image.width": (1, math.inf),
    "image.layers": (0, math.inf),
    "image.ffn": (1, math.inf),
    "image.hidden": (1, math.inf),
    "image.dropout": (0, 0.99),
    "text.vocab_size": (1, math.inf),
    "text.backbone_width": (1, math.inf),
    "text.backbone_layers": (0, math.inf),
    "text.backbone_heads": (1, math.inf),
    "text.backbone_ffn": (1, math.inf),
    "text.layers": (0, math.inf),
    "text.ffn": (1, math.inf),
    "text.hidden": (1, math.inf),
    "text.dropout": (0, 0.99),
    "text.backbone_dropout": (0, 0.99),
    "text.frozen_layers": (0, math.inf),
    "optim.lr": (0, math.inf),
    "optim.lr_image_backbone": (0, math.inf),
    "optim.lr_text_backbone": (0, math.inf),
    "optim.layer_decay": (1e-6, 1),
    "optim.betas": (0, 0.999999),
    "optim.clip": (0, math.inf),
    "optim.weight_decay": (0, math.inf),
    "optim.warmup_samples": (0, math.inf),
    "optim.decay_share": (0, 1),
    "optim.lr_batch": (0, math.inf),
    "data.cache_gb": (0, math.inf),
    "data.boilerplate_dropout": (0, 1),
    "run.patience": (0, math.inf),
    "run.profile_steps": (0, math.inf),
    "run.batch_size": (1, math.inf),
    "run.accumulate": (1, math.inf),
    "run.epochs": (0, math.inf),
    "run.checkpoint_every": (0, math.inf),
    "run.keep_last": (1, math.inf),
    "run.eval_every": (0, math.inf),
    "run.log_every": (1, math.inf),
}


def _check_kinds(kinds: TextKinds) -> None:
    for source, shares in kinds.items():
        for found, known in ((source, SOURCE_KINDS), *((kind, (*TEXT_KINDS, *DERIVED_KINDS)) for kind in shares)):
            if found not in known:
                hint = _suggest(found, dict.fromkeys(known)).strip()
                raise ConfigError("data.text_kinds", f"unknown kind {found!r}{'; ' + hint if hint else ''}")


def _check(config: Config) -> None:
    """What types cannot say. Raises ConfigError that names the key."""
    for key, (low, high) in _RANGES.items():
        section, name = key.split(".")
        value = getattr(getattr(config, section), name)
        for number in value if isinstance(value, tuple) else (value,):
            if not low <= number <= high:
                raise ConfigError(key, f"{number} is out of range; it lies between {low:g} and {high:g}")
    low, high = config.moco.temperature_range
    if (config.moco.learn_temperature or config.moco.objective == "siglip") and not (
        low <= config.moco.temperature <= high
    ):
        raise ConfigError("moco.temperature", f"{config.moco.temperature} is outside of moco.temperature_range")
    if config.data.color_jitter[3] > 0.5:
        raise ConfigError("data.color_jitter", f"the hue's {config.data.color_jitter[3]} is above 0.5, half the circle")
    for key, tower in (("image", config.image), ("text", config.text)):
        width = tower.width if isinstance(tower, ImageTowerConfig) else tower.backbone_width
        if tower.heads < 1 or width % tower.heads:
            raise ConfigError(f"{key}.heads", f"the width {width} is not a multiple of {tower.heads} heads")
    if config.run.batch_size % config.run.accumulate:
        raise ConfigError(
            "run.accumulate", f"{config.run.accumulate} does not divide the batch {config.run.batch_size}"
        )
    if config.run.compile and config.run.recompute == "blocks":
        raise ConfigError("run.compile", "does not go with run.recompute=blocks: batch norms would move twice a step")
    if config.data.decoder == "device" and config.data.num_workers:
        raise ConfigError("data.decoder", "'device' wants data.num_workers=0: a forked worker cannot use the GPU")
    if not isinstance(config.data.text_kinds, str):
        _check_kinds(config.data.text_kinds)
    if config.run.patience and not config.run.eval_every:
        raise ConfigError("run.patience", "counts recalls on the dev split; set run.eval_every")
    if config.data.max_tokens > config.text.max_positions:
        raise ConfigError("data.max_tokens", f"{config.data.max_tokens} exceeds text.max_positions")
