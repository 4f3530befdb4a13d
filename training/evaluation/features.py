"""Features of samples, pictures and texts by a checkpoint's towers, for evaluation.

`embed` takes batches of a dataset on all ranks, `picture_features` and `text_rows` other inputs. Rows are of unit
length, in the run's precision.

Limits: all features of what is measured are in memory, of all ranks on each.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from data_specs.shard import ContractError
from training.data.transforms import UnreadableImage
from training.errors import InputError
from training.evaluation.benchmarks import BenchmarkPicture
from training.evaluation.file_regions import RegionTable
from training.evaluation.hits import Features, Ids
from training.weights.load import BATCH, Loaded, distinct_texts

if TYPE_CHECKING:
    import torch

    from training.moco import BriVL
    from training.records import Batch
    from training.towers.tower import Modality

LOG = logging.getLogger(__name__)

SAID_EVERY = 1_000
"""Images of a benchmark after which the log says how many are done."""


@dataclass(frozen=True)
class Embeddings:
    """Features of N samples: unit rows [N, D], the ids that say which of them are hits of each other, and their own."""

    image_ND: Features
    text_ND: Features
    image_ids_N: Ids
    text_ids_N: Ids
    sample_ids_N: Ids = field(default_factory=lambda: np.zeros(0, np.int64))


def embed(model: BriVL, batches: Iterator[Batch], device: torch.device, precision: str) -> Embeddings:
    """`embed_batches` of every rank, in rank order. Raises InputError without samples."""
    from training.method import distributed

    parts = distributed.gather_objects([embed_batches(model, batches, device, precision)])
    every = [part for of_rank in parts for part in of_rank if len(part.image_ND)]
    if not every:
        raise InputError("retrieval", "no samples in the split")
    columns = ([getattr(part, name) for part in every] for name in Embeddings.__dataclass_fields__)
    return Embeddings(*map(np.concatenate, columns))


def embed_batches(model: BriVL, batches: Iterator[Batch], device: torch.device, precision: str) -> Embeddings:
    """Features of all valid samples of the batches, of this rank alone; there may be none.

    The model returns to the mode that it was in.
    """
    import torch

    parts: list[tuple[Features, Features, Ids, Ids, Ids]] = []
    training = model.training
    model.eval()
    with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
        for batch in batches:
            valid = batch.valid_B
            moved = batch.to(device)
            image, text = model.encode_image(moved).float().cpu(), model.encode_text(moved).float().cpu()
            image_ids, text_ids, sample_ids = (
                ids_B[valid].numpy() for ids_B in (batch.image_ids_B, batch.text_ids_B, batch.sample_ids_B)
            )
            parts.append((image[valid].numpy(), text[valid].numpy(), image_ids, text_ids, sample_ids))
    model.train(training)
    if not parts:
        rows, ids = np.zeros((0, 1), np.float32), np.zeros(0, np.int64)
        return Embeddings(rows, rows, ids, ids, ids)
    return Embeddings(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def picture_features(
    loaded: Loaded, pictures: Iterable[BenchmarkPicture], name: str, regions: RegionTable | None = None
) -> tuple[Features, dict[str, int], set[str]]:
    """Features [N, D] of the pictures that can be read, the row of each by its id, and the ids of the others.

    Of pictures of one id the first is taken. regions: boxes by the pictures' sha256; without it those that they bring,
    or the grid.
    """
    row_of, corrupt, parts = dict[str, int](), set[str](), list[Features]()
    rest = iter(pictures)
    while some := list(islice(rest, BATCH)):
        opened = []
        for picture in some:
            if picture.id in row_of:
                continue  # a table of images may hold one twice
            try:
                content = picture.read()
                boxes = picture.boxes if regions is None else regions.boxes_of(content, picture.id)
                opened.append(loaded.open_image(content, boxes))
            except (UnreadableImage, ContractError, OSError) as e:
                LOG.warning("image left out: %s: %s", picture.id, getattr(e, "strerror", None) or e)
                corrupt.add(picture.id)
            else:
                row_of[picture.id] = len(row_of)
        if opened:
            parts.append(encode_batch(loaded, "image", loaded.opened_batch(opened)))
        if len(row_of) // SAID_EVERY > (len(row_of) - len(opened)) // SAID_EVERY:
            LOG.info("%s: %s images embedded", name, f"{len(row_of):,}")
    width = loaded.config.moco.feature_dim
    return np.concatenate([np.zeros((0, width), np.float32), *parts]), row_of, corrupt - row_of.keys()


def text_rows(loaded: Loaded, texts: Sequence[str]) -> Features:
    """Features [M, D] of texts, written into one array: of a benchmark they are the most of what is in memory.

    Equal texts are embedded once.
    """
    text_MD = np.empty((len(texts), loaded.config.moco.feature_dim), np.float32)
    different, places = distinct_texts(texts)
    for start in range(0, len(different), BATCH):
        some = different[start : start + BATCH]
        text_MD[start : start + len(some)] = encode_batch(loaded, "text", loaded.text_batch(some))
    for row in reversed(range(len(texts))):  # backwards: a row's text stands in front of it, or in it
        text_MD[row] = text_MD[places[row]]
    return text_MD


def encode_batch(loaded: Loaded, modality: Modality, batch: Batch) -> Features:
    """Unit features [B, D] of a batch, in the run's precision."""
    features: Features = loaded.encode(modality, batch, loaded.config.run.precision).cpu().numpy()
    return features
