"""Sketches of texts: what of a text is compared, a batch as arrays.

A sketch holds the hashes of a text's shingles: single characters and pairs of neighbours, each with its count, so that
哈 and 哈哈 differ, and a caption of one character still has one. No words are needed; only of a run of letters and
digits three count as one character, since a brand's name would else outweigh the dish before it. Of a long text the
smallest `SHINGLES` hashes are kept (a bottom-k sketch, Beyer et al., "On Synopses for Distinct-Value Estimation under
Multiset Operations", SIGMOD 2007), so that identities stay small.

Two texts are the same if and only if their digits agree and the Jaccard similarity of their shingles reaches the
threshold, or, where one of them has fewer than nine characters, is 1: in 红烧鱼 and 红烧肉 one character is all that
counts. At 0.7 about one character in ten may differ. `same` decides that for many pairs at once.

`keys` are the bands of a MinHash of the shingles (Broder, "On the Resemblance and Containment of Documents", 1997),
made here and not by a package: they are kept in STORE and must be the same in every version. Texts at the threshold
share none of them in at most `MISS` of all cases, texts above it more seldom.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.texts.folding import code_points, letters_and_digits, numerals_of

Hashes = npt.NDArray[np.uint32]
Words = npt.NDArray[np.uint64]
Ints = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]

SHINGLES = 256
"""Most hashes of a text: all of them for texts up to about 130 characters."""

SHORT = 17
"""A text of fewer shingles, that is of fewer than nine characters, is the same only as one that has them all."""

PIECE = 3
"""Letters and digits that count as one character."""

PERMUTATIONS = 128
MISS = 1e-3
BATCH = 8_192
"""Texts sketched at once; their number must fit into the 15 bits that a sort key has left for it."""

_FIRST_RUN = sys.maxunicode + 1

DIGESTED = 1_024
"""Texts digested at once: their hashes stay in the processor's cache."""

PAIRS = 1 << 16
"""Pairs verified at once: bounds memory at some tens of MB."""


@dataclass(frozen=True, eq=False)
class Sketches:
    """Of N texts: shingles of all, text by text, each ascending; where they start [N + 1]; digests of the digits [N],
    0 for none; parity of the shingles by their last six bits [N]; band keys [N, bands]."""

    shingles: Hashes
    starts: Ints
    numerals: Words
    parity: Words
    keys: Hashes

    def __len__(self) -> int:
        return len(self.numerals)

    @property
    def sizes(self) -> Ints:
        return np.diff(self.starts)

    def sizes_of(self, rows: Ints) -> Ints:
        return self.starts[rows + 1] - self.starts[rows]

    def take(self, rows: Ints) -> Sketches:
        low, high = self.starts[rows], self.starts[rows + 1]
        starts = np.concatenate([[0], np.cumsum(high - low)])
        return Sketches(
            self.shingles[spread(low, high)], starts, self.numerals[rows], self.parity[rows], self.keys[rows]
        )


def sketch(normal_texts: Sequence[str], threshold: float) -> Sketches:
    """Sketches of normalised texts, to be compared at the threshold."""
    rows, count = bands(threshold)
    numerals = numerals_of(normal_texts)
    shingles, sizes = [np.empty(0, np.uint32)], list[int]()
    parity, keys = [np.empty(0, np.uint64)], [np.empty((0, count), np.uint32)]
    for hashes, of in _shingles(normal_texts):
        ends = np.cumsum(of)
        bits = np.uint64(1) << (hashes & np.uint32(63)).astype(np.uint64)
        toggled = np.concatenate([[np.uint64(0)], np.bitwise_xor.accumulate(bits)])
        parity.append(toggled[ends] ^ toggled[ends - of])
        keys.append(_band_keys(_digests(hashes, ends, rows * count), numerals[len(sizes) : len(sizes) + len(of)], rows))
        shingles.append(hashes)
        sizes += of
    starts = np.concatenate([[0], np.cumsum(np.array(sizes, np.int64))])
    return Sketches(np.concatenate(shingles), starts, numerals, np.concatenate(parity), np.concatenate(keys))


def same(a: Sketches, rows: Ints, b: Sketches, at: Ints, threshold: float) -> Flags:
    """Whether text rows[i] of `a` is the same as text at[i] of `b`, for each i; exact."""
    found = possible(a, rows, b, at, threshold)
    asked = np.flatnonzero(found)
    for start in range(0, len(asked), PAIRS):
        some = asked[start : start + PAIRS]
        needed = _needed(a.sizes_of(rows[some]), b.sizes_of(at[some]), threshold)
        found[some] = similarities(a, rows[some], b, at[some]) >= needed
    return found


def possible(a: Sketches, rows: Ints, b: Sketches, at: Ints, threshold: float) -> Flags:
    """Whether text rows[i] of `a` may be the same as text at[i] of `b`, going by a bound that needs no shingles.

    Each shingle that only one of them has changes one bit of the parity at most, so they differ in at least as many
    shingles as in bits.
    """
    of_a, of_b = a.sizes_of(rows), b.sizes_of(at)
    apart = np.maximum(np.bitwise_count(a.parity[rows] ^ b.parity[at]), np.abs(of_a - of_b))
    likely: Flags = of_a + of_b - apart >= _needed(of_a, of_b, threshold) * (of_a + of_b + apart) - 1e-9
    likely |= np.maximum(of_a, of_b) >= SHINGLES
    likely &= a.numerals[rows] == b.numerals[at]
    return likely


def similarities(a: Sketches, rows: Ints, b: Sketches, at: Ints) -> npt.NDArray[np.float64]:
    """Jaccard similarity of text rows[i] of `a` and text at[i] of `b`: exact, but where one of both was cut an estimate
    from the smallest SHINGLES of their union."""
    of_a, of_b = a.sizes_of(rows), b.sizes_of(at)
    pairs = len(rows)
    shingles = np.concatenate(
        [
            a.shingles[spread(a.starts[rows], a.starts[rows + 1])],
            b.shingles[spread(b.starts[at], b.starts[at + 1])],
        ]
    ).astype(np.uint64)
    numbers = np.arange(pairs, dtype=np.uint64)
    shingles |= np.concatenate([np.repeat(numbers, of_a), np.repeat(numbers, of_b)]) << np.uint64(32)
    shingles.sort()
    new = begins(shingles)
    common = np.flatnonzero(~new)  # the second of two that are equal
    pair = (shingles >> np.uint64(32)).astype(np.int64)
    union = np.bincount(pair[new], minlength=pairs)
    limit = np.where(np.maximum(of_a, of_b) >= SHINGLES, np.minimum(union, SHINGLES), union)
    before = np.cumsum(new)  # distinct ones up to here, those of earlier pairs included
    rank = before[common] - (np.cumsum(union) - union)[pair[common]]
    counted = np.bincount(pair[common[rank <= limit[pair[common]]]], minlength=pairs)
    return counted / np.maximum(1, limit)


def possible_among(texts: Sketches, threshold: float) -> tuple[Ints, Ints]:
    """(rows, later rows) of every two texts of one batch that share a band key and may be the same."""
    rows = np.tile(np.arange(len(texts), dtype=np.uint64)[:, None], texts.keys.shape[1])
    packed = (texts.keys.astype(np.uint64) << np.uint64(32) | rows).ravel()
    packed.sort()
    borders = np.flatnonzero(np.append(begins(packed >> np.uint64(32)), True))
    after, ends = np.arange(len(packed)) + 1, np.repeat(borders[1:], np.diff(borders))
    hot = (ends - after).sum() > len(texts) ** 2 // 2  # more than there are pairs
    if hot:
        one, other = np.triu_indices(len(texts), 1)
    else:  # rows ascend within a key
        members = (packed & np.uint64(0xFFFFFFFF)).astype(np.int64)
        pairs = np.repeat(members, ends - after) << 32 | members[spread(after, ends)]
        pairs.sort()
        pairs = pairs[begins(pairs)]
        one, other = pairs >> 32, pairs & 0xFFFFFFFF
    likely = possible(texts, one, texts, other, threshold)
    one, other = one[likely], other[likely]
    if hot:
        share = (texts.keys[one] == texts.keys[other]).any(axis=1)
        one, other = one[share], other[share]
    return one, other


def bands(threshold: float) -> tuple[int, int]:
    """(rows, bands): the most rows at which PERMUTATIONS suffice to miss at most MISS, and just as many bands."""
    for rows in range(16, 1, -1):
        shared = threshold**rows
        count = 1 if shared >= 1 - MISS else math.ceil(math.log(MISS) / math.log1p(-shared))
        if rows * count <= PERMUTATIONS:
            return rows, count
    return 1, PERMUTATIONS


def mixed(values: Words) -> Words:
    """splitmix64's finaliser (Steele, Lea and Flood 2014): a bijection that spreads bits."""
    with np.errstate(over="ignore"):
        values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        spread_out: Words = values ^ (values >> np.uint64(31))
    return spread_out


def begins(values: npt.NDArray[Any]) -> Flags:
    """Where a sorted array begins another value."""
    return np.concatenate([np.ones(min(1, len(values)), np.bool_), values[1:] != values[:-1]])


def places(begin: Flags) -> Ints:
    """Position of each element within its group, given where groups begin."""
    at = np.arange(len(begin))
    return at - np.maximum.accumulate(np.where(begin, at, 0))


def spread(low: npt.NDArray[Any], high: npt.NDArray[Any]) -> Ints:
    """All numbers of the half-open ranges, one range after the other."""
    counts = high - low
    ends = np.cumsum(counts)
    return np.repeat(low - ends + counts, counts) + np.arange(ends[-1] if len(ends) else 0)


def _needed(of_a: Ints, of_b: Ints, threshold: float) -> npt.NDArray[np.float64]:
    """The similarity at which texts with that many shingles are the same."""
    return np.where(np.minimum(of_a, of_b) < SHORT, 1.0, threshold)


def _shingles(normal_texts: Sequence[str]) -> Iterator[tuple[Hashes, list[int]]]:
    """Batches of (hashes, number of each text's)."""
    for start in range(0, len(normal_texts), BATCH):
        texts = normal_texts[start : start + BATCH]
        text, signs = _signs(texts)
        within = text[1:] == text[:-1]
        pairs = ((signs[:-1] + np.uint64(1)) << np.uint64(24) | signs[1:])[within]
        grams = np.concatenate([signs, pairs]) | np.concatenate([text, text[1:][within]]) << np.uint64(49)
        grams.sort()
        nth = places(begins(grams)).astype(np.uint64)  # which occurrence of its gram in its text
        text, grams = grams >> np.uint64(49), grams & np.uint64((1 << 49) - 1)
        hashes = text << np.uint64(32) | mixed(mixed(grams) + nth) >> np.uint64(32)
        hashes.sort()
        hashes = hashes[begins(hashes)]
        text = hashes >> np.uint64(32)
        kept = places(begins(text)) < SHINGLES
        sizes = np.bincount(text[kept].astype(np.int64), minlength=len(texts))
        yield hashes[kept].astype(np.uint32), sizes.tolist()


def _signs(texts: Sequence[str]) -> tuple[Words, Words]:
    """(text, sign) of all characters in order; PIECE letters and digits make one sign, a hash above all code points."""
    points = code_points("".join(texts))
    text = np.repeat(np.arange(len(texts), dtype=np.uint64), [len(t) for t in texts])
    signs, joins = points.astype(np.uint64), letters_and_digits(points)
    goes_on = np.zeros(len(points), np.bool_)
    goes_on[1:] = joins[1:] & joins[:-1] & (text[1:] == text[:-1])
    goes_on &= places(~goes_on) % PIECE > 0
    starts = np.flatnonzero(~goes_on)
    run = np.append(goes_on[1:], False)[starts]  # of two letters at least
    if run.any():
        weighed = mixed(signs + (places(~goes_on).astype(np.uint64) << np.uint64(32)))
        hashes = np.add.reduceat(weighed, starts)[run]
        signs[starts[run]] = np.uint64(_FIRST_RUN) + hashes % np.uint64((1 << 24) - _FIRST_RUN)
    return text[starts], signs[starts]


def _digests(hashes: Hashes, ends: Ints, count: int) -> Hashes:
    """MinHash digests [N, count] of texts that end at `ends`; those of a text without shingles are 0.

    The hashes are well mixed already, so an exclusive or and a product with an odd number make another order of them.
    """
    found = np.zeros((count, len(ends)), np.uint32)
    starts = np.concatenate([[0], ends[:-1]])
    full = np.flatnonzero(ends > starts)  # ranges that are not empty lie side by side
    first, second = (
        mixed(np.arange(count, dtype=np.uint64) + np.uint64(salt)).astype(np.uint32) for salt in (1, 1_001)
    )
    for low in range(0, len(full), DIGESTED):
        rows = full[low : low + DIGESTED]
        begin = starts[rows[0]]
        own, at = hashes[begin : ends[rows[-1]]], starts[rows] - begin
        other = np.empty_like(own)
        for number in range(count):
            np.bitwise_xor(own, first[number], out=other)
            np.multiply(other, second[number] | np.uint32(1), out=other)
            found[number, rows] = np.minimum.reduceat(other, at)
    digests: Hashes = found.T
    return digests


def _band_keys(digests: Hashes, numerals: Words, rows: int) -> Hashes:
    """A key of each band, made of its rows, its number and the digits: texts of other digits share none."""
    of_band = digests.reshape(len(digests), -1, rows)
    keys = mixed(numerals)[:, None] ^ np.arange(of_band.shape[1], dtype=np.uint64)[None, :]
    for row in range(rows):
        keys = mixed(keys + of_band[:, :, row].astype(np.uint64))
    found: Hashes = (keys >> np.uint64(32)).astype(np.uint32)
    return found
