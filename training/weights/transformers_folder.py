"""Export `transformers`: a folder that AutoModel and AutoProcessor load, with get_image_features, get_text_features.

    towers of CLIP's kind without regions    their own classes (ChineseCLIPModel ...): no code beside the weights
    any other towers                         the sources of these towers beside the weights, and a model class that
                                             builds them: AutoModel.from_pretrained(FOLDER, trust_remote_code=True)

Ten lines of whoever has the folder:

    model = AutoModel.from_pretrained(FOLDER, trust_remote_code=True).eval()
    processor = AutoProcessor.from_pretrained(FOLDER, trust_remote_code=True)
    texts = processor(text=["红色的花"], padding="max_length", truncation=True, return_tensors="pt")
    images = processor(images=[image], return_tensors="pt")
    text = F.normalize(model.get_text_features(**texts).pooler_output, dim=-1)
    image = F.normalize(model.get_image_features(**images).pooler_output, dim=-1)

The copied sources are this package's own, module by module, with their imports turned into relative ones, so the
folder computes what `embed` does and needs torch, timm and transformers, but not this package. Without boxes an image
has the grid; get_image_features(pixel_values, boxes, n_boxes) takes boxes [B, R, 4] in pixels of the input, the whole
image last.

Limits: the processor decodes large JPEGs at full size, `embed` at a part of it, less than one grey level away; alpha is
dropped, not laid on white. Siglip2Model's own processor keeps a picture's aspect. `compat` is not exported.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import math
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training.config import Config, to_dict
from training.data.tokenizer import _HAN, SPECIAL, CharTokenizer, JsonTokenizer, Tokenizer
from training.errors import ConfigError
from training.outputs.checkpoint import QUEUES_FILE
from training.outputs.whole import check_name, write_tensors, writing_to
from training.weights.load import Loaded, load
from training.weights.two_towers import family_config, theirs_of

if TYPE_CHECKING:
    from torch import Tensor

_CLASSES = {
    "clip": "CLIP",
    "chinese_clip": "ChineseCLIP",
    "siglip": "Siglip",
    "siglip2": "Siglip2",
}
"""How the names of a family's classes begin in transformers."""

_BILINEAR = 2  # of PIL's resampling filters

_CONFIG_SOURCE = '''"""The settings of a wenlan model: key `wenlan` of config.json has the training's."""

from transformers import PretrainedConfig


class WenlanConfig(PretrainedConfig):
    model_type = "wenlan"

    def __init__(self, wenlan=None, logit_scale=0.0, background=None, **more):
        self.wenlan, self.logit_scale, self.background = wenlan or {}, logit_scale, background
        super().__init__(**more)
'''

_MODEL_SOURCE = '''"""The towers of a wenlan checkpoint as a model of transformers. The other modules are its own."""

import math
from dataclasses import dataclass
from types import SimpleNamespace

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils import ModelOutput

from .configuration_wenlan import WenlanConfig
from .IMAGE_ENCODER import build as build_image
from .TEXT_ENCODER import build as build_text
from .records import Batch


@dataclass
class WenlanOutput(ModelOutput):
    logits_per_image: torch.FloatTensor = None
    logits_per_text: torch.FloatTensor = None
    image_embeds: torch.FloatTensor = None
    text_embeds: torch.FloatTensor = None


class WenlanModel(PreTrainedModel):
    config_class = WenlanConfig
    main_input_name = "pixel_values"
    _no_split_modules = []

    def __init__(self, config):
        super().__init__(config)
        sections = {k: SimpleNamespace(**v) if isinstance(v, dict) else v for k, v in config.wenlan.items()}
        described = SimpleNamespace(**sections)
        self.data = described.data
        with torch.device("cpu"):  # some backbones compute with values while they are made
            self.image_query = build_image(described, False)
            self.text_query = build_text(described, False)
        for module in self.modules():  # so that constants are in the file of weights, and come from there
            module._non_persistent_buffers_set.clear()
        self.logit_scale = nn.Parameter(torch.tensor(float(config.logit_scale)))
        self.post_init()

    def get_image_features(self, pixel_values, boxes=None, n_boxes=None, **_):
        """Unit features [B, D] as pooler_output. boxes [B, R, 4]: in pixels of the input, the whole image last."""
        if boxes is None:
            boxes = self._grid(pixel_values)
        if n_boxes is None:
            n_boxes = torch.full((len(boxes),), boxes.shape[1], device=pixel_values.device)
        batch = Batch.of(images_B3HW=pixel_values, boxes_BR4=boxes, n_boxes_B=n_boxes)
        return BaseModelOutputWithPooling(pooler_output=self.image_query(batch.to(self.device)))

    def get_text_features(self, input_ids, attention_mask=None, **_):
        """Unit features [B, D] as pooler_output; padding is at the right."""
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        counts = mask.sum(1)
        batch = Batch.of(token_ids_BL=input_ids[:, : int(counts.max())], n_tokens_B=counts)
        return BaseModelOutputWithPooling(pooler_output=self.text_query(batch.to(self.device)))

    def forward(self, input_ids=None, pixel_values=None, attention_mask=None, boxes=None, n_boxes=None, **_):
        image = self.get_image_features(pixel_values, boxes, n_boxes).pooler_output
        text = self.get_text_features(input_ids, attention_mask).pooler_output
        logits = self.logit_scale.exp() * image @ text.T
        return WenlanOutput(logits, logits.T, image, text)

    def _grid(self, pixel_values):
        """An even grid over the image, row by row, and the whole image: the boxes of pictures without any."""
        height, width = pixel_values.shape[-2:]
        n = math.isqrt(self.data.max_boxes)
        cells = [(x / n, y / n, (x + 1) / n, (y + 1) / n) for y in range(n) for x in range(n)] + [(0, 0, 1, 1)]
        boxes = torch.tensor(cells, dtype=torch.float32) * torch.tensor([width, height, width, height])
        return boxes.to(pixel_values.device).expand(len(pixel_values), -1, -1)
'''

_STUB = '''"""The sections of a config as the encoders read them."""

from types import SimpleNamespace

Config = ImageTowerConfig = TextTowerConfig = SimpleNamespace
'''


def export_transformers(path: Path, out: Path) -> dict[str, Any]:
    """Write the query towers of a checkpoint as a folder; what it is, as JSON values.

    Raises ConfigError where the folder is there already, or for a model that reads inputs as the release did, and
    RunError for a folder without a name (`.`).
    """
    check_name(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError("--out", f"{out} is there already; name a folder that is not")
    loaded = load(path, "cpu")
    if loaded.config.compat:
        raise ConfigError(
            "--to transformers", f"a model of compat {loaded.config.compat} pads texts as the release did"
        )
    temporary = out.with_name(f".{out.name}.tmp")
    with writing_to(out):
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        try:
            own = _is_own(loaded.config)
            tensors = _write_own(loaded, temporary) if own else _write_sources(loaded, temporary)
            _write_processor(loaded, temporary, loaded.config.text.backbone if own else "")
            about = {
                "recipe": loaded.config.recipe,
                "towers_sha256": loaded.checkpoint.sealed.files["towers.safetensors"],
            }
            background = loaded.background()
            told = {} if background is None else {"background": json.loads(background.to_json())}
            (temporary / "wenlan.json").write_text(json.dumps({**about, **told}, indent=1) + "\n", encoding="utf-8")
            if out.exists():
                out.rmdir()
            temporary.rename(out)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    family = loaded.config.text.backbone if own else "wenlan"
    return {
        "out": [str(out)],
        "format": "transformers",
        "model_type": family,
        "tensors": tensors,
        "trust_remote_code": not own,
    }


def _is_own(config: Config) -> bool:
    """Whether transformers has a class of its own for these towers."""
    image, text = config.image, config.text
    if (image.encoder, text.encoder) != ("clip_image", "clip_text") or config.data.max_boxes:
        return False
    if image.backbone != f"transformers/{text.backbone}":
        return False
    size = getattr(family_config(config).vision_config, "image_size", None)
    return size in (None, config.data.image_size)  # positions of another size would have to be resampled


def _write_own(loaded: Loaded, folder: Path) -> int:
    import torch

    from training.towers.text_backbones import quiet

    auto: Any = importlib.import_module("transformers").AutoModel  # whose methods say nothing of types
    described = family_config(loaded.config)
    with quiet():
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

    They lie beside the queues, which an imported checkpoint has not, and which somebody may have removed.
    """
    checkpoint, moco = loaded.checkpoint, loaded.config.moco
    there = checkpoint.has(QUEUES_FILE) and (checkpoint.folder / QUEUES_FILE).is_file()
    learned = checkpoint.tensors(QUEUES_FILE) if there else {}
    scale, bias = learned.get("logits.log_scale"), learned.get("logits.bias")
    return -math.log(moco.temperature) if scale is None else float(scale), moco.bias if bias is None else float(bias)


def _write_sources(loaded: Loaded, folder: Path) -> int:
    """The model's class, the modules that build its towers, config.json and the weights."""
    config = loaded.config
    encoders = {"IMAGE_ENCODER": config.image.encoder, "TEXT_ENCODER": config.text.encoder}
    source = _MODEL_SOURCE
    for word, name in encoders.items():
        source = source.replace(word, _flat(f"training.encoders.{name}"))
    files = {"configuration_wenlan.py": _CONFIG_SOURCE, "modeling_wenlan.py": source}
    files |= _sources([*(f"training.encoders.{name}" for name in encoders.values()), "training.records"])
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
    about = {
        "model_type": "wenlan",
        "architectures": ["WenlanModel"],
        "auto_map": {
            "AutoConfig": "configuration_wenlan.WenlanConfig",
            "AutoModel": "modeling_wenlan.WenlanModel",
        },
        "wenlan": to_dict(config),
        "logit_scale": _logits(loaded)[0],
        "dtype": "float32",
    }
    (folder / "config.json").write_text(json.dumps(about, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    tensors = _with_constants(loaded)
    write_tensors(folder / "model.safetensors", tensors, {"format": "pt"})
    return len(tensors)


def _with_constants(loaded: Loaded) -> dict[str, Tensor]:
    """All tensors of the query towers, and the constants that a state dict leaves out."""
    import torch

    model = loaded.model
    towers = {"image_query": model.image_query, "text_query": model.text_query}
    tensors = {f"{k}.{name}": tensor for k, tower in towers.items() for name, tensor in tower.state_dict().items()}
    constants = {f"{k}.{name}": buffer for k, tower in towers.items() for name, buffer in tower.named_buffers()}
    scale = torch.tensor(_logits(loaded)[0])
    # clones: safetensors refuses tensors that share memory, as constants expanded from one number do
    return {name: tensor.clone() for name, tensor in {**constants, **tensors, "logit_scale": scale}.items()}


def _sources(roots: list[str]) -> dict[str, str]:
    """File name -> source of modules of ours and all that they import of ours, with relative imports."""
    files, waiting = {"config.py": _STUB}, list(roots)
    done = {"training.config"}
    while waiting:
        name = waiting.pop()
        if name in done:
            continue
        done.add(name)
        source = inspect.getsource(importlib.import_module(name))
        imported = [node.module for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ImportFrom)]
        waiting += [module for module in imported if module is not None and module.startswith("training.")]
        relative = re.sub(r"\bfrom (training\.[\w.]+) import", lambda m: f"from .{_flat(m[1])} import", source)
        files[f"{_flat(name)}.py"] = relative
    return files


def _flat(module: str) -> str:
    return module.removeprefix("training.").replace(".", "_")


def _write_processor(loaded: Loaded, folder: Path, family: str) -> None:
    """Image processor and tokenizer, and both as one. `family`: whose classes, or "" for those of any."""
    from training.towers.text_backbones import quiet

    transformers: Any = importlib.import_module("transformers")
    config, named = loaded.config, transformers
    with quiet():
        kind = _CLASSES.get(family, "CLIP")
        image_class = getattr(named, f"{kind}ImageProcessor")
        processor_class = getattr(named, f"{kind}Processor") if family else named.VisionTextDualEncoderProcessor
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
    if isinstance(ours, JsonTokenizer):
        around = ours.encode("", 3)
        pad = int(config.text.backbone_options.get("pad_token_id", 0))
        names = {"pad_token": ours.vocabulary[pad], "eos_token": ours.vocabulary[around[-1]]} if around else {}
        if len(around) > 1:
            names["bos_token"] = ours.vocabulary[around[0]]
        from tokenizers import Tokenizer as Backend

        return library.PreTrainedTokenizerFast(tokenizer_object=Backend.from_str(ours.content), **names, **more)
    vocabulary = {token: number for number, token in enumerate(ours.vocabulary)}
    if not isinstance(ours, CharTokenizer):
        return library.BertTokenizer(vocab=vocabulary, do_lower_case=True, **more)
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token"), SPECIAL, strict=True))
    return library.PreTrainedTokenizerFast(tokenizer_object=_characters(vocabulary), **names, **more)


def _characters(vocabulary: Mapping[str, int]) -> Any:
    """`CharTokenizer` in the parts of PyPI's `tokenizers`."""
    from tokenizers import Regex, models, normalizers, pre_tokenizers, processors
    from tokenizers import Tokenizer as Backend

    backend: Any = Backend(models.WordLevel(dict(vocabulary), unk_token=SPECIAL[1]))
    han = rf"[{_HAN}]"
    backend.normalizer = normalizers.Sequence(
        [
            normalizers.NFKC(),
            normalizers.Lowercase(),
            normalizers.Replace(Regex(r"[\s\x1c-\x1f]+"), " "),
            normalizers.Strip(),
            normalizers.Replace(Regex(rf"(?<={han}) | (?={han})"), ""),
        ]
    )
    backend.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    marks = [(mark, vocabulary[mark]) for mark in SPECIAL[2:]]
    backend.post_processor = processors.TemplateProcessing(single=f"{SPECIAL[2]} $A {SPECIAL[3]}", special_tokens=marks)
    return backend
