"""Removes what is taken down from the committed partitions of one build, at every fingerprint.

Which rows are removed is known beforehand (`pipeline.store.rewrite.Removal`); each stage knows how its partitions are
rewritten (`Stage.without`). Files with fixed names, the shards, are done by `pipeline.takedown.rewrite_shards`.

Stages are done last to first, so that the rows by which a later stage's rows are recognised still exist if this is
killed. Each partition is committed again as a whole, and the same command finishes what a killed one began.

Limits: one process, a partition in memory. What other specs committed is deleted instead of rewritten where the stage
says so (`Stage.rewrites_others`). WARC files and tables that a spec names are the user's and are not touched.
"""

from __future__ import annotations

from collections.abc import Sequence

from data_specs.shard import nfc
from pipeline.store.build import Build
from pipeline.store.partitions import DECISIONS
from pipeline.store.rewrite import BorrowedTexts, Removal, Rewrite, scratch


def rewritable(build: Build) -> list[str]:
    """Stages that `remove` can rewrite, in its order: a stage before those that it reads."""
    return [stage.name for stage in reversed(list(build.stages.values())) if not stage.fixed_names]


def remove(build: Build, removal: Removal, names: Sequence[str]) -> None:
    """Rewrite the files of stages `names` (of `rewritable`)."""
    borrowed = borrowed_texts(build, removal)
    for name in names:
        stage, ours = build.stages[name], build.fingerprints.get(name, "")
        directories = build.history(name)
        for directory in directories:
            if not stage.rewrites_others and directory.at(ours).mark != directory.mark:
                directory.delete_records()
                continue
            for record in directory.records():
                with scratch(directory) as path:
                    rewrite = Rewrite(directory, record, removal, borrowed, path)
                    stage.without(rewrite)
                    after = rewrite.commit()
                if after is not None:
                    stage.moved(build, record, after)
        if directories:
            directories[0].sweep()
        stage.forget_state(build, removal)


def borrowed_texts(build: Build, removal: Removal) -> BorrowedTexts:
    """Texts that kept samples took over from copies that are removed.

    Read from dedup's decisions and the pairs that it saw, which must both still be there.
    """
    if "dedup" not in build.fingerprints or not build.spec.dedup.merge_texts:
        return BorrowedTexts({}, set())
    stage, leader_of = build.stage("dedup"), dict[str, str]()
    for record in stage.records():
        if DECISIONS not in record.files:
            continue
        table = stage.table(record, DECISIONS, ["id", "duplicate_of"], [("duplicate_of", "!=", "")])
        leader_of |= zip(table["id"].to_pylist(), table["duplicate_of"].to_pylist(), strict=True)
    removed = removal.hashes
    mended = {leader for copy, leader in leader_of.items() if copy in removed and leader not in removed}
    allowed: dict[str, set[str]] = {leader: set() for leader in mended}
    texts: set[str] = set()
    if not mended:
        return BorrowedTexts(allowed, texts)
    pairs = build.stage("filter")
    for record in pairs.records():
        table = pairs.table(record, columns=["candidate_id", "texts"])
        for name, own in zip(table["candidate_id"].to_pylist(), table["texts"].to_pylist(), strict=True):
            leader = leader_of.get(name, name)
            if leader in mended:
                target = texts if name in removed else allowed[leader]
                target.update(nfc(text["text"]) for text in own)
    return BorrowedTexts(allowed, texts)
