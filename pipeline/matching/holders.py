"""The memory of the leader pass, in shares: kept images, kept texts, splits of texts, counts by text and domain.

Leader number n belongs to holder n % S of S, as its n // S-th one. A question goes to all shares and the smallest
number wins, so the answer does not depend on S. With one share, or without a Ray cluster, holders are objects of this
process; else each is an actor (`pipeline.actors`). The process of the leader pass then holds one block at a time.

Limits: a share is in memory, about 4 KB per kept pair of this build and 3 KB per kept pair of an earlier one, of which
what is known to match nothing (`Block.alone`), or nothing of this build (`earlier_builds.learn_met`), takes nothing;
an actor that dies fails the stage, which is started anew.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from data_specs.build import Dedup
from data_specs.shard import SPLITS
from pipeline.actors import Actors
from pipeline.files.digests import Digests, bytes_of, digests_of, rows_of
from pipeline.matching.looks import NO_DETAILS, Details
from pipeline.matching.near_images import Codes, ImageLeaders, Ints
from pipeline.matching.near_texts import TextIndex
from pipeline.matching.text_rows import TextRows

NONE = np.iinfo(np.int64).max
"""The leader number that stands for "no leader": larger than any, so that the smallest of several answers is right."""

ELSEWHERE, HELD = -1, -2
"""Places of leaders that earlier builds kept: of another dataset, of the same one. A place in a run is not below 0."""

EARLIER, PLACEHOLDER = 1, 2
"""Flags of an image leader, or-ed: an earlier build kept it; it is a placeholder."""

T = TypeVar("T", bound=np.generic)


class Column(Generic[T]):
    """A NumPy array that grows by doubling."""

    def __init__(self, kind: type[T], *shape: int) -> None:
        self._values: npt.NDArray[T] = np.zeros((1024, *shape), kind)
        self.size = 0

    def add(self, values: npt.NDArray[T]) -> None:
        """Append rows [N, *shape]."""
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
    """Images [N] as they are compared: sha256 of the bytes, phash [N, hashes], signature [N, bytes], details."""

    sha256: Sequence[bytes]
    phash: Codes
    signature: npt.NDArray[np.uint8]
    details: Details = NO_DETAILS

    def __len__(self) -> int:
        return len(self.sha256)

    @property
    def looks(self) -> tuple[Codes, npt.NDArray[np.uint8], Details]:
        """(phash, signature, details): what likeness is judged by."""
        return self.phash, self.signature, self.details

    def take(self, rows: Any) -> ImageRows:
        """Some of the images, by a slice or by row numbers."""
        digests = self.sha256[rows] if isinstance(rows, slice) else [self.sha256[row] for row in rows]
        details = self.details.take(np.arange(len(self))[rows])
        return ImageRows(digests, self.phash[rows], self.signature[rows], details)


def images_of(table: pa.Table) -> ImageRows:
    """Images of a table with the columns sha256 (DIGEST), phash, signature and, but for an older wenlan's, details."""
    sha256, details = rows_of(digests_of(table["sha256"])), Details.of_table(table)
    return ImageRows(sha256, hashes_of(table), signatures_of(table["signature"]), details)


def signatures_of(column: pa.ChunkedArray) -> npt.NDArray[np.uint8]:
    """Equally long signatures, end to end, as an array [N, bytes]."""
    raw = np.concatenate([np.zeros(0, np.uint8), *(bytes_of(chunk)[0] for chunk in column.chunks)])
    return raw.reshape(len(column), -1 if len(column) else 1)


def hashes_of(table: pa.Table) -> Codes:
    """The column phash of a table as an array [N, hashes]."""
    rows = table.num_rows
    codes: Codes = pc.list_flatten(table["phash"]).to_numpy().astype(np.uint64).reshape(rows, -1 if rows else 1)
    return codes


Looks = tuple[Codes, Sequence[npt.NDArray[np.uint8]], Sequence[Details]]
"""phash [N, hashes], signatures in pieces that follow each other, together [N, bytes], and each piece's details."""


@dataclass(frozen=True)
class Known:
    """What is kept of image leaders [N] beside their looks."""

    candidate_id: Digests
    place: Ints  # run << 32 | position; ELSEWHERE or HELD for an earlier build's
    flags: npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Matches(Known):
    """For each image that was asked about [N] its first leader; `number` is NONE where it has none."""

    number: Ints

    def or_earlier(self, other: Matches) -> Matches:
        """For each image the match with the smaller number of both."""
        less = other.number < self.number
        return Matches(
            np.where(less[:, None], other.candidate_id, self.candidate_id),
            np.where(less, other.place, self.place),
            np.where(less, other.flags, self.flags),
            np.where(less, other.number, self.number),
        )


class Holder:
    """One share of the leaders: number `share` of `of`. Images and texts are numbered apart, each from 0."""

    def __init__(self, rules: Dedup, share: int, of: int) -> None:
        self._share, self._of = share, of
        self._image_at: dict[bytes, int] = {}  # sha256 -> row of the columns below
        self._candidate, self._place, self._flags = Column(np.uint8, 32), Column(np.int64), Column(np.uint8)
        self._looks = ImageLeaders(rules.image_distance, rules.image_signature)
        self._image_of_look = Column(np.int64)  # row of each entry of self._looks: not all can be compared by looks
        self._texts = TextIndex(rules.text_similarity)
        self._text_at: dict[bytes, int] = {}  # text id -> row of the columns below
        self._text_id, self._pairs = Column(np.uint8, 32), Column(np.int64)
        self._split = Column(np.int8)  # number in SPLITS, -1 where nothing is known
        self._domains: Counter[int] = Counter()

    def same(self, sha256: Sequence[bytes]) -> Matches:
        """For each image the leader with the same bytes."""
        return self._matches(np.array([self._image_at.get(s, -1) for s in sha256], np.int64))

    def alike(self, images: ImageRows) -> Matches:
        """For each image the first leader that looks alike."""
        first = self._looks.first(*images.looks)
        known = first >= 0
        first[known] = self._image_of_look.values[first[known]]
        return self._matches(first)

    def texts(self, texts: TextRows) -> tuple[Ints, Digests, Ints]:
        """For each text the number and id of its leader, and how many kept pairs have a primary text of its cluster."""
        at = np.array([self._text_at.get(i, -1) for i in rows_of(texts.ids)], np.int64)
        # only these are compared: a text that is a leader to the letter matches none before it, or it would not lead
        unknown = np.flatnonzero(at < 0)
        at[unknown] = self._texts.first(texts.take(unknown).sketches)
        known = at >= 0
        number, ids, pairs = np.full(len(at), NONE), np.zeros((len(at), 32), np.uint8), np.zeros(len(at), np.int64)
        number[known] = at[known] * self._of + self._share  # from a row of this share to a number over all shares
        ids[known], pairs[known] = self._text_id.values[at[known]], self._pairs.values[at[known]]
        return number, ids, pairs

    def domains(self, domains: Sequence[int]) -> Ints:
        """How many kept pairs each domain has in this share."""
        return np.array([self._domains[d] for d in domains], np.int64)

    def learn_images(self, sha256: Sequence[bytes], known: Known, looks: Looks | None) -> None:
        """Add the next image leaders of this share; without `looks` they are matched by bytes only."""
        start = self._place.size
        for at, digest in enumerate(sha256, start):
            self._image_at.setdefault(digest, at)
        self._candidate.add(known.candidate_id)
        self._place.add(known.place)
        self._flags.add(known.flags)
        if looks is not None:
            self._looks.add(looks[0], *looks[1], details=looks[2])
            self._image_of_look.add(np.arange(start, self._place.size))

    def learn_texts(self, texts: TextRows) -> None:
        """Add the next text leaders of this share."""
        at = np.arange(self._pairs.size, self._pairs.size + len(texts))
        self._text_at.update(zip(rows_of(texts.ids), at.tolist(), strict=True))
        self._text_id.add(texts.ids)
        self._pairs.add(np.zeros(len(texts), np.int64))
        self._split.add(np.full(len(texts), -1, np.int8))
        self._texts.add(texts.sketches, at)

    def text_splits(self, leaders: Sequence[bytes]) -> Ints:
        """For each text leader the number of its cluster's split, -1 where it is not known in this share."""
        rows = [self._text_at.get(leader, -1) for leader in leaders]
        return np.array([self._split.values[row] if row >= 0 else -1 for row in rows], np.int64)

    def place_texts(self, splits: Mapping[bytes, int]) -> None:
        """Set the splits of clusters by their leaders; what is another share's is ignored."""
        for leader, split in splits.items():
            if (at := self._text_at.get(leader)) is not None:
                self._split.values[at] = split

    def count(self, text_leaders: Counter[bytes], domains: Counter[int]) -> None:
        """Count kept pairs by the leader of their primary text and by domain; what is another share's is ignored."""
        pairs = self._pairs.values  # a view: adding to it counts
        for leader, n in text_leaders.items():
            if (at := self._text_at.get(leader)) is not None:
                pairs[at] += n
        self._domains.update({d: n for d, n in domains.items() if d % self._of == self._share})

    def _matches(self, at: Ints) -> Matches:
        """The leaders in these rows [N] of this share; -1 for none."""
        known = at >= 0
        size = len(at)
        matches = Matches(
            np.zeros((size, 32), np.uint8),
            np.full(size, ELSEWHERE),
            np.zeros(size, np.uint8),
            np.full(size, NONE, np.int64),
        )
        matches.number[known] = at[known] * self._of + self._share
        matches.candidate_id[known] = self._candidate.values[at[known]]
        matches.place[known], matches.flags[known] = self._place.values[at[known]], self._flags.values[at[known]]
        return matches


class Holders:
    """All shares as one. Use as a context manager: actors end with it."""

    def __init__(self, rules: Dedup, count: int) -> None:
        self._count, self._images, self._texts = count, 0, 0
        self._shares = Actors(Holder, [(rules, share, count) for share in range(count)])

    def __enter__(self) -> Holders:
        return self

    def __exit__(self, *_: object) -> None:
        self._shares.close()

    def same(self, sha256: Sequence[bytes]) -> Matches:
        """Holder.same over all shares."""
        return _first(self._ask_each("same", sha256))

    def alike(self, images: ImageRows) -> Matches:
        """Holder.alike over all shares."""
        return _first(self._ask_each("alike", images))

    def texts(self, texts: TextRows) -> tuple[Ints, Digests, Ints]:
        """Holder.texts over all shares."""
        number, ids, pairs = zip(*self._ask_each("texts", texts), strict=True)  # each [shares] of [N, ...]
        best = np.argmin(np.stack(number), axis=0)  # [N]: the share with the first leader of each text
        rows = np.arange(len(best))
        return np.stack(number)[best, rows], np.stack(ids)[best, rows], np.stack(pairs)[best, rows]

    def domains(self, domains: Sequence[int]) -> Ints:
        """How many kept pairs each domain has."""
        pairs: Ints = np.sum(self._ask_each("domains", domains), axis=0)
        return pairs

    def learn_images(self, sha256: Sequence[bytes], known: Known, looks: Looks | None) -> None:
        """Add the next image leaders, each to its share."""
        arguments = []
        for share in range(self._count):
            rows, start = self._rows_of(share, self._images), self._images
            own = Known(known.candidate_id[rows], known.place[rows], known.flags[rows])
            pieces, details = list[npt.NDArray[np.uint8]](), list[Details]()
            for piece, of_piece in zip(*looks[1:], strict=True) if looks else ():
                # a piece begins in the middle of the new leaders, so its share begins where the numbers stand by then
                own_rows = self._rows_of(share, start)
                pieces.append(piece[own_rows])
                details.append(of_piece.take(np.arange(len(piece))[own_rows]))
                start += len(piece)
            arguments.append((sha256[rows], own, (looks[0][rows], pieces, details) if looks else None))
        self._images += len(sha256)
        self._shares.ask("learn_images", arguments)

    def learn_texts(self, texts: TextRows) -> None:
        """Add the next text leaders, each to its share."""
        arguments = [(texts.take(self._rows_of(share, self._texts)),) for share in range(self._count)]
        self._texts += len(texts)
        self._shares.ask("learn_texts", arguments)

    def text_splits(self, leaders: Sequence[bytes]) -> list[str]:
        """For each text leader the split of its cluster, "" where it has none yet."""
        numbers = np.max(self._ask_each("text_splits", leaders), axis=0)
        return [SPLITS[number] if number >= 0 else "" for number in numbers.tolist()]

    def place_texts(self, splits: Mapping[bytes, str]) -> None:
        """Set the splits of clusters by their leaders."""
        if splits:
            self._ask_each("place_texts", {leader: SPLITS.index(split) for leader, split in splits.items()})

    def count(self, text_leaders: Counter[bytes], domains: Counter[int]) -> None:
        """Count kept pairs by the leader of their primary text and by domain."""
        self._ask_each("count", text_leaders, domains)

    def _rows_of(self, share: int, start: int) -> slice:
        """Which of new rows, the first of which gets the number `start`, belong to a share."""
        return slice((share - start) % self._count, None, self._count)

    def _ask_each(self, method: str, *arguments: Any) -> list[Any]:
        """The results of one method of every share, with the same arguments."""
        return self._shares.ask(method, [arguments] * self._count)


def _first(answers: Sequence[Matches]) -> Matches:
    """For each image the match with the smallest number over all shares."""
    first = answers[0]
    for other in answers[1:]:
        first = first.or_earlier(other)
    return first
