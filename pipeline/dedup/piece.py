"""Pieces: images and texts as they are joined, in one form of file for a run of a build and for what was kept before.

A piece is one file of arrays (`pipeline.files.arrays`), of which no more is read than is looked at:

    sha256, words                   of each image the digest of its bytes; first 64 bits of all, ascending, with owners
    contexts                        what is known of each image beside its looks (`pipeline.matching.contexts`)
    codes, tones, fine.*            how candidates are found (`image_comparison.Hashed`): of pictures, and of details
    <key>.asking.*, <key>.others.*  entries of each key (`image_keys`), ascending
    text.*                          distinct texts: ids, words of ids with owners, sketches, and entries by band key

Signatures and details, nine tenths of all bytes, lie apart, in files that are read image by image (`Signed`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from data_specs.shard import canonical_json
from pipeline.files.arrays import Arrays, ArrayWriter
from pipeline.files.digests import Digests
from pipeline.matching.contexts import Context
from pipeline.matching.image_comparison import Hashed, Signed
from pipeline.matching.image_edges import KeptImages, Loaded
from pipeline.matching.image_keys import Entries, Key, entries_of
from pipeline.matching.sketches import Ints, Sketches
from pipeline.matching.text_edges import BUCKETS, KeptTexts, TextEntries, words_of
from pipeline.matching.text_rows import TextRows

VERSION = 3
"""Raised when a piece of the same name gets other arrays."""

WORD_BITS = 64


def write_images(
    writer: ArrayWriter, sha256: Digests, contexts: Context, hashed: tuple[Hashed, Hashed], keys: Sequence[Key]
) -> None:
    """Write images [N]. hashed: coarse ones of all of them, in order, and fine ones of those with details."""
    coarse, fine = hashed
    _write_words(writer, "", sha256)
    writer.add("sha256", sha256)
    writer.add("contexts", contexts)
    writer.add("codes", coarse.codes)
    writer.add("tones", coarse.tones)
    writer.add("fine.images", fine.images)
    writer.add("fine.codes", fine.codes)
    writer.add("fine.tones", fine.tones)
    for number, key in enumerate(keys):
        for name, entries in zip(
            ("asking", "others"), entries_of(key, fine if key.family.fine else coarse), strict=True
        ):
            writer.add(f"{number}.{name}.keys", entries.keys)
            writer.add(f"{number}.{name}.owner", entries.owner)


def write_texts(writer: ArrayWriter, texts: TextRows) -> None:
    own, entries = texts.sketches, TextEntries.of(texts.sketches.keys)
    _write_words(writer, "text.", texts.ids)
    columns: dict[str, npt.NDArray[Any]] = {
        "ids": texts.ids,
        "numerals": own.numerals,
        "parity": own.parity,
        "starts": own.starts,
        "bands": own.keys,
        "shingles": own.shingles,
        "keys": entries.keys,
        "owner": entries.owner,
    }
    for name, values in columns.items():
        writer.add(f"text.{name}", values)


def _write_words(writer: ArrayWriter, prefix: str, digests: Digests) -> None:
    words = words_of(digests)
    order = np.argsort(words, kind="stable")
    writer.add(f"{prefix}words", words[order])
    writer.add(f"{prefix}words.owner", order.astype(np.uint32))


def words_within(arrays: Arrays, prefix: str, first: float, last: float) -> tuple[npt.NDArray[np.uint64], Ints]:
    """(words, ascending; rows) of those between two shares, 0 to 1, of all words. prefix: "" or "text."."""
    words = arrays[f"{prefix}words"]
    low, high = (
        len(words) if share >= 1 else int(np.searchsorted(words, np.uint64(share * 2.0**WORD_BITS)))
        for share in (first, last)
    )
    return words[low:high], arrays[f"{prefix}words.owner"][low:high].astype(np.int64)


def hashed_in(arrays: Arrays, *, fine: bool) -> Hashed:
    """Returns the hashes by which candidates are found."""
    if fine:
        return Hashed(arrays["fine.images"], arrays["fine.codes"], arrays["fine.tones"])
    codes = arrays["codes"]
    return Hashed(np.arange(len(codes)), codes, arrays["tones"])


def _entries(arrays: Arrays, number: int, name: str) -> Entries:
    return Entries(arrays[f"{number}.{name}.keys"], arrays[f"{number}.{name}.owner"])


def loaded_in(arrays: Arrays, number: int, key: Key, part: tuple[int, int], first: int) -> Loaded:
    """The entries of some buckets of a key, in memory; first: the number of the piece's first image."""
    hashed = hashed_in(arrays, fine=key.family.fine)
    both = (_entries(arrays, number, name).in_buckets(key, *part) for name in ("asking", "others"))
    return Loaded.concat([Loaded.of(key, entries, hashed, first) for entries in both])


def kept_images_in(arrays: Arrays, number: int, key: Key, signed: Signed) -> KeptImages:
    """All images of a piece, with their entries of a key."""
    asking, others = (_entries(arrays, number, name) for name in ("asking", "others"))
    return KeptImages(asking, others, hashed_in(arrays, fine=key.family.fine), signed)


def sketches_in(arrays: Arrays) -> Sketches:
    """The sketches of a piece's texts."""
    return Sketches(*(arrays[f"text.{name}"] for name in ("shingles", "starts", "numerals", "parity", "bands")))


def text_entries_in(arrays: Arrays, first: int = 0, last: int = BUCKETS) -> TextEntries:
    """Entries of texts in some buckets."""
    return TextEntries(arrays["text.keys"], arrays["text.owner"]).in_buckets(first, last)


def kept_texts_in(arrays: Arrays) -> KeptTexts:
    return KeptTexts(text_entries_in(arrays), sketches_in(arrays))


def mark_of(keys: Sequence[Key]) -> str:
    """A digest of the keys by which a piece was made."""
    return hashlib.sha256(canonical_json([VERSION, *map(repr, keys)])).hexdigest()[:12]
