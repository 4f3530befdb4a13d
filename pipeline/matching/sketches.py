"""Sketches of texts: short hashes from which two texts are compared, and the rule by which they are the same.

A sketch holds the hashes of a text's shingles: single characters and pairs of neighbours, each with its count, so that
哈 and 哈哈 differ, and a caption of one character still has one. No words are needed; only in a run of letters and
digits three count as one character, since a brand's name would otherwise outweigh the dish before it. A long text keeps
only its smallest `SHINGLES` hashes (a bottom-k sketch, Beyer et al., "On Synopses for Distinct-Value Estimation under
Multiset Operations", SIGMOD 2007), so that identities stay small.

Two texts are the same if and only if their digits agree and the Jaccard similarity of their shingles reaches the
threshold, or, where one of them has fewer than nine characters, is 1: in 红烧鱼 and 红烧肉 one character is all that
counts. At 0.7 about one character in ten may differ. `same` decides that for many pairs at once.

`keys` are the bands of a MinHash of the shingles (Broder, "On the Resemblance and Containment of Documents", 1997),
made here and not by a package: they are kept in STORE and must be the same in every version. Texts at the threshold
share no band in at most `MISS` of all cases, texts above it more seldom.

All texts of a batch are arrays laid end to end: those of text i are values[starts[i] : starts[i + 1]].
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from data_specs.text.folding import code_points, letters_and_digits, numerals_of

Hashes = npt.NDArray[np.uint32]
Words = npt.NDArray[np.uint64]
Ints = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]

SHINGLES = 256
"""Hashes kept per text at most: all of them for texts up to about 130 characters."""

SHORT = 17
"""A text of fewer shingles, that is of fewer than nine characters, is the same only as one that has them all."""

PIECE = 3
"""Letters and digits in a row that count as one character."""

PERMUTATIONS = 128
"""MinHash values per text at most, over all bands."""

MISS = 1e-3
"""Probability that two texts exactly at the threshold share no band."""

BATCH = 8_192
"""Texts sketched at once; their number must fit into the 15 bits that a sort key has left for it."""

_FIRST_RUN = sys.maxunicode + 1
"""Signs from here to 2^24 stand for runs of letters and digits, those below for single characters."""

DIGESTED = 1_024
"""Texts whose MinHash is computed together: their hashes stay in the processor's cache."""

PAIRS = 1 << 16
"""Pairs verified at once: bounds memory at some tens of MB."""


@dataclass(frozen=True, eq=False)
class Sketches:
    """Sketches of N texts, column by column."""

    shingles: Hashes
    """[all] hashes of the texts, text by text, ascending and distinct within a text."""
    starts: Ints
    """[N + 1] where each text's shingles start."""
    numerals: Words
    """[N] digest of the digits, 0 for none."""
    parity: Words
    """[N] bit b is the parity of the number of shingles whose last six bits are b."""
    keys: Hashes
    """[N, bands]"""

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

    def without_keys(self, rows: Ints) -> Sketches:
        """Some of the texts, without their band keys."""
        return replace(self, keys=np.empty((len(self), 0), np.uint32)).take(rows)

    @staticmethod
    def concat(*several: Sketches) -> Sketches:
        """Concatenates the texts of several batches, without band keys."""
        sizes = np.concatenate([np.zeros(1, np.int64), *(own.sizes for own in several)])
        shingles, numerals, parity = (
            np.concatenate([np.zeros(0, kind), *(getattr(own, name) for own in several)])
            for name, kind in (("shingles", np.uint32), ("numerals", np.uint64), ("parity", np.uint64))
        )
        return Sketches(shingles, np.cumsum(sizes), numerals, parity, np.empty((len(sizes) - 1, 0), np.uint32))


def sketch(normal_texts: Sequence[str], threshold: float) -> Sketches:
    """Sketches of normalised texts, to be compared at the threshold."""
    rows, count = bands(threshold)
    numerals = numerals_of(normal_texts)
    shingles, sizes = [np.empty(0, np.uint32)], list[int]()
    parity, keys = [np.empty(0, np.uint64)], [np.empty((0, count), np.uint32)]
    for hashes, of in _shingles(normal_texts):
        ends = np.cumsum(of)
        bits = np.uint64(1) << (hashes & np.uint32(63)).astype(np.uint64)
        # The running exclusive or of the hashes' bits; a text's parity is its change from the text's start to its end.
        running = np.concatenate([[np.uint64(0)], np.bitwise_xor.accumulate(bits)])
        parity.append(running[ends] ^ running[ends - of])
        own_numerals = numerals[len(sizes) : len(sizes) + len(of)]
        keys.append(_band_keys(min_hashes(hashes, ends, rows * count), own_numerals, rows))
        shingles.append(hashes)
        sizes += of
    starts = np.concatenate([[0], np.cumsum(np.array(sizes, np.int64))])
    return Sketches(np.concatenate(shingles), starts, numerals, np.concatenate(parity), np.concatenate(keys))


def are_same(a: Sketches, rows: Ints, b: Sketches, at: Ints, threshold: float) -> Flags:
    """True where text rows[i] of `a` is the same as text at[i] of `b`, for each i; exact."""
    equal = possible(a, rows, b, at, threshold)
    to_verify = np.flatnonzero(equal)
    for start in range(0, len(to_verify), PAIRS):
        some = to_verify[start : start + PAIRS]
        needed = _needed(a.sizes_of(rows[some]), b.sizes_of(at[some]), threshold)
        equal[some] = similarities(a, rows[some], b, at[some]) >= needed
    return equal


def possible(a: Sketches, rows: Ints, b: Sketches, at: Ints, threshold: float) -> Flags:
    """True where text rows[i] of `a` may be the same as text at[i] of `b`, by a bound that needs no shingles.

    Each shingle that only one of them has changes at most one bit of the parity, so they differ in at least as many
    shingles as in bits: with d shingles of one text only, the Jaccard similarity of sizes m and n is
    (m + n - d) / (m + n + d), which falls as d grows.
    """
    of_a, of_b = a.sizes_of(rows), b.sizes_of(at)
    apart = np.maximum(np.bitwise_count(a.parity[rows] ^ b.parity[at]), np.abs(of_a - of_b))
    likely: Flags = of_a + of_b - apart >= _needed(of_a, of_b, threshold) * (of_a + of_b + apart) - 1e-9
    likely |= np.maximum(of_a, of_b) >= SHINGLES  # shingles that were cut away are in no parity
    likely &= a.numerals[rows] == b.numerals[at]
    return likely


def similarities(a: Sketches, rows: Ints, b: Sketches, at: Ints) -> npt.NDArray[np.float64]:
    """[pairs] Jaccard similarity of text rows[i] of `a` and text at[i] of `b`.

    Exact; where one of them has SHINGLES hashes, an estimate from the smallest SHINGLES of their union.
    """
    of_a, of_b = a.sizes_of(rows), b.sizes_of(at)
    pairs = len(rows)
    shingles = np.concatenate(
        [
            a.shingles[spread(a.starts[rows], a.starts[rows + 1])],
            b.shingles[spread(b.starts[at], b.starts[at + 1])],
        ]
    ).astype(np.uint64)
    # All pairs in one sort: pair << 32 | hash. Within a pair a hash of both texts stands twice, side by side.
    numbers = np.arange(pairs, dtype=np.uint64)
    shingles |= np.concatenate([np.repeat(numbers, of_a), np.repeat(numbers, of_b)]) << np.uint64(32)
    shingles.sort()
    new = group_starts(shingles)
    common = np.flatnonzero(~new)  # the second of two that are equal
    pair = (shingles >> np.uint64(32)).astype(np.int64)
    union = np.bincount(pair[new], minlength=pairs)
    limit = np.where(np.maximum(of_a, of_b) >= SHINGLES, np.minimum(union, SHINGLES), union)
    distinct = np.cumsum(new)  # distinct hashes up to here, those of earlier pairs included
    rank = distinct[common] - (np.cumsum(union) - union)[pair[common]]  # from 1, among those of its own pair
    counted = np.bincount(pair[common[rank <= limit[pair[common]]]], minlength=pairs)
    return counted / np.maximum(1, limit)


def bands(threshold: float) -> tuple[int, int]:
    """(rows, bands) of the MinHash: the most rows per band at which PERMUTATIONS suffice to miss at most MISS.

    Texts of similarity t agree in a band of r rows with probability t^r, and in none of n bands with (1 - t^r)^n. More
    rows make a band more selective, and take more bands.
    """
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


def ascending(keys: Words) -> tuple[Words, Ints]:
    """(keys ascending, their order, in which equal ones stay as they are)."""
    bits = len(keys).bit_length()
    if int(keys.max(initial=0)).bit_length() + bits <= 64:  # a sort of numbers is many times faster than argsort
        packed = keys << np.uint64(bits) | np.arange(len(keys), dtype=np.uint64)
        packed.sort()
        return packed >> np.uint64(bits), (packed & np.uint64((1 << bits) - 1)).astype(np.int64)
    order = np.argsort(keys, kind="stable")
    return keys[order], order


def group_starts(values: npt.NDArray[Any]) -> Flags:
    """[N] whether each element of a sorted array begins a group, that is, differs from the element before it."""
    return np.concatenate([np.ones(min(1, len(values)), np.bool_), values[1:] != values[:-1]])


def distinct(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The values in ascending order, each once. `np.unique` hashes, which takes up to a hundred times as long here."""
    ranked = np.sort(values)
    return ranked[group_starts(ranked)]


def positions_in_group(begin: Flags) -> Ints:
    """[N] position of each element within its group, from 0, given where groups begin."""
    at = np.arange(len(begin))
    return at - np.maximum.accumulate(np.where(begin, at, 0))


def spread(low: npt.NDArray[Any], high: npt.NDArray[Any]) -> Ints:
    """All numbers of the half-open ranges low[i] to high[i], one range after the other."""
    counts = high - low
    # One arange over all ranges, shifted in each by where it starts less how many numbers came before it.
    ends = np.cumsum(counts)
    return np.repeat(low - ends + counts, counts) + np.arange(ends[-1] if len(ends) else 0)


def _needed(of_a: Ints, of_b: Ints, threshold: float) -> npt.NDArray[np.float64]:
    """The similarity at which two texts with so many shingles are the same."""
    return np.where(np.minimum(of_a, of_b) < SHORT, 1.0, threshold)


def _shingles(normal_texts: Sequence[str]) -> Iterator[tuple[Hashes, list[int]]]:
    """Per BATCH of texts: (hashes text by text, ascending and distinct, at most SHINGLES each; how many each has).

    Sort keys put the text into the upper bits, so that one sort orders all texts at once. A gram has 49 bits: a single
    sign of 24, or a pair, whose first sign plus 1 stands above the 24 of the second, so that no pair looks like a
    single one. 15 bits remain for the text.
    """
    for start in range(0, len(normal_texts), BATCH):
        texts = normal_texts[start : start + BATCH]
        text, signs = _signs(texts)
        within = text[1:] == text[:-1]
        pairs = ((signs[:-1] + np.uint64(1)) << np.uint64(24) | signs[1:])[within]
        grams = np.concatenate([signs, pairs]) | np.concatenate([text, text[1:][within]]) << np.uint64(49)
        grams.sort()
        nth = positions_in_group(group_starts(grams)).astype(
            np.uint64
        )  # number of occurrences of the same gram before it in its text
        text, grams = grams >> np.uint64(49), grams & np.uint64((1 << 49) - 1)
        hashes = text << np.uint64(32) | mixed(mixed(grams) + nth) >> np.uint64(32)
        hashes.sort()
        hashes = hashes[group_starts(hashes)]
        text = hashes >> np.uint64(32)
        kept = positions_in_group(group_starts(text)) < SHINGLES  # the smallest hashes of each text
        sizes = np.bincount(text[kept].astype(np.int64), minlength=len(texts))
        yield hashes[kept].astype(np.uint32), sizes.tolist()


def _signs(texts: Sequence[str]) -> tuple[Words, Words]:
    """(text, sign) of all characters in order. A sign is a code point, or stands for up to PIECE letters and digits.

    In the second case it is a hash from _FIRST_RUN to 2^24.
    """
    points = code_points("".join(texts))
    text = np.repeat(np.arange(len(texts), dtype=np.uint64), [len(t) for t in texts])
    signs, joins = points.astype(np.uint64), letters_and_digits(points)
    goes_on = np.zeros(len(points), np.bool_)  # whether a character continues the piece before it
    goes_on[1:] = joins[1:] & joins[:-1] & (text[1:] == text[:-1])
    goes_on &= positions_in_group(~goes_on) % PIECE > 0  # every PIECE-th character of a run begins a new piece
    starts = np.flatnonzero(~goes_on)
    run = np.append(goes_on[1:], False)[starts]  # pieces of two characters at least
    if run.any():
        weighed = mixed(
            signs + (positions_in_group(~goes_on).astype(np.uint64) << np.uint64(32))
        )  # by their place: ab is not ba
        hashes = np.add.reduceat(weighed, starts)[run]
        signs[starts[run]] = np.uint64(_FIRST_RUN) + hashes % np.uint64((1 << 24) - _FIRST_RUN)
    return text[starts], signs[starts]


def min_hashes(hashes: Hashes, ends: Ints, count: int) -> Hashes:
    """MinHash values [N, count] of texts whose hashes end at `ends`; 0 for a text without shingles.

    The hashes are well mixed already, so an exclusive or and a product with an odd number permute them well enough.
    """
    least = np.zeros((count, len(ends)), np.uint32)
    starts = np.concatenate([[0], ends[:-1]])
    full = np.flatnonzero(ends > starts)  # reduceat takes no empty ranges; the others lie side by side
    first, second = (
        mixed(np.arange(count, dtype=np.uint64) + np.uint64(salt)).astype(np.uint32) for salt in (1, 1_001)
    )
    for low in range(0, len(full), DIGESTED):
        rows = full[low : low + DIGESTED]
        begin = starts[rows[0]]
        # own: the hashes of these texts; at: where each text begins in them; other: the same hashes, permuted
        own, at = hashes[begin : ends[rows[-1]]], starts[rows] - begin
        other = np.empty_like(own)
        for number in range(count):
            np.bitwise_xor(own, first[number], out=other)
            np.multiply(other, second[number] | np.uint32(1), out=other)
            least[number, rows] = np.minimum.reduceat(other, at)
    by_text: Hashes = least.T
    return by_text


def _band_keys(values: Hashes, numerals: Words, rows: int) -> Hashes:
    """Keys [N, bands] from MinHash values [N, bands * rows]: a hash of the band's rows, its number and the digits.

    With the number in it a key belongs to its band alone, so that all bands share one index; with the digits in it
    texts of other digits share no key.
    """
    of_band = values.reshape(len(values), -1, rows)
    keys = mixed(numerals)[:, None] ^ np.arange(of_band.shape[1], dtype=np.uint64)[None, :]
    for row in range(rows):
        keys = mixed(keys + of_band[:, :, row].astype(np.uint64))
    upper: Hashes = (keys >> np.uint64(32)).astype(np.uint32)
    return upper
