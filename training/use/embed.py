"""A finished checkpoint at work: recall on a split, and features of data, files, released rows or ready arrays.

Reads only the query towers. Features are float32 unit rows; `embed` computes them in float32 whatever the run's
precision was, so that the same image gives the same feature by every way in. Results of whole files are written
atomically, released rows as they come, batch by batch.

A checkpoint of `compat="brivl-1.0"` reads texts padded to `max_tokens` and boxes unclipped, as the release did: its
BERT sees the padding and its grid reads zero outside the image.

Limits: image files without regions get the grid; a tower trained on a detector's boxes sees other boxes there than it
was trained on, and that is said.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from data_specs.shard import ContractError, Split
from training.data.index import GRID, open_dataset
from training.data.loader import Loader, Share
from training.data.released_rows import Broken, ReleasedRow, read_rows
from training.data.transforms import UnreadableImage, input_boxes, picture
from training.errors import TrainingError
from training.outputs.checkpoint import Checkpoint, open_checkpoint
from training.records import Batch
from training.use.file_regions import read_regions

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from training.moco import BriVL
    from training.towers.tower import Modality

LOG = logging.getLogger(__name__)

_BATCH = 16

Boxes = Sequence[Sequence[float]]


def evaluate_retrieval(
    path: Path, data: Sequence[str], split: Split, *, device: str = "auto", cache: Path | None = None
) -> dict[str, Any]:
    """Recall of a checkpoint on a split: `Retrieval.to_json` with task, split, corrupt samples and checkpoint.

    Raises TrainingError (checkpoint, empty split), ContractError (data), ConfigError (device).
    """
    from training.use.evaluate import embed, retrieval

    opened, model, where = load(path, device)
    loader = _loader(opened, data, split, cache)
    found = retrieval(embed(model, loader.once(), where, opened.config.run.precision))
    about = {"task": "retrieval", "split": split, "checkpoint": str(opened.folder), "corrupt": loader.corrupt}
    return {**about, **found.to_json()}


def embed_data(
    path: Path, data: Sequence[str], split: Split, out: Path, *, device: str = "auto", cache: Path | None = None
) -> dict[str, Any]:
    """Write image_features [N, D], text_features [N, D], image_ids [N], text_ids [N] of a split's readable samples."""
    import torch

    from training.use.evaluate import embed

    opened, model, where = load(path, device)
    found = embed(model, _loader(opened, data, split, cache).once(), where, "fp32")
    tensors = {
        "image_features": torch.from_numpy(found.image_ND),
        "text_features": torch.from_numpy(found.text_ND),
        "image_ids": torch.from_numpy(found.image_ids_N),
        "text_ids": torch.from_numpy(found.text_ids_N),
    }
    return _write(out, tensors)


def embed_files(
    path: Path,
    images: Sequence[str],
    regions: Path | None,
    texts: Path | None,
    out: Path,
    *,
    device: str = "auto",
) -> dict[str, Any]:
    """Write image_features [N, D] of image files and text_features [M, D] of a file's lines, in their order.

    `regions`: the images' boxes (see `file_regions`); the grid without it.
    `texts`: UTF-8, one text a line. Raises TrainingError naming the file that is unreadable.
    """
    lines = [] if texts is None else _lines(texts)
    boxes = [None] * len(images) if regions is None else read_regions(regions, images)
    opened, model, where = load(path, device)
    if images and regions is None and opened.detector != GRID:
        LOG.info("no --regions: the images' boxes are the grid, not a detector's as in training")
    tensors = {}
    if images:
        numbers = range(0, len(images), _BATCH)
        parts = (_files_batch(images[i : i + _BATCH], boxes[i : i + _BATCH], opened) for i in numbers)
        tensors["image_features"] = _features(parts, model, where, "image")
    if lines:
        parts = (text_batch(lines[i : i + _BATCH], opened) for i in range(0, len(lines), _BATCH))
        tensors["text_features"] = _features(parts, model, where, "text")
    return _write(out, tensors)


def embed_rows(path: Path, file: Path, text_kind: str, out: Path, *, device: str = "auto") -> dict[str, Any]:
    """Write a Parquet file with `id`, `image_features`, `text_features` of released rows, in their order.

    Of a box list longer than `max_boxes` (36) the first are taken. A row whose image, boxes or text cannot be read is
    named, counted and left out; the others are not touched by it. Raises TrainingError when none is left.
    """
    opened, model, where = load(path, device)
    counts = {"rows": 0, "broken": 0}

    def parts() -> Iterator[dict[str, Any]]:
        source = read_rows(file)
        while chunk := list(islice(source, _BATCH)):
            good: list[_Read] = []
            for row in chunk:
                read = _read(row, text_kind, opened)
                if isinstance(read, Broken):
                    counts["broken"] += 1
                    LOG.warning("row left out: %s: %s", read.where, read.problem)
                else:
                    good.append(read)
            if good:
                counts["rows"] += len(good)
                images = image_batch([g.image for g in good], [g.boxes for g in good], opened)
                texts = text_batch([g.text for g in good], opened)
                yield {
                    "id": [g.id for g in good],
                    "image_features": list(_features([images], model, where, "image").numpy()),
                    "text_features": list(_features([texts], model, where, "text").numpy()),
                }

    with whole_file(out) as temporary:
        _write_parquet(temporary, parts())
        if not counts["rows"]:
            raise TrainingError(str(file), f"no row of it could be embedded ({counts['broken']} broken)")
    if counts["broken"]:
        LOG.warning("%s: %d of %d rows left out", file, counts["broken"], sum(counts.values()))
    return {"out": str(out), "width": opened.config.moco.feature_dim, **counts}


def embed_arrays(path: Path, file: Path, out: Path, *, device: str = "auto") -> dict[str, Any]:
    """Write image_features and text_features [B, D] of an .npz file's ready arrays (see `arrays`) into another."""
    from training.use.arrays import read_arrays

    arrays = read_arrays(file)
    opened, model, where = load(path, device)
    found: dict[str, npt.NDArray[np.float32]] = {}
    if arrays.images is not None:
        found["image_features"] = _features(arrays.image_batches(_BATCH), model, where, "image").numpy()
    if arrays.tokens is not None:
        arrays.check_tokens(opened.config.text)
        found["text_features"] = _features(arrays.text_batches(_BATCH), model, where, "text").numpy()
    with whole_file(out) as temporary, temporary.open("wb") as sink:
        np.savez(sink, allow_pickle=False, **found)
    rows, width = next(iter(found.values())).shape
    return {"out": str(out), "rows": rows, "width": width, "tensors": sorted(found)}


def load(path: Path, device: str) -> tuple[Checkpoint, BriVL, torch.device]:
    """A checkpoint and its query towers on a device, in eval mode, without key towers and queues."""
    from training.moco import BriVL
    from training.run.launch import device_of, keep_memory

    opened = open_checkpoint(path)
    where = device_of(device)
    if where.type == "cpu":
        keep_memory()
    # The objective that trains the query towers alone: half the memory, and nothing to fill by copies.
    config = opened.config
    alone = replace(config, moco=replace(config.moco, objective="clip"), run=replace(config.run, accumulate=1))
    model = BriVL(alone, load_weights=False)
    opened.load_towers(model)
    return opened, model.to(where).eval(), where


def image_batch(images: Sequence[Tensor], boxes: Sequence[npt.NDArray[np.float32]], opened: Checkpoint) -> Batch:
    """Batch of uint8 [3, S, S] images, each with its boxes [R, 4] (the whole image last), and of empty texts."""
    import torch

    padded = np.zeros((len(boxes), max(map(len, boxes)), 4), dtype=np.float32)
    for row, of_image in enumerate(boxes):
        padded[row, : len(of_image)] = of_image
    blank = text_batch([""] * len(images), opened)
    counts = torch.tensor([len(of_image) for of_image in boxes])
    return replace(blank, images_B3HW=torch.stack(list(images)), boxes_BR4=torch.from_numpy(padded), n_boxes_B=counts)


def text_batch(texts: Sequence[str], opened: Checkpoint) -> Batch:
    """Batch of texts, whose images are black: encode_text does not look at them."""
    import torch

    config = opened.config
    tokens = [opened.tokenizer.encode(text, config.data.max_tokens) for text in texts]
    length = config.data.max_tokens if config.compat else max(map(len, tokens))
    ids = torch.zeros(len(texts), length, dtype=torch.int64)
    for row, numbers in enumerate(tokens):
        ids[row, : len(numbers)] = torch.tensor(numbers)
    return Batch.of(token_ids_BL=ids, n_tokens_B=torch.tensor([len(numbers) for numbers in tokens]))


@contextmanager
def whole_file(out: Path) -> Iterator[Path]:
    """A temporary name that becomes `out` when the block ends without an error, and is gone when it does not."""
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(f".{out.name}.tmp")
    try:
        yield temporary
        temporary.replace(out)
    finally:
        temporary.unlink(missing_ok=True)


@dataclass(frozen=True, slots=True)
class _Read:
    """A released row with its image decoded: uint8 [3, S, S] and boxes [R, 4] in its pixels, the whole image last."""

    id: str
    image: Tensor
    boxes: npt.NDArray[np.float32]
    text: str


def _read(row: ReleasedRow | Broken, text_kind: str, opened: Checkpoint) -> _Read | Broken:
    if isinstance(row, Broken):
        return row
    text = row.text(text_kind)
    if text is None:
        return Broken(row.where, f"{row.id}: no text of kind {text_kind}")
    try:
        image, boxes = _open_image(row.image, row.boxes, opened)
    except UnreadableImage as e:
        return Broken(row.where, f"{row.image}: {e}")
    return _Read(row.id, image, boxes, text)


def _open_image(file: Path, stored: Boxes | None, opened: Checkpoint) -> tuple[Tensor, npt.NDArray[np.float32]]:
    """An image file as the towers take it, with its boxes; None for the grid. Raises UnreadableImage."""
    data, as_released = opened.config.data, bool(opened.config.compat)
    try:
        image, width, height = picture(file.read_bytes(), data.image_size, full=as_released)
    except (OSError, ValueError) as e:
        raise e if isinstance(e, UnreadableImage) else UnreadableImage(getattr(e, "strerror", None) or str(e)) from None
    flat = None if stored is None else [number for box in stored[: data.max_boxes] for number in box]
    boxes = input_boxes(flat, width, height, data.image_size, data.max_boxes, as_given=as_released)
    return image, boxes


def _files_batch(files: Sequence[str], boxes: Sequence[Boxes | None], opened: Checkpoint) -> Batch:
    read = []
    for file, stored in zip(files, boxes, strict=True):
        try:
            read.append(_open_image(Path(file), stored, opened))
        except UnreadableImage as e:
            raise TrainingError(file, str(e)) from None
    return image_batch([image for image, _ in read], [of_image for _, of_image in read], opened)


def _lines(file: Path) -> list[str]:
    try:
        # Not splitlines, which also cuts at U+2028 and its like: row i must be line i of every other tool.
        lines = file.read_text(encoding="utf-8-sig").removesuffix("\n").split("\n")
    except UnicodeDecodeError as e:
        raise TrainingError(str(file), f"not UTF-8 at byte {e.start}") from None
    if lines == [""]:
        raise TrainingError(str(file), "no line in it")
    return lines


def _features(batches: Iterable[Batch], model: BriVL, where: torch.device, modality: Modality) -> Tensor:
    """Features [N, D] of one modality of all batches, float32 on the CPU."""
    import torch

    encode = model.encode_image if modality == "image" else model.encode_text
    with torch.inference_mode():
        return torch.cat([encode(batch.to(where)).float().cpu() for batch in batches])


def _loader(opened: Checkpoint, data: Sequence[str], split: Split, cache: Path | None) -> Loader:
    dataset = open_dataset(data, split, detector=opened.detector, cache=cache)
    if not len(dataset):
        raise ContractError(f"{data[0]}: no samples in the {split} split")
    config = opened.config
    return Loader(
        dataset, config.data, opened.tokenizer, Share(_BATCH), seed=0, train=False, as_released=bool(config.compat)
    )


def _write(out: Path, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """Save atomically; the shape of the first tensor is the answer."""
    from safetensors.torch import save_file

    with whole_file(out) as temporary:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary)
    rows, width = next(iter(tensors.values())).shape
    return {"out": str(out), "rows": rows, "width": width, "tensors": sorted(tensors)}


def _write_parquet(file: Path, parts: Iterator[dict[str, Any]]) -> None:
    """Write the parts as row groups, one at a time."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    features = pa.list_(pa.float32())
    schema = pa.schema([("id", pa.string()), ("image_features", features), ("text_features", features)])
    with pq.ParquetWriter(file, schema) as writer:
        for part in parts:
            writer.write_table(pa.table(part, schema=schema))
