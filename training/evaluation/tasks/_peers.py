"""Shared by both searches within one kind: figures of seen and unseen queries, lines, single queries."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from training.evaluation.benchmarks import Picture
from training.evaluation.examples import ANSWERS, choose, example, with_pictures
from training.evaluation.hits import Features, Mask, Peers
from training.evaluation.results import Result, by_seen, first_lines, parts, recalls, shown_items
from training.evaluation.retrieval import KS, Ranks, peer_figures

_ROWS = 256
"""Rows of a gallery that are compared at once."""


def figures_by_seen(ranks: Ranks, peers: Peers, seen_N: Mask | None) -> Result:
    """`Direction.to_json` over all queries, and of seen and unseen ones where they are known."""

    def of_part(asks_N: Mask | None) -> dict[str, Any]:
        asks = (ranks.text_hits_M > 0) & (True if asks_N is None else asks_N)
        if asks_N is not None and not asks.any():
            return {"queries": 0}
        return peer_figures(ranks, peers, asks_N).to_json()

    values = by_seen(seen_N, of_part)
    if seen_N is not None:  # an item that asks nothing counts for neither
        asks_N = ranks.text_hits_M > 0
        values["in_train"] = {"either": int((seen_N & asks_N).sum())}
        values["headline"] = "unseen" if (~seen_N & asks_N).any() else "all"
    return values


def peer_lines(result: Mapping[str, Any]) -> list[str]:
    """The protocol and, per part, recalls and median rank."""
    return [*first_lines(result), *(f"{name}: {recalls(part, KS)}" for name, part in parts(result))]


def examples_of(
    group: str,
    features_ND: Features,
    peers: Peers,
    ranks: Ranks,
    shown: Sequence[Mapping[str, Any]],
    seen_N: Mask | None,
    pictures: Iterable[Picture],
) -> list[dict[str, Any]]:
    """Queries with their nearest candidates; `shown`: text and picture of each item, as an example has them."""
    examples = []
    for i in choose(ranks.text_M, shown_items(seen_N)):
        similar_N = similarities(features_ND, i, features_ND)
        hits_N = np.zeros(len(features_ND), np.bool_)
        hits_N[peers.of(i, i + 1)[1]] = True
        candidate_N = peers.copy_N != peers.copy_N[i]
        answers = answers_of(np.where(candidate_N, similar_N, -np.inf), hits_N)
        said = [{**shown[j], **answer} for j, answer in answers]
        examples.append(example(group, ranks.text_M[i], dict(shown[i]), said))
    return with_pictures(examples, pictures)


def similarities(asking_ND: Features, row: int, gallery_MD: Features) -> npt.NDArray[np.float64]:
    """[M]: of one query, in float64, without a copy of the gallery in it."""
    query_D, similar_M = asking_ND[row].astype(np.float64), np.empty(len(gallery_MD))
    for start in range(0, len(gallery_MD), _ROWS):
        some = slice(start, start + _ROWS)
        similar_M[some] = np.einsum("md,d->m", gallery_MD[some].astype(np.float64), query_D)
    return similar_M


def answers_of(similar_M: Any, hits_M: Mask) -> list[tuple[int, dict[str, Any]]]:
    """(candidate, its score and whether it is a hit) of the nearest, and the nearest hit where it is not among them."""
    # of equal similarities one that is not a hit comes first, as in the ranks
    order = np.lexsort((hits_M, -similar_M))
    first = order[:ANSWERS].tolist()
    if not hits_M[first].any():
        first.append(int(next(j for j in order if hits_M[j])))
    return [(j, {"score": float(similar_M[j]), "right": bool(hits_M[j])}) for j in first if np.isfinite(similar_M[j])]
