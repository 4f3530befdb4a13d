"""Pieces of earlier builds' images and texts that a build is joined with (`pipeline.dedup.piece`), cached in STORE.

    STORE/dealt/<commit>/images.<features>.<keys>.<first>-<last>.bin    images first to last - 1 of the commit, by rank
    STORE/dealt/<commit>/texts.<sketch>.<first>-<last>.bin              its texts that lead, likewise

A commit is what one build kept (`pipeline.store.identities`), a piece up to PIECE rows of its images or texts. Beside
what a run of a build has, a piece of images holds how many images each text leader has, so that caps stay exact.
Signatures and details are read from the commit's own files. Images that were measured under another feature
id are matched by bytes only, and texts that were sketched otherwise are not compared; both are logged.

A piece follows from its commit, whose name holds a digest, and from its own name, so it never changes. Where one is
missing it is made, with the same bytes; `pipeline.dedup.signatures` makes all at first use.

Limits: on disk, at default settings, 0.9 KB an image, 2 KB where more than a million are compared. To make a piece
takes PIECE rows in memory. Behind a URL whole arrays are read, and signatures one by one. Pieces of another plan of
keys stay until the folder is deleted.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from data_specs.shard import SPLITS, canonical_json
from pipeline.dedup.piece import VERSION, mark_of, write_images, write_texts
from pipeline.errors import StoreError
from pipeline.features import feature_id
from pipeline.files.arrays import Arrays, ArrayWriter
from pipeline.files.digests import Digests, digests_of
from pipeline.matching import text_rows
from pipeline.matching.contexts import contexts_in
from pipeline.matching.image_comparison import NO_DETAILS, ROW, Details, Hashed, coarse_of, fine_of, hashes_of
from pipeline.matching.image_keys import Ints, Key
from pipeline.matching.sketches import spread
from pipeline.matching.text_edges import words_of
from pipeline.pictures import details, symmetries
from pipeline.pictures.hashing import HASHES
from pipeline.pictures.signatures import GRIDS, SIZE
from pipeline.store.build import Build
from pipeline.store.identities import DETAILS, SIGNATURES, Identities, Published
from pipeline.store.store import Store

log = logging.getLogger("wenlan")

STORED = "store"
"""Prefix of the partitions of `signatures` that make pieces of STORE."""

PIECE = 1 << 18
"""Images, or texts, of a piece at most."""

IMAGES, TEXTS = "images", "texts"
"""Kinds of pieces."""

AT_ONCE = 4_096
"""Signatures that are read together."""

PLACEHOLDER = 1
"""Flag of an image: it is a placeholder."""

_WIDTH = GRIDS * SIZE

Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Piece:
    """Rows first to last - 1 of a commit's images or texts.

    start: its first number among all images, or texts, of earlier builds. held: its dataset is that of the build.
    before: it is of the generation that the build makes again, of which only splits are taken.
    """

    commit: str
    kind: str
    first: int
    last: int
    start: int
    held: bool
    before: bool

    def __len__(self) -> int:
        return self.last - self.first


def pieces_of(build: Build, kind: str) -> list[Piece]:
    """The pieces of all that a build is compared with, commit by commit. Raises StoreError."""
    identities, pieces, start = Identities(build.store), list[Piece](), 0
    commits = [(name, False) for name in build.identities]
    if kind == IMAGES:
        commits += [(name, True) for name in identities.made_from(build)]
    for commit, before in commits:
        known = identities.read(commit)
        if kind == TEXTS and known.sketch != text_rows.sketch_id(build.spec.dedup.text_similarity):
            continue
        rows = _rows(build.store, commit, kind)
        for first in range(0, rows, PIECE):
            last = min(rows, first + PIECE)
            pieces.append(Piece(commit, kind, first, last, start, known.dataset == build.spec.name, before))
            start += last - first
    return pieces


def warn(build: Build) -> None:
    """Log what of earlier builds cannot be compared."""
    identities, sketch = Identities(build.store), text_rows.sketch_id(build.spec.dedup.text_similarity)
    for commit in build.identities:
        known = identities.read(commit)
        if known.sketch != sketch:
            log.warning("dedup: texts of %s have other settings and do not count for caps", known.build)
        if known.features != feature_id():
            log.warning("dedup: images of %s have other features and are matched by bytes only", known.build)


@lru_cache(maxsize=1 << 14)
def _rows(store: Store, commit: str, kind: str) -> int:
    """Images, or texts, of a commit, which never changes: read once in a process."""
    identities = Identities(store)
    return identities.count(identities.read(commit), f"{kind}.parquet")


def compared(build: Build, pairs: int) -> int:
    """By how many images the keys of a build of so many pairs are planned: these and what earlier builds kept.

    If they kept any, that is the nearest power of four: then builds of one dataset have the same keys, and find what
    was made for one before them.
    """
    identities = Identities(build.store)
    commits = [*build.identities, *identities.made_from(build)]
    kept = sum(identities.read(commit).files[SIGNATURES].bytes for commit in commits) // _WIDTH
    return 1 << (pairs + kept).bit_length() // 2 * 2 if kept else pairs


def groups(build: Build) -> list[str]:
    """Names of groups of pieces, each of which is made in one go."""
    return [f"{STORED}-{number:05d}" for number in range(len(_grouped(build)))]


def _grouped(build: Build) -> list[list[Piece]]:
    found = list[list[Piece]]()
    for piece in [*pieces_of(build, IMAGES), *pieces_of(build, TEXTS)]:
        if not found or sum(map(len, found[-1])) + len(piece) > PIECE:
            found.append([])
        found[-1].append(piece)
    return found


def make_group(build: Build, name: str, keys: Sequence[Key]) -> int:
    """Write the pieces of a group that are not there; returns how many."""
    number, all_groups = int(name.rpartition("-")[2]), _grouped(build)
    own = all_groups[number] if number < len(all_groups) else []
    return sum(_make(build, piece, keys) for piece in own)


def _name(build: Build, piece: Piece, keys: Sequence[Key]) -> str:
    rows = f"{piece.first}-{piece.last}.bin"
    if piece.kind == IMAGES:
        return f"{IMAGES}.{feature_id()}.{mark_of(keys)}.{rows}"
    sketch = text_rows.sketch_id(build.spec.dedup.text_similarity)
    return f"{TEXTS}.{hashlib.sha256(canonical_json([VERSION, sketch])).hexdigest()[:12]}.{rows}"


@contextlib.contextmanager
def opened(build: Build, piece: Piece, keys: Sequence[Key]) -> Iterator[Arrays]:
    """The arrays of a piece, which are made if they are not there."""
    _make(build, piece, keys)
    with Arrays(Identities(build.store).derived_folder(piece.commit), _name(build, piece, keys)) as arrays:
        yield arrays
        arrays.give_back()


def _make(build: Build, piece: Piece, keys: Sequence[Key]) -> bool:
    """Write a piece unless it is there; whether it was written. Raises StoreError where its commit was replaced."""
    identities, name = Identities(build.store), _name(build, piece, keys)
    folder = identities.derived_folder(piece.commit)
    if folder.exists(name):
        return False
    known = identities.read(piece.commit)
    try:
        with folder.making(name) as file:
            writer = ArrayWriter(file)
            if piece.kind == IMAGES:
                _write_images(writer, identities, known, piece, keys)
            else:
                table = identities.rows(known, "texts.parquet", piece.first, piece.last, ["text", "split"])
                write_texts(writer, text_rows.read(table["text"]))
                writer.add("text.split", _split_numbers(table))
            writer.finish()
    except StoreError:
        identities.read(piece.commit)  # a takedown that has just taken it away is said to be the cause
        raise
    if piece.commit not in identities.names():  # a takedown came in between: nothing of it may stay
        folder.delete(name)
        identities.read(piece.commit)
    return True


def _write_images(
    writer: ArrayWriter, identities: Identities, known: Published, piece: Piece, keys: Sequence[Key]
) -> None:
    columns = ["candidate_id", "sha256", "text_leader", "phash", "split", "context"]
    table = identities.rows(known, "images.parquet", piece.first, piece.last, columns)
    turned = any(key.family.in_other_forms for key in keys)
    widths = (of + symmetries.HASHES * turned for of in (HASHES, GRIDS))
    coarse = Hashed(np.arange(len(piece)), *(np.zeros((len(piece), width), np.uint64) for width in widths))
    fine = [fine_of(NO_DETAILS, turned)]
    before = identities.details_before(known, piece.first)
    if known.features == feature_id():  # other images are matched by bytes only, without an entry
        phash = hashes_of(table)
        for at in range(0, len(piece), AT_ONCE):
            last = min(len(piece), at + AT_ONCE)
            part = identities.raw(known, SIGNATURES, piece.first + at, piece.first + last, _WIDTH)
            own = coarse_of(phash[at:last], part, turned)
            coarse.codes[at:last], coarse.tones[at:last] = own.codes, own.tones
        end = identities.details_before(known, piece.last)
        for at in range(before, end, AT_ONCE):
            rows = identities.raw(known, DETAILS, at, min(end, at + AT_ONCE), ROW)
            fine.append(fine_of(Details.of_rows(rows).shifted(-piece.first), turned))
    fine_all = (np.concatenate([getattr(of, name) for of in fine]) for name in ("images", "codes", "tones"))
    contexts = contexts_in(table["context"])
    write_images(writer, digests_of(table["sha256"]), contexts, (coarse, Hashed(*fine_all)), keys)
    writer.add("fine.first", np.array([before]))
    candidate = digests_of(table["candidate_id"])
    writer.add("candidate", candidate)
    writer.add("flags", _flags(identities, known, candidate))
    writer.add("split", _split_numbers(table))
    _count(writer, digests_of(table["text_leader"]))


def _split_numbers(table: pa.Table) -> npt.NDArray[np.int8]:
    """[N] numbers of splits, -1 for none."""
    numbers: npt.NDArray[np.int8] = (
        pc.index_in(table["split"], pa.array(SPLITS)).fill_null(-1).to_numpy().astype(np.int8)
    )
    return numbers


def _flags(identities: Identities, known: Published, candidate: Digests) -> Bytes:
    """PLACEHOLDER of images that are one."""
    flags, own = np.zeros(len(candidate), np.uint8), np.ascontiguousarray(candidate).view("V32").ravel()
    for table in identities.batches(known, "placeholders.parquet"):
        dropped = np.ascontiguousarray(digests_of(table["candidate_id"])).view("V32").ravel()
        flags[np.isin(own, dropped)] |= PLACEHOLDER
    return flags


def _count(writer: ArrayWriter, leaders: Digests) -> None:
    """Counts images by leader of a primary text (the first 64 bits of its id)."""
    order = np.lexsort(np.ascontiguousarray(leaders).view(np.uint64).reshape(-1, 4).T)
    ranked = leaders[order]
    new = np.concatenate([np.ones(min(1, len(ranked)), np.bool_), (ranked[1:] != ranked[:-1]).any(axis=1)])
    ids, pairs = ranked[new], np.diff(np.append(np.flatnonzero(new), len(ranked)))
    words = words_of(ids)
    by_word = np.argsort(words)
    writer.add("leaders.words", words[by_word])
    writer.add("leaders.ids", ids[by_word])
    writer.add("leaders.pairs", pairs[by_word].astype(np.int64))


def pairs_of_leaders(arrays: Arrays, ids: Digests) -> Ints:
    """[N] how many images of a piece have these leaders of their primary texts."""
    words, own = arrays["leaders.words"], words_of(ids)
    low, high = np.searchsorted(words, own, "left"), np.searchsorted(words, own, "right")
    rows, at = np.repeat(np.arange(len(own)), high - low), spread(low, high)
    equal = (ids[rows] == arrays["leaders.ids"][at]).all(axis=1)
    found = np.zeros(len(own), np.int64)
    found[rows[equal]] = arrays["leaders.pairs"][at[equal]]
    return found


class KeptSigned:
    """Signatures and details of a piece's images, from its commit, which are read image by image."""

    def __init__(self, arrays: Arrays, build: Build, piece: Piece) -> None:
        self._identities, self._first = Identities(build.store), piece.first
        self._detailed, self._first_detailed = arrays["fine.images"], int(arrays["fine.first"][0])
        self._known = self._identities.read(piece.commit)

    def grids(self, images: Ints, grids: Ints) -> Bytes:
        """See `image_comparison.Signed`."""
        distinct, at = np.unique(images, return_inverse=True)
        return self._read(SIGNATURES, self._first + distinct, _WIDTH).reshape(-1, GRIDS, SIZE)[at, grids]

    def details(self, images: Ints) -> Details:
        """See `image_comparison.Signed`."""
        places, rows = Details(self._detailed, np.zeros((0, details.SIZE), np.uint8)).rows_of(images)
        if not len(places):
            return NO_DETAILS
        distinct, at = np.unique(rows, return_inverse=True)
        return Details(places, self._read(DETAILS, self._first_detailed + distinct, ROW)[at, 8:])

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
