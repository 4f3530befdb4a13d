"""Retrieval between images and texts, as evaluation/evaluate.py measures it, with single queries to look at."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from training.data.batch_maker import short_id
from training.data.index import open_dataset, split_of_dataset
from training.errors import ConfigError
from training.evaluation.benchmarks import Picture, is_benchmark, open_benchmark
from training.evaluation.evaluate import Measured, evaluate_retrieval, summary
from training.evaluation.examples import choose, example, with_pictures
from training.evaluation.hits import Captions, Ids
from training.evaluation.results import Result
from training.evaluation.tasks import Request, Task
from training.evaluation.tasks._peers import answers_of, similarities
from training.evaluation.tasks.image_to_image import dataset_pictures


def run(request: Request) -> Result:
    """`evaluate_retrieval` with examples. Raises what that does."""
    source, seen = request.source, list[Measured]()
    if source.labels is not None or source.classes is not None:
        raise ConfigError("--labels", "retrieval has no classes; leave out --labels and --classes")
    result = evaluate_retrieval(
        request.checkpoint,
        source.data,
        request.split,
        detector=request.detector,
        device=request.device,
        cache=source.cache,
        towers=request.towers,
        regions=request.regions,
        look=seen.append if request.pictures else None,
    )
    return {**result, "examples": _examples(request, seen[0])} if seen else result


def _examples(request: Request, measured: Measured) -> list[dict[str, Any]]:
    """Queries of both directions with their nearest candidates."""
    pairs = measured.hits
    texts, pictures = _shown(request, measured)
    shown_images = [{"picture": name} for name in measured.image_names]
    shown_texts = [{"text": text} for text in texts]

    def texts_of(image: int) -> Ids:
        return pairs.of(image, image + 1)[1]

    def images_of(text: int) -> Ids:
        if isinstance(pairs, Captions):
            found: Ids = pairs.image_P[pairs.text_P == text]
            return found
        return texts_of(text)  # of pairs of an image and a text, each is a hit of the other's

    directions: tuple[tuple[str, Any, Any, Ids, Callable[[int], Ids], Any, Any], ...] = (
        ("i2t", measured.image_ND, measured.text_MD, measured.ranks.image_N, texts_of, shown_images, shown_texts),
        ("t2i", measured.text_MD, measured.image_ND, measured.ranks.text_M, images_of, shown_texts, shown_images),
    )
    examples = []
    for group, asking, gallery, rank, hits_of_query, queries, candidates in directions:
        for i in choose(rank, measured.headline_N):
            hits = np.zeros(len(gallery), np.bool_)
            hits[hits_of_query(i)] = True
            answers = answers_of(similarities(asking, i, gallery), hits)
            said = [{**candidates[j], **answer} for j, answer in answers]
            examples.append(example(group, rank[i], dict(queries[i]), said))
    return with_pictures(examples, pictures)


def _shown(request: Request, measured: Measured) -> tuple[list[str], Iterator[Picture]]:
    """The texts in the order of their features, and the pictures by the names of their rows."""
    [first, *_] = request.source.data
    if is_benchmark(first):
        return list(measured.text_names), open_benchmark(first, request.split).pictures()
    split = split_of_dataset(request.split)
    dataset = open_dataset(request.source.data, split, detector="grid", cache=request.source.cache)
    rows = (dataset.row(number) for number in range(len(dataset)))
    texts = {str(short_id(row.candidate_id)): row.texts[0].text for row in rows}
    return [texts[name] for name in measured.text_names], dataset_pictures(dataset)


TASK = Task(run, summary)
