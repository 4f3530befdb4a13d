"""Search by image: every image asks for the others that show the same; recall at k, median rank, chance.

    labelled images     a hit is another image of the same class; copies of one image are neither hits nor candidates:
                        of a dataset those of one image leader, elsewhere equal bytes
    a dataset           without `--labels`: a hit is another image whose primary text has the same leader

An image without a hit is a candidate, but not a query. Intervals resample images.
"""

from __future__ import annotations

import numpy as np

from training.data.index import split_of_dataset
from training.errors import ConfigError, InputError
from training.evaluation.benchmarks import is_benchmark
from training.evaluation.evaluate import masks_in_train
from training.evaluation.features import embed
from training.evaluation.hits import Features, Peers
from training.evaluation.labelled import classes_digest, open_labelled
from training.evaluation.results import Result
from training.evaluation.retrieval import rank
from training.evaluation.tasks import Request, Task
from training.evaluation.tasks._shared import (
    embed_labelled,
    figures_by_seen,
    peer_examples,
    peer_lines,
    result_of,
    seen_in_train,
    seen_of,
    texts_and_pictures,
)
from training.weights.load import load

NAME = "image-to-image"


def run(request: Request) -> Result:
    """`retrieval.Direction.to_json` over the images that have a hit, with protocol, seen and unseen, and examples.

    Raises CheckpointError, InputError, ContractError, ConfigError (for a benchmark, which lacks classes).
    """
    if request.source.is_dataset and any(map(is_benchmark, request.source.data)):
        raise ConfigError(
            "--data", f"{request.source.data[0]} does not have classes; {NAME} takes labelled images or a dataset"
        )
    if request.source.labels is None and request.source.is_dataset:
        return _by_text(request)
    loaded = load(request.checkpoint, request.device, request.towers)
    labelled = open_labelled(request.source, request.split, request.detector or loaded.checkpoint.detector)
    embedded = embed_labelled(loaded, labelled)
    peers = Peers(embedded.label_N, embedded.copy_N, np.arange(len(embedded.label_N)))
    seen_N = seen_in_train(request, embedded.leaders)
    protocol = {
        "data": labelled.name,
        "split": labelled.split,
        "images": len(embedded.label_N),
        "classes": len(labelled.classes),
        "classes_sha256": classes_digest(labelled.classes),
        "hit": "a hit is another image of the class; copies of the image are not candidates",
    }
    candidates = f"{protocol['images']:,} images, {protocol['classes']:,} classes"
    result = result_of(request, NAME, loaded, protocol, candidates, embedded.corrupt)
    ranks = rank(embedded.features_ND, embedded.features_ND, peers, loaded.device)
    result |= figures_by_seen(ranks, peers, seen_N)
    if request.pictures:
        parts = [{"picture": item.picture.id, "name": labelled.classes[item.label].names[0]} for item in embedded.items]
        pictures = (item.picture for item in labelled.items())
        result["examples"] = peer_examples(NAME, embedded.features_ND, peers, ranks, parts, seen_N, pictures)
    return result


def _by_text(request: Request) -> Result:
    """Over a dataset without labels."""
    split = split_of_dataset(request.split)
    loaded = load(request.checkpoint, request.device, request.towers)
    source = request.source
    loader = loaded.split_loader(source.data, split, source.cache, request.detector)
    embeddings = embed(loaded.model, loader.once(), loaded.device, loaded.config.run.precision)
    features_ND: Features = embeddings.image_ND
    peers = Peers(embeddings.text_ids_N, embeddings.image_ids_N, np.arange(len(features_ND)))
    ids = embeddings.image_ids_N, embeddings.text_ids_N
    seen_N = seen_of(masks_in_train(source.data, split, *ids, source.cache))
    protocol = {
        "data": " ".join(source.data),
        "split": split,
        "images": len(features_ND),
        "hit": "a hit is another image with the same text leader; copies of the image are not candidates",
    }
    result = result_of(request, NAME, loaded, protocol, f"{len(features_ND):,} images", loader.corrupt)
    ranks = rank(features_ND, features_ND, peers, loaded.device)
    if not ranks.text_hits_M.any():
        raise InputError(
            NAME, f"no two of {len(features_ND):,} images share a text leader; give classes with --labels FILE"
        )
    result |= figures_by_seen(ranks, peers, seen_N)
    if request.pictures:
        texts, pictures = texts_and_pictures(source, split)
        parts = [{"picture": name, "text": texts[name]} for name in map(str, embeddings.sample_ids_N)]
        result["examples"] = peer_examples(NAME, features_ND, peers, ranks, parts, seen_N, pictures)
    return result


TASK = Task(run, peer_lines)
