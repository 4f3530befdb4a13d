"""Stage meet: finds images that may look like another one, or have its bytes, and texts that may be the same as
another one, of the build or of what earlier builds kept; all others are alone.

What is alone needs no look-up in the one pass that goes in order (`pipeline.dedup.lead`), and nobody needs to look it
up. A partition is a part of one key of images (`pipeline.matching.meetings`), of their bytes or of the band keys of
texts (`pipeline.matching.text_meetings`) over all runs, and reads no more of them. What earlier builds kept is looked
up piece by piece (`pipeline.dedup.dealt_earlier`), and never compared with itself.

Limits: a partition holds about ENTRIES entries of 60 bytes, and a byte, two while it looks into STORE, for each image
of the build, or for each distinct text of it; and a byte for each image of a piece. Of a BUILD behind a URL each
partition of a key copies the signatures of all runs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import pulse
from pipeline.dedup import handed_on
from pipeline.dedup.compared_texts import ComparedTexts
from pipeline.dedup.dealt_earlier import IMAGES, Piece, images_in, opened, texts_in
from pipeline.dedup.dealt_earlier import TEXTS as STORED_TEXTS
from pipeline.dedup.handed_on import BYTES, FOUND, MET, TEXTS, Part
from pipeline.dedup.stored_signatures import StoredSignatures
from pipeline.files.arrays import Arrays
from pipeline.matching.earlier_meetings import EarlierFinder, EarlierTextFinder, equal_words
from pipeline.matching.meetings import Ints, Table, equal
from pipeline.matching.text_meetings import TextTable
from pipeline.store.build import Build
from pipeline.store.stage import Pass, PassFile

ENTRIES = 1 << 22
"""Entries of a partition, on average."""

Found = tuple[Ints, Ints, dict[str, int]]
"""Numbers of images, or texts; those of earlier builds, as in MET; how many were compared."""


def token(build: Build) -> Any:
    return [build.spec.dedup.image_signature, build.spec.dedup.text_similarity]


def partitions(build: Build) -> list[str]:
    """Parts of every key, of bytes and of texts, each of as many buckets as hold about ENTRIES entries."""
    keys, dealt = handed_on.keys_of(build), handed_on.dealt_runs(build)
    if not keys or not dealt:  # nothing is dealt out where `deal` was done when nobody needed it: `lead` does without
        return []
    pairs, texts = (sum(record.counts[what] for record in dealt) for what in ("pairs", "text_entries"))
    detailed = sum(record.counts["detailed"] for record in dealt)
    images = {number: detailed if key.family.fine else pairs for number, key in enumerate(keys)}
    entries = {handed_on.name_of(number): images[number] * len(key.family.parts) for number, key in enumerate(keys)}
    entries |= {BYTES: pairs, TEXTS: texts}
    return [str(part) for what, count in entries.items() for part in Part.all_of(what, count, ENTRIES)]


def run_partition(build: Build, partition: str) -> None:
    """The numbers of the images, or texts, that a part finds, and of those that earlier builds kept."""
    part, records = Part.named(partition), handed_on.dealt_runs(build)
    starts = handed_on.starts_of(records)
    pulse.expect(int(starts[-1]))
    with ExitStack() as files, build.stage("dedup.meet").attempt(partition) as attempt:
        deal, suffix = build.stage("dedup.deal"), handed_on.suffix_of(part.what)
        with_entries = [suffix in record.files for record in records]  # a run without details has no fine keys

        def paths(suffix: str) -> list[Path]:
            return [files.enter_context(deal.file(record, suffix)) for record in records if suffix in record.files]

        entries = paths(suffix)
        if part.what == TEXTS:
            texts = ComparedTexts(paths(handed_on.SKETCHES))
            found, met, counts = _texts(build, part, entries, texts, handed_on.starts_of(records, "texts"))
        elif part.what == BYTES:
            found, met, counts = _same_bytes(build, part, entries, starts)
        else:
            signatures = handed_on.signatures_of(deal, records, files)
            found, met, counts = _alike(build, part, entries, starts[:-1][with_entries], signatures)
        attempt.path(FOUND).write_bytes(found.astype(np.int64).tobytes())
        if build.identities:
            attempt.path(MET).write_bytes(met.astype(np.int64).tobytes())
            counts["met"] = len(met)
        pulse.advance(int(starts[-1]))
        attempt.commit({"images": int(starts[-1]), "found": len(found), **counts})


def _pieces(build: Build, kind: str, *, fine: bool = False) -> Iterator[tuple[int, Piece, Arrays]]:
    """(number << 32, piece, its arrays) of what earlier builds kept, one at a time; fine: of those with details."""
    keys = handed_on.keys_of(build)
    for number, piece in enumerate(handed_on.dealt_pieces(build)):
        if piece.kind == kind and (piece.fine or not fine):
            with opened(build, piece, keys, fine=fine) as arrays:
                yield number << 32, piece, arrays


def _alike(build: Build, part: Part, entries: Sequence[Path], starts: Ints, signatures: StoredSignatures) -> Found:
    """Images that may look like another one, by a key; starts: of the runs with entries."""
    keys, number = handed_on.keys_of(build), int(part.what)
    key = keys[number]
    finder = EarlierFinder(key, build.spec.dedup.image_signature, int(signatures.starts[-1]), signatures)
    tables = [Table(*handed_on.read(path, part, np.uint64, np.uint64, np.uint32)) for path in entries]
    numbered, met = list(zip(starts.tolist(), tables, strict=True)), list[Ints]()
    finder.look(numbered)
    if build.identities and any(map(len, tables)):
        finder.ask(numbered)
        for at, piece, arrays in _pieces(build, IMAGES, fine=key.family.fine):
            met.append(at | finder.meet(images_in(arrays, keys, number, build, piece)))
    return np.flatnonzero(finder.found), _joined(met), {"compared": finder.compared, "apart": finder.apart}


def _same_bytes(build: Build, part: Part, entries: Sequence[Path], starts: Ints) -> Found:
    """The images whose bytes are those of another one."""
    words, images = [np.zeros(0, np.uint64)], [np.zeros(0, np.int64)]
    for path, start in zip(entries, starts.tolist(), strict=False):
        word, owner = handed_on.read(path, part, np.uint64, np.uint32)
        words.append(word)
        images.append(owner.astype(np.int64) + start)
    word, image = np.concatenate(words), np.concatenate(images)
    found, met = [equal(word, image)], list[Ints]()
    order = np.argsort(word)  # so that the searches below go through memory once
    for at, _, arrays in _pieces(build, IMAGES):
        own, kept = equal_words(word[order], arrays["bytes.words"])
        found.append(image[order][own])
        met.append(at | arrays["bytes.owner"][kept].astype(np.int64))
    return np.unique(_joined(found)), _joined(met), {"compared": 0, "apart": 0}


def _texts(build: Build, part: Part, entries: Sequence[Path], texts: ComparedTexts, starts: Ints) -> Found:
    """Texts that may be the same as another one; starts: of all texts of each run."""
    finder = EarlierTextFinder(build.spec.dedup.text_similarity, texts.read)
    tables = [TextTable(*handed_on.read(path, part, np.uint32, np.uint32)) for path in entries]
    numbered = list(zip(texts.starts[:-1].tolist(), tables, strict=True))
    found = np.zeros(int(texts.starts[-1]), np.bool_)
    found[finder.look(numbered)] = True
    met = [at | finder.meet(numbered, texts_in(arrays), found) for at, _, arrays in _pieces(build, STORED_TEXTS)]
    own = texts.among_all(np.flatnonzero(found), starts[:-1])
    return own, _joined(met), {"compared": finder.compared, "apart": finder.apart}


def _joined(parts: Sequence[Ints]) -> Ints:
    return np.concatenate([np.zeros(0, np.int64), *parts])


PASS = Pass(
    name="dedup.meet",
    over=partitions,
    reads=("dedup.rank", "dedup.deal"),
    run=run_partition,
    token=token,
    version=handed_on.VERSION,
    files=(PassFile("*.bin"),),
    unit="images",
    done=("images",),
)
