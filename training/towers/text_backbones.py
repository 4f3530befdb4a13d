"""Text backbones of transformers by name: cut into embeddings and layers where that can be done, whole otherwise.

    bert, roberta, xlm-roberta, camembert, ernie, electra, data2vec-text, distilbert    embeddings, layer 0, layer 1 ...
    any other encoder that AutoModel knows                                            whole: trained or frozen as one

Chinese RoBERTa-wwm and MacBERT are `bert`. Attention goes through torch's scaled dot product where the model has it.

Why the architecture stands in the config and not in the weights: a checkpoint is then read without getting them.
Weights of another architecture than the config's are refused with the overrides that make them fit.

Limits: weights are what `from_pretrained` reads from a local folder or the hub; code that comes with weights is never
run. Models of encoder and decoder are refused.
"""

from __future__ import annotations

import contextlib
import difflib
import inspect
import io
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import nn

from training.config import TextTowerConfig
from training.errors import ConfigError, first_line

_SIZES = {
    "vocab_size": "vocab_size",
    "backbone_width": "hidden_size",
    "backbone_layers": "num_hidden_layers",
    "backbone_heads": "num_attention_heads",
    "backbone_ffn": "intermediate_size",
    "max_positions": "max_position_embeddings",
}
"""Our keys -> those of transformers. A model type that lacks one does not use it."""

_DROPOUTS = ("hidden_dropout_prob", "attention_probs_dropout_prob", "dropout", "attention_dropout")

_NO_ARCHITECTURE = {
    *_DROPOUTS,
    *("_name_or_path", "name_or_path", "architectures", "model_type", "transformers_version", "torch_dtype", "dtype"),
    *("id2label", "label2id", "finetuning_task", "problem_type", "classifier_dropout", "seq_classif_dropout"),
    *("initializer_range", "initializer_factor", "use_cache", "gradient_checkpointing", "output_past"),
    *("bos_token_id", "eos_token_id", "sep_token_id", "cls_token_id", "tie_word_embeddings", "directionality"),
    *("pooler_fc_size", "pooler_num_attention_heads", "pooler_num_fc_layers", "pooler_size_per_head", "pooler_type"),
    *("summary_type", "summary_use_proj", "summary_activation", "summary_last_dropout", "attn_implementation"),
    *("output_hidden_states", "output_attentions", "return_dict", "qa_dropout", "tokenizer_class", "is_decoder"),
}
"""Keys of a transformers config that say nothing of the states which the backbone computes."""

_LAYERS = {"distilbert": "transformer.layer"}
_LAYERS |= dict.fromkeys(
    ("bert", "roberta", "xlm-roberta", "camembert", "ernie", "electra", "data2vec-text"), "encoder.layer"
)
"""Model types whose states are embeddings and then one layer after the other, and where the layers lie."""


@dataclass(frozen=True)
class TextBackbone:
    """`embeddings` (token ids -> states) and `layers` (states, mask -> states), or `whole`, a transformers model.

    `additive`: the layers want a mask to add to attention's logits, not a boolean one.
    """

    embeddings: nn.Module | None
    layers: tuple[nn.Module, ...]
    whole: nn.Module | None
    additive: bool


def load_text_backbone(text: TextTowerConfig, load_weights: bool) -> TextBackbone:
    """The backbone that `text` describes, with its weights if `load_weights`. Raises ConfigError."""
    if text.backbone_width % max(text.backbone_heads, 1):
        heads, width = text.backbone_heads, text.backbone_width
        raise ConfigError("text.backbone_heads", f"the width {width} is not a multiple of {heads} heads")
    model = _model(text, load_weights)
    additive = getattr(model.config, "_attn_implementation", "eager") == "eager"
    path = _LAYERS.get(text.backbone)
    if path is None:
        return TextBackbone(None, (), model, additive)
    embeddings: nn.Module = model.embeddings
    if hasattr(model, "embeddings_project"):  # ELECTRA, where embeddings are narrower than layers
        embeddings = nn.Sequential(embeddings, model.embeddings_project)
    return TextBackbone(embeddings, tuple(model.get_submodule(path)), None, additive)


def _model(text: TextTowerConfig, load_weights: bool) -> Any:
    described = architecture(text.backbone, text.backbone_options, "text", text)
    with quiet_transformers():
        if not (load_weights and text.weights):
            return _build_model(described, lambda model_class, **more: model_class._from_config(described, **more))
        try:
            from transformers import AutoConfig

            published = AutoConfig.from_pretrained(text.weights, trust_remote_code=False)
            _compare(text, described, published)
            _set_dropout(published, text)
            return _build_model(
                published, lambda model_class, **more: _read(model_class, text.weights, published, **more)
            )
        except (OSError, RuntimeError, ValueError) as e:
            raise ConfigError(
                "text.weights", f"{text.weights}: no model could be loaded from there ({first_line(e)})"
            ) from e


def _build_model(config: Any, make: Any) -> Any:
    """A model of the config's class, with scaled dot product attention if the class has it, without a pooler."""
    from transformers import MODEL_MAPPING

    if type(config) not in MODEL_MAPPING or getattr(config, "is_encoder_decoder", False):
        raise ConfigError("text.backbone", f"{config.model_type} is not a text encoder")
    model_class: Any = MODEL_MAPPING[type(config)]
    model_class = model_class[0] if isinstance(model_class, tuple) else model_class
    if "input_ids" not in inspect.signature(model_class.forward).parameters:
        raise ConfigError("text.backbone", f"{config.model_type} is not a text encoder")
    more = {}
    if "add_pooling_layer" in inspect.signature(model_class.__init__).parameters:
        more["add_pooling_layer"] = False
    try:
        return make(model_class, attn_implementation="sdpa", **more)
    except ValueError as e:
        if "scaled_dot_product_attention" not in str(e):
            raise
        return make(model_class, attn_implementation="eager", **more)


def _read(model_class: Any, weights: str, config: Any, **more: Any) -> Any:
    model, about = model_class.from_pretrained(
        weights, config=config, output_loading_info=True, trust_remote_code=False, **more
    )
    missing = sorted(key for key in about["missing_keys"] if "pooler" not in key)
    if missing:
        raise ConfigError("text.weights", f"{weights}: lacks {len(missing)} tensors, first {missing[0]}")
    return model


def architecture(
    model_type: str, options: Mapping[str, Any], section: str, sizes: TextTowerConfig | None = None
) -> Any:
    """The transformers config that ours describes: its options, and for a text tower its sizes.

    section: image or text, whose keys errors name. Raises ConfigError.
    """
    from transformers import CONFIG_MAPPING

    if model_type not in CONFIG_MAPPING:
        close = difflib.get_close_matches(model_type, list(CONFIG_MAPPING), n=3)
        hint = f"; did you mean {' or '.join(close)}?" if close else ""
        raise ConfigError(f"{section}.backbone", f"unknown transformers model type {model_type!r}{hint}")
    with quiet_transformers():  # the defaults of some do not fit each other
        config = CONFIG_MAPPING[model_type]()
    known = set(config.to_dict()) | set(getattr(config, "attribute_map", {}))
    for name in options:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise ConfigError(f"{section}.backbone_options.{name}", f"unknown option of {model_type}{hint}")
    try:
        for ours, theirs in _SIZES.items() if sizes is not None else ():
            if theirs in known:
                setattr(config, theirs, getattr(sizes, ours))
        for name, value in options.items():
            setattr(config, name, value)
        config = _with_layer_types(config)
    except (TypeError, ValueError, NotImplementedError) as e:
        raise ConfigError(f"{section}.backbone", f"{model_type} rejects these sizes ({first_line(e)})") from None
    if sizes is not None:
        _set_dropout(config, sizes)
    return config


def _with_layer_types(config: Any) -> Any:
    """The config with a kind for each of its layers (ModernBERT: local or global), which it lists when it is made."""
    kinds = getattr(config, "layer_types", None)
    if kinds is None or len(kinds) == config.num_hidden_layers:
        return config
    return type(config)(**{name: value for name, value in vars(config).items() if name in _init(config)})


def _init(config: Any) -> set[str]:
    return {name for name in inspect.signature(type(config)).parameters if name not in ("layer_types", "kwargs")}


def _set_dropout(config: Any, text: TextTowerConfig) -> None:
    for name in _DROPOUTS:
        if hasattr(config, name):
            setattr(config, name, text.backbone_dropout)


def _compare(text: TextTowerConfig, described: Any, published: Any) -> None:
    """Raise ConfigError with the missing overrides when weights are of another architecture than the config's."""
    changes: dict[str, Any] = {}
    options = dict(text.backbone_options)
    if published.model_type != text.backbone:
        changes["text.backbone"], options = published.model_type, {}
        described = architecture(published.model_type, {}, "text", text)
    for ours, theirs in _SIZES.items():
        if hasattr(published, theirs) and getattr(published, theirs) != getattr(text, ours):
            changes[f"text.{ours}"] = getattr(published, theirs)
    sizes = set(_SIZES.values()) | {getattr(published, "attribute_map", {}).get(name) for name in _SIZES.values()}
    asked, given = described.to_dict(), published.to_dict()
    differ = [k for k in given if k in asked and given[k] != asked[k] and k not in _NO_ARCHITECTURE | sizes]
    for key in sorted(differ):
        if not isinstance(given[key], (bool, int, float, str)):
            raise ConfigError("text.weights", f"{text.weights}: {key} is {given[key]!r}, which is not supported")
        options[key] = given[key]
    if options != dict(text.backbone_options):
        changes["text.backbone_options"] = json.dumps(options)
    if changes:
        sets = " ".join(f"--set '{k}={v}'" if " " in str(v) else f"--set {k}={v}" for k, v in changes.items())
        raise ConfigError("text.weights", f"{text.weights} has another architecture; add {sets}")


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silence transformers: no page about the unused pooler and masked-word head, and no progress bar."""
    from transformers.utils import logging

    verbosity: Any = logging

    level, bar = verbosity.get_verbosity(), verbosity.is_progress_bar_enabled()
    verbosity.set_verbosity_error()
    verbosity.disable_progress_bar()
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # which carries results only
            yield
    finally:
        verbosity.set_verbosity(level)
        if bar:
            verbosity.enable_progress_bar()
