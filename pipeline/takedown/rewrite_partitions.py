"""Removes what is taken down from the committed partitions of one build, at every fingerprint.

Which rows are removed is known beforehand (`pipeline.store.rewrite.Removal`); each pass knows how its partitions are
rewritten (`Pass.without`). Files with fixed names, the shards, are done by `pipeline.takedown.rewrite_shards`.

Passes are done last to first, so that the rows by which a later one's rows are recognised still exist if this is
killed. Each partition is committed again as a whole, and the same command finishes what a killed one began.

Limits: one process, a partition in memory. What other specs committed is deleted instead of rewritten where the pass
says so (`Pass.rewrites_others`). WARC files and tables that a spec names are the user's and are not touched.
"""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc

from data_specs.shard import nfc
from pipeline.store.build import Build
from pipeline.store.partitions import DECISIONS, Record
from pipeline.store.rewrite import BorrowedTexts, Removal, Rewrite, scratch
from pipeline.store.stage import Pass
from pipeline.takedown.request import text_array


def rewritable(build: Build) -> list[str]:
    """Passes that `remove` can rewrite, in its order: a pass before those that it reads."""
    names = [own.name for own in build.all_passes() if not build.stages[own.stage].fixed_names]
    return names[::-1]


def remove(build: Build, removal: Removal, names: Sequence[str]) -> None:
    """Rewrites the files of passes `names` (of `rewritable`)."""
    borrowed, passes = borrowed_texts(build, removal), {own.name: own for own in build.all_passes()}
    for name in names:
        stage, ours = passes[name], build.fingerprints.get(name, "")
        directories = build.history(name)
        for directory in directories:
            if not stage.rewrites_others and directory.at(ours).mark != directory.mark:
                directory.delete_records()
                continue
            for record in directory.records():
                with scratch(directory) as path:
                    rewrite = Rewrite(directory, record, removal, borrowed, path, _aligned(build, stage, record))
                    stage.without(rewrite)
                    after = rewrite.commit()
                if after is not None:
                    stage.moved(build, record, after)
        build.stage_at(name, ours).sweep()  # also what a killed attempt left without a record
        stage.forget_state(build, removal)


def _aligned(build: Build, own: Pass, record: Record) -> dict[str, pa.Table]:
    """By the suffix of a record's column files candidate_id and source of the rows that they belong to."""
    files = ((suffix, own.file(suffix)) for suffix in record.files)
    pairs = {suffix: build.stage(file.aligned) for suffix, file in files if file is not None and file.aligned}
    return {
        suffix: of.table(of.record(record.partition), columns=["candidate_id", "source"])
        for suffix, of in pairs.items()
    }


def borrowed_texts(build: Build, removal: Removal) -> BorrowedTexts:
    """Texts that kept samples took over from copies that are removed.

    Read from dedup's decisions and the pairs that it saw, which must both still be there. In memory are the copies of
    such samples alone.
    """
    if "dedup" not in build.fingerprints or not build.spec.dedup.merge_texts:
        return BorrowedTexts({}, set())
    removed = removal.hashes
    mended = set(_leaders(build, "id", removed).values()) - removed - {""}
    leader_of = _leaders(build, "duplicate_of", mended) if mended else {}
    allowed: dict[str, set[str]] = {leader: set() for leader in mended}
    texts: set[str] = set()
    pairs = build.stage("filter")
    some = pc.field("candidate_id").isin(text_array(mended | leader_of.keys()))
    for record in pairs.records() if mended else ():
        table = pairs.table(record, columns=["candidate_id", "texts"], filters=some)
        for name, own in zip(table["candidate_id"].to_pylist(), table["texts"].to_pylist(), strict=True):
            target = texts if name in removed else allowed[leader_of.get(name, name)]
            target.update(nfc(text["text"]) for text in own)
    return BorrowedTexts(allowed, texts)


def _leaders(build: Build, column: str, names: set[str]) -> dict[str, str]:
    """The leader of each copy of which a column of dedup's decisions has one of these names."""
    stage, leader_of = build.stage("dedup"), dict[str, str]()
    wanted = pc.field(column).isin(text_array(names))
    for record in stage.records():
        if DECISIONS in record.files:
            table = stage.table(record, DECISIONS, ["id", "duplicate_of"], wanted)
            leader_of |= zip(table["id"].to_pylist(), table["duplicate_of"].to_pylist(), strict=True)
    return leader_of
