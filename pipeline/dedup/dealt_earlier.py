"""STORE/dealt: indexes of what earlier builds kept, in which a new build looks up what it may match.

    STORE/dealt/<commit>/images.<features>.<plan>.<first>-<last>.bin    images first to last - 1 of the commit, by rank
    STORE/dealt/<commit>/details.<features>.<plan>.<first>-<last>.bin   of those that have details, by fine keys
    STORE/dealt/<commit>/texts.<sketch>.<first>-<last>.bin              its texts that lead, likewise

A commit is what one build kept (`pipeline.store.identities`), a piece up to PIECE rows of its images or texts. Keys,
entries, and what is met, are what `pipeline.matching.meetings` calls so. The file of a piece holds arrays
(`pipeline.files.arrays`): entries of each key by ascending key, so that whoever looks for few of them reads few; what
candidates are verified by; what the leader pass is told of those that are met; and how many images each text leader and
each domain has, so that caps stay exact. Signatures and details are not copied: they are read from the commit's own
files. Entries of fine keys lie apart, so that those of all images do not follow from how many have details.

A piece follows from its commit, whose name holds a digest, and from what is in its own name, so it never changes.
Whoever finds one missing makes it (`opened`), with the same bytes; `deal` makes all at first use.

Limits: on disk, at default settings, 0.9 KB an image, where more than a million are compared 2 KB, more than 268
million 3.9 KB; of one with details 1.7 KB more, where more than 262,000 have some 3.8 KB, more than 4 million 4.8 KB,
more than 17 million 9.8 KB; 0.5 KB a text. The commit itself has 2 KB an image. To make a piece takes PIECE rows in
memory. Behind a URL whole arrays are read, a key at a time, and signatures one by one. Pieces of another plan, such as
those of a smaller STORE, stay until somebody deletes the folder; `gc` deletes an older wenlan's.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from data_specs.shard import canonical_json
from pipeline.errors import StoreError
from pipeline.features import feature_id
from pipeline.files.arrays import Arrays, ArrayWriter
from pipeline.files.digests import Digests, digests_of
from pipeline.matching import text_rows
from pipeline.matching.earlier_meetings import (
    NAMES,
    PARTS,
    WHOLE,
    KeptImages,
    KeptTexts,
    SortedEntries,
    sorted_words,
)
from pipeline.matching.holders import EARLIER, PLACEHOLDER, Looks, hashes_of
from pipeline.matching.looks import NO_DETAILS, ROW, Details, Hashed, coarse_of, fine_of
from pipeline.matching.meetings import WIDEST, Key, plan
from pipeline.matching.sketches import Sketches
from pipeline.matching.text_meetings import Compared, TextTable, words_of
from pipeline.matching.text_rows import TextRows
from pipeline.pictures import details
from pipeline.pictures.hashing import HASHES
from pipeline.pictures.signatures import GRIDS, SIZE
from pipeline.store.build import Build
from pipeline.store.identities import DETAILS, SIGNATURES, Identities, Published
from pipeline.store.store import Store

VERSION = 2
"""Raised when a piece of the same name gets other arrays."""

PIECE = 1 << 18
"""Images, or texts, of a piece at most."""

IMAGES, TEXTS = "images", "texts"
"""Kinds of pieces."""

AT_ONCE = 4_096
"""Signatures that are read together."""

Ints = npt.NDArray[np.int64]
Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Piece:
    """Rows first to last - 1 of a commit's images or texts; `file` is its name in the commit's folder.

    fine: the name of the file with entries of fine keys, "" where there are no such keys or the commit has no details.
    """

    commit: str
    kind: str
    first: int
    last: int
    file: str
    fine: str = ""

    def __len__(self) -> int:
        return self.last - self.first


def pieces_of(build: Build, keys: Sequence[Key]) -> list[Piece]:
    """The pieces of all that a build is compared with, commit by commit. Raises StoreError."""
    identities, pieces = Identities(build.store), list[Piece]()
    sketch = text_rows.sketch_id(build.spec.dedup.text_similarity)
    coarse, fine = (_mark(keys, fine=fine) for fine in (False, True))
    names = {IMAGES: f"images.{feature_id()}.{coarse}", TEXTS: f"texts.{_digest([VERSION, sketch])}"}
    for commit in build.identities:
        known = identities.read(commit)
        kinds = (IMAGES, TEXTS) if known.sketch == sketch else (IMAGES,)
        detailed = _detailed(known) and _keys(keys, fine=True)
        for kind in kinds:
            rows = _rows(build.store, commit, kind)
            for first in range(0, rows, PIECE):
                last = min(rows, first + PIECE)
                rows_of_piece = f"{first}-{last}.bin"
                of_details = f"details.{feature_id()}.{fine}.{rows_of_piece}" if kind == IMAGES and detailed else ""
                pieces.append(Piece(commit, kind, first, last, f"{names[kind]}.{rows_of_piece}", of_details))
    return pieces


@lru_cache(maxsize=1 << 14)
def _rows(store: Store, commit: str, kind: str) -> int:
    """Images, or texts, of a commit, which never changes: read once in a process, where every group asks for all."""
    identities = Identities(store)
    return identities.count(identities.read(commit), f"{kind}.parquet")


def is_of_now(file: str) -> bool:
    """Whether a build by this wenlan may read a file of a commit's folder; those of texts count as such."""
    kind, features, mark = [*file.split("."), "", ""][:3]
    marks = _marks().get(kind)
    return marks is None or (features == feature_id() and mark in marks)


@lru_cache(maxsize=1)
def _marks() -> dict[str, set[str]]:
    """Marks of all plans by which files are made: those of a power of four of images (`handed_on`)."""
    plans = {plan(4**power, radius, 4**power) for power in range(20) for radius in range(WIDEST + 1)}
    return {kind: {_mark(keys, fine=fine) for keys in plans} for kind, fine in ((IMAGES, False), ("details", True))}


def _mark(keys: Sequence[Key], *, fine: bool) -> str:
    """The part of a file's name that says by which keys it was made."""
    return _digest([VERSION, *(repr(replace(key, before=())) for key in _keys(keys, fine=fine))])


def _keys(keys: Sequence[Key], *, fine: bool) -> list[Key]:
    """Those of all images, or the fine ones of those with details."""
    return [key for key in keys if key.family.fine == fine]


def _detailed(known: Published) -> bool:
    """Whether images of a commit have details by which they can be compared."""
    has = DETAILS in known.files and known.files[DETAILS].bytes > 0
    return has and known.features == feature_id()


def groups(pieces: Sequence[Piece]) -> list[list[Piece]]:
    """Neighbouring pieces of PIECE rows together; one group at least."""
    found: list[list[Piece]] = [[]]
    for piece in pieces:
        if found[-1] and sum(map(len, found[-1])) + len(piece) > PIECE:
            found.append([])
        found[-1].append(piece)
    return found


def make(build: Build, piece: Piece, keys: Sequence[Key]) -> bool:
    """Write a piece unless it is there; whether it was written. Raises StoreError where its commit was replaced."""
    made = [_make(build, piece, keys, fine=fine) for fine in (False, True) if piece.fine or not fine]
    return any(made)


def _make(build: Build, piece: Piece, keys: Sequence[Key], *, fine: bool) -> bool:
    identities, name = Identities(build.store), piece.fine if fine else piece.file
    folder = identities.dealt(piece.commit)
    if folder.exists(name):
        return False
    known = identities.read(piece.commit)
    images = _rows(build.store, piece.commit, IMAGES)
    width = known.files[SIGNATURES].bytes // images if images else GRIDS * SIZE
    try:
        with folder.making(name) as file:
            writer = ArrayWriter(file)
            if fine:
                _deal_details(writer, identities, known, piece, keys, width)
            elif piece.kind == IMAGES:
                _deal_images(writer, identities, known, piece, keys, width)
            else:
                _deal_texts(writer, identities, known, piece)
            writer.finish()
    except StoreError:
        identities.read(piece.commit)  # a takedown that has just taken it away is said to be the cause
        raise
    if piece.commit not in identities.names():  # a takedown came in between: nothing of it may stay
        folder.delete(name)
        identities.read(piece.commit)
    return True


@contextlib.contextmanager
def opened(build: Build, piece: Piece, keys: Sequence[Key], *, fine: bool = False) -> Iterator[Arrays]:
    """The arrays of a piece, which are made if they are not there; fine: those of the file of fine keys."""
    _make(build, piece, keys, fine=fine)
    with Arrays(Identities(build.store).dealt(piece.commit), piece.fine if fine else piece.file) as arrays:
        yield arrays
        arrays.give_back()


def _deal_images(
    writer: ArrayWriter, identities: Identities, known: Published, piece: Piece, keys: Sequence[Key], width: int
) -> None:
    columns = ["candidate_id", "sha256", "text_leader", "domain", "phash"]
    table = identities.rows(known, "images.parquet", piece.first, piece.last, columns)
    candidate, sha256 = digests_of(table["candidate_id"]), digests_of(table["sha256"])
    writer.add("candidate", candidate)
    writer.add("sha256", sha256)
    writer.add("flags", _flags(identities, known, candidate))
    words, owner = sorted_words(sha256)
    writer.add("bytes.words", words)
    writer.add("bytes.owner", owner)
    _count(writer, digests_of(table["text_leader"]), table["domain"].to_numpy())
    phash, own = np.zeros((len(piece), HASHES), np.uint64), np.zeros((len(piece), GRIDS), np.uint64)
    if known.features == feature_id():  # other images are matched by bytes only: they have no entry
        hashes = hashes_of(table)
        for at in range(0, len(piece), AT_ONCE):
            last = min(len(piece), at + AT_ONCE)
            part = identities.raw(known, SIGNATURES, piece.first + at, piece.first + last, width)
            hashed = coarse_of(hashes[at:last], part)
            phash[at:last], own[at:last] = hashed.codes, hashed.tones
    numbers = [of.of for of in _details(identities, known, piece)]
    _add_images(writer, identities, known, piece, np.concatenate([np.zeros(0, np.int64), *numbers]), width)
    _add_hashed(writer, Hashed(np.arange(len(piece)), phash, own), _keys(keys, fine=False))


def _deal_details(
    writer: ArrayWriter, identities: Identities, known: Published, piece: Piece, keys: Sequence[Key], width: int
) -> None:
    hashed = [fine_of(NO_DETAILS), *map(fine_of, _details(identities, known, piece))]
    images, codes, tones = (
        np.concatenate([getattr(of, name) for of in hashed]) for name in ("images", "codes", "tones")
    )
    _add_images(writer, identities, known, piece, images, width)
    _add_hashed(writer, Hashed(images, codes, tones), _keys(keys, fine=True))


def _details(identities: Identities, known: Published, piece: Piece) -> Iterator[Details]:
    """Details of a piece's images, by numbers within it, AT_ONCE at a time."""
    if _detailed(known):
        first, last = (identities.details_before(known, image) for image in (piece.first, piece.last))
        for at in range(first, last, AT_ONCE):
            rows = identities.raw(known, DETAILS, at, min(last, at + AT_ONCE), ROW)
            yield Details.of_rows(rows).moved(-piece.first)


def _add_images(
    writer: ArrayWriter, identities: Identities, known: Published, piece: Piece, detailed: Ints, width: int
) -> None:
    """Add where signatures and details of a piece's images are.

    detailed: the numbers of those that have some. width: bytes of a signature of the commit.
    """
    writer.add("width", np.array([width]))
    writer.add("detailed", detailed)
    writer.add("detailed.first", np.array([identities.details_before(known, piece.first)]))


def _add_hashed(writer: ArrayWriter, hashed: Hashed, keys: Sequence[Key]) -> None:
    """Add hashes and tones, and their entries of each key."""
    writer.add("phash", hashed.codes)
    writer.add("tones", hashed.tones)
    for number, key in enumerate(keys):
        for name, entries in SortedEntries.of(key, hashed).items():
            writer.add(f"{number}.{name}.keys", entries.keys)
            writer.add(f"{number}.{name}.owner", entries.owner)


def _flags(identities: Identities, known: Published, candidate: Digests) -> Bytes:
    """The flags of image leaders (`holders.Known`)."""
    flags, own = np.full(len(candidate), EARLIER, np.uint8), np.ascontiguousarray(candidate).view("V32").ravel()
    for table in identities.batches(known, "placeholders.parquet"):
        dropped = np.ascontiguousarray(digests_of(table["candidate_id"])).view("V32").ravel()
        flags[np.isin(own, dropped)] |= PLACEHOLDER
    return flags


def _count(writer: ArrayWriter, leaders: Digests, domains: npt.NDArray[np.uint64]) -> None:
    """How many images each leader of a primary text has, by the first 64 bits of its id; and each domain."""
    order = np.lexsort(np.ascontiguousarray(leaders).view(np.uint64).reshape(-1, 4).T)
    ranked = leaders[order]
    new = np.concatenate([np.ones(min(1, len(ranked)), np.bool_), (ranked[1:] != ranked[:-1]).any(axis=1)])
    ids, pairs = ranked[new], np.diff(np.append(np.flatnonzero(new), len(ranked)))
    words = words_of(ids)
    by_word = np.argsort(words)
    writer.add("leaders.words", words[by_word])
    writer.add("leaders.ids", ids[by_word])
    writer.add("leaders.pairs", pairs[by_word].astype(np.int64))
    names, counts = np.unique(domains, return_counts=True)
    writer.add("domains", names)
    writer.add("domains.pairs", counts.astype(np.int64))


def _deal_texts(writer: ArrayWriter, identities: Identities, known: Published, piece: Piece) -> None:
    texts = text_rows.read(identities.rows(known, "texts.parquet", piece.first, piece.last, ["text"])["text"])
    own = texts.sketches
    entries = TextTable.of(own.keys)[0]
    order = np.argsort(entries.keys)
    writer.add("keys", entries.keys[order])
    writer.add("owner", entries.owner[order])
    writer.add("words", words_of(texts.ids))
    writer.add("ids", texts.ids)
    writer.add("numerals", own.numerals)
    writer.add("parity", own.parity)
    writer.add("starts", own.starts)
    writer.add("bands", own.keys)
    writer.add("shingles", own.shingles)


def images_in(arrays: Arrays, keys: Sequence[Key], number: int, build: Build, piece: Piece) -> KeptImages:
    """The images of a piece, with their entries of key `number`; `arrays` are `opened` fine as that key is."""
    fine = keys[number].family.fine
    at = len(_keys(keys[:number], fine=fine))
    entries = {name: SortedEntries(*(arrays[f"{at}.{name}.{column}"] for column in NAMES)) for name in (WHOLE, PARTS)}
    images = arrays["detailed"] if fine else np.arange(len(piece))
    hashed = Hashed(images, arrays["phash"], arrays["tones"])
    return KeptImages(len(piece), entries, hashed, _Signed(arrays, build, piece))


def texts_in(arrays: Arrays) -> KeptTexts:
    """The texts of a piece."""
    return KeptTexts(arrays["keys"], arrays["owner"], Compared(arrays["words"], _sketches(arrays)))


def text_rows_in(arrays: Arrays, rows: Ints) -> TextRows:
    """Some texts of a piece, for the leader pass."""
    return TextRows(arrays["ids"][rows], _sketches(arrays).take(rows))


def _sketches(arrays: Arrays) -> Sketches:
    return Sketches(*(arrays[name] for name in ("shingles", "starts", "numerals", "parity", "bands")))


def looks_in(arrays: Arrays, build: Build, piece: Piece, rows: Ints) -> Looks:
    """What some images of a piece look like, for the leader pass."""
    signed = _Signed(arrays, build, piece)
    return arrays["phash"][rows], [signed.whole(rows)], [signed.details(rows)]


class _Signed:
    """Signatures and details of a piece's images, from its commit, which are read image by image."""

    def __init__(self, arrays: Arrays, build: Build, piece: Piece) -> None:
        self._identities, self._first, self._width = Identities(build.store), piece.first, int(arrays["width"][0])
        self._detailed, self._first_detailed = arrays["detailed"], int(arrays["detailed.first"][0])
        self._known = self._identities.read(piece.commit)

    def grids(self, images: Ints, grids: Ints) -> Bytes:
        """As of `looks.Signed`."""
        distinct, at = np.unique(images, return_inverse=True)
        stored = self.whole(distinct).reshape(len(distinct), -1, SIZE)
        wanted, made = np.zeros((len(images), SIZE), np.uint8), np.flatnonzero(grids < stored.shape[1])
        wanted[made] = stored[at[made], grids[made]]
        return wanted

    def details(self, images: Ints) -> Details:
        """As of `looks.Signed`."""
        places, rows = Details(self._detailed, np.zeros((0, details.SIZE), np.uint8)).at(images)
        if not len(places):
            return NO_DETAILS
        distinct, at = np.unique(rows, return_inverse=True)
        return Details(places, self._read(DETAILS, self._first_detailed + distinct, ROW)[at, 8:])

    def whole(self, images: Ints) -> Bytes:
        """[N, bytes] signatures of images [N]."""
        return self._read(SIGNATURES, self._first + images, self._width)

    def _read(self, part: str, rows: Ints, width: int) -> Bytes:
        """[N, width] rows [N] of a file of the commit."""
        if not len(rows):
            return np.zeros((0, width), np.uint8)
        path = self._identities.raw_at(self._known, part)
        if path is None:
            return np.concatenate([self._identities.raw(self._known, part, n, n + 1, width) for n in rows.tolist()])
        with path.open("rb", buffering=0) as file:  # not mapped: each page that is met would map fifteen around it
            read = [os.pread(file.fileno(), width, n * width) for n in rows.tolist()]
        return np.frombuffer(b"".join(read), np.uint8).reshape(-1, width)


def _digest(value: list[str | int]) -> str:
    return hashlib.sha256(canonical_json(value)).hexdigest()[:12]
