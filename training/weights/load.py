"""Loading of a finished checkpoint: its towers on a device, and batches for them.

Every way in (a dataset's split, image files, texts, released rows) makes batches here, so that the same image has the
same feature by each of them.

A checkpoint of `compat="brivl-1.0"` reads texts padded to `max_tokens` and boxes unclipped, as the release did: its
BERT sees the padding and its grid reads zero outside the image.

Key towers take the query towers' place where they are asked for: they are the average of the query towers over the last
steps, and often the better encoders. Queues are not loaded, and need not be there; nor need the key towers, unless they
are asked for.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from data_specs.shard import Split
from training.config import Config, Precision
from training.data.index import Dataset, open_dataset
from training.data.loader import Loader, Share
from training.data.transforms import UnreadableImage, decode_square, input_boxes
from training.errors import CheckpointError, ConfigError
from training.outputs.background import Background
from training.outputs.checkpoint import TOWERS, Checkpoint, open_checkpoint
from training.records import Batch

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from training.moco import BriVL
    from training.towers.tower import Modality

LOG = logging.getLogger(__name__)

KEY_FILE = "key_towers.safetensors"

BATCH = 16
"""Samples of a batch when nothing is trained."""

_FILLS = frozenset({"uniform_", "normal_", "trunc_normal_", "kaiming_uniform_", "kaiming_normal_"})
"""Functions that fill a tensor with random numbers; those of other names call these."""

Towers = Literal["query", "key"]

Boxes = Sequence[Sequence[float]]
"""Boxes of one image, x1 y1 x2 y2 in its pixels, best first."""


@dataclass(frozen=True, slots=True)
class OpenedImage:
    """A prepared picture: uint8 [3, S, S], boxes [R, 4] in its pixels, the whole image last; its sides."""

    image_3SS: Tensor
    boxes_R4: npt.NDArray[np.float32]
    width: int
    height: int


@dataclass(frozen=True, slots=True)
class Loaded:
    """An opened checkpoint with one kind of its towers on a device, in eval mode."""

    checkpoint: Checkpoint
    model: BriVL
    device: torch.device
    precision: Precision = "fp32"

    @property
    def config(self) -> Config:
        return self.checkpoint.config

    def background(self) -> Background | None:
        """Distribution of cosines that scores are measured against, if it was calibrated. Raises CheckpointError."""
        return self.checkpoint.background()

    def encode(self, modality: Modality, batch: Batch, precision: Precision | None = None) -> Tensor:
        """Unit features [B, D] of a batch, float32 on the towers' device, computed in a precision, else in its own."""
        import torch

        encode = self.model.encode_image if modality == "image" else self.model.encode_text
        bf16 = (precision or self.precision) == "bf16"
        with torch.inference_mode(), torch.autocast(self.device.type, torch.bfloat16, enabled=bf16):
            return encode(batch.to(self.device)).float()

    def split_loader(self, data: Sequence[str], split: Split, cache: Path | None, detector: str = "") -> Loader:
        """Batches of a split as this checkpoint reads it. Raises ContractError, also when the split is empty.

        `detector`: whose regions instead of those that it was trained with, which is logged.
        """
        trained = self.checkpoint.detector
        if detector and detector != trained:
            LOG.warning("regions come from %r; the checkpoint was trained with those of %r", detector, trained)
        dataset = open_dataset(data, split, detector=detector or trained, cache=cache)
        dataset.check_not_empty()
        return self.loader(dataset)

    def loader(self, dataset: Dataset) -> Loader:
        """Batches of an opened dataset as this checkpoint reads it, in order."""
        config = self.config
        share, compat = Share(BATCH), bool(config.compat)
        return Loader(dataset, config.data, self.checkpoint.tokenizer, share, seed=0, train=False, as_released=compat)

    def open_image(self, file: Path | bytes, boxes: Boxes | None) -> OpenedImage:
        return open_image(self.config, file, boxes)

    def opened_batch(self, opened: Sequence[OpenedImage]) -> Batch:
        return self.image_batch([one.image_3SS for one in opened], [one.boxes_R4 for one in opened])

    def image_batch(self, images: Sequence[Tensor], boxes: Sequence[npt.NDArray[np.float32]]) -> Batch:
        """Batch of images with their boxes, and with empty texts: encode_image ignores them."""
        import torch

        boxes_BR4 = np.zeros((len(boxes), max(map(len, boxes)), 4), dtype=np.float32)
        for row, boxes_R4 in enumerate(boxes):
            boxes_BR4[row, : len(boxes_R4)] = boxes_R4
        return replace(
            self.text_batch([""] * len(images)),
            images_B3HW=torch.stack(list(images)),
            boxes_BR4=torch.from_numpy(boxes_BR4),
            n_boxes_B=torch.tensor([len(boxes_R4) for boxes_R4 in boxes]),
        )

    def text_batch(self, texts: Sequence[str]) -> Batch:
        """Batch of texts with black images: encode_text ignores them."""
        most = self.config.data.max_tokens
        return self.token_batch([self.checkpoint.tokenizer.encode(text, most) for text in texts])

    def token_batch(self, tokens: Sequence[Sequence[int]]) -> Batch:
        """`text_batch` of texts that the tokenizer has read."""
        import torch

        length = self.config.data.max_tokens if self.config.compat else max(map(len, tokens))
        ids_BL = torch.zeros(len(tokens), length, dtype=torch.int64)
        for row, ids in enumerate(tokens):
            ids_BL[row, : len(ids)] = torch.tensor(ids)
        return Batch.of(token_ids_BL=ids_BL, n_tokens_B=torch.tensor([len(ids) for ids in tokens]))


def distinct_texts(texts: Sequence[str]) -> tuple[list[str], list[int]]:
    """Distinct texts in order, and the index of each text among them.

    For the towers: one text in two batches has features that differ by rounding, and a tie would have a winner.
    """
    place_of = dict[str, int]()
    places = [place_of.setdefault(text, len(place_of)) for text in texts]
    return list(place_of), places


def open_image(config: Config, file: Path | bytes, boxes: Boxes | None) -> OpenedImage:
    """Prepares an image file for the towers.

    `file`: where it lies, or its content. `boxes`: None for the grid; of more than `max_boxes` the first are taken.
    Raises UnreadableImage.
    """
    data, as_released = config.data, bool(config.compat)
    try:
        content = file if isinstance(file, bytes) else file.read_bytes()
        image, width, height = decode_square(content, data.image_size, full=as_released, max_pixels=data.max_pixels)
    except UnreadableImage:
        raise
    except (OSError, ValueError) as e:
        raise UnreadableImage(getattr(e, "strerror", None) or str(e)) from None
    flat = None if boxes is None else [number for box in boxes[: data.max_boxes] for number in box]
    boxes_R4 = input_boxes(flat, width, height, data.image_size, data.max_boxes, as_given=as_released)
    return OpenedImage(image, boxes_R4, width, height)


def load(path: Path, device: str, towers: Towers = "query", precision: Precision = "fp32") -> Loaded:
    """The checkpoint in a folder, or a run's newest, with its query towers, or their average, on a device.

    Raises CheckpointError, and ConfigError on a device, or key towers, that are not there.
    """
    from training.device import prepare_device
    from training.moco import BriVL

    where = prepare_device(device)
    checkpoint = open_checkpoint(path, (*TOWERS, KEY_FILE) if towers == "key" else TOWERS)
    # The objective that trains the query towers alone: half the memory, and nothing to fill by copies.
    config = checkpoint.config
    moco = replace(config.moco, objective="clip", objective_options={})
    alone = replace(config, moco=moco, run=replace(config.run, accumulate=1))
    with _without_random_weights():
        model = BriVL(alone, load_weights=False)
    checkpoint.load_towers(model)
    if towers == "key":
        _take_keys(checkpoint, model)
    return Loaded(checkpoint, model.to(where).eval(), where, precision)


def _without_random_weights() -> AbstractContextManager[Any]:
    """A context in which modules get no random weights: half the time that a tower of paper size takes to load.

    What a module sets to a number it sets all the same; nothing else is in it that the checkpoint does not hold.
    """
    from torch.overrides import TorchFunctionMode

    class Unfilled(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if getattr(func, "__name__", "") in _FILLS:  # of tensors, of torch.nn.init, and transformers' copies of it
                # Zeros rather than what lies there: torch draws a truncated normal again until it is within its bounds.
                filled = args[0] if args else kwargs["tensor"]
                filled.detach().zero_()
                return filled
            return func(*args, **(kwargs or {}))

    return Unfilled()


def _take_keys(checkpoint: Checkpoint, model: BriVL) -> None:
    """Fill the trunks of the query towers with those of the key towers; what both share is stored once, and stays."""
    keys = checkpoint.tensors(KEY_FILE) if checkpoint.has_file(KEY_FILE) else {}
    if not keys:
        objective = checkpoint.config.moco.objective
        raise ConfigError("--towers", f"{checkpoint.folder} lacks key towers (objective {objective}); use query")
    renamed = {name.replace("_key.", "_query.trunk.", 1): tensor for name, tensor in keys.items()}
    own = model.state_dict()
    wrong = sorted(name for name, tensor in renamed.items() if name not in own or own[name].shape != tensor.shape)
    if wrong:
        raise CheckpointError(str(checkpoint.folder), f"its key towers do not match its query towers, first {wrong[0]}")
    model.load_state_dict(renamed, strict=False)
