"""A finished checkpoint at work: recall on a split, and features of data, images or texts.

Reads only the query towers. Results of `embed` are safetensors files of float32 unit rows, which any tool opens; the
ids in them are the 64-bit ids of the contract.

Limits: images given as files have no detector's boxes, so they get the grid; a tower trained on a detector's boxes
sees other boxes there than it was trained on, and that is said.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from data_specs.shard import ContractError, Split
from training.checkpoint import Checkpoint, open_checkpoint
from training.data import Loader, Share
from training.errors import TrainingError
from training.index import GRID, open_dataset
from training.records import Batch
from training.transforms import UnreadableImage, decode, input_boxes, square

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from training.moco import BriVL

LOG = logging.getLogger(__name__)

_BATCH = 32


def evaluate_retrieval(
    path: Path, data: Sequence[str], split: Split, *, device: str = "auto", cache: Path | None = None
) -> dict[str, Any]:
    """Recall of a checkpoint on a split: `Retrieval.to_json` with task, split, corrupt samples and checkpoint.

    Raises TrainingError (checkpoint, empty split), ContractError (data), ConfigError (device).
    """
    from training.evaluate import embed, retrieval

    opened, model, where = _load(path, device)
    loader = _loader(opened, data, split, cache)
    found = retrieval(embed(model, loader.once(), where, opened.config.run.precision))
    about = {"task": "retrieval", "split": split, "checkpoint": str(opened.folder), "corrupt": loader.corrupt}
    return {**about, **found.to_json()}


def embed_data(
    path: Path, data: Sequence[str], split: Split, out: Path, *, device: str = "auto", cache: Path | None = None
) -> dict[str, Any]:
    """Write image_features [N, D], text_features [N, D], image_ids [N], text_ids [N] of a split's readable samples."""
    import torch

    from training.evaluate import embed

    opened, model, where = _load(path, device)
    found = embed(model, _loader(opened, data, split, cache).once(), where, opened.config.run.precision)
    tensors = {
        "image_features": torch.from_numpy(found.image_ND),
        "text_features": torch.from_numpy(found.text_ND),
        "image_ids": torch.from_numpy(found.image_ids_N),
        "text_ids": torch.from_numpy(found.text_ids_N),
    }
    return _write(out, tensors)


def embed_images(path: Path, files: Sequence[str], out: Path, *, device: str = "auto") -> dict[str, Any]:
    """Write image_features [N, D] of image files, in their order. Raises TrainingError naming an unreadable one."""
    import torch

    opened, model, where = _load(path, device)
    if opened.detector != GRID:
        LOG.warning("trained on boxes of %s; image files have none and get the grid", opened.detector)
    parts = []
    for start in range(0, len(files), _BATCH):
        batch = _image_batch(files[start : start + _BATCH], opened)
        with torch.inference_mode():
            parts.append(model.encode_image(batch.to(where)).float().cpu())
    return _write(out, {"image_features": torch.cat(parts)})


def embed_texts(path: Path, file: Path, out: Path, *, device: str = "auto") -> dict[str, Any]:
    """Write text_features [N, D] of the lines of a UTF-8 file. Raises TrainingError on an empty or foreign file."""
    import torch

    try:
        # Not splitlines, which also cuts at U+2028 and its like: row i must be line i of every other tool.
        lines = file.read_text(encoding="utf-8-sig").removesuffix("\n").split("\n")
    except UnicodeDecodeError as e:
        raise TrainingError(str(file), f"not UTF-8 at byte {e.start}") from None
    if lines == [""]:
        raise TrainingError(str(file), "no line in it")
    opened, model, where = _load(path, device)
    parts = []
    for start in range(0, len(lines), _BATCH):
        with torch.inference_mode():
            batch = _text_batch(lines[start : start + _BATCH], opened)
            parts.append(model.encode_text(batch.to(where)).float().cpu())
    return _write(out, {"text_features": torch.cat(parts)})


def _load(path: Path, device: str) -> tuple[Checkpoint, BriVL, torch.device]:
    from training.launch import device_of, keep_memory
    from training.moco import BriVL

    opened = open_checkpoint(path)
    where = device_of(device)
    if where.type == "cpu":
        keep_memory()
    model = BriVL(opened.config, load_weights=False)
    opened.load_towers(model)
    return opened, model.to(where).eval(), where


def _loader(opened: Checkpoint, data: Sequence[str], split: Split, cache: Path | None) -> Loader:
    dataset = open_dataset(data, split, detector=opened.detector, cache=cache)
    if not len(dataset):
        raise ContractError(f"{data[0]}: no samples in the {split} split")
    return Loader(dataset, opened.config.data, opened.tokenizer, Share(_BATCH), seed=0, train=False)


def _image_batch(files: Sequence[str], opened: Checkpoint) -> Batch:
    import torch

    size = opened.config.data.image_size
    images = []
    for file in files:
        try:
            images.append(square(decode(Path(file).read_bytes()), size))
        except UnreadableImage as e:
            raise TrainingError(file, str(e)) from None
    boxes = torch.from_numpy(np.stack([input_boxes(None, size, size, size, opened.config.data.max_boxes)] * len(files)))
    blank = _text_batch([""] * len(files), opened)
    return replace(blank, images_B3HW=torch.stack(images), boxes_BR4=boxes, n_boxes_B=_full(len(files), boxes.shape[1]))


def _text_batch(texts: Sequence[str], opened: Checkpoint) -> Batch:
    """Batch whose images are black: encode_text does not look at them."""
    import torch

    size = opened.config.data.image_size
    tokens = [opened.tokenizer.encode(text, opened.config.data.max_tokens) for text in texts]
    ids = torch.zeros(len(texts), max(map(len, tokens)), dtype=torch.int64)
    for row, numbers in enumerate(tokens):
        ids[row, : len(numbers)] = torch.tensor(numbers)
    count = len(texts)
    zeros = _full(count, 0)
    return Batch(
        images_B3HW=torch.zeros(count, 3, size, size, dtype=torch.uint8),
        boxes_BR4=torch.tensor([[[0.0, 0.0, size, size]]]).repeat(count, 1, 1),
        n_boxes_B=_full(count, 1),
        token_ids_BL=ids,
        n_tokens_B=torch.tensor([len(numbers) for numbers in tokens]),
        sample_ids_B=zeros,
        image_ids_B=zeros,
        text_ids_B=zeros,
        valid_B=torch.ones(count, dtype=torch.bool),
    )


def _full(count: int, value: int) -> Tensor:
    import torch

    return torch.full((count,), value, dtype=torch.int64)


def _write(out: Path, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """Save atomically; the shape of the first tensor is the answer."""
    from safetensors.torch import save_file

    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(f".{out.name}.tmp")
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary)
    temporary.replace(out)
    rows, width = next(iter(tensors.values())).shape
    return {"out": str(out), "rows": rows, "width": width, "tensors": sorted(tensors)}
