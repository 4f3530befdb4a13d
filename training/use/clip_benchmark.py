"""A checkpoint as a model of clip_benchmark (PyPI `clip-benchmark`), so that this tool can evaluate it.

    python -m training.use.clip_benchmark eval --model_type wenlan --model CHECKPOINT --pretrained query --no_amp \\
        --dataset wds/NAME --dataset_root DIR --task zeroshot_retrieval --recall_k 1 5 10

is its command line with the model type `wenlan` added; `--model` names a checkpoint or a run's folder, `--pretrained`
the towers (query or key). `load_wenlan` is what it calls, `loader(model_name, pretrained, cache_dir, device)`.

Its retrieval hits are ours of a benchmark (evaluation/benchmarks.py): any caption of the image, or the image. Only the
words differ: its `image_retrieval_recall` is text -> image.

One tensor per image passes through it, so an image travels with its boxes as one row of bytes. They are the grid's, or
made on the way by a detector: `wenlan.clip_benchmark(words, detector="proposals")`, for towers trained on its boxes.

Limits: images arrive decoded, at full size, without the sha256 by which boxes could be looked up; `wenlan-train eval`
decodes large JPEGs at a part of their size, less than one grey level away.
"""

from __future__ import annotations

import functools
import io
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from training.errors import ConfigError
from training.weights.load import Boxes, Loaded, load

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from PIL.Image import Image
    from torch import Tensor

    from training.records import Batch

MODEL_TYPE = "wenlan"


class Model:
    """The towers with clip_benchmark's interface: images from `pack`, and texts from `tokenizer`."""

    def __init__(self, loaded: Loaded) -> None:
        self._loaded = loaded

    def eval(self) -> Model:
        """Returns the model, which is always in eval mode."""
        return self

    def encode_image(self, packed_BN: Tensor) -> Tensor:
        """Unit features [B, D] of packed images."""
        size = self._loaded.config.data.image_size
        images, boxes = zip(*(_unpack(packed_N, size) for packed_N in packed_BN.cpu()), strict=True)
        batch = self._loaded.image_batch(images, boxes)
        return self._loaded.encode("image", batch)

    def encode_text(self, texts: Batch) -> Tensor:
        """Unit features [B, D] of texts."""
        return self._loaded.encode("text", texts)


def pack(pixels_3SS: Tensor, boxes_R4: npt.NDArray[np.float32], max_boxes: int) -> Tensor:
    """An image and its boxes as one row of bytes [3 * S * S + 2 + 16 * (max_boxes + 1)]: pixels, R, boxes, zeros."""
    import torch

    content = np.zeros((max_boxes + 1, 4), np.float32)
    content[: len(boxes_R4)] = boxes_R4
    tail = np.concatenate([np.array([len(boxes_R4)], np.uint16).view(np.uint8), content.view(np.uint8).ravel()])
    return torch.cat([pixels_3SS.reshape(-1), torch.from_numpy(tail)])


def _unpack(packed_N: Tensor, size: int) -> tuple[Tensor, npt.NDArray[np.float32]]:
    """Pixels uint8 [3, S, S] and boxes [R, 4] of what `pack` made."""
    pixels = 3 * size * size
    tail: npt.NDArray[np.uint8] = packed_N[pixels:].numpy()
    boxes: npt.NDArray[np.float32] = tail[2:].copy().view(np.float32).reshape(-1, 4)
    return packed_N[:pixels].view(3, size, size), boxes[: int(tail[:2].view(np.uint16)[0])]


def load_wenlan(
    model_name: str,
    pretrained: str = "query",
    cache_dir: str | None = None,
    device: Any = "cpu",
    *,
    boxes_of: Callable[[bytes], Boxes] | None = None,
) -> tuple[Model, Callable[[Image], Tensor], Callable[[Sequence[str]], Batch]]:
    """(model, transform, tokenizer) of a checkpoint. `boxes_of`: boxes of an encoded image, the grid by default.

    Raises CheckpointError, ConfigError.
    """
    if pretrained not in ("query", "key"):
        raise ConfigError("--pretrained", f"{pretrained}: name the towers, query or key")
    loaded = load(Path(model_name), str(device), "key" if pretrained == "key" else "query")

    def transform(image: Image) -> Tensor:
        # PNG keeps every pixel, and so an image goes the way that all others go
        encoded = io.BytesIO()
        (image if image.mode in ("RGB", "RGBA", "L", "LA", "P") else image.convert("RGB")).save(
            encoded, "PNG", compress_level=0
        )
        content = encoded.getvalue()
        opened = loaded.open_image(content, None if boxes_of is None else boxes_of(content))
        return pack(opened.image_3SS, opened.boxes_R4, loaded.config.data.max_boxes)

    return Model(loaded), transform, loaded.text_batch


def register(boxes_of: Callable[[bytes], Boxes] | None = None) -> None:
    """Add the model type `wenlan`; to be called before `clip_benchmark.cli` is imported, which copies the list."""
    from clip_benchmark import models
    from clip_benchmark.metrics import zeroshot_classification

    zeroshot_classification.accuracy = _accuracy  # 1.6.2's own raises TypeError under NumPy 2.4: float() of an array
    models.TYPE2FUNC[MODEL_TYPE] = functools.partial(load_wenlan, boxes_of=boxes_of)
    if MODEL_TYPE not in models.MODEL_TYPES:
        models.MODEL_TYPES.append(MODEL_TYPE)


def _accuracy(logits_NC: Tensor, label_N: Tensor, topk: Sequence[int] = (1,)) -> list[float]:
    """Shares of images whose class is among the first k of their ranking."""
    right_NK = logits_NC.topk(max(topk), 1).indices == label_N[:, None]
    return [float(right_NK[:, :k].sum()) / len(label_N) for k in topk]


def main(boxes_of: Callable[[bytes], Boxes] | None = None) -> None:
    """Runs clip_benchmark's command line on sys.argv, with the model type `wenlan`."""
    register(boxes_of)
    from clip_benchmark import cli

    sys.exit(cli.main())


if __name__ == "__main__":
    main()
