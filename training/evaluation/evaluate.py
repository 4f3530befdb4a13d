"""Evaluation of a checkpoint: retrieval over a dataset's split or over a public benchmark.

    a dataset's split    pairs; a hit shares the image leader or the text leader (near-copies are not mistakes)
    a benchmark          images with captions (training/evaluation/benchmarks.py); every caption is a query

A dataset's splits hold image clusters apart, not texts, unless its spec says so (`shards.apart`): a held-out pair may
have a caption that stands in the train split too. So its figures are given of seen and unseen queries apart
(training/evaluation/results.py). Plain tars have no train split: there, and of a benchmark, this is unknown.

Limits: what a checkpoint saw before, in the weights of its backbones or in an earlier dataset, is not known here. The
leaders of every train shard are read, which takes as long as opening the dataset for a training does.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_specs.shard import Split
from training.data.index import open_dataset, split_of_dataset
from training.data.index_cache import GRID
from training.errors import ConfigError, InputError
from training.evaluation.benchmarks import Benchmark, Caption, is_benchmark, open_benchmark
from training.evaluation.features import Embeddings, embed, picture_features, text_rows
from training.evaluation.file_regions import RegionTable
from training.evaluation.hits import Captions, Clusters, Features, Hits, Ids, Mask
from training.evaluation.results import by_seen, first_lines, head, parts, recalls, share
from training.evaluation.retrieval import KS, Ranks, Retrieval, figures, rank
from training.weights.load import Loaded, Towers, load

LOG = logging.getLogger(__name__)

MANY_SHARDS = 100
"""Train shards above which the log says that they are read: each one's leaders, by its index."""

MOST_SCORED = 20_000
"""Matching pairs of a benchmark whose scores are summed up."""


@dataclass(frozen=True)
class Measured:
    """Features, hits and ranks behind the figures of a retrieval, for examples of single queries.

    image_names, text_names: of the rows: ids of a benchmark's pictures and its captions, sample ids of a dataset.
    headline_N: of a dataset, the pairs whose queries make the headline.
    """

    image_ND: Features
    text_MD: Features
    hits: Hits
    ranks: Ranks
    image_names: Sequence[str]
    text_names: Sequence[str]
    headline_N: Mask | None = None


Look = Callable[[Measured], None]


def evaluate_retrieval(
    path: Path,
    data: Sequence[str],
    split: str,
    *,
    detector: str = "",
    device: str = "auto",
    cache: Path | None = None,
    towers: Towers = "query",
    regions: Path | None = None,
    look: Look | None = None,
) -> dict[str, Any]:
    """Retrieval figures of a checkpoint, as `wenlan-train eval --json` prints them.

    detector: whose regions of a dataset, by default those that the checkpoint was trained with. regions: boxes of a
    benchmark's images by their sha256, a file or a folder (training/evaluation/file_regions.py). look: is called with
    what was measured, before it is freed.

    `Retrieval.to_json` over all queries, with task, split, checkpoint, corrupt samples, protocol, headline ("unseen" or
    "all"), and `seen` and `unseen`: None where it is unknown which queries are, else Retrieval.to_json over them
    (samples 0 alone where there are none). `in_train`: of how many images, of how many texts, and of how many pairs
    (either) the leader stands in train. `scores`: calibrated scores of matching pairs, None without a background.

    Raises CheckpointError, InputError (no readable sample), ContractError (data), ConfigError (device, usage).
    """
    benchmark = named_benchmark(data, split)
    of_data = None if benchmark is not None else split_of_dataset(split)
    if regions is not None and benchmark is None:
        raise ConfigError("--regions", "are boxes of a benchmark's images; a dataset has its own, see --detector")
    loaded = load(path, device, towers)
    if of_data is None:
        assert benchmark is not None
        return _on_benchmark(loaded, benchmark, towers, regions, look)
    loader = loaded.split_loader(data, of_data, cache, detector)
    embeddings = embed(loaded.model, loader.once(), loaded.device, loaded.config.run.precision)
    hits = Clusters(embeddings.image_ids_N, embeddings.text_ids_N)
    ranks = rank(embeddings.image_ND, embeddings.text_ND, hits, loaded.device)
    protocol = {
        "data": " ".join(data),
        "split": split,
        "images": len(embeddings.image_ND),
        "texts": len(embeddings.text_ND),
        "hit": "a hit has the same image leader or text leader",
    }
    in_train = stands_in_train(data, of_data, embeddings.image_ids_N, embeddings.text_ids_N, cache)
    if look is not None:
        names = [str(number) for number in embeddings.sample_ids_N]
        asks_N = None if in_train is None or np.logical_or(*in_train).all() else ~np.logical_or(*in_train)
        look(Measured(embeddings.image_ND, embeddings.text_ND, hits, ranks, names, names, asks_N))
    about = _head(loaded, protocol, towers, detector or loaded.checkpoint.detector, loader.corrupt)
    about["scores"] = _scores(loaded, towers, np.einsum("nd,nd->n", embeddings.image_ND, embeddings.text_ND))
    return {**about, **_by_seen(in_train, ranks)}


def _head(loaded: Loaded, protocol: Mapping[str, Any], towers: Towers, detector: str, corrupt: int) -> dict[str, Any]:
    candidates = f"{protocol['images']:,} images, {protocol['texts']:,} texts"
    return {
        "scores": None,
        **head("retrieval", loaded, protocol, candidates, towers, detector=detector, corrupt=corrupt),
    }


def summary(result: Mapping[str, Any]) -> list[str]:
    """Lines for people about a result of `evaluate_retrieval`, the headline first."""
    lines = first_lines(result)
    if result["in_train"] is not None:
        counts = result["in_train"]
        lines.append(
            f"{counts['either']} of {result['protocol']['images']} pairs stand in train "
            f"(image leader of {counts['images']}, text leader of {counts['texts']})"
        )
        if result["headline"] == "all":
            lines.append("no unseen query is left: the figures are those of all queries")
    for name, part in parts(result):
        lines += [f"{name}, {words}: {recalls(part[d], KS)}" for d, words in DIRECTIONS]
        mean = share(part["mean_recall"], part["mean_recall_interval"])
        lines.append(f"{name}: mean recall {mean}, {part['samples']:,} images")
    return [*lines, _described_scores(result)]


def _described_scores(result: Mapping[str, Any]) -> str:
    scores = result["scores"]
    if scores is not None:
        return (
            f"scores: half of {scores['pairs']:,} matching pairs have a cosine above {scores['median_cosine']:.3f}, "
            f"which is above {scores['median_score']:.1%} of the background; "
            f"{scores['above_0.99']:.1%} are above 99% of it"
        )
    if result["protocol"]["towers"] == "key":
        return "scores: cosines alone; a background is that of the query towers"
    how = f"wenlan-train calibrate {result['checkpoint']} --data TRAIN"
    return f"scores: cosines alone, as this checkpoint has no background to measure them against; add it by {how}"


DIRECTIONS = (("i2t", "image -> text"), ("t2i", "text -> image"))


def retrieval(embeddings: Embeddings) -> Retrieval:
    """Recall, median rank and chance both ways. Raises InputError on no sample and on features not finite."""
    hits = Clusters(embeddings.image_ids_N, embeddings.text_ids_N)
    return figures(rank(embeddings.image_ND, embeddings.text_ND, hits))


def _scores(loaded: Loaded, towers: Towers, cosines_P: Features) -> dict[str, Any] | None:
    """Cosines and calibrated scores of pairs that belong together; None without a background of these towers."""
    background = loaded.background() if towers == "query" else None
    if background is None:
        return None
    scores_P = background.score(cosines_P)
    return {
        "pairs": len(cosines_P),
        "median_cosine": float(np.median(cosines_P)),
        "median_score": float(np.median(scores_P)),
        "above_0.95": float(np.mean(scores_P > 0.95)),
        "above_0.99": float(np.mean(scores_P > 0.99)),
        "background": {"images": background.images, "texts": background.texts, "pairs": background.pairs},
    }


# --- what stands in train


def stands_in_train(
    data: Sequence[str], split: Split, image_ids_N: Ids, text_ids_N: Ids, cache: Path | None
) -> tuple[Mask, Mask] | None:
    """Masks of a split's samples whose image leader, and whose text leader, stands in the dataset's train split.

    Ids as a Batch carries them. None where it is unknown: of the train split itself, and where there is none.
    """
    if split == "train":
        return None
    train = open_dataset(data, "train", detector=GRID, cache=cache, plain_tars=False)
    if not len(train) or len(train) < len(open_dataset(data, "train", detector=GRID, cache=cache)):
        return None  # plain tars have no splits
    if len(train.shard_sizes) > MANY_SHARDS:
        LOG.info("looking up the queries' leaders in %s train shards", f"{len(train.shard_sizes):,}")
    return _in_train(train.leaders(), image_ids_N, text_ids_N)


def _by_seen(in_train: tuple[Mask, Mask] | None, ranks: Ranks) -> dict[str, Any]:
    """Figures over all pairs; with headline, in_train, seen and unseen of a dataset's split where they are known."""

    def of_part(asks_N: Mask | None) -> dict[str, Any]:
        if asks_N is not None and not asks_N.any():
            return {"samples": 0}
        return figures(ranks, asks_N, asks_N, intervals=True).to_json()

    if in_train is None:
        return of_part(None)
    images, texts = in_train
    values = by_seen(images | texts, of_part)
    values["in_train"] |= {"images": int(images.sum()), "texts": int(texts.sum())}
    return values


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
    """The benchmark that `--data` names, if it does. Raises ConfigError where it stands beside other data."""
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
    those that the benchmark brings, or the grid. Raises InputError.
    """
    image_ND, row_of, corrupt = _images(loaded, benchmark, None if regions is None else RegionTable.open(regions))
    captions = tuple(c for c in benchmark.captions if not c.images or not corrupt.issuperset(c.images))
    text_MD = text_rows(loaded, [caption.text for caption in captions])
    pairs = [(row_of[i], text) for text, caption in enumerate(captions) for i in caption.images if i in row_of]
    image_P, text_P = np.array(pairs, np.int64).reshape(-1, 2).T
    hits = Captions(len(image_ND), len(captions), image_P, text_P)
    return BenchmarkFeatures(image_ND, text_MD, tuple(row_of), captions, hits, len(corrupt))


def _on_benchmark(
    loaded: Loaded, benchmark: Benchmark, towers: Towers, regions: Path | None, look: Look | None
) -> dict[str, Any]:
    """Figures over a benchmark."""
    features = embed_benchmark(loaded, benchmark, regions)
    hits = features.hits
    ranks = rank(features.image_ND, features.text_MD, hits, loaded.device)
    protocol = {
        "data": benchmark.name,
        "split": benchmark.split,
        "images": hits.images,
        "texts": hits.texts,
        "hit": benchmark.hit,
    }
    if look is not None:
        names = list(features.images), [caption.text for caption in features.captions]
        look(Measured(features.image_ND, features.text_MD, hits, ranks, *names))
    boxes = benchmark.boxes if regions is None else str(regions)
    about = _head(loaded, protocol, towers, boxes, features.corrupt)
    some = slice(MOST_SCORED)
    matching = features.image_ND[hits.image_P[some]], features.text_MD[hits.text_P[some]]
    about["scores"] = _scores(loaded, towers, np.einsum("pd,pd->p", *matching))
    return {**about, **figures(ranks, intervals=True).to_json()}


def _images(
    loaded: Loaded, benchmark: Benchmark, regions: RegionTable | None
) -> tuple[Features, dict[str, int], set[str]]:
    """`picture_features` of a benchmark.

    Raises InputError for a caption whose image the benchmark does not hold, for an image that `regions` does not know,
    or where no image can be read.
    """
    image_ND, row_of, corrupt = picture_features(loaded, benchmark.pictures(), benchmark.name, regions)
    wanted = {image for caption in benchmark.captions for image in caption.images}
    lacking = sorted(wanted - row_of.keys() - corrupt)
    if lacking:
        raise InputError(benchmark.name, f"has captions of {len(lacking)} images that it does not hold: {lacking[0]}")
    if not len(image_ND):
        raise InputError(benchmark.name, f"no image of it can be read ({len(corrupt)} tried)")
    return image_ND, row_of, corrupt
