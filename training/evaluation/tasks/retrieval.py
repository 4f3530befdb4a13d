"""Retrieval between images and texts: recall both ways, with single queries to look at.

a dataset's split    pairs; a hit shares the image leader or the text leader (near-copies are not mistakes)
a benchmark          images with captions (training/evaluation/benchmarks.py); every caption is a query
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from data_specs.shard import Split
from training.data.index import split_of_dataset
from training.errors import ConfigError
from training.evaluation.benchmarks import Benchmark, BenchmarkPicture, is_benchmark, open_benchmark
from training.evaluation.evaluate import embed_benchmark, masks_in_train, named_benchmark
from training.evaluation.examples import with_pictures
from training.evaluation.features import embed
from training.evaluation.hits import Captions, Clusters, Features, Hits, Ids, Mask
from training.evaluation.results import Result, by_seen, first_lines, head, parts, recalls, share
from training.evaluation.retrieval import KS, Ranks, figures, rank
from training.evaluation.tasks import Request, Task
from training.evaluation.tasks._shared import search_examples, seen_of, texts_and_pictures
from training.weights.load import Loaded, load

MOST_SCORED = 20_000
"""Matching pairs of a benchmark whose scores are summed up."""


@dataclass(frozen=True)
class Measured:
    """Features, hits and ranks of a measured split or benchmark.

    image_names, text_names: of the rows: ids of a benchmark's pictures and its captions, sample ids of a dataset.
    in_train: which pairs' image leader, and which text leader, stands in train; None where that is unknown.
    """

    image_ND: Features
    text_MD: Features
    hits: Hits
    ranks: Ranks
    image_names: Sequence[str]
    text_names: Sequence[str]
    in_train: tuple[Mask, Mask] | None = None


def run(request: Request) -> Result:
    """Retrieval figures of a checkpoint, as `wenlan-train eval --json` prints them.

    `Retrieval.to_json` over all queries, with task, split, checkpoint, corrupt samples, protocol, headline ("unseen" or
    "all"), and `seen` and `unseen`: None where it is unknown which queries are, else Retrieval.to_json over them
    (only samples = 0 where the part is empty). `in_train`: of how many images, of how many texts, and of how many pairs
    (either) the leader stands in train. `scores`: calibrated scores of matching pairs, None without a background.

    Raises CheckpointError, InputError (no readable sample), ContractError (data), ConfigError (device, usage).
    """
    source = request.source
    if source.labels is not None or source.classes is not None:
        raise ConfigError("--labels", "retrieval does not use classes; leave out --labels and --classes")
    benchmark = named_benchmark(source.data, request.split)
    split = split_of_dataset(request.split) if benchmark is None else None
    if request.regions is not None and benchmark is None:
        raise ConfigError("--regions", "is for the images of a benchmark; a dataset has its own boxes, see --detector")
    loaded = load(request.checkpoint, request.device, request.towers)
    if split is None:
        assert benchmark is not None
        measured, about = _on_benchmark(request, loaded, benchmark)
    else:
        measured, about = _on_dataset(request, loaded, split)
    result = {**about, **_by_seen(measured.in_train, measured.ranks)}
    return {**result, "examples": _examples(request, measured)} if request.pictures else result


def _on_dataset(request: Request, loaded: Loaded, split: Split) -> tuple[Measured, Result]:
    data, cache = request.source.data, request.source.cache
    loader = loaded.split_loader(data, split, cache, request.detector)
    found = embed(loaded.model, loader.once(), loaded.device, loaded.config.run.precision)
    hits = Clusters(found.image_ids_N, found.text_ids_N)
    ranks = rank(found.image_ND, found.text_ND, hits, loaded.device)
    in_train = masks_in_train(data, split, found.image_ids_N, found.text_ids_N, cache)
    names = [str(number) for number in found.sample_ids_N]
    hit = "a hit has the same image leader or text leader"
    detector = request.detector or loaded.checkpoint.detector
    about = _result_head(request, loaded, (" ".join(data), split, hit), hits, detector, loader.corrupt)
    about["scores"] = _scores(loaded, request, np.einsum("nd,nd->n", found.image_ND, found.text_ND))
    return Measured(found.image_ND, found.text_ND, hits, ranks, names, names, in_train), about


def _on_benchmark(request: Request, loaded: Loaded, benchmark: Benchmark) -> tuple[Measured, Result]:
    found = embed_benchmark(loaded, benchmark, request.regions)
    hits, some = found.hits, slice(MOST_SCORED)
    ranks = rank(found.image_ND, found.text_MD, hits, loaded.device)
    boxes = benchmark.boxes if request.regions is None else str(request.regions)
    about = _result_head(request, loaded, (benchmark.name, benchmark.split, benchmark.hit), hits, boxes, found.corrupt)
    matching = found.image_ND[hits.image_P[some]], found.text_MD[hits.text_P[some]]
    about["scores"] = _scores(loaded, request, np.einsum("pd,pd->p", *matching))
    texts = [caption.text for caption in found.captions]
    return Measured(found.image_ND, found.text_MD, hits, ranks, found.images, texts), about


def _result_head(
    request: Request, loaded: Loaded, named: tuple[str, str, str], hits: Hits, detector: str, corrupt: int
) -> Result:
    """The head of a result. named: data, split, and what is a hit."""
    data, split, hit = named
    protocol = {"data": data, "split": split, "images": hits.images, "texts": hits.texts, "hit": hit}
    candidates = f"{hits.images:,} images, {hits.texts:,} texts"
    about = head("retrieval", loaded, protocol, candidates, request.towers, detector=detector, corrupt=corrupt)
    return {"scores": None, **about}


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


def _scores(loaded: Loaded, request: Request, cosines_P: Features) -> dict[str, Any] | None:
    """Cosines and calibrated scores of pairs that belong together; None without a background of these towers."""
    background = loaded.background() if request.towers == "query" else None
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


def summary(result: Mapping[str, Any]) -> list[str]:
    """Lines for people about a result of `run`, the headline first."""
    lines = first_lines(result)
    if result["in_train"] is not None:
        counts = result["in_train"]
        lines.append(
            f"{counts['either']} of {result['protocol']['images']} pairs also occur in train "
            f"(by image leader {counts['images']}, by text leader {counts['texts']})"
        )
        if result["headline"] == "all":
            lines.append("no unseen query is left: the figures cover all queries")
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
        return "scores: cosines only; a background belongs to the query towers"
    how = f"wenlan-train calibrate {result['checkpoint']} --data TRAIN"
    return (
        f"scores: cosines only, because this checkpoint lacks a background to measure them against; add one with {how}"
    )


DIRECTIONS = (("i2t", "image -> text"), ("t2i", "text -> image"))


def _examples(request: Request, measured: Measured) -> list[dict[str, Any]]:
    """Queries of both directions with their nearest candidates."""
    pairs = measured.hits
    texts, pictures = _texts_and_pictures(request, measured)

    def texts_of(image: int) -> Ids:
        return pairs.pairs(image, image + 1)[1]

    def images_of(text: int) -> Ids:
        if isinstance(pairs, Captions):
            found: Ids = pairs.image_P[pairs.text_P == text]
            return found
        return texts_of(text)  # of pairs of an image and a text, each is a hit of the other's

    images = measured.image_ND, [{"picture": name} for name in measured.image_names]
    of_texts = measured.text_MD, [{"text": text} for text in texts]
    ranks, seen_N = measured.ranks, seen_of(measured.in_train)
    examples = search_examples("i2t", images, of_texts, ranks.image_N, texts_of, seen_N)
    examples += search_examples("t2i", of_texts, images, ranks.text_M, images_of, seen_N)
    return with_pictures(examples, pictures)


def _texts_and_pictures(request: Request, measured: Measured) -> tuple[Sequence[str], Iterator[BenchmarkPicture]]:
    """Texts in the order of their features, and pictures by the names of their rows."""
    [first, *_] = request.source.data
    if is_benchmark(first):
        return measured.text_names, open_benchmark(first, request.split).pictures()
    texts, pictures = texts_and_pictures(request.source, split_of_dataset(request.split))
    return [texts[name] for name in measured.text_names], pictures


TASK = Task(run, summary)
