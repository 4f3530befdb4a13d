"""Embedding into tensors: features of a split, of a benchmark or of files, by a finished checkpoint.

Features are float32 unit rows, computed in float32 whatever the run's precision was, so that the same image has the
same feature by every way in; under bf16 only if that is asked for. Files are written whole or not at all. Indexes and
Parquet: training/use/indexing.py.

Each file has the background of a calibrated checkpoint too, for searches in it: `background_cosines` and
`background_shares` [Q] turn a cosine into a score by linear interpolation (training/outputs/background.py).

Limits: image files without regions get the grid; a tower trained on a detector's boxes sees other boxes there than it
was trained on, and that is logged.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from data_specs.shard import Split
from training.config import Precision
from training.data.index_cache import GRID
from training.data.transforms import UnreadableImage
from training.errors import ConfigError, InputError
from training.evaluation import evaluate
from training.evaluation.features import embed
from training.evaluation.file_regions import read_regions
from training.outputs.atomic_files import atomic_file, write_tensors
from training.records import Batch
from training.weights.load import BATCH, Boxes, Loaded, distinct_texts, load

if TYPE_CHECKING:
    from torch import Tensor

    from training.towers.tower import Modality

LOG = logging.getLogger(__name__)


def embed_data(
    path: Path,
    data: Sequence[str],
    split: Split,
    out: Path,
    *,
    detector: str = "",
    device: str = "auto",
    precision: Precision = "fp32",
    cache: Path | None = None,
) -> dict[str, Any]:
    """Write image_features [N, D], text_features [N, D], image_ids [N], text_ids [N] of a split's readable samples."""
    import torch

    loaded = load(path, device, precision=precision)
    features = embed(loaded.model, loaded.split_loader(data, split, cache, detector).once(), loaded.device, precision)
    tensors = {
        "image_features": torch.from_numpy(features.image_ND),
        "text_features": torch.from_numpy(features.text_ND),
        "image_ids": torch.from_numpy(features.image_ids_N),
        "text_ids": torch.from_numpy(features.text_ids_N),
    }
    return _write(out, tensors, loaded)


def embed_benchmark(
    path: Path,
    data: Sequence[str],
    split: str,
    out: Path,
    *,
    to: str = "",
    regions: Path | None = None,
    device: str = "auto",
) -> dict[str, Any]:
    """Write the features of a benchmark in the run's precision, as `eval` measures them.

    to: "" for a .safetensors file with image_features [N, D], text_features [M, D] and hits [P, 2], pairs of an image's
    and a text's row; "chinese-clip" for a folder of the files that Chinese-CLIP's scripts read (use/chinese_clip.py).
    """
    import torch

    from training.evaluation import chinese_clip

    benchmark = evaluate.named_benchmark(data, split)
    if benchmark is None:
        raise ConfigError("--to", f"{to} takes a benchmark as --data, KIND:PATH; export a dataset to one first")
    loaded = load(path, device)
    features = evaluate.embed_benchmark(loaded, benchmark, regions)
    if to == "chinese-clip":
        files = chinese_clip.write(out, benchmark, features)
        rows = len(features.images) + len(features.captions)
        return {"out": str(out), "rows": rows, "width": features.image_ND.shape[1], "files": files}
    tensors = {
        "image_features": torch.from_numpy(features.image_ND),
        "text_features": torch.from_numpy(features.text_MD),
        "hits": torch.from_numpy(np.stack([features.hits.image_P, features.hits.text_P], axis=1)),
    }
    return _write(out, tensors, loaded)


def embed_files(
    path: Path,
    images: Sequence[str],
    regions: Path | None,
    texts: Path | None,
    out: Path,
    *,
    device: str = "auto",
    precision: Precision = "fp32",
) -> dict[str, Any]:
    """Write image_features [N, D] of image files and text_features [M, D] of a file's lines, in their order.

    `regions`: the images' boxes (see `file_regions`); the grid without it.
    `texts`: UTF-8, one text per line. Raises InputError naming the file that is unreadable.
    """
    lines = [] if texts is None else _lines(texts)
    boxes = [None] * len(images) if regions is None else read_regions(regions, images)
    loaded = load(path, device, precision=precision)
    if images and regions is None and loaded.checkpoint.detector != GRID:
        LOG.info("no --regions: boxes are the grid, not a detector's as in training")
    tensors = {}
    if images:
        tensors["image_features"] = image_features(loaded, [(file, Path(file)) for file in images], boxes)
    if lines:
        tensors["text_features"] = text_features(loaded, lines)
    return _write(out, tensors, loaded)


Image = tuple[str, Path | bytes]
"""An image by its name in messages, and where it lies or its content."""


def image_features(
    loaded: Loaded, images: Sequence[Image], boxes: Sequence[Boxes | None], batch: int = BATCH
) -> Tensor:
    """Features [N, D] of images with their boxes (None: the grid), in batches. Raises InputError naming one."""
    starts = range(0, len(images), batch)
    batches = (image_batch(loaded, images[i : i + batch], boxes[i : i + batch]) for i in starts)
    return _features(batches, loaded, "image")


def text_features(loaded: Loaded, texts: Sequence[str], batch: int = BATCH) -> Tensor:
    """Features [M, D] of texts, in batches; equal texts are embedded once."""
    some, places = distinct_texts(texts)
    return _features((loaded.text_batch(some[i : i + batch]) for i in range(0, len(some), batch)), loaded, "text")[
        places
    ]


def image_batch(loaded: Loaded, images: Sequence[Image], boxes: Sequence[Boxes | None]) -> Batch:
    """Batch of images with their boxes (None: the grid). Raises InputError naming one that cannot be read."""
    opened = []
    for (name, file), of_image in zip(images, boxes, strict=True):
        try:
            opened.append(loaded.open_image(file, of_image))
        except UnreadableImage as e:
            raise InputError(name, str(e)) from None
    return loaded.opened_batch(opened)


def _lines(file: Path) -> list[str]:
    """Lines of a UTF-8 file, one text each. Raises InputError."""
    try:
        # Neither splitlines nor read_text, which also cut at U+2028 and its like, and at a carriage return within a
        # line: row i must be line i of every other tool.
        lines = file.read_bytes().decode("utf-8-sig").removesuffix("\n").split("\n")
    except UnicodeDecodeError as e:
        raise InputError(str(file), f"not UTF-8 at byte {e.start}") from None
    if lines == [""]:
        raise InputError(str(file), "contains no lines")
    return [line.removesuffix("\r") for line in lines]


def _features(batches: Iterable[Batch], loaded: Loaded, modality: Modality) -> Tensor:
    """Features [N, D] of one modality of all batches, float32 on the CPU."""
    import torch

    return torch.cat([loaded.encode(modality, batch).cpu() for batch in batches])


def _write(out: Path, tensors: dict[str, Tensor], loaded: Loaded) -> dict[str, Any]:
    """Save atomically, with the checkpoint's background; the answer has the first tensor's shape, and rows of each."""
    features = {name: len(tensor) for name, tensor in tensors.items()}
    if (background := loaded.background()) is not None:
        quantiles = background.tensors()
        tensors = tensors | {f"background_{name}": quantiles[name] for name in ("cosines", "shares")}
    with atomic_file(out) as temporary:
        write_tensors(temporary, tensors)
    rows, width = next(iter(tensors.values())).shape
    return {"out": str(out), "rows": rows, "width": width, "features": features, "tensors": sorted(tensors)}
