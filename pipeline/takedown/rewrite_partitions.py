"""Removes what is taken down from the committed partitions of one build, at every fingerprint, by two functions.

`_remove_rows` removes rows by id: from tables, and from the column files that belong to them. `_delete_derived` deletes
every other file of a partition that held something of it. Content that cannot be made again is rewritten (CONTENTS):
captures and images are archives, with a table beside them that says where in the archive each page or image lies; what
dedup hands to STORE are its kept images, row by row. STORE points into archives: it is told where they lie once the
partition is committed again (MOVED). A pass declares what its files are (`PassFile.holds`).

What the report, `explain`, `verify` and a release read are rows, columns, figures and content, so that they go on
without what was removed. A pass whose partition is deleted is no longer finished: the next `build` makes that partition
again, of what is left. Shards have fixed names; they are rewritten by `pipeline.takedown.rewrite_shards`.

Which rows are removed is known beforehand (`pipeline.takedown.rewrite.Removal`). Passes are done last to first, so that
the rows by which a later one's rows are recognised still exist if this is killed. Each partition is committed again as
a whole, and the same command finishes what a killed one began.

Limits: one process, a partition in memory. A file without ids is deleted with whatever its pass has read, whether it
held something of what is removed or not. WARC files and tables that a spec names are the user's and are not touched.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset

from data_specs.shard import canonical_json, nfc
from pipeline.files.folder import place_of
from pipeline.files.tars import TarWriter
from pipeline.store.build import Build, Kind, Pass, PassFile
from pipeline.store.commits import DECISIONS, ROWS_DIGEST, Record, rows_digest
from pipeline.store.identities import DETAILS, SIGNATURES, write_without
from pipeline.store.partitions import REDUCED, StageDir
from pipeline.store.store import Store
from pipeline.takedown.request import text_array
from pipeline.takedown.rewrite import BorrowedTexts, Removal, Rewrite, repoint_images, scratch
from pipeline.web.warc import copy_without


def rewritable(build: Build) -> list[str]:
    """Passes that `remove` can rewrite, in its order: a pass before those that it reads."""
    names = [own.name for own in build.all_passes() if not build.stages[own.stage].fixed_names]
    return names[::-1]


def remove(build: Build, removal: Removal, names: Sequence[str]) -> None:
    """Removes what is taken down from the files of passes `names` (of `rewritable`)."""
    held, borrowed = _RemovalSearch(build, removal), borrowed_texts(build, removal)
    for own in (held.passes[name] for name in names):
        for directory in build.history(own.name):
            for record in directory.records():
                with scratch(directory) as path:
                    _remove_from(own, Rewrite(directory, record, removal, path), held, borrowed)
            directory.compact_again()
        stage = build.stage_at(own.name, "")
        stage.sweep()  # also what a killed attempt left without a record
        for file in (file for file in own.files if file.kind == "state"):
            stage.folder.delete(file.suffix)
        for name in (stage.folder / REDUCED).names() if any(file.suffix == REDUCED for file in own.files) else ():
            remaining = removal.remaining_rows(pa.Table.from_pylist((stage.folder / REDUCED).read_json(name)))
            if remaining is not None:
                (stage.folder / REDUCED).write(name, canonical_json(remaining.to_pylist()))


def _remove_from(own: Pass, rewrite: Rewrite, held: _RemovalSearch, borrowed: BorrowedTexts) -> None:
    """Commits one partition again without what is removed, or deletes its record."""
    kinds = {file.kind for file in own.files}
    for kind in CONTENTS.keys() & kinds:
        CONTENTS[kind](rewrite)
    stage, before = rewrite.stage, rewrite.record
    if not (_remove_rows(own, rewrite, held, borrowed) and _delete_derived(own, rewrite, held)):
        stage.uncommit(before.partition)
    elif (after := rewrite.commit()) is not None:
        for kind in MOVED.keys() & kinds:
            MOVED[kind](held.build.store, stage, before, after)


def _remove_rows(own: Pass, rewrite: Rewrite, held: _RemovalSearch, borrowed: BorrowedTexts) -> bool:
    """Removes rows by id from tables and from column files; decisions lose their names. False for a column file of
    rows that are no longer there."""
    stage, record, removal = rewrite.stage, rewrite.record, rewrite.removal
    for suffix in record.files.keys() - rewrite.files.keys():
        file = own.file(suffix)
        if file is not None and file.holds == "columns":
            if not held.remove_columns(file.aligned, suffix, rewrite):
                return False
        elif suffix == DECISIONS or (file is not None and file.holds == "rows"):
            table = stage.table(record, suffix)
            if suffix == DECISIONS:
                remaining = removal.blanked(table)
            else:
                remaining = borrowed.remaining_rows(removal.remaining_rows(table), table)
            if remaining is not None:
                rewrite.write_table(suffix, remaining)
    return True


def _delete_derived(own: Pass, rewrite: Rewrite, held: _RemovalSearch) -> bool:
    """Deletes the files that can be made again, if they held something of what is removed. False where the record goes
    with them: it names no other file, or the stage is not done and would read them."""
    suffixes = rewrite.record.files.keys() - {DECISIONS}
    files = {suffix: own.file(suffix) for suffix in suffixes}
    derived = {suffix: file for suffix, file in files.items() if file is None or file.holds == "derived"}
    if derived and held.finds_any(own, rewrite.stage, rewrite.record, derived):
        rewrite.deleted = set(derived)
    is_done = bool(held.build.stage_at(own.stage, "").finished_at())
    return not rewrite.deleted or (is_done and rewrite.deleted < rewrite.record.files.keys())


def _captures(rewrite: Rewrite) -> None:
    """WARC files without the records of pages that are removed, and the table of pages with the new offsets."""
    moved: dict[str, int] = {}
    for suffix in (suffix for suffix in rewrite.record.files if suffix.endswith("warc.gz")):
        with rewrite.stage.file(rewrite.record, suffix) as source:
            offsets = copy_without(source, rewrite.path(suffix), rewrite.removal.page)
        if offsets is not None:
            moved |= offsets
            rewrite.replace(suffix)
    if moved and "parquet" in rewrite.record.files:
        table = rewrite.stage.table(rewrite.record)
        rows = table.filter(pc.invert(rewrite.removal.mask(table))).to_pylist()
        for row in rows:
            row["warc_offset"] = moved.get(str(row["warc_offset"]), row["warc_offset"])
        rewrite.write_table("parquet", pa.Table.from_pylist(rows, schema=table.schema))


def _captures_moved(store: Store, stage: StageDir, before: Record, after: Record) -> None:
    """Else the next crawl of a site would ask for everything again."""
    at = stage.folder.at
    places = {place_of(at(ref.name)): at(after.files[suffix].name) for suffix, ref in before.files.items()}
    store.relocate_crawls(lambda place: places.get(place_of(place), place))


def _images(rewrite: Rewrite) -> None:
    """The tar and its table without the images that are removed."""
    table = rewrite.stage.table(rewrite.record)
    remaining = rewrite.removal.remaining_rows(table)
    if remaining is None:
        return
    rows = remaining.to_pylist()
    with (
        rewrite.stage.file(rewrite.record, "tar") as source,
        source.open("rb") as f,
        rewrite.path("tar").open("wb") as out,
    ):
        writer = TarWriter(out)
        for row in sorted((row for row in rows if row["ok"]), key=lambda row: int(row["offset"])):
            f.seek(row["offset"])
            row["offset"] = writer.add(row["fetch_id"], f.read(row["size"]))
        writer.close()
    rewrite.replace("tar")
    rewrite.write_table("parquet", pa.Table.from_pylist(rows, schema=table.schema))


def _images_moved(store: Store, stage: StageDir, before: Record, after: Record) -> None:
    old = store.relative_place(stage.folder.at(before.files["tar"].name))
    if before.files["tar"] != after.files["tar"]:
        repoint_images(store, stage, after, lambda tar: store.relative_place(store.resolve_place(tar)) == old)


def _identities(rewrite: Rewrite) -> None:
    """Rewrites what a build hands to STORE, without the removed images. Its texts stay: hashes of what was compared."""
    stage, record = rewrite.stage, rewrite.record
    images = stage.table(record, "images.parquet")
    mask = np.array(rewrite.removal.mask(images).to_pylist(), np.bool_)
    if not mask.any():
        return
    parts = ("images.parquet", SIGNATURES, "placeholders.parquet", DETAILS)
    with stage.file(record, SIGNATURES) as signatures, stage.file(record, DETAILS) as details:
        placeholders = stage.table(record, "placeholders.parquet")
        write_without({part: rewrite.path(part) for part in parts}, images, signatures, details, placeholders, mask)
    for part in parts:
        rewrite.replace(part)


CONTENTS: dict[Kind, Callable[[Rewrite], None]] = {
    "captures": _captures,
    "images": _images,
    "identities": _identities,
}
"""Rewrites the files of one partition, by their kind."""

MOVED: dict[Kind, Callable[[Store, StageDir, Record, Record], None]] = {
    "captures": _captures_moved,
    "images": _images_moved,
}
"""Tells STORE where the files of a partition that was committed again lie now."""


class _RemovalSearch:
    """Search for removed content in the files of a build."""

    def __init__(self, build: Build, removal: Removal) -> None:
        self.build, self._removal = build, removal
        self.passes = {own.name: own for own in build.all_passes()}
        self._rows: dict[str, dict[str, list[tuple[StageDir, Record]]]] = {}
        self._found: dict[str, bool] = {}

    def remove_columns(self, name: str, suffix: str, rewrite: Rewrite) -> bool:
        """Removes from a column file the rows that pass `name` loses; False if these are at no fingerprint the rows
        that it belongs to."""
        digest = rewrite.record.info.get(ROWS_DIGEST)
        for stage, record in self._committed(name).get(rewrite.record.partition, ()):
            rows = stage.table(record, columns=["candidate_id"])
            stays = pc.invert(self._removal.mask(rows))
            if pc.all(stays).as_py():
                after = record.info[ROWS_DIGEST]
            else:
                after = rows_digest(rows.filter(stays)["candidate_id"].to_pylist())
            if digest in (record.info[ROWS_DIGEST], after):  # after: a takedown was killed behind it
                if digest != after:
                    rewrite.write_columns(suffix, stays, after)
                return True
        return False

    def finds_any(self, own: Pass, stage: StageDir, record: Record, files: Mapping[str, PassFile | None]) -> bool:
        """True if files of a partition hold removed content: by their ids, or by the files that the pass has read."""
        if any(file is not None and file.id_column for file in files.values()):
            return self._finds_ids(stage, record, files)
        return any(map(self._finds_in_pass, own.reads))

    def _finds_in_pass(self, name: str) -> bool:
        """True if a pass holds removed content, at any fingerprint."""
        own = self.passes[name]
        if name not in self._found:
            self._found[name] = any(
                self.finds_any(own, stage, record, {suffix: own.file(suffix) for suffix in record.files})
                for stage in self.build.history(name)
                for record in stage.records()
            )
        return self._found[name]

    def _finds_ids(self, stage: StageDir, record: Record, files: Mapping[str, PassFile | None]) -> bool:
        for suffix, file in files.items():
            if file is not None and file.id_column:
                with stage.file(record, suffix) as path:
                    kind = "ipc" if suffix.endswith(".arrow") else "parquet"
                    rows = pyarrow.dataset.dataset(str(path), format=kind).to_table([file.id_column])
                if pc.any(self._removal.mask(rows)).as_py():
                    return True
        return False

    def _committed(self, name: str) -> dict[str, list[tuple[StageDir, Record]]]:
        """Partitions of a pass by name, at every fingerprint."""
        if name not in self._rows:
            committed = self._rows[name] = defaultdict(list)
            for stage in self.build.history(name):
                for record in stage.records():
                    committed[record.partition].append((stage, record))
        return self._rows[name]


def borrowed_texts(build: Build, removal: Removal) -> BorrowedTexts:
    """Texts that kept samples took over from copies that are removed.

    Read from dedup's decisions and the pairs that it saw, which must both still be there. In memory are the copies of
    such samples alone.
    """
    if "dedup" not in build.fingerprints or not build.spec.dedup.merge_texts:
        return BorrowedTexts({})
    removed = removal.hashes
    mended = set(_leaders(build, "id", removed).values()) - removed - {""}
    leader_of = _leaders(build, "duplicate_of", mended) if mended else {}
    allowed: dict[str, set[str]] = {leader: set() for leader in mended}
    pairs = build.stage("filter")
    some = pc.field("candidate_id").isin(text_array(mended | leader_of.keys()))
    for record in pairs.records() if mended else ():
        table = pairs.table(record, columns=["candidate_id", "texts"], filters=some)
        for name, own in zip(table["candidate_id"].to_pylist(), table["texts"].to_pylist(), strict=True):
            if name not in removed:
                allowed[leader_of.get(name, name)].update(nfc(text["text"]) for text in own)
    return BorrowedTexts(allowed)


def _leaders(build: Build, column: str, names: set[str]) -> dict[str, str]:
    """The leader of each copy of which a column of dedup's decisions has one of these names."""
    stage, leader_of = build.stage("dedup"), dict[str, str]()
    wanted = pc.field(column).isin(text_array(names))
    for record in stage.records():
        if DECISIONS in record.files:
            table = stage.table(record, DECISIONS, ["id", "duplicate_of"], wanted)
            leader_of |= zip(table["id"].to_pylist(), table["duplicate_of"].to_pylist(), strict=True)
    return leader_of
