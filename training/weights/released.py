"""Conversion of the released BriVL-1.0 checkpoint into our format and back.

A released file is `torch.save({"learnable": state_dict})`: query towers under `imgencoder.` and `textencoder.`, key
towers under `imgencoder_mom.` and `textencoder_mom.`. Every tensor has one place: in our query towers, in our key
towers, or among those that no module of ours uses (the CNN's classifier, BERT's pooler, `position_ids`, and what of the
key towers' frozen layers differs from the query towers', because the release let their batch norms move). The last kind
is kept in `released.safetensors`, so that an export returns the same keys and bits.

What a file must hold follows from a recipe: our towers, built without memory on torch's meta device, renamed. So the
recipe is recognised by the shapes, and of a file that does not fit every wrong key is listed.

A stranger's file is read with `weights_only=True`: tensors only, no code of theirs is run, old and zip format. The
vocabulary is the one that all BERT-base-Chinese models share; nothing is downloaded.

Source: the BriVL-1.0 checkpoint (arXiv 2103.06561 and its inference code).
Limits: the queues are in no released file, so training on from one begins with empty ones.
"""

from __future__ import annotations

import logging
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training.config import Config
from training.data.tokenizer import load_tokenizer
from training.errors import CheckpointError, first_line
from training.outputs.atomic_files import all_finite
from training.outputs.checkpoint import RELEASED_FILE, Checkpoint, save_imported
from training.resolve import resolve

if TYPE_CHECKING:
    import torch
    from torch import Tensor

LOG = logging.getLogger(__name__)

RECIPES = ("brivl_b5_base", "brivl_b7_large")
"""Recipes whose towers a released file may hold."""

_LISTED = 50
"""Keys of one kind of mistake that are listed by name; the rest are counted."""

_CLASSES = 1000
"""ImageNet's, of the CNN classifier that the release carries along."""


@dataclass(frozen=True, slots=True)
class ReleasedTensor:
    """One tensor of a released file. `ours`: its name in `BriVL.state_dict()`, or "" if it is only stored.

    `query`: for a kept tensor of a key tower, the query tower's, which it equals unless it is kept.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    ours: str = ""
    query: str = ""
    optional: bool = False


Slots = dict[str, ReleasedTensor]


def import_brivl(
    file: Path, out: Path, *, config: Config | None = None, tokenizer: str = "bert_chinese"
) -> dict[str, Any]:
    """Convert a BriVL-1.0 checkpoint into the folder `out`; returns a summary as JSON values.

    `config`: of the file's towers, where they are not a recipe's. Raises CheckpointError with one sentence on a file of
    another kind, with code, with numbers that are not finite, or that does not fit; keys are then listed before.
    """
    read = _read(file)
    config, slots = (config, slots_of(config)) if config is not None else recognise(file, read)
    keys_absent = not any(name.startswith(("imgencoder_mom.", "textencoder_mom.")) for name in read)
    if keys_absent:
        slots = {name: slot for name, slot in slots.items() if "_mom." not in name}
    _compare(file, read, slots, config.recipe)
    config = replace(config, compat="brivl-1.0", image=replace(config.image, weights=""))
    config = replace(config, text=replace(config.text, weights=""), data=replace(config.data, tokenizer=tokenizer))
    towers, keys, kept = _sort(file, read, slots)
    if keys_absent:
        LOG.warning("%s: no key towers in it; they start as copies of the query towers", file)
    save_imported(out, config, load_tokenizer(tokenizer), towers, keys, kept, {"imported": file.name})
    return {
        "out": str(out),
        "recipe": config.recipe,
        "compat": config.compat,
        "tensors": len(read),
        "kept_for_export": len(kept),
        "key_towers": not keys_absent,
    }


def to_released(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """The state dict for `learnable`, from an imported checkpoint or one trained here.

    Raises CheckpointError when its towers do not fit the released format.
    """
    import torch

    slots = slots_of(checkpoint.config, str(checkpoint.folder))
    ours = dict(checkpoint.tensors("towers.safetensors"))
    if checkpoint.has_file("key_towers.safetensors"):
        ours |= checkpoint.tensors("key_towers.safetensors")
    kept = checkpoint.tensors(RELEASED_FILE) if checkpoint.has_file(RELEASED_FILE) else None
    if not any(slot.ours in ours for name, slot in slots.items() if "_mom." in name):
        slots = {name: slot for name, slot in slots.items() if "_mom." not in name}
    tensors, blank = {}, []
    for name, slot in slots.items():
        tensor = ours.get(slot.ours, (kept or {}).get(name, ours.get(slot.query)))
        if tensor is not None:
            tensors[name] = tensor.reshape(slot.shape)
        elif not slot.optional:
            tensors[name] = torch.zeros(slot.shape, dtype=slot.dtype)
            blank.append(name)
    if blank:
        LOG.warning("%d tensors of no effect on features, which this model lacks, are zeros: %s", len(blank), blank[0])
    if checkpoint.config.compat != "brivl-1.0":
        LOG.warning(
            "trained without compat: the released code handles boxes and padding differently, its features will differ"
        )
    return tensors


def slots_of(config: Config, subject: str = "config") -> Slots:
    """Every tensor of a released file with these towers, by its name there.

    Raises CheckpointError naming `subject` when the towers have tensors without a place in that format.
    """
    import torch

    from training.moco import QUERY_PREFIXES, BriVL

    if config.text.encoder != "bert_text" or not config.image.backbone.startswith("timm/"):
        text, image = config.text.encoder, config.image.backbone
        raise CheckpointError(subject, f"brivl-1.0 supports a timm EfficientNet and a BERT, not {image} and {text}")
    objective = replace(config.moco, objective="moco", queue_size=1)
    with torch.device("meta"):
        model = BriVL(replace(config, moco=objective), load_weights=False)
    shared = model.shared_tensors()
    slots: Slots = {}
    for name, tensor in model.state_dict().items():
        if name.startswith(QUERY_PREFIXES):
            there = _released_name(name, config, subject)
            shape = (*tensor.shape, 1, 1) if there.endswith("max_pool.0.weight") else tuple(tensor.shape)
            slots[there] = ReleasedTensor(shape, tensor.dtype, ours=name)
    if "imgencoder.backbone.bn2.weight" not in slots:
        raise CheckpointError(subject, f"brivl-1.0 supports a timm EfficientNet, not {config.image.backbone}")
    slots |= _unused(config, slots)
    for name, slot in list(slots.items()):
        # What is frozen is one tensor here and two there: the query tower's stands for both, unless they differ.
        key = slot.ours.replace("_query.trunk.", "_key.")
        alone = "_key." in key and key not in shared
        key_slot = replace(slot, ours=key if alone else "", query="" if alone else slot.ours)
        slots[name.replace("encoder.", "encoder_mom.", 1)] = key_slot
    return slots


_IMAGE_PARTS = {"stem.0": "conv_stem", "stem.1": "bn1", "head.0": "conv_head", "head.1": "bn2"}


def _released_name(name: str, config: Config, subject: str) -> str:
    """Name in a released file of a tensor of our query towers. Raises CheckpointError if it lacks one."""
    tower, part, kind, rest = name.split(".", 3)
    theirs = "img" if tower == "image_query" else "text"
    head = f"{theirs}encoder.learnable."
    if part == "trunk" and kind == "project":
        return f"{head}max_pool.0.{rest}"
    if part == "trunk" and kind == "head" and rest.startswith(("layers.", "fc1.", "fc2.")):
        return f"{head}{theirs}{'Att' if rest.startswith('layers.') else 'FC'}.{rest}"
    if kind == "backbone" and tower == "image_query":
        stage = re.match(r"(stem\.[01]|head\.[01]|blocks_\d+)\.(.+)", rest)
        if stage is not None:
            return f"imgencoder.backbone.{_IMAGE_PARTS.get(stage[1], stage[1].replace('_', '.'))}.{stage[2]}"
    elif kind == "backbone" and rest.startswith("embeddings."):
        return f"textencoder.backbone.bert.{rest}"
    elif kind == "backbone" and rest.startswith("layer."):
        _, number, inner = rest.split(".", 2)
        first = config.text.frozen_layers if part == "trunk" else 0
        return f"textencoder.backbone.bert.encoder.layer.{int(number) + first}.{inner}"
    raise CheckpointError(subject, f"{name} cannot be stored in the BriVL-1.0 format")


def _unused(config: Config, slots: Slots) -> Slots:
    """Tensors that the release carries along and no feature depends on."""
    import torch

    channels = slots["imgencoder.backbone.bn2.weight"].shape[0]
    width = config.text.backbone_width
    bert = "textencoder.backbone.bert"
    return {
        "imgencoder.backbone.classifier.weight": ReleasedTensor((_CLASSES, channels), torch.float32),
        "imgencoder.backbone.classifier.bias": ReleasedTensor((_CLASSES,), torch.float32),
        f"{bert}.pooler.dense.weight": ReleasedTensor((width, width), torch.float32),
        f"{bert}.pooler.dense.bias": ReleasedTensor((width,), torch.float32),
        f"{bert}.embeddings.position_ids": ReleasedTensor((1, config.text.max_positions), torch.int64, optional=True),
    }


def _read(file: Path) -> dict[str, Tensor]:
    """The tensors under `learnable`, read without running anything. Raises CheckpointError."""
    loaded = _load(file)
    state = loaded.get("learnable") if isinstance(loaded, dict) else None
    if not isinstance(state, dict) or not state:
        raise CheckpointError(str(file), 'not a BriVL-1.0 checkpoint: no tensors under "learnable" in it')
    for name, tensor in state.items():
        if not isinstance(name, str) or not _is_plain(tensor):
            raise CheckpointError(str(file), f"{name!r} under learnable is not a plain tensor")
    if all(name.startswith("module.") for name in state):  # saved from DataParallel
        state = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    return state


def _is_plain(value: object) -> bool:
    import torch

    return (
        isinstance(value, torch.Tensor)
        and value.layout == torch.strided
        and not value.is_quantized
        and value.device.type == "cpu"
    )


def _load(file: Path) -> Any:
    import torch

    if file.is_dir():
        raise CheckpointError(str(file), "a folder, but a BriVL-1.0 checkpoint is one file")
    try:
        zipped = zipfile.is_zipfile(file)
        if zipped:
            with zipfile.ZipFile(file) as archive:
                if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
                    raise CheckpointError(str(file), "a compressed archive; torch stores tensors uncompressed")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch about its own old formats
            return torch.load(file, map_location="cpu", weights_only=True, mmap=zipped)
    except (CheckpointError, OSError):
        raise
    except pickle.UnpicklingError as e:
        wanted = re.search(r"GLOBAL ([\w.]+)", str(e))
        code = f"its pickle needs {wanted[1]}, not a tensor" if wanted else "it is not a set of tensors"
        raise CheckpointError(str(file), f"refused: {code}; none of its code was run") from None
    except Exception as e:  # torch raises many types on a damaged or foreign file
        first = first_line(e)[:120]
        raise CheckpointError(str(file), f"not a torch file, or cut short ({type(e).__name__}: {first})") from None


def recognise(file: Path, read: Mapping[str, Tensor]) -> tuple[Config, Slots]:
    """The config of the recipe whose shapes a file has, or of the nearest one, and the tensors that such a file needs.

    Raises CheckpointError when none of the keys is known.
    """
    best: tuple[int, Config, Slots] | None = None
    for recipe in RECIPES:
        config = resolve(recipe)
        slots = slots_of(config)
        fitting = sum(name in slots and tuple(t.shape) == slots[name].shape for name, t in read.items())
        if best is None or fitting > best[0]:
            best = fitting, config, slots
        if fitting == len(read):
            break
    if best is None or not best[0]:
        raise CheckpointError(str(file), f"not a BriVL-1.0 checkpoint: none of its {len(read)} keys is known")
    return best[1], best[2]


def _compare(file: Path, read: Mapping[str, Tensor], slots: Slots, recipe: str) -> None:
    """List by name what is missing, extra or of another shape, then raise CheckpointError that counts them."""
    kinds = {
        "missing": [f"{n} {_size(s.shape)}" for n, s in slots.items() if n not in read and not s.optional],
        "extra": [f"{n} {_size(t.shape)}" for n, t in read.items() if n not in slots],
        "of another shape": [
            f"{n} is {_size(read[n].shape)}, not {_size(s.shape)}"
            for n, s in slots.items()
            if n in read and tuple(read[n].shape) != s.shape
        ],
        "of another type": [
            f"{n} is {_type(read[n].dtype)}, not {_type(s.dtype)}"
            for n, s in slots.items()
            if n in read and read[n].dtype != s.dtype
        ],
    }
    wrong = {kind: lines for kind, lines in kinds.items() if lines}
    for kind, lines in wrong.items():
        for line in lines[:_LISTED]:
            LOG.warning("%s: %s: %s", file, kind, line)
        if len(lines) > _LISTED:
            LOG.warning("%s: %s: and %d more", file, kind, len(lines) - _LISTED)
    if wrong:
        counts = ", ".join(f"{len(lines)} {kind}" for kind, lines in wrong.items())
        first = next(iter(wrong.values()))[0]
        raise CheckpointError(str(file), f"does not match {recipe}: keys {counts}; the first: {first}")


def _sort(file: Path, read: Mapping[str, Tensor], slots: Slots) -> tuple[dict[str, Tensor], ...]:
    """Query towers, key towers (our names) and kept tensors (theirs). Raises CheckpointError on NaN and infinity."""
    from training.moco import QUERY_PREFIXES

    theirs = {slot.ours: name for name, slot in slots.items() if slot.ours}
    towers: dict[str, Tensor] = {}
    keys: dict[str, Tensor] = {}
    kept: dict[str, Tensor] = {}
    for name, slot in slots.items():
        if name not in read:
            continue  # optional
        tensor = read[name]
        if tensor.is_floating_point() and not all_finite(tensor):
            raise CheckpointError(str(file), f"{name} contains NaN or infinity; these weights are damaged")
        if slot.ours:
            ours = towers if slot.ours.startswith(QUERY_PREFIXES) else keys
            ours[slot.ours] = tensor.flatten(1) if name.endswith("max_pool.0.weight") else tensor
        elif not (slot.query and _same_bits(tensor, read[theirs[slot.query]])):
            kept[name] = tensor
    return towers, keys, kept


def _same_bits(a: Tensor, b: Tensor) -> bool:
    """Equality that distinguishes 0 from -0; neither has a NaN."""
    import torch

    return torch.equal(a, b) and (not a.is_floating_point() or torch.equal(a.signbit(), b.signbit()))


def _size(shape: tuple[int, ...] | torch.Size) -> str:
    return "x".join(map(str, shape)) or "scalar"


def _type(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
