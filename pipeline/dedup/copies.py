"""Pass dedup.copies: images of the same bytes and texts that are equal to the letter, over all runs and earlier builds.

They are collapsed before anything is compared: of images with the same bytes, and of equal texts, the one with the
smallest number stands for all (`pipeline.dedup.edges`). A partition is a range of the first 64 bits of their digests,
over all runs and over all pieces of earlier builds.

Limits: a partition holds about 40 bytes for each of AT_ONCE images and texts.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import numpy as np

from pipeline.dedup import earlier
from pipeline.dedup.array_files import COPIES, KEPT_IMAGES, KEPT_TEXTS, ranges, ranges_of, write_found
from pipeline.dedup.earlier import IMAGES, TEXTS, opened, pieces_of
from pipeline.dedup.piece import VERSION, words_within
from pipeline.dedup.runs import Runs, records_of
from pipeline.features import feature_id
from pipeline.files.arrays import Arrays
from pipeline.files.digests import Digests
from pipeline.matching.image_keys import Codes, Ints
from pipeline.matching.sketches import spread
from pipeline.processes import pulse
from pipeline.store.build import Build, Pass, PassFile

AT_ONCE = 1 << 22
"""Images and texts of a partition."""

PREFIX = {IMAGES: "", TEXTS: "text."}
DIGESTS = {IMAGES: "sha256", TEXTS: "text.ids"}


def token(build: Build) -> Any:
    made_from = [own.identities for own in build.made_from]
    return [build.identity_revision, feature_id(), VERSION, made_from]


def partitions(build: Build) -> list[str]:
    """Equal ranges of digests."""
    records = records_of(build)
    return ranges(sum(record.counts["pairs"] + record.counts["texts"] for record in records), AT_ONCE)


def run_partition(build: Build, partition: str) -> None:
    """The copies in a range, each with the first of its kind; and what earlier builds have of it."""
    first, last = ranges_of(partition)
    found: dict[str, Ints] = {}
    with ExitStack() as files, build.stage("dedup.copies").attempt(partition) as attempt:
        runs = Runs(build, files)
        pulse.expect(int(runs.starts[-1]))
        for kind, starts, kept in ((IMAGES, runs.starts, KEPT_IMAGES), (TEXTS, runs.text_starts, KEPT_TEXTS)):
            words, numbers, digests = _items_in_range(runs, kind, starts, first, last)
            found[f"{COPIES}.{kind}"] = _equal(words, numbers, digests)
            found[kept] = _of_earlier(build, runs, kind, (words, numbers, digests), first, last)
        pulse.advance(int(runs.starts[-1]))
        write_found(attempt, found)
        attempt.commit({"images": len(found[f"{COPIES}.{IMAGES}"]), "texts": len(found[f"{COPIES}.{TEXTS}"])})


def _items_in_range(runs: Runs, kind: str, starts: Ints, first: float, last: float) -> tuple[Codes, Ints, Digests]:
    """(words ascending, numbers, digests) of the items of all runs in a range; equal digests by ascending number."""
    words, numbers, digests = [np.zeros(0, np.uint64)], [np.zeros(0, np.int64)], [np.zeros((0, 32), np.uint8)]
    for arrays, start in zip(runs.arrays, starts.tolist(), strict=False):
        word, rows = words_within(arrays, PREFIX[kind], first, last)
        words.append(word)
        numbers.append(rows + start)
        digests.append(arrays[DIGESTS[kind]][rows])
    word, number = np.concatenate(words), np.concatenate(numbers)
    order = np.lexsort((number, word))
    return word[order], number[order], np.concatenate(digests)[order]


def _equal(words: Codes, numbers: Ints, digests: Digests) -> Ints:
    """[K, 2] (number of a copy, number of the first one with its digest)."""
    if not len(words):
        return np.zeros((0, 2), np.int64)
    near = np.concatenate([[False], words[1:] == words[:-1]])
    inside = np.flatnonzero(near | np.append(near[1:], False))  # few digests share their word with another one
    whole = digests[inside].view("V32").ravel()
    _, first, group = np.unique(whole, return_index=True, return_inverse=True)
    least = np.full(len(first), np.iinfo(np.int64).max)
    np.minimum.at(least, group, numbers[inside])
    found = np.stack([numbers[inside], least[group]], axis=1)
    copies: Ints = found[found[:, 0] != found[:, 1]]
    return copies


def _of_earlier(
    build: Build, runs: Runs, kind: str, own: tuple[Codes, Ints, Digests], first: float, last: float
) -> Ints:
    """[K, 3] (number, number of the earlier one with its digest, 1 for one of `made_from`), by number of the latter."""
    words, numbers, digests = own
    found = [np.zeros((0, 3), np.int64)]
    for piece, arrays in _pieces(build, runs, kind):
        kept, rows = words_within(arrays, PREFIX[kind], first, last)
        low, high = np.searchsorted(kept, words, "left"), np.searchsorted(kept, words, "right")
        asked, at = np.repeat(np.arange(len(words)), high - low), rows[spread(low, high)]
        equal = (arrays[DIGESTS[kind]][at] == digests[asked]).all(axis=1)
        columns = numbers[asked[equal]], at[equal] + piece.start, np.full(int(equal.sum()), int(piece.before))
        found.append(np.stack(columns, axis=1))
    return np.concatenate(found)


def _pieces(build: Build, runs: Runs, kind: str) -> Iterator[tuple[earlier.Piece, Arrays]]:
    for piece in pieces_of(build, kind):
        with opened(build, piece, runs.keys) as arrays:
            yield piece, arrays


PASS = Pass(
    name="dedup.copies",
    over=partitions,
    reads=("dedup.signatures",),
    run=run_partition,
    token=token,
    files=(PassFile("bin"),),
    working=True,
    unit="images",
    done=("images",),
)
