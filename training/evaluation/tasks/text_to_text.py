"""Search by text: every text asks for the other texts of its image; recall at k, median rank, chance.

    a benchmark     its captions; a hit is another caption of the first image that the caption describes
    a dataset       all texts of its samples (alt, title, caption ...); a hit is another text of the same image leader

Texts of one leader (near-copies; of a benchmark equal ones) are neither hits nor candidates. A text without a hit is a
candidate, but asks nothing. Intervals resample images, each with all of its texts. No image is read.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

from training.data.batch_maker import short_id
from training.data.index import open_dataset, split_of_dataset
from training.data.index_cache import GRID
from training.errors import ConfigError
from training.evaluation.benchmarks import Benchmark
from training.evaluation.evaluate import masks_in_train, named_benchmark
from training.evaluation.features import text_rows
from training.evaluation.hits import Ids, Mask, Peers, first_of_group
from training.evaluation.labelled import KINDS
from training.evaluation.results import Result
from training.evaluation.retrieval import rank
from training.evaluation.tasks import Request, Task
from training.evaluation.tasks._shared import figures_by_seen, peer_examples, peer_lines, result_of, seen_of
from training.weights.load import load

NAME = "text-to-text"


@dataclass(frozen=True)
class _Texts:
    """M texts, the number of each one's image and of its leader, and which stand in train (None: unknown)."""

    name: str
    split: str
    texts: tuple[str, ...]
    image_M: Ids
    copy_M: Ids
    seen_M: Mask | None


def run(request: Request) -> Result:
    """`retrieval.Direction.to_json` over the texts that have a hit, with protocol, seen and unseen, and examples.

    Raises CheckpointError, InputError, ContractError, ConfigError.
    """
    if request.source.data[0].partition(":")[0] in KINDS or request.source.labels is not None:
        raise ConfigError("--data", f"{NAME} takes a benchmark or a dataset, without labels")
    benchmark = named_benchmark(request.source.data, request.split)
    found = _of_dataset(request) if benchmark is None else _of_benchmark(benchmark)
    loaded = load(request.checkpoint, request.device, request.towers)
    text_MD = text_rows(loaded, found.texts)
    peers = Peers(found.image_M, found.copy_M, first_of_group(found.image_M))
    protocol = {
        "data": found.name,
        "split": found.split,
        "texts": len(found.texts),
        "images": len(np.unique(found.image_M)),
        "hit": "a hit is another text of the image; copies of the text are not candidates",
    }
    candidates = f"{protocol['texts']:,} texts of {protocol['images']:,} images"
    result = result_of(request, NAME, loaded, protocol, candidates, 0)
    ranks = rank(text_MD, text_MD, peers, loaded.device)
    result |= figures_by_seen(ranks, peers, found.seen_M)
    if request.pictures:
        parts = [{"text": text} for text in found.texts]
        result["examples"] = peer_examples(NAME, text_MD, peers, ranks, parts, found.seen_M, ())
    return result


def _of_benchmark(benchmark: Benchmark) -> _Texts:
    captions = [caption for caption in benchmark.captions if caption.images]
    texts = tuple(caption.text for caption in captions)
    images = np.unique([caption.images[0] for caption in captions], return_inverse=True)[1]
    return _Texts(benchmark.name, benchmark.split, texts, images.astype(np.int64), _copies(texts), None)


def _copies(texts: tuple[str, ...]) -> Ids:
    return np.array([short_id(hashlib.sha256(text.encode()).hexdigest()) for text in texts], np.int64)


def _of_dataset(request: Request) -> _Texts:
    split = split_of_dataset(request.split)
    source = request.source
    dataset = open_dataset(source.data, split, detector=GRID, cache=source.cache)
    dataset.check_not_empty()
    texts, images, copies = list[str](), list[int](), list[int]()
    for number in range(len(dataset)):
        row = dataset.row(number)
        texts += [text.text for text in row.texts]
        images += [short_id(row.image_leader)] * len(row.texts)
        copies += [short_id(text.leader) for text in row.texts]
    image_M, copy_M = np.array(images, np.int64), np.array(copies, np.int64)
    seen_M = seen_of(masks_in_train(source.data, split, image_M, copy_M, source.cache))
    return _Texts(" ".join(source.data), split, tuple(texts), image_M, copy_M, seen_M)


TASK = Task(run, peer_lines)
