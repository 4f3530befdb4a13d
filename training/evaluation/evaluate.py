"""Features of a benchmark, recall of a split's embeddings, and the samples of a split that also occur in train.

A dataset's splits hold image clusters apart, not texts, unless its spec says so (`shards.apart`): a held-out pair may
have a caption that stands in the train split too. So figures are given of seen and unseen queries apart
(training/evaluation/results.py). Plain tars lack a train split: there, and of a benchmark, this is unknown.

Limits: what a checkpoint saw before, in the weights of its backbones or in an earlier dataset, is not known here. The
leaders of every train shard are read, which takes as long as opening the dataset for a training does.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_specs.shard import Split
from training.data.index import open_dataset
from training.data.index_cache import GRID
from training.errors import ConfigError, InputError
from training.evaluation.benchmarks import Benchmark, Caption, is_benchmark, open_benchmark
from training.evaluation.features import Embeddings, picture_features, text_rows
from training.evaluation.file_regions import RegionTable
from training.evaluation.hits import Captions, Clusters, Features, Ids, Mask
from training.evaluation.retrieval import Retrieval, figures, rank
from training.weights.load import Loaded

LOG = logging.getLogger(__name__)

MANY_SHARDS = 100
"""Train shards above which the log says that they are read: each one's leaders, by its index."""


def retrieval(embeddings: Embeddings) -> Retrieval:
    """Recall, median rank and chance both ways. Raises InputError on no sample and on features not finite."""
    hits = Clusters(embeddings.image_ids_N, embeddings.text_ids_N)
    return figures(rank(embeddings.image_ND, embeddings.text_ND, hits))


# --- what stands in train


def masks_in_train(
    data: Sequence[str], split: Split, image_ids_N: Ids, text_ids_N: Ids, cache: Path | None
) -> tuple[Mask, Mask] | None:
    """Masks of a split's samples whose image leader, and whose text leader, occurs in the dataset's train split.

    Ids as a Batch carries them. None where it is unknown: for the train split itself, and if train is missing.
    """
    if split == "train":
        return None
    train = open_dataset(data, "train", detector=GRID, cache=cache, plain_tars=False)
    if not len(train) or len(train) < len(open_dataset(data, "train", detector=GRID, cache=cache)):
        return None  # plain tars lack splits
    if len(train.shard_sizes) > MANY_SHARDS:
        LOG.info("looking up the queries' leaders in %s train shards", f"{len(train.shard_sizes):,}")
    return _in_train(train.leaders(), image_ids_N, text_ids_N)


def _in_train(leaders: Iterator[tuple[Any, Any]], image_ids_N: Ids, text_ids_N: Ids) -> tuple[Mask, Mask]:
    """Masks of image ids and of text ids that are leaders in train; `leaders` as `Dataset.leaders` yields them.

    Ids are the first 64 bits of a sha256, as a Batch carries them: 16 digits of hex.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    asked = [pa.array([f"{i & (2**64 - 1):016x}" for i in ids.tolist()]) for ids in (image_ids_N, text_ids_N)]
    found = [np.zeros(len(ids), np.bool_) for ids in asked]
    for of_shard in leaders:
        for ids, mask, column in zip(asked, found, of_shard, strict=True):
            digits = pc.utf8_slice_codeunits(column, 0, 16)
            mask |= pc.is_in(ids, value_set=pc.unique(digits)).to_numpy(zero_copy_only=False)
    return found[0], found[1]


# --- benchmarks


def named_benchmark(data: Sequence[str], split: str) -> Benchmark | None:
    """The benchmark that `--data` names, or None. Raises ConfigError if other data is given with it."""
    named = [name for name in data if is_benchmark(name)]
    if not named:
        return None
    if len(data) > 1:
        raise ConfigError("--data", f"{named[0]} is a benchmark; it is evaluated alone, not beside other data")
    return open_benchmark(named[0], split)


@dataclass(frozen=True)
class BenchmarkFeatures:
    """Features of a benchmark: unit rows [N, D] of the images that could be read and [M, D] of their captions.

    images: the images' ids in the benchmark, row by row. corrupt: how many images could not be read.
    """

    image_ND: Features
    text_MD: Features
    images: tuple[str, ...]
    captions: tuple[Caption, ...]
    hits: Captions
    corrupt: int


def embed_benchmark(loaded: Loaded, benchmark: Benchmark, regions: Path | None = None) -> BenchmarkFeatures:
    """Features of a benchmark in the run's precision, with the boxes of `regions` (`file_regions`).

    An image that cannot be read is left out, and so is a caption of no other image. Without `regions` the boxes are
    those that the benchmark brings, or the grid. Raises InputError for a caption whose image the benchmark does not
    hold, for an image that `regions` does not know, or where no image can be read.
    """
    table = None if regions is None else RegionTable.open(regions)
    image_ND, row_of, corrupt = picture_features(loaded, benchmark.pictures(), benchmark.name, table)
    wanted = {image for caption in benchmark.captions for image in caption.images}
    lacking = sorted(wanted - row_of.keys() - corrupt)
    if lacking:
        raise InputError(benchmark.name, f"has captions for {len(lacking)} images that are missing: {lacking[0]}")
    if not len(image_ND):
        raise InputError(benchmark.name, f"none of its images can be read ({len(corrupt)} tried)")
    captions = tuple(c for c in benchmark.captions if not c.images or not corrupt.issuperset(c.images))
    text_MD = text_rows(loaded, [caption.text for caption in captions])
    pairs = [(row_of[i], text) for text, caption in enumerate(captions) for i in caption.images if i in row_of]
    image_P, text_P = np.array(pairs, np.int64).reshape(-1, 2).T
    hits = Captions(len(image_ND), len(captions), image_P, text_P)
    return BenchmarkFeatures(image_ND, text_MD, tuple(row_of), captions, hits, len(corrupt))
