"""Comparison of two images: families of hashes, tones that must agree, and the verification of a candidate.

Every image has hashes of its parts and grids (`pictures.signatures`). One without texture has details besides
(`pictures.details`): finer hashes, and a map. They lie apart (`Details`), so that one with texture costs what it did.

A match of coarse hashes is verified by grids; where both images have details and one of them is plain, maps that lie
well over each other and still differ in a place overrule the grids. So two dialogs of one program that the grids do not
tell apart are two pictures. A match of fine hashes is verified by maps, and by colours, which maps know nothing of. One
may have a seal: a dense block in the maps, red in the colours.

Where mirrored and turned copies are looked for (`Rule.turned`), the whole in each form (`pictures.symmetries`) is a
part like others, coarse and fine. It is compared with the whole as it is, or cropped, and verified in that form.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.files.digests import bytes_of
from pipeline.pictures import alignment, details, symmetries
from pipeline.pictures.hashing import CONTENT, HASHES
from pipeline.pictures.signatures import (
    ALL,
    GRIDS,
    LOWER,
    SIZE,
    UPPER,
    Blocks,
    is_plain,
    of_one_colour,
    of_one_tone,
    one_has_seal,
    tones,
    within,
)

Codes = npt.NDArray[np.uint64]
Ints = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]
Bytes = npt.NDArray[np.uint8]

_HALVES = range(GRIDS, HASHES)

VERIFIED = 1 << 12
"""Pairs verified at once: what they need fits into a processor's cache."""

TONES_AT_ONCE = 4_096
"""Images whose tones are taken together: their grids stay in a processor's cache."""


@dataclass(frozen=True)
class Details:
    """Details of some of N images: `of` [M] are their numbers, ascending, `stored` [M, details.SIZE] the bytes."""

    of: Ints
    stored: Bytes

    def __len__(self) -> int:
        return len(self.of)

    def rows_of(self, images: Ints) -> tuple[Ints, Ints]:
        """Positions in `images` [K] of those that have details, and their rows of `stored`."""
        if not len(self.of):
            return np.zeros(0, np.int64), np.zeros(0, np.int64)
        rows = np.minimum(np.searchsorted(self.of, images), len(self.of) - 1)
        places = np.flatnonzero(self.of[rows] == images)
        return places, rows[places]

    def take(self, images: Ints) -> Details:
        """Details of images [K], which then are numbers 0 to K - 1."""
        places, rows = self.rows_of(images)
        if np.array_equal(places, self.of) and np.array_equal(rows, np.arange(len(self.of))):
            return self  # a memory map of a file stays one
        return Details(places, self.stored[rows])

    def shifted(self, by: int) -> Details:
        """Details with `by` added to the numbers of the images."""
        return Details(self.of + by, self.stored)

    @staticmethod
    def of_table(table: pa.Table) -> Details:
        """The column `details` of a table, null of an image without."""
        column = table["details"]
        if column.null_count == len(column):
            return NO_DETAILS
        raw = np.concatenate([bytes_of(chunk)[0] for chunk in column.drop_null().chunks])
        return Details(np.flatnonzero(column.is_valid().to_numpy()), raw.reshape(-1, details.SIZE))

    def write(self, file: IO[bytes]) -> None:
        """Append to a file: of each image its number, then its bytes, together ROW."""
        numbers = self.of.astype("<i8").view(np.uint8).reshape(-1, 8)
        file.write(np.concatenate([numbers, self.stored], axis=1).tobytes())

    @staticmethod
    def read(path: Path) -> Details:
        """Maps what was written to a file: only the numbers are read."""
        if not path.stat().st_size:
            return NO_DETAILS
        return Details.of_rows(np.memmap(path, np.uint8, "r").reshape(-1, ROW))

    @staticmethod
    def of_rows(rows: Bytes) -> Details:
        """Rows [M, ROW] of such a file."""
        return Details(np.ascontiguousarray(rows[:, :8]).view("<i8")[:, 0].astype(np.int64), rows[:, 8:])


def signatures_of(column: pa.ChunkedArray) -> Bytes:
    """Equally long signatures as an array [N, bytes]."""
    raw = np.concatenate([np.zeros(0, np.uint8), *(bytes_of(chunk)[0] for chunk in column.chunks)])
    return raw.reshape(len(column), GRIDS * SIZE)


def hashes_of(table: pa.Table) -> Codes:
    """The column phash of a table as an array [N, HASHES]."""
    codes: Codes = pc.list_flatten(table["phash"]).to_numpy().astype(np.uint64).reshape(table.num_rows, HASHES)
    return codes


ROW = 8 + details.SIZE
"""Bytes that `Details.write` writes of an image."""

NO_DETAILS = Details(np.zeros(0, np.int64), np.zeros((0, details.SIZE), np.uint8))


@dataclass(frozen=True)
class Family:
    """Hashes that are compared with each other: those of `parts`, each with that of part `asks`, within `radius`.

    fine: parts are those of `details.PARTS`, else those of every picture; behind either come those of `symmetries`.
    """

    parts: tuple[int, ...]
    asks: int
    radius: int
    fine: bool = False

    @property
    def blocks(self) -> Blocks:
        """Blocks of the tones that must agree, in the order in which keys take them."""
        return (UPPER, LOWER)[self.asks - GRIDS] if not self.fine and self.asks in _HALVES else ALL

    @cached_property
    def numbers(self) -> Ints:
        """`parts` as an array."""
        return np.array(self.parts, np.int64)

    @property
    def upright(self) -> int:
        """Number of parts before those of `symmetries`."""
        return len(details.PARTS) if self.fine else HASHES

    @property
    def in_other_forms(self) -> bool:
        """True if parts are those of `symmetries`: mirrored or turned forms."""
        return self.asks >= self.upright

    def toned(self, parts: Ints) -> Ints:
        """By which tones parts [N] are compared: halves of every picture by those of the whole."""
        if not self.fine and self.asks in _HALVES:
            return np.zeros_like(parts)
        return parts - HASHES + GRIDS if self.in_other_forms and not self.fine else parts

    def forms_and_parts(self, parts: Ints) -> tuple[Ints, Ints]:
        """Forms [N] of parts [N], and the parts as they lie in these forms."""
        return (
            symmetries.forms_and_boxes(parts - self.upright) if self.in_other_forms else (np.zeros_like(parts), parts)
        )


def families(radius: int, turned: bool = False) -> tuple[Family, ...]:
    """The whole with every part, and each other hash with the same: halves of every picture within half the radius.

    Of fine hashes, which maps verify, the whole is compared within a bit more than the radius: thin lines make them
    tremble. turned: the upright parts are also compared with the whole in all other forms.
    """
    coarse = (Family((part,), part, radius if part == CONTENT else radius // 2) for part in (CONTENT, *_HALVES))
    fine = (
        Family(parts, parts[0], radius if number else radius + 1, fine=True)
        for number, parts in enumerate(details.FAMILIES)
    )
    every = [Family(tuple(range(GRIDS)), 0, radius), *coarse, *fine]
    for first, own, is_fine in ((HASHES, radius, False), (len(details.PARTS), radius + 1, True)) if turned else ():
        forms = range(first + symmetries.UPRIGHT, first + symmetries.HASHES)
        every += (Family((asks, *forms), asks, own, is_fine) for asks in range(first, forms.start))
    return tuple(every)


@dataclass(frozen=True)
class Hashed:
    """Hashes that candidates are found by: codes [N, parts] and tones [N, parts] of images [N], coarse or fine."""

    images: Ints
    codes: Codes
    tones: Codes


def coarse_of(phash: Codes, signatures: Bytes, turned: bool = False) -> Hashed:
    """Coarse hashes of all images, from hashes [N, parts] and signatures [N, ...]; turned: also of their forms."""
    grids, found = signatures.reshape(len(phash), GRIDS, SIZE), np.zeros((len(phash), GRIDS), np.uint64)
    for start in range(0, len(phash), TONES_AT_ONCE):
        part = grids[start : start + TONES_AT_ONCE]
        found[start : start + len(part)] = tones(part)
    return Hashed(np.arange(len(phash)), *_with_forms(phash, found, symmetries.of_grids(grids) if turned else ()))


def fine_of(own: Details, turned: bool = False) -> Hashed:
    """Fine hashes of the images that have details; turned: also of their forms."""
    of_forms = symmetries.of_maps(details.maps_in(own.stored)) if turned else ()
    return Hashed(own.of, *_with_forms(details.hashes_in(own.stored), details.tones_in(own.stored), of_forms))


def _with_forms(codes: Codes, tones: Codes, of_forms: tuple[Codes, Codes] | tuple[()]) -> tuple[Codes, Codes]:
    """Hashes and tones of parts, and behind them those of `symmetries`."""
    if not of_forms:
        return codes, tones
    return np.concatenate([codes, of_forms[0]], axis=1), np.concatenate([tones, of_forms[1]], axis=1)


class Signed(Protocol):
    """Images as they are verified, by their numbers."""

    def grids(self, images: Ints, grids: Ints) -> Bytes:
        """[N, SIZE]: grid grids[i] of image images[i]."""

    def details(self, images: Ints) -> Details:
        """Details of images [N], which then are numbers 0 to N - 1."""


class SignatureReader(Signed, Protocol):
    """Images whose whole signatures can be read."""

    def signatures(self, images: Ints) -> Bytes:
        """[N, GRIDS * SIZE] signatures of images [N]."""


class CachedSignatures:
    """Signatures of some images, read once and kept in memory."""

    def __init__(self, signed: SignatureReader, images: Ints) -> None:
        """images: ascending."""
        self._signed, self._images = signed, images
        self._grids = signed.signatures(images).reshape(len(images), GRIDS, SIZE)

    def grids(self, images: Ints, grids: Ints) -> Bytes:
        return self._grids[np.searchsorted(self._images, images), grids]

    def details(self, images: Ints) -> Details:
        return self._signed.details(images)


class SignatureArrays:
    """Signatures [N, ...] in memory, and details."""

    def __init__(self, signatures: Bytes, own: Details) -> None:
        self._grids, self._details = signatures.reshape(len(signatures), GRIDS, SIZE), own

    def grids(self, images: Ints, grids: Ints) -> Bytes:
        return self._grids[images, grids]

    def signatures(self, images: Ints) -> Bytes:
        return self._grids[images].reshape(len(images), GRIDS * SIZE)

    def details(self, images: Ints) -> Details:
        return self._details.take(images)


@dataclass(frozen=True)
class _Candidates:
    """Pairs of images [N]: number ones[i] of `own` and others[i] of `theirs`, in forms one_forms[i] and other_forms[i],
    whose parts of these numbers are near."""

    own: Signed
    ones: Ints
    one_forms: Ints
    one_parts: Ints
    theirs: Signed
    others: Ints
    other_forms: Ints
    other_parts: Ints

    def __len__(self) -> int:
        return len(self.ones)

    def take(self, rows: Ints) -> _Candidates:
        own = self.own, self.ones[rows], self.one_forms[rows], self.one_parts[rows]
        return _Candidates(*own, self.theirs, self.others[rows], self.other_forms[rows], self.other_parts[rows])

    def grids(self, of_ones: Ints, of_others: Ints) -> tuple[Bytes, Bytes]:
        """[N, SIZE] twice: grids of these numbers."""
        one, other = self.own.grids(self.ones, of_ones), self.theirs.grids(self.others, of_others)
        return symmetries.grids_in(one, self.one_forms), symmetries.grids_in(other, self.other_forms)

    def whole_grids(self) -> tuple[Bytes, Bytes]:
        """Grids of the whole images: [N, SIZE] of ones, [N, SIZE] of others."""
        whole = np.zeros(len(self), np.int64)
        return self.grids(whole, whole)


def alike(
    own: Signed, ones: Ints, one_parts: Ints, theirs: Signed, others: Ints, other_parts: Ints, by: tuple[Family, float]
) -> Flags:
    """[N] whether images `ones` look like `others`, of which hashes number `one_parts` and `other_parts` are near and
    the tones agree.

    by: the family of the parts, and the threshold.
    """
    family, threshold = by
    one, other = family.forms_and_parts(one_parts), family.forms_and_parts(other_parts)
    if (
        family.in_other_forms and not (turned := one[0] + other[0] > 0).all()
    ):  # both as they are: other families see to them
        result = np.zeros(len(ones), np.bool_)
        result[turned] = alike(own, ones[turned], one_parts[turned], theirs, others[turned], other_parts[turned], by)
        return result
    candidates = _Candidates(own, ones, *one, theirs, others, *other)
    if family.fine:  # by maps alone, where colours agree
        result = np.zeros(len(candidates), np.bool_)
        coloured, red = _of_one_colour(candidates), one_has_seal(*candidates.whole_grids())
        rows, same, sealed, _ = _by_maps(candidates, np.flatnonzero(coloured | red), by)
        result[rows] = same & coloured[rows] | sealed & red[rows]
        return result
    parts = (one[1], other[1]) if family.in_other_forms else (family.toned(one_parts), family.toned(other_parts))
    result = within(*candidates.grids(*parts), threshold, one_tone=True, blocks=family.blocks)
    rows = np.flatnonzero(result)
    one_is_plain = np.logical_or(*map(is_plain, candidates.take(rows).whole_grids()))
    rows, *_, two = _by_maps(candidates, rows[one_is_plain], by)
    result[rows] = ~two  # what grids merge, maps may part
    return result


class Rule(NamedTuple):
    """The radius within which hashes are near, the threshold, and whether mirrored and turned copies are looked for."""

    radius: int
    threshold: float
    turned: bool = False


def pairs_alike(rule: Rule, signed: Signed, coarse: Hashed, fine: Hashed, ones: Ints, others: Ints) -> Flags:
    """[N] whether rows ones[i] and others[i] of `coarse` look alike, by the definition: any of their parts may tell.

    fine: of those of these images that have details. The images of both ascend.
    """
    found = np.zeros(len(ones), np.bool_)
    for family in families(rule.radius, rule.turned):
        rows, places = (ones, others), np.arange(len(ones))
        hashed = fine if family.fine else coarse
        if family.fine:
            at = [np.searchsorted(fine.images, coarse.images[of]) for of in rows]
            has = [np.append(fine.images, -1)[of] == coarse.images[own] for of, own in zip(at, rows, strict=True)]
            places = np.flatnonzero(has[0] & has[1])
            rows = at[0], at[1]
        for part in family.parts:
            for parts in dict.fromkeys(((family.asks, part), (part, family.asks))):
                places = places[~found[places]]
                found[places] = _parts_alike(
                    family, rule.threshold, signed, hashed, (rows[0][places], rows[1][places]), parts
                )
    return found


def _parts_alike(
    family: Family, threshold: float, signed: Signed, hashed: Hashed, rows: tuple[Ints, Ints], parts: tuple[int, int]
) -> Flags:
    """[N] whether images in these rows are alike by two of their parts."""
    codes = [hashed.codes[row, part] for row, part in zip(rows, parts, strict=True)]
    near = np.bitwise_count(codes[0] ^ codes[1]) <= family.radius
    at = np.flatnonzero(near & (codes[0] != 0) & (codes[1] != 0))
    numbers = [np.full(len(at), part) for part in parts]
    tones_of = [hashed.tones[row[at], family.toned(of)] for row, of in zip(rows, numbers, strict=True)]
    at = at[of_one_tone(tones_of[0], tones_of[1], family.blocks)]
    found = np.zeros(len(codes[0]), np.bool_)
    for start in range(0, len(at), VERIFIED):
        some = at[start : start + VERIFIED]
        images = [hashed.images[row[some]] for row in rows]
        of_parts = [np.full(len(some), part) for part in parts]
        by = family, threshold
        found[some] = alike(signed, images[0], of_parts[0], signed, images[1], of_parts[1], by)
    return found


def _by_maps(candidates: _Candidates, rows: Ints, by: tuple[Family, float]) -> tuple[Ints, Flags, Flags, Flags]:
    """(those of `rows` of which both images have a map, and what `alignment.judged` tells of these)."""
    family, threshold = by
    nothing = np.zeros(0, np.bool_)
    none = np.zeros(0, np.int64), nothing, nothing, nothing
    asked = candidates.take(rows)
    mine = asked.own.details(asked.ones)
    if not len(mine):
        return none
    others = asked.theirs.details(asked.others)
    places = np.intersect1d(mine.of, others.of, assume_unique=True)
    if not len(places):
        return none
    starts = alignment.starts_of(*(_boxes(family, of[places]) for of in (asked.one_parts, asked.other_parts)))
    one, other = (
        symmetries.maps_in(details.maps_in(of.take(places).stored), forms[places])
        for of, forms in ((mine, asked.one_forms), (others, asked.other_forms))
    )
    return rows[places], *alignment.judged(one, other, starts, threshold)


def _of_one_colour(candidates: _Candidates) -> Flags:
    """[N] whether colours of both images agree: of the wholes, or else of the crops that are nearest to the parts."""
    agree = of_one_colour(*candidates.whole_grids())
    rest = np.flatnonzero(~agree)
    of_rest = candidates.take(rest)
    agree[rest] = of_one_colour(*of_rest.grids(details.CROPS[of_rest.one_parts], details.CROPS[of_rest.other_parts]))
    return agree


def _boxes(family: Family, parts: Ints) -> npt.NDArray[np.float64]:
    """[N, 4] where parts lie, in shares of a side."""
    return details.BOXES_OF_PARTS[parts if family.fine else np.where(parts < CONTENT, parts, 0)]
