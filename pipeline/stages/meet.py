"""Stage meet: finds images that may look like another one of the build, or have its bytes, and texts that may be the
same as another one; all others are alone.

What is alone needs no look-up in the one pass that goes in order (`pipeline.stages.lead`), and nobody needs to look it
up. A partition is a part of one key of images (`pipeline.matching.meetings`), of their bytes or of the band keys of
texts (`pipeline.matching.text_meetings`) over all runs, and reads no more of them.

Limits: a partition holds about ENTRIES entries of 60 bytes, and a byte for each image of the build.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import pulse
from pipeline.matching.meetings import Finder, Ints, Table, equal
from pipeline.matching.text_meetings import TextFinder, TextTable
from pipeline.stages import _meetings
from pipeline.stages._compared_texts import ComparedTexts
from pipeline.stages._meetings import BYTES, FOUND, TEXTS, Part
from pipeline.stages._stored_signatures import StoredSignatures
from pipeline.store.build import Build
from pipeline.store.stage import Stage, StageFile

ENTRIES = 1 << 22
"""Entries of a partition, on average."""


def token(build: Build) -> Any:
    return build.spec.dedup.image_signature


def partitions(build: Build) -> list[str]:
    """Parts of every key, of bytes and of texts, each of as many buckets as hold about ENTRIES entries."""
    keys = _meetings.keys_of(build)
    if not keys:
        return []
    dealt = build.stage("deal").records()
    pairs, texts = (sum(record.counts[what] for record in dealt) for what in ("pairs", "text_entries"))
    detailed = sum(record.counts["detailed"] for record in dealt)
    images = {number: detailed if key.family.fine else pairs for number, key in enumerate(keys)}
    entries = {_meetings.name_of(number): images[number] * len(key.family.parts) for number, key in enumerate(keys)}
    entries |= {BYTES: pairs, TEXTS: texts}
    return [str(part) for what, count in entries.items() for part in Part.all_of(what, count, ENTRIES)]


def run_partition(build: Build, partition: str) -> None:
    """The numbers of the images, or texts, that a part finds."""
    part, records = Part.named(partition), build.stage("deal").records()
    starts = _meetings.starts_of(records)
    pulse.expect(int(starts[-1]))
    with ExitStack() as files, build.stage("meet").attempt(partition) as attempt:
        deal, suffix = build.stage("deal"), _meetings.suffix_of(part.what)
        with_entries = [suffix in record.files for record in records]  # a run without details has no fine keys

        def paths(suffix: str) -> list[Path]:
            return [files.enter_context(deal.file(record, suffix)) for record in records if suffix in record.files]

        entries = paths(suffix)
        if part.what == TEXTS:
            texts = ComparedTexts(paths(_meetings.SKETCHES))
            found, counts = _texts(build, part, entries, texts, _meetings.starts_of(records, "texts"))
        elif part.what == BYTES:
            found, counts = _same_bytes(part, entries, starts), {"compared": 0, "apart": 0}
        else:
            signatures = _meetings.signatures_of(deal, records, files)
            found, counts = _alike(build, part, entries, starts[:-1][with_entries], signatures)
        attempt.path(FOUND).write_bytes(found.astype(np.int64).tobytes())
        pulse.advance(int(starts[-1]))
        attempt.commit({"images": int(starts[-1]), "found": len(found), **counts})


def _alike(
    build: Build, part: Part, entries: Sequence[Path], starts: Ints, signatures: StoredSignatures
) -> tuple[Ints, dict[str, int]]:
    """(images that may look like another one, how many were compared), by a key; starts: of the runs with entries."""
    key = _meetings.keys_of(build)[int(part.what)]
    finder = Finder(key, build.spec.dedup.image_signature, int(signatures.starts[-1]), signatures)
    tables = [Table(*_meetings.read(path, part, np.uint64, np.uint64, np.uint32)) for path in entries]
    finder.look(list(zip(starts.tolist(), tables, strict=True)))
    return np.flatnonzero(finder.found), {"compared": finder.compared, "apart": finder.apart}


def _same_bytes(part: Part, entries: Sequence[Path], starts: Ints) -> Ints:
    """The images whose bytes are those of another one."""
    words, images = [], []
    for path, start in zip(entries, starts.tolist(), strict=False):
        word, owner = _meetings.read(path, part, np.uint64, np.uint32)
        words.append(word)
        images.append(owner.astype(np.int64) + start)
    return equal(np.concatenate(words), np.concatenate(images))


def _texts(
    build: Build, part: Part, entries: Sequence[Path], texts: ComparedTexts, starts: Ints
) -> tuple[Ints, dict[str, int]]:
    """(texts that may be the same as another one, how many were compared); starts: of all texts of each run."""
    finder = TextFinder(build.spec.dedup.text_similarity, texts.read)
    tables = [TextTable(*_meetings.read(path, part, np.uint32, np.uint32)) for path in entries]
    found = finder.look(list(zip(texts.starts[:-1].tolist(), tables, strict=True)))
    return texts.among_all(found, starts[:-1]), {"compared": finder.compared, "apart": finder.apart}


STAGE = Stage(
    name="meet",
    zh="比图",
    folder="met",
    inputs=("deal",),
    version=_meetings.VERSION,
    token=token,
    partitions=partitions,
    run=run_partition,
    files=(StageFile("*.bin"),),
    subject="",
    unit="images",
    done=("images",),
    rewrites_others=False,
    without=_meetings.without,
)
