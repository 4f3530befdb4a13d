"""Example queries of an evaluation: hits and misses, with small pictures.

Queries are drawn at random from the hits and from the misses, with a fixed seed, so that neither the best nor the worst
is shown for the whole. Pictures are JPEG thumbnails in data: URIs, bounded in number and size; a page of them loads
nothing.

An example, as JSON: group (what is asked), right, rank, query and answers. Query and answers are {"text", "picture",
"box", "name", "score", "right"}, those that there are; `box` is in shares of the picture's sides.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from data_specs.shard import ContractError
from training.data.transforms import UnreadableImage, decode
from training.evaluation.benchmarks import BenchmarkPicture
from training.evaluation.hits import Ids

HITS, MISSES = 6, 6
"""Queries of each kind that are shown of a group."""

ANSWERS = 5
"""Answers of a query that are shown; the right one is added where it is not among them."""

SIDE = 160
"""Longer side of a thumbnail, in pixels."""

PICTURES = 200
"""Thumbnails of one result; what goes beyond is shown without."""

_QUALITY = 72


def choose_examples(rank_N: Ids, asks_N: Any = None) -> list[int]:
    """Items to show: at random HITS of rank 1, then MISSES of a higher one. A rank of 0 is not a query."""
    rank = np.where(True if asks_N is None else asks_N, rank_N, 0)
    generator, chosen = np.random.default_rng(0), list[int]()
    for which, count in ((rank == 1, HITS), (rank > 1, MISSES)):
        found = np.flatnonzero(which)
        chosen += sorted(generator.choice(found, min(count, len(found)), replace=False).tolist())
    return chosen


def example(group: str, rank: int, query: dict[str, Any], answers: list[dict[str, Any]]) -> dict[str, Any]:
    return {"group": group, "right": bool(rank == 1), "rank": int(rank), "query": query, "answers": answers}


def thumbnails(pictures: Iterable[BenchmarkPicture], wanted: Sequence[str]) -> dict[str, str]:
    """data: URIs of the pictures with these ids, in the order of their first mention, PICTURES of them at most.

    A picture that cannot be read gets "". Reads until the last one is found.
    """
    left = set(list(dict.fromkeys(wanted))[:PICTURES])
    found: dict[str, str] = {}
    for picture in pictures:
        if not left:
            break
        if picture.id in left:
            left.remove(picture.id)
            try:
                found[picture.id] = thumbnail(picture.read())
            except (UnreadableImage, ContractError, OSError):
                continue  # embedding it has said so
    return found


def thumbnail(data: bytes) -> str:
    """The data: URI of a small JPEG of an image file. Raises UnreadableImage."""
    from PIL import Image

    pixels_HW3 = decode(data).permute(1, 2, 0).numpy()
    image = Image.fromarray(np.ascontiguousarray(pixels_HW3))
    image.thumbnail((SIDE, SIDE))
    out = io.BytesIO()
    image.save(out, "JPEG", quality=_QUALITY, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(out.getvalue()).decode()


def with_pictures(examples: list[dict[str, Any]], pictures: Iterable[BenchmarkPicture]) -> list[dict[str, Any]]:
    """The examples with data: URIs for the ids in `picture`, those of the queries first; "" for a missing one."""
    parts = [example["query"] for example in examples] + [a for example in examples for a in example["answers"]]
    found = thumbnails(pictures, [part["picture"] for part in parts if "picture" in part])
    for part in parts:
        if "picture" in part:
            part["id"] = part["picture"]
            part["picture"] = found.get(part["picture"], "")
    return examples
