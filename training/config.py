"""The complete, typed description of a training run.

A recipe is a function that returns a whole `Config` (training/recipes.py); `--set a.b=c` changes one value of it
(training/resolve.py); a checkpoint stores `to_dict(config)`, and `from_dict` reads it back.

Every number has its limits in its annotation, and a misspelt key is an error that names the nearest right one instead
of an option that does nothing. Other errors of one value are in pydantic's words. Reading is strict: `1.5` and `true`
are not whole numbers, `"1"` is not a number at all.

Why pydantic's dataclasses and not its models: `dataclasses.replace` checks the copy again, `model_copy` does not.

Limits: values are numbers, strings, booleans, tuples of them, and two mappings (`data.text_kinds`,
`text.backbone_options`). Sections are one level deep. In Python code a wrong value of one key is pydantic's
ValidationError; values that do not go together are a ConfigError everywhere.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import re
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BeforeValidator, ConfigDict, Discriminator, Field, Tag, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass
from pydantic_core import ErrorDetails, PydanticCustomError

from data_specs.names import DERIVED_KINDS, SOURCE_KINDS, TEXT_KINDS
from training.errors import ConfigError


def _scalar(value: object) -> object:
    if isinstance(value, (bool, int, str)) or (isinstance(value, float) and math.isfinite(value)):
        return value
    raise PydanticCustomError("not_scalar", "not a number, text, true or false")


Count = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(ge=1)]
Amount = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Dropout = Annotated[float, Field(ge=0, le=0.99)]
Temperature = Annotated[float, Field(ge=1e-4)]
Beta = Annotated[float, Field(ge=0, le=0.999999)]
Seed = Annotated[int, Field(ge=-(2**63), le=2**64 - 1)]
"""Range of torch.manual_seed."""


def _interval(value: object) -> object:
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    if isinstance(value, str) and _MINUTES.fullmatch(value):
        return value
    raise PydanticCustomError("interval", "not a number of steps or minutes such as 5min")


_MINUTES = re.compile(r"(\d+(?:\.\d+)?)min")

Interval = Annotated[int | str, BeforeValidator(_interval)]
"""Distance of two checkpoints: steps, or minutes such as `5min`."""

Scalar = Annotated[bool | int | float | str, BeforeValidator(_scalar)]
"""A value of `text.backbone_options`."""

TextKinds = Mapping[str, Mapping[str, Amount]]
"""Source kind -> {text kind: probability}."""

_PrimaryOrKinds = Annotated[
    Annotated[Literal["primary"], Tag("<word>")] | Annotated[TextKinds, Tag("<kinds>")],
    Discriminator(lambda value: "<kinds>" if isinstance(value, Mapping) else "<word>"),
]
"""A wrong value is reported for the type that it was meant to have. pydantic puts the tag into an error's place."""

Precision = Literal["fp32", "bf16"]

Record = TypeVar("Record")

STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


@dataclass(frozen=True, config=STRICT)
class ImageTowerConfig:
    """Image tower: a CNN's feature map, pooled by box, through transformer encoder layers to one feature."""

    encoder: str = "cnn_regions"
    """File name in training/encoders, or code of another package (training/plug_ins)."""
    backbone: str = "timm/tf_efficientnet_b5.ns_jft_in1k"
    """`timm/NAME` of any model there, or `torchvision/mobilenet_v2`. Of encoder clip_image `transformers/TYPE`, TYPE
    one of clip, chinese_clip, siglip and siglip2."""
    backbone_options: Mapping[str, Scalar] = dataclasses.field(default_factory=dict)
    """clip_image: settings of the architecture that differ from the model type's defaults, sizes among them."""
    mean: tuple[Amount, Amount, Amount] = (0.0, 0.0, 0.0)
    """Mean of the pixels in [0, 1] that is taken off; used where `std` is given."""
    std: tuple[Amount, Amount, Amount] = (0.0, 0.0, 0.0)
    """Standard deviation by which pixels are divided; zeros: mean and deviation are the backbone's own."""
    weights: str = ""
    """Weights of the backbone: empty for random, `hub` to let timm download them, `package` for those that come with
    the extra `training` (of timm/tf_efficientnet_lite0), a file (.pth, .bin, .safetensors), or a folder with
    model.safetensors or pytorch_model.bin."""
    frozen_stages: Count = 4
    """Leading stages that are not trained; the stem is one. They are the prefix that query and key tower share."""
    frozen: bool = False
    """Train nothing of this tower: its features stay those that it begins with (LiT, arXiv 2111.07991)."""
    freeze_head: bool = True
    """Do not train the backbone's last 1x1 convolution and its batch norm, if it has them; gradient still flows
    through them."""
    grid: Positive = 4
    """Samples per side with which a box is averaged."""
    width: Positive = 2048
    layers: Count = 4
    heads: Positive = 4
    ffn: Positive = 2048
    hidden: Positive = 2048
    """Width of the closing MLP's hidden layer."""
    dropout: Dropout = 0.1
    patch_dropout: Dropout = 0.0
    """Share of the patches that a step leaves out, as timm does (FLIP, arXiv 2212.00794). Of encoder clip_image with
    `data.max_boxes=0`: a region is the mean of all its patches."""
    box_embedding: bool = False
    """Add a learned linear map of a box's four sides (shares of the image's) to its region. Not in BriVL."""
    position_embedding: bool = False
    """Add a learned vector by a region's place in the list of boxes. Not in BriVL."""

    def __post_init__(self) -> None:
        _check_heads("image", self.width, self.heads)


@dataclass(frozen=True, config=STRICT)
class TextTowerConfig:
    """Text tower: a token encoder, then transformer encoder layers, a masked mean and an MLP to one feature."""

    encoder: str = "bert_text"
    """File name in training/encoders, or code of another package (training/plug_ins)."""
    backbone: str = "bert"
    """Model type of transformers: `bert` (which Chinese RoBERTa-wwm and MacBERT are too), `roberta`, `ernie` ..."""
    backbone_options: Mapping[str, Scalar] = dataclasses.field(default_factory=dict)
    """Settings of the architecture that differ from the model type's defaults, beside the sizes below."""
    weights: str = ""
    """Weights of the backbone: empty for random, a local folder of transformers, or a name on the hub."""
    vocab_size: Positive = 21128
    max_positions: Positive = 512
    backbone_width: Positive = 768
    """Width of the backbone and of the layers after it."""
    backbone_layers: Count = 12
    backbone_heads: Positive = 12
    backbone_ffn: Positive = 3072
    backbone_dropout: Dropout = 0.1
    frozen_layers: Count = 8
    """Leading backbone layers that are not trained; if above 0 the embeddings are not either."""
    frozen: bool = False
    """Train nothing of this tower: its features stay those that it begins with."""
    layers: Count = 4
    heads: Positive = 4
    ffn: Positive = 2048
    hidden: Positive = 2048
    dropout: Dropout = 0.1
    position_embedding: bool = False
    """Add a learned vector by a token's place again after the backbone. Not in BriVL."""

    def __post_init__(self) -> None:
        _check_heads("text", self.backbone_width, self.heads)


@dataclass(frozen=True, config=STRICT)
class MocoConfig:
    """The objective: the paper's MoCo over two modalities, or another one on the same towers (training/objectives)."""

    objective: str = "moco"
    """File name in training/objectives (moco, clip, siglip, albef), or code of another package (training/plug_ins)."""
    objective_options: Mapping[str, Scalar] = dataclasses.field(default_factory=dict)
    """Keyword arguments of another package's objective, such as {"margin": 0.2}."""
    queue_size: Positive = 9600
    """K: keys kept of each modality. Any number; it need not be a multiple of the batch."""
    momentum: Fraction = 0.99
    temperature: Temperature = 0.07
    """T: fixed, or where a learned one begins (SigLIP's paper begins at 0.1)."""
    learn_temperature: bool = False
    """Train log(1/T), without weight decay. siglip always does, and a bias beside it."""
    temperature_range: tuple[Temperature, Temperature] = (0.01, 1.0)
    """A learned temperature is clipped to this range after every step."""
    bias: Annotated[float, Field(ge=-1000, le=1000)] = -10.0
    """siglip: where the learned bias of its logits begins."""
    in_batch_keys: bool = False
    """moco: count the other keys of the same batch as negatives too (BriVL 2). The other objectives always do."""
    false_negatives: Literal["masked", "positives", "negatives"] = "masked"
    """A candidate that shares the image or the text with the sample counts as nothing, as one positive more
    (the target is even over all of them), or as the negative that plain MoCo takes it for."""
    soft_targets: Fraction = 0.4
    """albef: share of the target that the key towers set; the pair itself sets the rest."""
    key_norm: Literal["eman", "shuffle"] = "eman"
    """Batch norms of the image key tower: averaged statistics, or those of a batch shuffled over the ranks."""
    prefill: bool = True
    """Fill the queues by key-only forwards before the first step."""
    init_queues: bool = False
    """Begin with the queues (and the learned temperature) of the --init checkpoint instead, where its data is still
    trained on. Its key towers, which have made those keys, come along in any case."""
    feature_dim: Positive = 2048
    """D: width of image_features and text_features."""


@dataclass(frozen=True, config=STRICT)
class DataConfig:
    """Selection of the dataset's content, and its conversion into tensors."""

    image_size: Annotated[int, Field(ge=32)] = 380
    max_boxes: Count = 36
    """Boxes of the detector; the whole image is one more."""
    max_pixels: Positive = 100_000_000
    """Pixels of a picture, by its header, above which it is left out as a corrupt one: few bytes may claim gigabytes.
    The default is that of a build's fetch.max_pixels."""
    max_tokens: Annotated[int, Field(ge=3)] = 80
    """Tokens of a text with its marks: [CLS], one token at least, [SEP]."""
    text_kinds: _PrimaryOrKinds = "primary"
    """`primary`, or by source kind the probability with which a text of each kind is taken, if the sample has it.
    Beside the kinds that are stored there are `easy` and `first`, made of the surrounding text as BriVL made them."""
    color_jitter: tuple[Amount, Amount, Amount, Amount] = (0.4, 0.4, 0.4, 0.1)
    """Strength of brightness, contrast, saturation and hue."""
    color_jitter_p: Fraction = 0.8
    grayscale_p: Fraction = 0.2
    crop_least: Annotated[float, Field(ge=0.05, le=1)] = 1.0
    """Least share of a picture's area that a random crop keeps; 1 for no crop. Boxes move along."""
    flip_p: Fraction = 0.0
    """Probability of a mirrored picture, with its boxes. Characters in it are mirrored too."""
    detector: str = ""
    """Detector whose regions are used; empty for the first that the manifest names."""
    window_shards: Positive = 8
    """Shards within whose samples the order is shuffled."""
    num_workers: Count = 2
    worker_nice: Annotated[int, Field(ge=0, le=19)] = 19
    """Niceness added to a worker where the step runs on the CPU too. 0 where others fill the machine's cores."""
    decoder: Literal["cpu", "device"] = "cpu"
    """Device that decodes and resizes JPEGs: the CPU, or the GPU that trains (nvJPEG), with num_workers=0."""
    cache_gb: Amount = 100.0
    """Disk that copies of remote tars may take on a machine; 0 reads every image with a request of its own."""
    boilerplate_dropout: Fraction = 1.0
    """Probability with which a text such as 查看源网页 or IMG_1234.jpg is left out where the sample has another one."""
    tokenizer: str = "gb2312"
    """`gb2312`, `bert_chinese`, a vocabulary as local path or hub name, or a class of an installed package,
    `acme.words:Words`, or an entry point's name."""

    def __post_init__(self) -> None:
        hue = self.color_jitter[3]
        if hue > 0.5:
            raise ConfigError("data.color_jitter", f"a hue of {hue} exceeds 0.5, half the colour circle")
        if self.decoder == "device" and self.num_workers:
            raise ConfigError("data.decoder", "'device' needs data.num_workers=0: a forked worker cannot use the GPU")
        if not isinstance(self.text_kinds, str):
            _check_kinds(self.text_kinds)


@dataclass(frozen=True, config=STRICT)
class OptimConfig:
    """AdamW with warm-up, in samples so that another batch size keeps the curve."""

    lr: Amount = 1e-4
    lr_factor: Amount = 1.0
    """Factor on lr, for who changes a recipe's rate by a rule: a warm start takes a lower one (dags/pretrain.py)."""
    lr_image_backbone: Amount = 1.0
    """Factor on lr for the trained layers of the image backbone."""
    lr_text_backbone: Amount = 1.0
    """Factor on lr for the trained layers of the text backbone."""
    layer_decay: Annotated[float, Field(ge=1e-6, le=1)] = 1.0
    """Factor on lr for each step down a backbone: once for its last stage or layer, twice for the one before ..."""
    weight_decay: Amount = 1e-5
    warmup_samples: Count = 0
    warmup_share: Fraction = 0.0
    """Share of the run over which the rate rises, where that is longer than warmup_samples."""
    schedule: Literal["cosine", "constant", "wsd"] = "cosine"
    """After the warm-up: down to 0 along a cosine; no change; or no change, then straight down to 0 (warm-up, stable,
    decay: arXiv 2404.06395), so that a run can be made longer without having begun otherwise: set run.epochs
    again on the same --out. A run whose rate has fallen already goes on too, at the full rate again."""
    decay_share: Fraction = 0.2
    """wsd: share of the run, at its end, in which the rate falls."""
    lr_batch: Count = 0
    """The batch for which lr is meant; 0 for the run's own."""
    lr_scaling: Literal["linear", "sqrt"] = "linear"
    """Factor on lr where the run's batch differs from lr_batch: their ratio, or its root."""
    clip: Amount = 1.0
    """Largest norm of the gradient; 0 for no clipping."""
    betas: tuple[Beta, Beta] = (0.9, 0.999)


@dataclass(frozen=True, config=STRICT)
class RunConfig:
    """Length of a run, size of its steps, and how often it saves, evaluates and logs."""

    batch_size: Positive = 256
    """Samples of one optimiser step over all ranks and micro-steps."""
    accumulate: Positive = 1
    """Micro-steps a step."""
    epochs: Amount = 1.0
    precision: Precision = "fp32"
    """`bf16`: the towers under autocast; parameters, similarities, softmax, queues and averages stay in float32."""
    recompute: Literal["auto", "nothing", "pointwise", "blocks"] = "auto"
    """Part of a forward that is computed again in the backward instead of kept: nothing; in the image backbone all but
    convolutions and matrix products; every block of both towers (gradient checkpointing), which keeps the least. `auto`
    takes the first of them that fits the GPU's free memory: Python decides for each operation, which a GPU waits for.
    The result does not depend on it, and a checkpoint's config.json names what was taken."""
    compile: bool = False
    """torch.compile each tower. The first steps take minutes; pays on a GPU."""
    checkpoint_every: Interval = "5min"
    """Minutes (`5min`), and then also at the end of every epoch; or steps (`1000`), 0 for the last one only."""
    keep_last: Positive = 2
    keep_best: bool = True
    """Also keep the checkpoint with the highest mean recall on the dev split, as checkpoints/best."""
    save_in_background: bool = True
    """Write checkpoints while training goes on, from a copy of the state in memory."""
    mirror: str = ""
    """Folder or URL to which every checkpoint is copied as well; a run that has lost its folder goes on from there."""
    eval_every: Count = 0
    """Steps between recalls on the dev split; 0 for never, or for eval_epochs."""
    eval_epochs: Amount = 0.0
    """Epochs between recalls on the dev split, where eval_every is 0: for datasets of a size not known beforehand."""
    patience: Count = 0
    """Stop after so many recalls in a row without a higher mean; 0 for never."""
    stop_on_collapse: bool = True
    """Stop when all features of a modality have become alike; otherwise only warn."""
    compare_every: Count = 100
    """Steps between comparisons of the ranks' weights and queues, which must be equal (training/run/agreement.py); 0
    for before the first step and before each checkpoint only."""
    background: Count = 1000
    """Training images whose cosines with each other's texts a finished run keeps, to measure scores against
    (wenlan-train calibrate); 0 for none. Not with --workers."""
    log_every: Positive = 10
    tracker: Literal["tensorboard", "wandb", "none"] = "tensorboard"
    """Destination of metrics beside metrics.jsonl. W&B takes its settings from its own environment."""
    profile_steps: Count = 0
    """Steps, after the first three, of which torch's profiler writes a trace into OUT/profile."""
    device: str = "auto"

    def __post_init__(self) -> None:
        if self.batch_size % self.accumulate:
            raise ConfigError("run.accumulate", f"{self.accumulate} does not divide the batch {self.batch_size}")
        if self.compile and self.recompute == "blocks":
            problem = "cannot be combined with run.recompute=blocks: batch norms would be updated twice per step"
            raise ConfigError("run.compile", problem)
        if self.patience and not self.evaluates:
            raise ConfigError("run.patience", "needs recalls on the dev split; set run.eval_every")

    @property
    def checkpoint_steps(self) -> int:
        """Steps between two checkpoints; 0 where they are not counted."""
        return self.checkpoint_every if isinstance(self.checkpoint_every, int) else 0

    @property
    def checkpoint_minutes(self) -> float:
        """Minutes between two checkpoints; 0 where steps are counted."""
        found = _MINUTES.fullmatch(str(self.checkpoint_every))
        return float(found[1]) if found else 0.0

    @property
    def evaluates(self) -> bool:
        """True if recalls on the dev split are enabled."""
        return bool(self.eval_every or self.eval_epochs)


@dataclass(frozen=True, config=STRICT)
class Config:
    """Everything that decides what a run computes. `compat="brivl-1.0"` reproduces the released code's behaviour."""

    recipe: str
    seed: Seed
    image: ImageTowerConfig
    text: TextTowerConfig
    moco: MocoConfig
    data: DataConfig
    optim: OptimConfig
    run: RunConfig
    compat: Literal["", "brivl-1.0"] = ""

    def __post_init__(self) -> None:
        if self.data.max_tokens > self.text.max_positions:
            raise ConfigError("data.max_tokens", f"{self.data.max_tokens} exceeds text.max_positions")
        if self.image.frozen and self.text.frozen:
            raise ConfigError("text.frozen", "image.frozen is also set, so nothing is left to train")


def _check_heads(section: str, width: int, heads: int) -> None:
    if width % heads:
        raise ConfigError(f"{section}.heads", f"the width {width} is not a multiple of {heads} heads")


def _check_kinds(kinds: TextKinds) -> None:
    for source, probabilities in kinds.items():
        for kind, known in ((source, SOURCE_KINDS), *((kind, (*TEXT_KINDS, *DERIVED_KINDS)) for kind in probabilities)):
            if kind not in known:
                hint = suggestion(kind, known)
                raise ConfigError("data.text_kinds", f"unknown kind {kind!r}{'; ' + hint if hint else ''}")


_CONFIG = TypeAdapter(Config)


def to_dict(config: Config) -> dict[str, Any]:
    values: dict[str, Any] = _CONFIG.dump_python(config, mode="json")
    return values


def from_dict(values: Mapping[str, Any], name: str = "config", *, separator: str = ": ") -> Config:
    """The inverse of `to_dict`; a missing key takes its default.

    Errors name `name` (a file), `separator` and the key. Raises ConfigError on an unknown key, on a missing one without
    a default, on a value of the wrong type or range, and on values that do not go together.
    """
    return read_record(_CONFIG, values, name, separator=separator)


def read_record(adapter: TypeAdapter[Record], values: Mapping[str, Any], name: str, *, separator: str = ": ") -> Record:
    """Reads a record strictly from values, with the errors of `from_dict`."""
    try:
        return adapter.validate_json(json.dumps(values))
    except ValidationError as e:
        faults = e.errors(include_url=False)
    raise _config_error(faults[0], name, separator)


def suggestion(word: str, known: Iterable[str]) -> str:
    """`did you mean X?` for the nearest known word, or nothing."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"did you mean {close[0]}?" if close else ""


def _config_error(fault: ErrorDetails, name: str, separator: str) -> ConfigError:
    place = [part for part in fault["loc"] if isinstance(part, str) and not part.startswith("<")]
    where = f"{name}{separator}{'.'.join(place)}" if place else name
    if fault["type"] == "unexpected_keyword_argument":
        hint = suggestion(place[-1], fields_of(place[:-1]))
        return ConfigError(where, f"unknown key{'; ' + hint if hint else ''}")
    if fault["type"] == "missing" and isinstance(fault["loc"][-1], str):
        return ConfigError(where, "missing")
    return ConfigError(where, f"{fault['input']!r}: {fault['msg'][0].lower()}{fault['msg'][1:]}")


def fields_of(place: Iterable[str]) -> dict[str, Any]:
    """Types of the fields of `Config`, or of the section at `place`, by name."""
    section: Any = Config
    for part in place:
        section = section.__pydantic_fields__[part].annotation
    return {name: info.annotation for name, info in section.__pydantic_fields__.items()}
