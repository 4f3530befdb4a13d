"""What earlier builds kept, dealt out by keys once and kept in STORE: pieces of commits, of which a build reads a part.

    STORE/dealt/<commit>/images.<features>.<plan>.<first>-<last>.bin    images first to last - 1 of the commit, by rank
    STORE/dealt/<commit>/texts.<sketch>.<first>-<last>.bin              its texts that lead, likewise

A piece is a file of arrays (`pipeline.files.arrays`): entries of each key by ascending key, so that whoever looks for
few of them reads few; what candidates are verified by; what the leader pass is told of those that are found; and how
many images each text leader and each domain has, so that caps stay exact. Signatures are not copied: they are read from
the commit's own file. A piece follows from its commit, whose name holds a digest, and from what is in its own name, so
it never changes. Whoever finds one missing makes it (`opened`), with the same bytes; `deal` makes all at first use.

Limits: at default settings 0.9 KB an image on disk, 2 KB above ten million, and 0.5 KB a text, beside 2 KB an image
that its commit has. Making a piece takes PIECE rows in memory. Behind a URL whole arrays are read, a key at a time.
Pieces of another plan stay until `gc` deletes those of other features, or somebody deletes the folder.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from data_specs.shard import canonical_json
from pipeline.features import comparable, feature_id
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
from pipeline.matching.holders import EARLIER, PLACEHOLDER, hashes_of
from pipeline.matching.meetings import Key
from pipeline.matching.sketches import Sketches
from pipeline.matching.text_meetings import TextTable, words_of
from pipeline.matching.text_rows import TextRows
from pipeline.pictures.hashing import CONTENT, HASHES
from pipeline.pictures.signatures import GRIDS, SIZE, tones
from pipeline.store.build import Build
from pipeline.store.identities import SIGNATURES, Identities, Published

VERSION = 1
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
    """Rows first to last - 1 of a commit's images or texts; `file` is its name in the commit's folder."""

    commit: str
    kind: str
    first: int
    last: int
    file: str

    def __len__(self) -> int:
        return self.last - self.first


def pieces_of(build: Build, keys: Sequence[Key]) -> list[Piece]:
    """The pieces of all that a build is compared with, commit by commit. Raises StoreError."""
    identities, pieces = Identities(build.store), list[Piece]()
    sketch = text_rows.sketch_id(build.spec.dedup.text_similarity)
    plan = _digest([VERSION, *(repr(replace(key, before=())) for key in keys)])
    names = {IMAGES: f"images.{feature_id()}.{plan}", TEXTS: f"texts.{_digest([VERSION, sketch])}"}
    for commit in build.identities:
        known = identities.read(commit)
        kinds = (IMAGES, TEXTS) if known.sketch == sketch else (IMAGES,)
        for kind in kinds:
            rows = identities.count(known, f"{kind}.parquet")
            for first in range(0, rows, PIECE):
                last = min(rows, first + PIECE)
                pieces.append(Piece(commit, kind, first, last, f"{names[kind]}.{first}-{last}.bin"))
    return pieces


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
    identities = Identities(build.store)
    folder = identities.dealt(piece.commit)
    if folder.exists(piece.file):
        return False
    known = identities.read(piece.commit)
    with folder.making(piece.file) as file:
        writer = ArrayWriter(file)
        if piece.kind == IMAGES:
            _deal_images(writer, identities, known, piece, keys)
        else:
            _deal_texts(writer, identities, known, piece)
        writer.finish()
    if piece.commit not in identities.names():  # a takedown came in between: nothing of it may stay
        folder.delete(piece.file)
        identities.read(piece.commit)
    return True


@contextlib.contextmanager
def opened(build: Build, piece: Piece, keys: Sequence[Key]) -> Iterator[Arrays]:
    """The arrays of a piece, which is made if it is not there."""
    make(build, piece, keys)
    with Arrays(Identities(build.store).dealt(piece.commit), piece.file) as arrays:
        yield arrays
        arrays.give_back()


def _deal_images(
    writer: ArrayWriter, identities: Identities, known: Published, piece: Piece, keys: Sequence[Key]
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
    width = _width(identities, known)
    writer.add("width", np.array([width]))
    if comparable(feature_id(), known.features):  # other images are matched by bytes only: they have no entry
        hashes = hashes_of(table)
        same = HASHES if hashes.shape[1] == HASHES else CONTENT  # an older wenlan's halves were cut otherwise
        phash[:, :same] = hashes[:, :same]
        for at in range(0, len(piece), AT_ONCE):
            last = min(len(piece), at + AT_ONCE)
            part = identities.signature_bytes(known, piece.first + at, piece.first + last, width)
            own[at:last, : width // SIZE] = tones(part.reshape(last - at, -1, SIZE))
    writer.add("phash", phash)
    writer.add("tones", own)
    for number, key in enumerate(keys):
        for name, entries in SortedEntries.of(key, phash, own).items():
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


def images_in(arrays: Arrays, number: int, build: Build, piece: Piece) -> KeptImages:
    """The images of a piece, with their entries of key `number`."""
    entries = {
        name: SortedEntries(*(arrays[f"{number}.{name}.{column}"] for column in NAMES)) for name in (WHOLE, PARTS)
    }
    return KeptImages(entries, arrays["phash"], arrays["tones"], _Grids(arrays, build, piece).of)


def texts_in(arrays: Arrays) -> KeptTexts:
    """The texts of a piece."""
    return KeptTexts(arrays["keys"], arrays["owner"], arrays["words"], _sketches(arrays))


def text_rows_in(arrays: Arrays, rows: Ints) -> TextRows:
    """Some texts of a piece, for the leader pass."""
    return TextRows(arrays["ids"][rows], _sketches(arrays).take(rows))


def _sketches(arrays: Arrays) -> Sketches:
    return Sketches(*(arrays[name] for name in ("shingles", "starts", "numerals", "parity", "bands")))


def signatures_in(arrays: Arrays, build: Build, piece: Piece, rows: Ints) -> Bytes:
    """[N, bytes] signatures of some images of a piece."""
    return _Grids(arrays, build, piece).whole(rows)


class _Grids:
    """Grids of a piece's images, from the signatures of its commit, which are read image by image."""

    def __init__(self, arrays: Arrays, build: Build, piece: Piece) -> None:
        self._identities, self._first, self._width = Identities(build.store), piece.first, int(arrays["width"][0])
        self._known = self._identities.read(piece.commit)

    def of(self, image: Ints, grid: Ints) -> Bytes:
        """[N, SIZE] grids [N] of images [N]."""
        images, at = np.unique(image, return_inverse=True)
        read: Bytes = self.whole(images).reshape(len(images), -1, SIZE)[at, grid]
        return read

    def whole(self, images: Ints) -> Bytes:
        """[N, bytes] of images [N]."""
        path, first = self._identities.signatures_at(self._known), self._first
        if path is None:
            of_one = self._identities.signature_bytes
            read = [of_one(self._known, n, n + 1, self._width) for n in (first + images).tolist()]
            return np.concatenate([np.zeros((0, self._width), np.uint8), *read])
        with path.open("rb", buffering=0) as file:  # not mapped: each page that is met would map fifteen around it
            raw = [os.pread(file.fileno(), self._width, n * self._width) for n in (first + images).tolist()]
        return np.frombuffer(b"".join(raw), np.uint8).reshape(-1, self._width)


def _width(identities: Identities, known: Published) -> int:
    """Bytes of a signature of a commit."""
    images = identities.count(known, "images.parquet")
    return known.files[SIGNATURES].bytes // images if images else GRIDS * SIZE


def _digest(value: list[str | int]) -> str:
    return hashlib.sha256(canonical_json(value)).hexdigest()[:12]
