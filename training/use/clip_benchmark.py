"""A checkpoint as a model of clip_benchmark (PyPI `clip-benchmark`), so that the peers' own tool measures it.

    python -m training.use.clip_benchmark eval --model_type wenlan --model CHECKPOINT --pretrained query --no_amp \\
        --dataset wds/NAME --dataset_root DIR --task zeroshot_retrieval --recall_k 1 5 10

is its command line with the model type `wenlan` added; `--model` names a checkpoint or a run's folder, `--pretrained`
the towers (query or key). `load_wenlan` is what it calls, `loader(model_name, pretrained, cache_dir, device)`.

Its retrieval hits are ours of a benchmark (training/use/benchmarks.py): any caption of the image, or the image. Only
the words differ: its `image_retrieval_recall` is text -> image.

Limits: one tensor per image passes through it, so boxes are the grid: a tower trained on a detector's boxes sees others
here. Images arrive decoded, at full size; `wenlan-train eval` decodes large JPEGs at a part of it, less than one grey
level away.
"""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training.errors import ConfigError
from training.use.load import Loaded, load

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from PIL.Image import Image
    from torch import Tensor

    from training.records import Batch

MODEL_TYPE = "wenlan"


class Model:
    """The towers as clip_benchmark asks them: images [B, 3, S, S] uint8, and texts as `tokenizer` returns them."""

    def __init__(self, loaded: Loaded) -> None:
        self._loaded = loaded

    def eval(self) -> Model:
        """The model, which is in eval mode anyway."""
        return self

    def encode_image(self, images_B3SS: Tensor) -> Tensor:
        """Unit features [B, D] of images, with the grid as their boxes."""
        from training.data.transforms import input_boxes

        data = self._loaded.config.data
        grid_R4 = input_boxes(None, data.image_size, data.image_size, data.image_size, data.max_boxes)
        batch = self._loaded.image_batch(list(images_B3SS.cpu()), [grid_R4] * len(images_B3SS))
        return self._loaded.model.encode_image(batch.to(self._loaded.device)).float()

    def encode_text(self, texts: Batch) -> Tensor:
        """Unit features [B, D] of texts."""
        return self._loaded.model.encode_text(texts.to(self._loaded.device)).float()


def load_wenlan(
    model_name: str, pretrained: str = "query", cache_dir: str | None = None, device: Any = "cpu"
) -> tuple[Model, Callable[[Image], Tensor], Callable[[Sequence[str]], Batch]]:
    """(model, transform, tokenizer) of a checkpoint. Raises CheckpointError, ConfigError."""
    if pretrained not in ("query", "key"):
        raise ConfigError("--pretrained", f"{pretrained}: name the towers, query or key")
    loaded = load(Path(model_name), str(device), "key" if pretrained == "key" else "query")

    def transform(image: Image) -> Tensor:
        # PNG keeps every pixel, and so an image goes the way that all others go
        encoded = io.BytesIO()
        (image if image.mode in ("RGB", "RGBA", "L", "LA", "P") else image.convert("RGB")).save(
            encoded, "PNG", compress_level=0
        )
        pixels_3SS: Tensor = loaded.open_image(encoded.getvalue(), None)[0]
        return pixels_3SS

    return Model(loaded), transform, loaded.text_batch


def register() -> None:
    """Add the model type `wenlan`; to be called before `clip_benchmark.cli` is imported, which copies the list."""
    from clip_benchmark import models

    models.TYPE2FUNC[MODEL_TYPE] = load_wenlan
    if MODEL_TYPE not in models.MODEL_TYPES:
        models.MODEL_TYPES.append(MODEL_TYPE)


def main() -> None:
    """clip_benchmark's command line with the model type `wenlan`."""
    register()
    from clip_benchmark import cli

    sys.exit(cli.main())


if __name__ == "__main__":
    main()
