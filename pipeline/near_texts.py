"""Near texts: which earlier text says the same as this one?

Two texts are the same if and only if their digits agree and the Jaccard similarity of their shingles reaches the
threshold. Made for Chinese captions: no words are needed, shingles are single characters and pairs of neighbours (each
with its count, so that 哈 and 哈哈 differ), and a caption of one character still has one. Compared is the text in NFKC,
lower case, without punctuation and spaces. Candidates come from MinHash bands (rensa), every one is verified.

The leader of a text is the first earlier *leader* it is the same as: by leaders, not by chains. Of a long text the
signature keeps the smallest `SHINGLES` hashes (a bottom-k sketch, Beyer et al. 2007), so that identities stay small.

Limits: bands miss one true pair in a thousand at the threshold, fewer above it. A bucket takes `BUCKET` leaders; on
templated captions, of which more share a bucket, a match must come from another band.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

Hashes = npt.NDArray[np.uint32]

SHINGLES = 256
"""Most hashes of a signature: all of them for texts up to about 130 characters."""

PERMUTATIONS = 128
BUCKET = 64
_DECIMAL_POINT = re.compile(r"(?<=\d)\.(?=\d)")


def normal(text: str) -> str:
    """A text as it is compared: NFKC, case folded, without punctuation, spaces and controls. Never empty for a text."""
    wide = unicodedata.normalize("NFKC", text).casefold()
    points = {match.start() for match in _DECIMAL_POINT.finditer(wide)}
    kept = "".join(c for at, c in enumerate(wide) if at in points or unicodedata.category(c)[0] not in "PZC")
    return kept or wide


def text_id(normal_text: str) -> str:
    """sha256 hex of a normalised text: what `text_leader` holds."""
    return hashlib.sha256(normal_text.encode("utf-8", "surrogatepass")).hexdigest()


def numerals(normal_text: str) -> str:
    """Short digest of its digits in order, Chinese ones included; "" if it has none.

    Texts that differ in a digit stay apart, as 步骤1 and 步骤2, or 第一步 and 第二步. A digest, because it is kept in
    STORE, and a caption's digits may be a telephone number.
    """
    found = "".join(c for c in normal_text if c.isnumeric())
    return hashlib.sha256(found.encode()).hexdigest()[:16] if found else ""


def _mixed(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """splitmix64's finaliser (Steele, Lea and Flood 2014): a bijection that spreads bits."""
    with np.errstate(over="ignore"):
        values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        mixed: npt.NDArray[np.uint64] = values ^ (values >> np.uint64(31))
    return mixed


def signatures(normal_texts: Sequence[str]) -> list[Hashes]:
    """For each text the sorted distinct 32-bit hashes of its shingles, at most SHINGLES of them, the smallest."""
    if not normal_texts:
        return []
    points = np.frombuffer("".join(normal_texts).encode("utf-32-le", "surrogatepass"), np.uint32).astype(np.uint64)
    text = np.repeat(np.arange(len(normal_texts)), [len(t) for t in normal_texts])
    within = text[1:] == text[:-1]
    pairs = ((points[:-1] + np.uint64(1)) << np.uint64(24) | points[1:])[within]
    grams, text = np.concatenate([points, pairs]), np.concatenate([text, text[1:][within]])
    order = np.lexsort((grams, text))
    grams, text = grams[order], text[order]
    nth = _places(_new(grams) | _new(text))  # which occurrence of its gram in its text
    hashes = _mixed(_mixed(grams) + nth.astype(np.uint64)) >> np.uint64(32)
    order = np.lexsort((hashes, text))
    hashes, text = hashes[order].astype(np.uint32), text[order]
    distinct = _new(hashes) | _new(text)
    hashes, text = hashes[distinct], text[distinct]
    kept = _places(_new(text)) < SHINGLES
    ends = np.cumsum(np.bincount(text[kept], minlength=len(normal_texts)))
    return np.split(hashes[kept], ends[:-1])


def _new(values: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Where a sorted array begins another value."""
    return np.concatenate([np.ones(min(1, len(values)), np.bool_), values[1:] != values[:-1]])


def _places(begins: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """Position of each element within its group, given where groups begin."""
    at = np.arange(len(begins))
    return at - np.maximum.accumulate(np.where(begins, at, 0))


def similarity(a: Hashes, b: Hashes) -> float:
    """Jaccard similarity of two signatures: exact if neither was cut, else estimated from the smallest of both."""
    common = np.intersect1d(a, b, assume_unique=True)
    if len(a) < SHINGLES and len(b) < SHINGLES:
        return len(common) / max(1, len(a) + len(b) - len(common))
    smallest = np.union1d(a, b)[:SHINGLES]
    return int(np.isin(common, smallest).sum()) / len(smallest)


def rows_per_band(threshold: float) -> int:
    """The most rows at which bands still miss less than one in a thousand pairs at the threshold."""
    for rows in range(16, 1, -1):
        if (1 - threshold**rows) ** (PERMUTATIONS // rows) <= 1e-3:
            return rows
    return 1


@dataclass
class TextLeaders:
    """The texts kept so far. `place` gives a text its leader, itself if it is the same as none before it."""

    threshold: float
    _ids: list[str] = field(default_factory=list)  # of leaders, in the order they came
    _signatures: list[Hashes] = field(default_factory=list)
    _leader_of: dict[str, str] = field(default_factory=dict)  # text id -> leader's id, for those met
    _buckets: dict[tuple[int, int, str], list[int]] = field(default_factory=dict)
    _prepared: dict[str, tuple[str, Hashes, list[int]]] = field(default_factory=dict)

    def prepare(self, normal_texts: Sequence[str]) -> list[str]:
        """Their ids; computes signatures and bands of those not known yet, all at once (MinHash likes batches)."""
        ids = [text_id(text) for text in normal_texts]
        new = {i: text for i, text in zip(ids, normal_texts, strict=True) if i not in self._prepared}
        found = signatures(list(new.values()))
        self._prepare({i: (numerals(text), own) for (i, text), own in zip(new.items(), found, strict=True)})
        return ids

    def add_earlier(self, ids: Sequence[str], numerals_of: Sequence[str], signatures_: Sequence[Hashes]) -> None:
        """Leaders of earlier builds, in the order of their ranks."""
        rows = {i: (d, s) for i, d, s in zip(ids, numerals_of, signatures_, strict=True) if i not in self._prepared}
        self._prepare(rows)
        for i in rows:
            self._lead(i)

    def leader(self, prepared_id: str) -> str | None:
        """The leader that a text belongs to, None if it would be one itself."""
        if prepared_id in self._leader_of:
            return self._leader_of[prepared_id]
        number_key, own, bands = self._prepared[prepared_id]
        near: set[int] = set()
        for band, key in enumerate(bands):
            near.update(self._buckets.get((band, key, number_key), ()))
        for number in sorted(near):
            if similarity(own, self._signatures[number]) >= self.threshold:
                self._leader_of[prepared_id] = self._ids[number]
                return self._ids[number]
        return None

    def place(self, prepared_id: str) -> str:
        """The leader of a text that is kept; the text leads from now on if there is none."""
        found = self.leader(prepared_id)
        if found is None:
            self._lead(prepared_id)
            found = prepared_id
        return found

    def _lead(self, prepared_id: str) -> None:
        number_key, own, bands = self._prepared[prepared_id]
        number = len(self._ids)
        self._ids.append(prepared_id)
        self._signatures.append(own)
        self._leader_of[prepared_id] = prepared_id
        for band, key in enumerate(bands):
            bucket = self._buckets.setdefault((band, key, number_key), [])
            if len(bucket) < BUCKET:
                bucket.append(number)

    def _prepare(self, rows: dict[str, tuple[str, Hashes]]) -> None:
        bands = _bands([own for _, own in rows.values()], rows_per_band(self.threshold))
        for (i, (number_key, own)), keys in zip(rows.items(), bands, strict=True):
            self._prepared[i] = (number_key, own, keys)


def _bands(signatures_: Sequence[Hashes], rows: int) -> list[list[int]]:
    """For each signature a key of each band of its MinHash."""
    count = PERMUTATIONS // rows
    found: list[list[int]] = []
    for start in range(0, len(signatures_), 10_000):
        digests = _digests(signatures_[start : start + 10_000])
        bands = digests[:, : count * rows].reshape(len(digests), count, rows)
        keys = np.zeros((len(digests), count), np.uint64)
        for row in range(rows):
            keys = _mixed(keys ^ bands[:, :, row])
        found += keys.tolist()
    return found


def _digests(signatures_: Sequence[Hashes]) -> npt.NDArray[np.uint64]:
    """MinHash digests [N, PERMUTATIONS]."""
    import rensa

    offsets = np.concatenate([[0], np.cumsum([len(s) for s in signatures_])]).astype(np.uint64)
    flat = _mixed(np.concatenate(list(signatures_)).astype(np.uint64))
    matrix = rensa.RMinHash.digest_matrix_from_flat_token_hashes(flat, offsets, PERMUTATIONS, 1)
    return np.array(matrix.to_rows(), dtype=np.uint64).reshape(len(signatures_), PERMUTATIONS)
