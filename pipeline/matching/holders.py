"""What the leader pass remembers, held in shares: kept images, kept texts, and counts of pairs by text and domain.

Leader number n is in the share of holder n % S, as its n // S-th one. Whoever asks gets the smallest number over all
shares, so the answer does not depend on S. With one share, or without Ray, holders are objects of this process and a
call is a call; else each is an actor, somewhere in the cluster. The pass that asks then holds a block and nothing else.

Limits: a share is in memory, about 4 KB for each kept pair of this build and 3 KB for each of an earlier one; a dead
actor fails the stage, which is started anew. Actors ask Ray for no CPU, since they idle between questions and a machine
of two cores must not wait for a third.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from data_specs.build import Dedup
from pipeline.files.digests import Digests, bytes_of, digests_of, rows_of
from pipeline.matching.near_images import Codes, ImageLeaders, Ints
from pipeline.matching.near_texts import TextIndex
from pipeline.matching.text_rows import TextRows

NONE = np.iinfo(np.int64).max
"""The number of no leader."""

EARLIER, PLACEHOLDER = 1, 2
"""Flags of a leader: an earlier build kept it; it is a placeholder."""

T = TypeVar("T", bound=np.generic)


class Column(Generic[T]):
    """A NumPy array that grows by doubling."""

    def __init__(self, kind: type[T], *shape: int) -> None:
        self._values: npt.NDArray[T] = np.zeros((1024, *shape), kind)
        self.size = 0

    def add(self, values: npt.NDArray[T]) -> None:
        end = self.size + len(values)
        if end > len(self._values):
            larger = np.zeros((max(end, 2 * len(self._values)), *self._values.shape[1:]), self._values.dtype)
            larger[: self.size] = self._values[: self.size]
            self._values = larger
        self._values[self.size : end] = values
        self.size = end

    @property
    def values(self) -> npt.NDArray[T]:
        """[size, ...]: a view, good until the next `add`."""
        return self._values[: self.size]


@dataclass(frozen=True)
class ImageRows:
    """Images [N]: phash [N, hashes], signature [N, bytes]."""

    sha256: Sequence[bytes]
    phash: Codes
    signature: npt.NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.sha256)

    @property
    def looks(self) -> tuple[Codes, npt.NDArray[np.uint8]]:
        return self.phash, self.signature

    def take(self, rows: Any) -> ImageRows:
        digests = self.sha256[rows] if isinstance(rows, slice) else [self.sha256[row] for row in rows]
        return ImageRows(digests, self.phash[rows], self.signature[rows])


def images_of(table: pa.Table) -> ImageRows:
    """Images of a table with sha256 (DIGEST), phash and signature."""
    raw = np.concatenate([np.zeros(0, np.uint8), *(bytes_of(chunk)[0] for chunk in table["signature"].chunks)])
    signature = raw.reshape(table.num_rows, -1 if table.num_rows else 1)
    return ImageRows(rows_of(digests_of(table["sha256"])), hashes_of(table), signature)


def hashes_of(table: pa.Table) -> Codes:
    """[N, hashes] of a table with phash."""
    rows = table.num_rows
    codes: Codes = pc.list_flatten(table["phash"]).to_numpy().astype(np.uint64).reshape(rows, -1 if rows else 1)
    return codes


Looks = tuple[Codes, Sequence[npt.NDArray[np.uint8]]]
"""Hashes [N, hashes], and signatures in pieces, in order: [N, bytes] together."""


@dataclass(frozen=True)
class Known:
    """What is known of image leaders [N], beside their looks."""

    candidate_id: Digests
    place: Ints  # run << 32 | position, -1 for an earlier build's
    flags: npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Found(Known):
    """The first leader of each that asked [N]; number NONE where there is none."""

    number: Ints

    def or_earlier(self, other: Found) -> Found:
        """Of both answers the one with the smaller number."""
        less = other.number < self.number
        return Found(
            np.where(less[:, None], other.candidate_id, self.candidate_id),
            np.where(less, other.place, self.place),
            np.where(less, other.flags, self.flags),
            np.where(less, other.number, self.number),
        )


class Holder:
    """One share of the leaders: number `share` of `of`."""

    def __init__(self, rules: Dedup, share: int, of: int) -> None:
        self._share, self._of = share, of
        self._same: dict[bytes, int] = {}
        self._candidate, self._place, self._flags = Column(np.uint8, 32), Column(np.int64), Column(np.uint8)
        self._looks = ImageLeaders(rules.image_distance, rules.image_signature)
        self._seen = Column(np.int64)  # which image each of self._looks is: not all can be compared by looks
        self._texts = TextIndex(rules.text_similarity)
        self._text_at: dict[bytes, int] = {}
        self._text_id, self._pairs = Column(np.uint8, 32), Column(np.int64)
        self._domains: Counter[int] = Counter()

    def same(self, sha256: Sequence[bytes]) -> Found:
        """Leaders with the same bytes."""
        return self._found(np.array([self._same.get(s, -1) for s in sha256], np.int64))

    def alike(self, images: ImageRows) -> Found:
        """Leaders that look alike."""
        first = self._looks.first(*images.looks)
        known = first >= 0
        first[known] = self._seen.values[first[known]]
        return self._found(first)

    def texts(self, texts: TextRows) -> tuple[Ints, Digests, Ints]:
        """For each text the number and id of its leader, and how many kept pairs have a primary text of its cluster."""
        at = np.array([self._text_at.get(i, -1) for i in rows_of(texts.ids)], np.int64)
        unknown = np.flatnonzero(at < 0)  # a copy of a leader, to the letter, is the same as none before it
        at[unknown] = self._texts.first(texts.take(unknown).sketches)
        known = at >= 0
        number, ids, pairs = np.full(len(at), NONE), np.zeros((len(at), 32), np.uint8), np.zeros(len(at), np.int64)
        number[known] = at[known] * self._of + self._share
        ids[known], pairs[known] = self._text_id.values[at[known]], self._pairs.values[at[known]]
        return number, ids, pairs

    def domains(self, domains: Sequence[int]) -> Ints:
        """How many kept pairs each domain has in this share."""
        return np.array([self._domains[d] for d in domains], np.int64)

    def learn_images(self, sha256: Sequence[bytes], known: Known, looks: Looks | None) -> None:
        """Add the next leaders of this share; without `looks` they are matched by bytes only."""
        start = self._place.size
        for at, digest in enumerate(sha256, start):
            self._same.setdefault(digest, at)
        self._candidate.add(known.candidate_id)
        self._place.add(known.place)
        self._flags.add(known.flags)
        if looks is not None:
            self._looks.add(looks[0], *looks[1])
            self._seen.add(np.arange(start, self._place.size))

    def learn_texts(self, texts: TextRows) -> None:
        """Add the next text leaders of this share."""
        at = np.arange(self._pairs.size, self._pairs.size + len(texts))
        self._text_at.update(zip(rows_of(texts.ids), at.tolist(), strict=True))
        self._text_id.add(texts.ids)
        self._pairs.add(np.zeros(len(texts), np.int64))
        self._texts.add(texts.sketches, at)

    def count(self, text_leaders: Counter[bytes], domains: Counter[int]) -> None:
        """Pairs were kept whose primary texts have these leaders, wherever they are held, from these domains."""
        pairs = self._pairs.values
        for leader, n in text_leaders.items():
            if (at := self._text_at.get(leader)) is not None:
                pairs[at] += n
        self._domains.update({d: n for d, n in domains.items() if d % self._of == self._share})

    def _found(self, at: Ints) -> Found:
        known = at >= 0
        size = len(at)
        found = Found(
            np.zeros((size, 32), np.uint8), np.full(size, -1), np.zeros(size, np.uint8), np.full(size, NONE, np.int64)
        )
        found.number[known] = at[known] * self._of + self._share
        found.candidate_id[known] = self._candidate.values[at[known]]
        found.place[known], found.flags[known] = self._place.values[at[known]], self._flags.values[at[known]]
        return found


class Holders:
    """All shares as one. Use as a context manager: actors end with it."""

    def __init__(self, rules: Dedup, count: int) -> None:
        self._count, self._images, self._texts = count, 0, 0
        self._ray = _running_ray() if count > 1 else None
        if self._ray is None:
            self._holders: list[Any] = [Holder(rules, share, count) for share in range(count)]
        else:
            actor = self._ray.remote(Holder).options(num_cpus=0, scheduling_strategy="SPREAD")
            self._holders = [actor.remote(rules, share, count) for share in range(count)]

    def __enter__(self) -> Holders:
        return self

    def __exit__(self, *_: object) -> None:
        if self._ray is not None:
            for holder in self._holders:
                self._ray.kill(holder)

    def same(self, sha256: Sequence[bytes]) -> Found:
        return _first(self._ask("same", [(sha256,)] * self._count))

    def alike(self, images: ImageRows) -> Found:
        return _first(self._ask("alike", [(images,)] * self._count))

    def texts(self, texts: TextRows) -> tuple[Ints, Digests, Ints]:
        """As Holder.texts, over all shares."""
        number, ids, pairs = zip(*self._ask("texts", [(texts,)] * self._count), strict=True)
        best = np.argmin(np.stack(number), axis=0)
        rows = np.arange(len(best))
        return np.stack(number)[best, rows], np.stack(ids)[best, rows], np.stack(pairs)[best, rows]

    def domains(self, domains: Sequence[int]) -> Ints:
        found: Ints = np.sum(self._ask("domains", [(domains,)] * self._count), axis=0)
        return found

    def learn_images(self, sha256: Sequence[bytes], known: Known, looks: Looks | None) -> None:
        """The next image leaders."""
        shares = []
        for share in range(self._count):
            rows, start = self._share(share, self._images), self._images
            own = Known(known.candidate_id[rows], known.place[rows], known.flags[rows])
            pieces = []
            for piece in looks[1] if looks else ():
                pieces.append(piece[self._share(share, start)])
                start += len(piece)
            shares.append((sha256[rows], own, (looks[0][rows], pieces) if looks else None))
        self._images += len(sha256)
        self._ask("learn_images", shares)

    def learn_texts(self, texts: TextRows) -> None:
        """The next text leaders."""
        shares = [(texts.take(self._share(share, self._texts)),) for share in range(self._count)]
        self._texts += len(texts)
        self._ask("learn_texts", shares)

    def count(self, text_leaders: Counter[bytes], domains: Counter[int]) -> None:
        self._ask("count", [(text_leaders, domains)] * self._count)

    def _share(self, share: int, start: int) -> slice:
        """Which rows belong to a share, of new ones that follow `start` known ones."""
        return slice((share - start) % self._count, None, self._count)

    def _ask(self, what: str, arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
        pairs = zip(self._holders, arguments, strict=True)
        if self._ray is None:
            return [getattr(holder, what)(*own) for holder, own in pairs]
        answers: list[Any] = self._ray.get([getattr(holder, what).remote(*own) for holder, own in pairs])
        return answers


def _first(answers: Sequence[Found]) -> Found:
    first = answers[0]
    for other in answers[1:]:
        first = first.or_earlier(other)
    return first


def _running_ray() -> Any:
    """Ray, if this process is part of a cluster; else None."""
    import ray

    return ray if ray.is_initialized() else None
