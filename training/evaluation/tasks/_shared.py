"""Shared by the tasks: labelled images, heads of results, examples and lines of classifications."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from data_specs.shard import SPLITS, Split
from training.data.batch_maker import short_id
from training.data.index import SampleRow, open_dataset
from training.data.index_cache import GRID
from training.errors import InputError
from training.evaluation.benchmarks import BENCHMARKS, BenchmarkPicture
from training.evaluation.classification import Classified
from training.evaluation.evaluate import masks_in_train
from training.evaluation.examples import ANSWERS, choose_examples, example, with_pictures
from training.evaluation.features import picture_features
from training.evaluation.hits import Features, Ids, Mask
from training.evaluation.labelled import KINDS as LABELLED
from training.evaluation.labelled import ClassName, EvaluationData, Labelled, LabelledPicture
from training.evaluation.labelled_boxes import KINDS as BOXED
from training.evaluation.results import Result, first_lines, head, parts, share, shown_items
from training.evaluation.tasks import Request
from training.weights.load import Loaded


@dataclass(frozen=True)
class EmbeddedImages:
    """N labelled images that could be read: features [N, D] and labels. items: without their content."""

    features_ND: Features
    label_N: Ids
    items: tuple[LabelledPicture, ...]
    corrupt: int

    @property
    def leaders(self) -> list[tuple[str, str]]:
        return [(item.image_leader, item.text_leader) for item in self.items]


def embed_labelled(loaded: Loaded, labelled: Labelled) -> EmbeddedImages:
    """Features of labelled images. Raises InputError where none can be read, or two have the same name."""
    found: dict[str, LabelledPicture] = {}

    def pictures() -> Iterator[BenchmarkPicture]:
        for item in labelled.items():
            picture = item.picture
            if picture.id in found:
                raise InputError(labelled.name, f"{picture.id} occurs twice")
            bare = BenchmarkPicture(picture.id, b"")
            found[picture.id] = LabelledPicture(bare, item.label, item.image_leader, item.text_leader)
            yield picture

    features_ND, row_of, corrupt = picture_features(loaded, pictures(), labelled.name)
    if not row_of:
        raise InputError(labelled.name, f"none of its images can be read ({len(corrupt)} tried)")
    items = tuple(found[name] for name in row_of)
    label_N = np.array([item.label for item in items], np.int64)
    return EmbeddedImages(features_ND, label_N, items, len(corrupt))


def seen_in_train(request: Request, leaders: Sequence[tuple[str, str]]) -> Mask | None:
    """Mask of items whose image leader or text leader occurs in train; None where that is unknown."""
    split = next((name for name in SPLITS if name == request.split), None)
    if split is None or not leaders or not leaders[0][0]:
        return None
    ids = [np.array([short_id(of_item[side]) for of_item in leaders], np.int64) for side in (0, 1)]
    return seen_of(masks_in_train(request.source.data, split, ids[0], ids[1], request.source.cache))


def result_of(
    request: Request, name: str, loaded: Loaded, protocol: Mapping[str, Any], candidates: str, corrupt: int
) -> Result:
    named = request.source.data[0].partition(":")[0] in (*BENCHMARKS, *LABELLED, *BOXED)  # no dataset
    detector = request.detector or (GRID if named else loaded.checkpoint.detector)
    return head(name, loaded, protocol, candidates, request.towers, detector=detector, corrupt=corrupt)


def seen_of(found: tuple[Mask, Mask] | None) -> Mask | None:
    """Mask of items that occur in train, by either leader; None where that is unknown."""
    return None if found is None else found[0] | found[1]


def class_examples(
    group: str,
    found: Classified,
    classes: Sequence[ClassName],
    seen_N: Mask | None,
    queries: Callable[[int], dict[str, Any]],
    pictures: Iterator[BenchmarkPicture],
) -> list[dict[str, Any]]:
    """Items of the headline with the best classes of each. queries: what is shown of an item."""
    examples = [
        example(group, found.rank_N[i], queries(i), class_answers(found, i, classes, ANSWERS))
        for i in choose_examples(found.rank_N, shown_items(seen_N))
    ]
    return with_pictures(examples, pictures)


def class_answers(found: Classified, item: int, classes: Sequence[ClassName], count: int) -> list[dict[str, Any]]:
    """The best classes of an item as answers of an example, and the right one where it is not among them."""
    own, best = int(found.label_N[item]), found.best(item, count)
    if own not in [number for number, _ in best]:
        best.append((own, float(found.scores_NC[item, own])))
    return [{"text": classes[c].names[0], "score": score, "right": c == own} for c, score in best]


def class_lines(result: Mapping[str, Any]) -> list[str]:
    """The protocol and, per part, the figures of a classification."""
    lines = first_lines(result, "items")
    for name, of_part in parts(result):
        tops = [
            f"top-{k} {share(of_part[f'top{k}'], of_part[f'top{k}_interval'], of_part[f'chance_top{k}'])}"
            for k in (1, 5)
            if f"top{k}" in of_part
        ]
        mean = share(of_part["mean_per_class"], of_part["mean_per_class_interval"])
        lines.append(f"{name}: {', '.join(tops)}, mean per class {mean}, {of_part['n']:,} items")
    return lines


Side = tuple[Features, Sequence[Mapping[str, Any]]]
"""Features of queries or candidates, and what is shown of each."""


def search_examples(
    group: str,
    asking: Side,
    gallery: Side,
    rank_N: Ids,
    hits_of: Callable[[int], Ids],
    seen_N: Mask | None,
) -> list[dict[str, Any]]:
    """Queries with their nearest candidates."""
    examples = []
    for i in choose_examples(rank_N, shown_items(seen_N)):
        similar_M, hits_M = gallery[0] @ asking[0][i], np.zeros(len(gallery[0]), np.bool_)
        hits_M[hits_of(i)] = True
        said = [{**gallery[1][j], **answer} for j, answer in answers_of(similar_M, hits_M)]
        examples.append(example(group, rank_N[i], dict(asking[1][i]), said))
    return examples


def texts_and_pictures(source: EvaluationData, split: Split) -> tuple[dict[str, str], Iterator[BenchmarkPicture]]:
    """Primary texts of a dataset by the numbers that a Batch carries of its samples, and pictures called by them."""
    dataset = open_dataset(source.data, split, detector=GRID, cache=source.cache)

    def rows() -> Iterator[tuple[str, SampleRow]]:
        return ((str(short_id(row.candidate_id)), row) for row in map(dataset.row, range(len(dataset))))

    pictures = (BenchmarkPicture(name, dataset.image(row)) for name, row in rows())
    return {name: row.texts[0].text for name, row in rows()}, pictures


def answers_of(similar_M: Any, hits_M: Mask) -> list[tuple[int, dict[str, Any]]]:
    """(candidate, its score and whether it is a hit) of the nearest, and the nearest hit where it is not among them."""
    # of equal similarities one that is not a hit comes first, as in the ranks
    order = np.lexsort((hits_M, -similar_M))
    first = order[:ANSWERS].tolist()
    if not hits_M[first].any():
        first.append(int(next(j for j in order if hits_M[j])))
    return [(j, {"score": float(similar_M[j]), "right": bool(hits_M[j])}) for j in first]
