"""Runs: neighbouring partitions of filter, ranked by `pipeline.dedup.signatures`; those of a build opened together.

Images have numbers over all runs: those of a run follow those of the runs before it, and within a run the number grows
with the rank. Distinct texts of runs have numbers of their own, likewise. What earlier builds kept has numbers too,
over all of their pieces (`pipeline.dedup.earlier`).
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from data_specs.build import BuildSpec
from pipeline.dedup.earlier import STORED
from pipeline.dedup.piece import sketches_in
from pipeline.dedup.stored_signatures import StoredSignatures
from pipeline.files.arrays import Arrays
from pipeline.files.digests import DIGEST, Digests, digests_of
from pipeline.matching.contexts import WIDTH, Context
from pipeline.matching.image_comparison import NO_DETAILS, Hashed, Rule, fine_of
from pipeline.matching.image_keys import Ints, Key, plan
from pipeline.matching.sketches import Sketches, distinct
from pipeline.rows.records import LOOKS, OWN_WORDS, TEXTS_TYPE
from pipeline.store.build import Build
from pipeline.store.commits import Record
from pipeline.store.identities import DETAILS, SIGNATURES
from pipeline.store.ranges import KeyRange

ROWS, ARRAYS = "rows.arrow", "arrays.bin"

ROW_SCHEMA = pa.schema(
    [
        ("position", pa.int32()),  # among the run's pairs by (order_key, candidate_id)
        ("candidate_id", DIGEST),
        ("fetch_id", DIGEST),
        ("sha256", DIGEST),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("phash", pa.list_(pa.uint64())),
        ("words", pa.int32()),  # 0 for the best words; see `words_of`
        ("kept_by", pa.int32()),  # number of the earlier build that kept it, oldest first; see `Identities.kept_by`
        ("texts", TEXTS_TYPE),
    ]
)
"""A run's rows by rank."""


MOST_REMOVED = 7
"""Removed texts that make a difference for the rank."""


def run_name(partitions: Sequence[str]) -> str:
    """The name of the run of neighbouring partitions of filter."""
    first, last = KeyRange.of_partition(partitions[0]), KeyRange.of_partition(partitions[-1])
    return str(KeyRange(first.first, last.last, first.of, run=True))


def partitions_of(run: str) -> list[str]:
    """The partitions of filter that a run is made of."""
    return [str(part) for part in KeyRange.of_partition(run).parts()]


def pairs_of(build: Build, run: str, columns: list[str]) -> pa.Table:
    """The run's pairs by (order_key, candidate_id): columns of PAIR_SCHEMA, and LOOKS of their images."""
    filtered, measured = build.stage("filter"), build.stage("measure")
    own, looks = [name for name in columns if name not in LOOKS], [name for name in columns if name in LOOKS]
    tables = []
    for partition in partitions_of(run):
        table = filtered.table(filtered.record(partition), columns=own)
        images = measured.table(measured.record(partition), columns=["sha256", *looks])
        row = pc.index_in(table["sha256"], images["sha256"].combine_chunks())
        tables.append(pa.table({name: (images[name].take(row) if name in looks else table[name]) for name in columns}))
    return pa.concat_tables(tables).combine_chunks()


def records_of(build: Build) -> list[Record]:
    return [record for record in build.stage("dedup.signatures").records() if not record.partition.startswith(STORED)]


def keys_of(build: Build, records: Sequence[Record]) -> tuple[Key, ...]:
    """The keys by which the runs were written."""
    rule = rule_of(build.spec)
    return plan(records[0].info["compared"], rule.radius, rule.turned) if records else ()


def rule_of(spec: BuildSpec) -> Rule:
    """By what images of a build look alike."""
    return Rule(spec.dedup.image_distance, spec.dedup.image_signature, spec.dedup.image_turned)


def starts_of(records: Sequence[Record], what: str = "pairs") -> Ints:
    """The number of the first image (of "texts" the first text) of each run, and the number of all."""
    return np.concatenate([[0], np.cumsum([record.counts[what] for record in records])]).astype(np.int64)


class Runs:
    """All runs of a build, open as long as `files` is."""

    def __init__(self, build: Build, files: ExitStack) -> None:
        self._stage, self._files = build.stage("dedup.signatures"), files
        self.records = records_of(build)
        self.keys, self._turned = keys_of(build, self.records), build.spec.dedup.image_turned
        self.starts, self.text_starts = starts_of(self.records), starts_of(self.records, "texts")
        self.arrays = [
            files.enter_context(Arrays(self._stage.folder, record.files[ARRAYS].name)) for record in self.records
        ]

    def __len__(self) -> int:
        return len(self.records)

    def paths(self, suffix: str) -> list[Path]:
        """Local paths of a file of every run."""
        return [self._files.enter_context(self._stage.file(record, suffix)) for record in self.records]

    def signatures(self) -> StoredSignatures:
        """Signatures and details of all images."""
        return self._files.enter_context(StoredSignatures(self.paths(SIGNATURES), self.paths(DETAILS), self.starts))

    def rows(self) -> list[pa.Table]:
        """The rows of each run, mapped."""
        return [pa.ipc.open_file(pa.memory_map(str(path))).read_all() for path in self.paths(ROWS)]

    def concat(self, name: str) -> npt.NDArray[np.uint32]:
        """Concatenates one array of all runs."""
        return np.concatenate([np.zeros(0, np.uint32), *(arrays[name] for arrays in self.arrays)])

    def whole_sketches(self, texts: Ints) -> Sketches:
        """Sketches of texts [N] with their band keys; numbers ascend."""
        return replace(self.sketches(texts), keys=self.bands(texts))

    def sketches(self, texts: Ints) -> Sketches:
        """Sketches of texts [N], without band keys; numbers ascend."""
        borders = np.searchsorted(texts, self.text_starts)
        parts = [
            sketches_in(arrays).without_keys(texts[low:high] - start)
            for arrays, start, low, high in zip(
                self.arrays, self.text_starts.tolist(), borders[:-1], borders[1:], strict=False
            )
            if low < high
        ]
        return Sketches.concat(*parts)

    def hashed(self, images: Ints) -> tuple[Hashed, Hashed]:
        """(coarse hashes of images, ascending; fine ones of those with details)."""
        codes, tones = (_gathered(self.arrays, name, self.starts, images) for name in ("codes", "tones"))
        borders, fine = np.searchsorted(images, self.starts), [fine_of(NO_DETAILS, self._turned)]
        for arrays, start, low, high in zip(self.arrays, self.starts.tolist(), borders[:-1], borders[1:], strict=False):
            detailed = arrays["fine.images"]
            rows = np.flatnonzero(np.isin(detailed, images[low:high] - start)) if low < high else np.zeros(0, np.int64)
            fine.append(Hashed(detailed[rows] + start, arrays["fine.codes"][rows], arrays["fine.tones"][rows]))
        joined = (np.concatenate([getattr(of, name) for of in fine]) for name in ("images", "codes", "tones"))
        return Hashed(images, codes, tones), Hashed(*joined)

    def contexts(self, images: Ints) -> Context:
        """Contexts of images [N], whose numbers are in any order."""
        if not len(images):
            return np.zeros((0, WIDTH), np.uint64)
        contexts: Context = _gathered(self.arrays, "contexts", self.starts, images)
        return contexts

    def text_ids(self, texts: Ints) -> Digests:
        """[N, 32] ids of texts, whose numbers are in any order."""
        ids: Digests = _gathered(self.arrays, "text.ids", self.text_starts, texts)
        return ids

    def bands(self, texts: Ints) -> npt.NDArray[np.uint32]:
        """[N, bands] band keys of texts, whose numbers are in any order."""
        bands: npt.NDArray[np.uint32] = _gathered(self.arrays, "text.bands", self.text_starts, texts)
        return bands


def _gathered(arrays: Sequence[Arrays], name: str, starts: Ints, numbers: Ints) -> Any:
    run = np.searchsorted(starts, numbers, "right") - 1  # of runs that begin with one number the last, which has it
    width = arrays[0][name].shape[1:] if arrays else (32,)
    found = np.zeros((len(numbers), *width), arrays[0][name].dtype if arrays else np.uint8)
    for own in distinct(run).tolist():
        rows = np.flatnonzero(run == own)
        found[rows] = arrays[own][name][numbers[rows] - starts[own]]
    return found


def pixels_of(rows: pa.Table) -> Ints:
    """[N] by which pairs rank: the pixels of each one's image."""
    width, height = (rows[name].to_numpy().astype(np.int64) for name in ("width", "height"))
    pixels: Ints = width * height
    return pixels


def words_of(pairs: pa.Table) -> Ints:
    """[N] how good the words of pairs are, 0 for the best: those whose primary text is an alt, a caption or of a post
    come first, then those with a sentence beside them, a title, anything else; then those of which fewer better texts
    were removed, and those that stand in no list.
    """
    kind = pc.struct_field(pc.list_element(pairs["texts"].combine_chunks(), 0), "kind")
    order = pa.array([*OWN_WORDS, "content", "surrounding", "title"])
    at = pc.fill_null(pc.index_in(kind, value_set=order), len(order)).to_numpy(zero_copy_only=False).astype(np.int64)
    shared = np.maximum(at - len(OWN_WORDS), 0)
    removed = np.minimum(pairs["text_rank"].to_numpy().astype(np.int64), MOST_REMOVED)
    listed = pc.equal(pairs["shown"], "listed").to_numpy(zero_copy_only=False)
    words: Ints = (shared * (MOST_REMOVED + 1) + removed) * 2 + listed
    return words


def order_of(tables: Sequence[pa.Table]) -> Ints:
    """The order by rank of all rows of some tables of ROW_SCHEMA: by kept_by, words, largest image, candidate_id."""
    kept_by, words, smaller, word = (
        np.concatenate([np.zeros(0, kind), *parts])
        for kind, parts in (
            (np.int32, [table["kept_by"].to_numpy() for table in tables]),
            (np.int32, [table["words"].to_numpy() for table in tables]),
            (np.int64, [-pixels_of(table) for table in tables]),
            (np.uint64, [_words(digests_of(table["candidate_id"]))[:, 0] for table in tables]),
        )
    )
    order = np.lexsort((word, smaller, words, kept_by))
    ranked = kept_by[order], words[order], smaller[order], word[order]
    equal = np.all([of[1:] == of[:-1] for of in ranked], axis=0)
    tied = np.flatnonzero(np.append(equal, False) | np.insert(equal, 0, False))
    if len(tied):  # the first 64 bits of two ids agree
        ids = np.concatenate([_words(digests_of(table["candidate_id"])) for table in tables])[order[tied]]
        group = np.cumsum(~np.insert(equal, 0, False))[tied]
        order[tied] = order[tied][np.lexsort((ids[:, 3], ids[:, 2], ids[:, 1], group))]
    return order


def _words(digests: Digests) -> npt.NDArray[np.uint64]:
    """[N, 4] words that compare like digests [N, 32]."""
    return np.ascontiguousarray(digests).view(">u8").reshape(-1, 4).astype(np.uint64)
