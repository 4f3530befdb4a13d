"""Zero-shot classification: images against the names of classes, in Chinese sentences, without training on them.

Labelled images (evaluation/labelled.py) are embedded as in retrieval; the class is that of the nearest class vector
(evaluation/class_texts.py). The same features and vectors give the same top-1 and top-5 as clip_benchmark's
`zeroshot_classification`, where no two classes score the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from training.evaluation.class_texts import TEMPLATES, check_templates, class_features, digest
from training.evaluation.classification import classify, cosines, figures
from training.evaluation.labelled import classes_digest, lines_of, open_labelled
from training.evaluation.results import Result, by_seen
from training.evaluation.tasks import Request, Task
from training.evaluation.tasks._shared import class_examples, class_lines, embed_labelled, result_of, seen_in_train
from training.weights.load import load

HIT = "a hit is the image's class"


def run(request: Request) -> Result:
    """`classification.figures` with protocol, seen and unseen, and examples.

    Raises CheckpointError, InputError, ContractError, ConfigError.
    """
    loaded = load(request.checkpoint, request.device, request.towers)
    labelled = open_labelled(request.source, request.split, request.detector or loaded.checkpoint.detector)
    sentences = templates_of(request)
    classes_CD = class_features(loaded, labelled.classes, sentences)
    embedded = embed_labelled(loaded, labelled)
    found = classify(cosines(embedded.features_ND, classes_CD), embedded.label_N)
    names = [one.names[0] for one in labelled.classes]
    seen_N = seen_in_train(request, embedded.leaders)
    protocol = {
        "data": labelled.name,
        "split": labelled.split,
        "images": len(embedded.label_N),
        "classes": len(names),
        "classes_sha256": classes_digest(labelled.classes),
        "templates": len(sentences),
        "templates_sha256": digest(sentences),
        "hit": HIT,
    }
    candidates = (
        f"{protocol['images']:,} images, {len(names):,} classes in {len(sentences)} templates "
        f"({digest(sentences)[:12]})"
    )
    result = result_of(request, "zero-shot", loaded, protocol, candidates, embedded.corrupt)
    result |= by_seen(seen_N, lambda asks_N: figures(found, names, asks_N))
    if request.pictures:

        def query(i: int) -> dict[str, Any]:
            return {"picture": embedded.items[i].picture.id, "name": names[found.label_N[i]]}

        pictures = (item.picture for item in labelled.items())
        result["examples"] = class_examples("zero-shot", found, labelled.classes, seen_N, query, pictures)
    return result


def templates_of(request: Request) -> tuple[str, ...]:
    """The templates of `--templates`, or ours."""
    file = request.templates
    return TEMPLATES if file is None else check_templates(str(file), lines_of(file))


def summary(result: Mapping[str, Any]) -> list[str]:
    """Lines for people about a result of `run`."""
    lines = class_lines(result)
    pairs = [f"{p['class']} for {p['taken_for']} ({p['count']})" for p in result["worst_pairs"][:3]]
    return [*lines, f"most frequent confusions: {', '.join(pairs)}"] if pairs else lines


TASK = Task(run, summary)
