"""Pass dedup.edges: pairs of images that look alike and of texts that are the same, over all runs and earlier builds.

A partition is a range of the entries of all keys (`pipeline.matching.image_keys`, band keys of texts), about ENTRIES
of them over all runs, and reads no more. What shares a key is compared, unless contexts tell that it is two pictures
(`pipeline.matching.contexts`), and what is verified is an edge. What earlier
builds kept is looked up piece by piece and never compared with itself. Of copies to the letter (`copies`) the first
stands for all.

Limits: a partition holds about 60 bytes for each of its entries, and five for each image, or distinct text, of the
build. Of a BUILD behind a URL each partition copies the signatures of all runs.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.dedup.array_files import (
    EDGES,
    KEPT_IMAGES,
    KEPT_TEXTS,
    Collapsed,
    crowd_arrays,
    ranges,
    ranges_of,
    write_found,
)
from pipeline.dedup.earlier import IMAGES, TEXTS, KeptSigned, opened, pieces_of
from pipeline.dedup.piece import kept_images_in, kept_texts_in, loaded_in, text_entries_in
from pipeline.dedup.runs import Runs, keys_of, records_of, rule_of
from pipeline.matching.contexts import TWO, Context, bonds
from pipeline.matching.crowds import Crowds
from pipeline.matching.image_edges import Asking, ImageJoin, KeptJoin, Loaded
from pipeline.matching.image_keys import Ints, Key
from pipeline.matching.sketches import bands, distinct
from pipeline.matching.text_edges import BUCKETS, KeptTextJoin, TextJoin
from pipeline.processes import pulse
from pipeline.store.build import Build, Pass, PassFile
from pipeline.store.commits import Record

ENTRIES = 1 << 22
"""Entries of a partition, on average."""


@dataclass(frozen=True)
class _BucketRange:
    """Buckets first to last - 1 of a key, by its number; of texts where that is -1."""

    key: int
    first: int
    last: int


def token(build: Build) -> Any:
    return [build.spec.dedup.image_signature, build.spec.dedup.text_similarity]


def _entries(build: Build, records: list[Record]) -> list[tuple[int, int, int]]:
    """(number of a key, its buckets, about how many entries it has), texts last; keys without an entry are left out."""
    pairs, detailed, texts = (sum(record.counts[what] for record in records) for what in ("pairs", "detailed", "texts"))
    found = [
        (number, key.buckets, (detailed if key.family.fine else pairs) * len(key.family.parts))
        for number, key in enumerate(keys_of(build, records))
    ]
    found.append((-1, BUCKETS, texts * bands(build.spec.dedup.text_similarity)[1]))
    return [of for of in found if of[2]]


def partitions(build: Build) -> list[str]:
    """Equal ranges of the entries of all keys, one key after the other."""
    return ranges(sum(entries for *_, entries in _entries(build, records_of(build))), ENTRIES)


def _parts(build: Build, records: list[Record], partition: str) -> list[_BucketRange]:
    """Returns the parts of keys that lie in a range."""
    every = _entries(build, records)
    total = sum(entries for *_, entries in every)
    low, high = (round(share * total) for share in ranges_of(partition))
    found, start = list[_BucketRange](), 0
    for key, buckets, entries in every:
        first, last = (min(max(at - start, 0), entries) * buckets // entries for at in (low, high))
        if first < last:
            found.append(_BucketRange(key, first, last))
        start += entries
    return found


def run_partition(build: Build, partition: str) -> None:
    """The edges that a range of entries holds."""
    with ExitStack() as files, build.stage("dedup.edges").attempt(partition) as attempt:
        runs = Runs(build, files)
        pulse.expect(int(runs.starts[-1]))
        parts = _parts(build, runs.records, partition)
        images = _images(build, runs, [part for part in parts if part.key >= 0])
        pulse.advance(int(runs.starts[-1]) // 2)
        texts = _texts(build, runs, [part for part in parts if part.key < 0])
        pulse.advance(int(runs.starts[-1]) - int(runs.starts[-1]) // 2)
        found, counts = dict[str, Any](), {"images": int(runs.starts[-1])}
        for kind, kept_name, (edges, kept, crowds, compared) in (
            (IMAGES, KEPT_IMAGES, images),
            (TEXTS, KEPT_TEXTS, texts),
        ):
            found |= {f"{EDGES}.{kind}": edges, kept_name: kept, **crowd_arrays(kind, crowds)}
            counts |= {f"{kind}.edges": len(edges), f"{kind}.kept": len(kept), f"{kind}.compared": compared}
        write_found(attempt, found)
        attempt.commit(counts)


_Found = tuple[Ints, Ints, Crowds, int]
"""Edges; matches of earlier builds; crowds; how many pairs were compared."""

_NOTHING: _Found = (np.zeros((0, 2), np.int64), np.zeros((0, 3), np.int64), Crowds.of([]), 0)


def _images(build: Build, runs: Runs, parts: list[_BucketRange]) -> _Found:
    if not parts:
        return _NOTHING
    signed, rule = runs.signatures(), rule_of(build.spec)
    collapsed = Collapsed(build, IMAGES, int(runs.starts[-1]))

    def are_different(ones: Ints, others: Ints) -> npt.NDArray[np.bool_]:
        """True where contexts tell images apart; copies have contexts of their own, so they are left out."""
        apart: npt.NDArray[np.bool_] = bonds(*_contexts(runs, ones, others)) == TWO
        return apart & ~collapsed.copied[ones] & ~collapsed.copied[others]

    join = ImageJoin(rule, signed, runs.hashed, runs.concat("order"), are_different)
    entries = list[tuple[int, Key, Loaded]]()
    for part in parts:
        key, loaded = runs.keys[part.key], list[Loaded]()
        for arrays, start in zip(runs.arrays, runs.starts.tolist(), strict=False):
            own = loaded_in(arrays, part.key, key, (part.first, part.last), start)
            loaded.append(own.take(collapsed.remaining(own.image)))
            arrays.give_back()
        entries.append((part.key, key, Loaded.concat(loaded)))
    for _, key, own in entries:
        join.join(key, own)
    kept, pieces = [np.zeros((0, 3), np.int64)], pieces_of(build, IMAGES)
    asking = [(number, key, Asking.of(key, own)) for number, key, own in entries] if pieces else []
    for piece in pieces:
        with opened(build, piece, runs.keys) as arrays:

            def two_kept(ones: Ints, others: Ints, kept: Context = arrays["contexts"]) -> npt.NDArray[np.bool_]:
                apart: npt.NDArray[np.bool_] = bonds(runs.contexts(ones), kept[others]) == TWO
                return apart & ~collapsed.copied[ones]

            looking = KeptJoin(rule.threshold, signed, theirs := KeptSigned(arrays, build, piece), two_kept)
            for number, key, asks in asking:
                looking.look(key, asks, kept_images_in(arrays, number, key, theirs))
            one, other = looking.matches()
        kept.append(np.stack([one, other + piece.start, np.full(len(one), int(piece.before))], axis=1))
    edges, crowds = join.edges()
    return edges, np.concatenate(kept), crowds, join.compared


def _contexts(runs: Runs, ones: Ints, others: Ints) -> tuple[Context, Context]:
    """Contexts of pairs of images, each of which is read once."""
    images = distinct(np.concatenate([ones, others]))
    contexts = runs.contexts(images)
    return contexts[np.searchsorted(images, ones)], contexts[np.searchsorted(images, others)]


def _texts(build: Build, runs: Runs, parts: list[_BucketRange]) -> _Found:
    if not parts:
        return _NOTHING
    threshold = build.spec.dedup.text_similarity
    collapsed = Collapsed(build, TEXTS, int(runs.text_starts[-1]))
    join = TextJoin(threshold, runs.sketches, runs.concat("text.order"))
    kept = [np.zeros((0, 3), np.int64)]
    pieces = pieces_of(build, TEXTS)
    for part in parts:
        keys, numbers = [np.zeros(0, np.uint32)], [np.zeros(0, np.int64)]
        for arrays, start in zip(runs.arrays, runs.text_starts.tolist(), strict=False):
            own = text_entries_in(arrays, part.first, part.last)
            text = own.owner.astype(np.int64) + start
            rows = collapsed.remaining(text)
            keys.append(own.keys[rows])
            numbers.append(text[rows])
        key, text = np.concatenate(keys), np.concatenate(numbers)
        join.join(key, text)
        for piece in pieces:
            with opened(build, piece, runs.keys) as arrays:
                looking = KeptTextJoin(threshold, runs.sketches, kept_texts_in(arrays))
                looking.look(key, text)
                one, other = looking.matches()
            kept.append(np.stack([one, other + piece.start, np.zeros(len(one), np.int64)], axis=1))
    edges, crowds = join.edges()
    return edges, np.concatenate(kept), crowds, join.compared


PASS = Pass(
    name="dedup.edges",
    over=partitions,
    reads=("dedup.signatures", "dedup.copies"),
    run=run_partition,
    token=token,
    version=5,
    files=(PassFile("bin"),),
    working=True,
    unit="images",
    done=("images",),
)
