"""Take what was forgotten out of one build: the files of every stage up to `detect`, at every fingerprint.

Which rows go is known beforehand, as hashes (`Gone`); `pipeline.takedown.forget` finds them. A row goes by its
candidate_id, or by its key, fetch_id or sha256 where it has none. Decisions stay, without URL, page and text, so that
the funnel still adds up: a sample that goes is one that `shard` dropped as `forgotten`. Texts that a kept sample took
over from a forgotten copy go too, unless another page had the same.

Stages are done last to first, so that whatever a later stage's rows are recognised by is still there if this is killed;
and each partition is committed again as a whole (`StageDir.amend`). Shards are `pipeline.takedown.restage`'s. Killed
anywhere, the same command goes on.

Limits: one process, a partition in memory. Stages after measure that other specs left in the folder are deleted
instead of rewritten; they cost no network. WARC files and tables that a spec names are the user's and are not touched.
"""

from __future__ import annotations

import sqlite3
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data_specs.shard import KEY_LENGTH, nfc
from pipeline.files.digests import DIGEST
from pipeline.files.folder import Folder
from pipeline.files.parquet import write_parquet
from pipeline.files.tars import TarWriter
from pipeline.records import DropReason, sha256_hex
from pipeline.store.build import Build
from pipeline.store.cache import Cache
from pipeline.store.identities import SIGNATURES, write_without
from pipeline.store.partitions import DECISIONS, Record, StageDir
from pipeline.store.takedowns import Takedowns

STAGES = ("detect", "screen", "dedup", "lead", "rank", "filter", "measure", "fetch", "admit", "extract", "crawl")
"""What `erase` can rewrite, in its order: a stage before those that it reads."""

KEPT_FOR_OTHERS = ("crawl", "extract", "admit", "fetch", "measure", "filter")
"""Stages whose files at other fingerprints are rewritten; those of later ones are deleted."""


class Gone:
    """Hashes of what goes: candidates, images (sha256), image URLs (fetch_id), pages (sha256 of the URL)."""

    COLUMNS = ("candidate_id", "id", "key", "fetch_id", "sha256")

    def __init__(self, hashes: set[str], takedowns: Takedowns) -> None:
        self.hashes, self._takedowns = hashes, takedowns
        self._text = pa.array(sorted(hashes), pa.string())
        self._raw = pa.array([bytes.fromhex(name) for name in sorted(hashes)], DIGEST)
        self._keys = pa.array(sorted({name[:KEY_LENGTH] for name in hashes}), pa.string())

    def mask(self, table: pa.Table) -> pa.Array:
        """Which rows go; None of a table without a column to tell by."""
        name = next((name for name in self.COLUMNS if name in table.column_names), "")
        if not name:
            return pa.array(np.zeros(table.num_rows, np.bool_))
        known = self._keys if name == "key" else self._raw if table.schema.field(name).type == DIGEST else self._text
        found = pc.is_in(table[name], known)
        return found.combine_chunks() if isinstance(found, pa.ChunkedArray) else found

    def page(self, url: str) -> bool:
        return sha256_hex(url) in self.hashes or self._takedowns.host(url)

    def without(self, table: pa.Table) -> pa.Table | None:
        """The table without what goes; None if nothing does."""
        mask = self.mask(table)
        return table.filter(pc.invert(mask)) if pc.any(mask).as_py() else None


def erase(build: Build, gone: Gone, cache: Cache, names: Sequence[str]) -> None:
    """Rewrite the files of stages `names` (of STAGES). `cache` is STORE/fetched, which points into image tars."""
    borrowed = Borrowed.of(build, gone)
    for name in names:
        stages = build.stages(name)
        for stage in stages:
            if name not in KEPT_FOR_OTHERS and not build.fingerprints.get(name, "").startswith(stage.fingerprint):
                _drop(stage)
                continue
            for record in stage.records():
                _partition(stage, record, gone, borrowed, cache, build.store.folder / "crawled")
        if stages:
            stages[0].sweep()
        if name == "crawl":
            _frontiers(build, gone)


def _drop(stage: StageDir) -> None:
    """Delete what was committed at a fingerprint; its files go with the next sweep."""
    done = "_stage.json"
    if stage.folder.exists(done) and stage.folder.read_json(done)["fingerprint"].startswith(stage.fingerprint):
        stage.folder.delete(done)
    stage.folder.delete(f"_records/{stage.fingerprint}")


def _partition(stage: StageDir, record: Record, gone: Gone, borrowed: Borrowed, cache: Cache, crawled: Folder) -> None:
    """Rewrite what a partition holds of what goes; nothing is written where it holds none of it."""
    counts = dict(record.counts)
    with scratch(stage) as path:
        files: dict[str, Path] = {}
        moved: dict[str, int] = {}
        for suffix in record.files:
            if suffix.endswith("warc.gz"):
                with stage.file(record, suffix) as source:
                    places = without_pages(source, path(suffix), gone.page)
                if places is not None:
                    moved |= places
                    files[suffix] = path(suffix)
        if stage.name == "fetch":
            files |= _images(stage, record, gone, path)
        elif stage.name == "lead":
            files |= _lead(stage, record, gone, borrowed, path)
        for suffix in record.files:
            if suffix in files or not (suffix == "parquet" or suffix.endswith(".parquet")):
                continue
            table = stage.table(record, suffix)
            if suffix == DECISIONS:
                left = blanked(table, gone)
            elif "warc_offset" in table.column_names:
                left = _pages(table, gone, moved)
            else:
                left = borrowed.returned(gone.without(table), table)
            if left is not None:
                with stage.file(record, suffix) as source:
                    write_parquet(path(suffix), left, row_group_size=_group(source))
                files[suffix] = path(suffix)
                if suffix.removesuffix(".parquet") in counts:  # of a split
                    counts[suffix.removesuffix(".parquet")] = left.num_rows
        if not files:
            return
        old = stage.folder.at(record.files["tar"].name) if "tar" in files else ""
        new = stage.amend(record, files, counts)
    if old:
        _point_to(cache, stage, new, old)
    if stage.name == "crawl":
        _point_crawls(crawled, stage, record, new)


@contextmanager
def scratch(stage: StageDir) -> Iterator[Callable[[str], Path]]:
    with tempfile.TemporaryDirectory(dir=stage.folder.scratch(), prefix=".tmp-") as folder:
        yield lambda suffix: Path(folder) / suffix.replace("/", "_")


def _group(path: Path) -> int:
    """Rows of a Parquet file's first row group."""
    with pq.ParquetFile(path) as file:
        return max(1_000, file.metadata.row_group(0).num_rows if file.num_row_groups else 0)


def blanked(table: pa.Table, gone: Gone) -> pa.Table | None:
    """Decisions with what goes made nameless; None if there is none, or it was done before."""
    mask = gone.mask(table)
    if not pc.any(mask).as_py():
        return None
    blank = pa.scalar("", pa.string())
    columns = {name: table[name] for name in table.column_names}
    for name in ("url", "page_url", "text", "evidence"):
        columns[name] = pc.if_else(mask, blank, table[name])
    kept = pc.and_(mask, table["kept"])
    reason = pa.scalar(DropReason.FORGOTTEN.value, pa.string())
    columns["reason"] = pc.if_else(kept, reason, table["reason"])
    columns["kept"] = pc.and_(table["kept"], pc.invert(mask))
    reasons = pa.array([[DropReason.FORGOTTEN.value]], table.schema.field("reasons").type)[0]
    columns["reasons"] = pc.if_else(kept, reasons, table["reasons"])
    found = pa.table(columns).cast(table.schema)
    return None if found.equals(table) else found


def without_pages(source: Path, target: Path, gone: Callable[[str], bool]) -> dict[str, int] | None:
    """Copy a WARC file without the records of pages that go, byte by byte; None, and no file, if none does.

    Gives where each record that stays now begins: {old offset as a string: new offset}.
    """
    from warcio.archiveiterator import ArchiveIterator

    places: list[tuple[int, int]] = []
    lost = False
    with source.open("rb") as f:
        records = ArchiveIterator(f)
        for record in records:
            url = (record.rec_headers.get_header("WARC-Target-URI") or "").strip("<> ")
            goes = bool(url) and gone(url)
            length = records.get_record_length()  # reads the record to its end
            lost = lost or goes
            if not goes:
                places.append((records.get_record_offset(), length))
    if not lost:
        return None
    moved = {}
    with source.open("rb") as f, target.open("wb") as out:
        for offset, length in places:
            moved[str(offset)] = out.tell()
            f.seek(offset)
            for left in range(length, 0, -(1 << 20)):
                out.write(f.read(min(left, 1 << 20)))
    return moved


def _pages(table: pa.Table, gone: Gone, moved: dict[str, int]) -> pa.Table | None:
    """Rows of crawl's table without pages that go, and where the others lie now."""
    mask = [gone.page(url) for url in table["url"].to_pylist()]
    if not any(mask):
        return None
    left = table.filter(pa.array([not goes for goes in mask], pa.bool_()))
    offsets = [moved.get(str(at), at) for at in left["warc_offset"].to_pylist()]
    at = left.schema.get_field_index("warc_offset")
    return left.set_column(at, left.schema.field(at), pa.array(offsets, left.schema.field(at).type))


def _images(stage: StageDir, record: Record, gone: Gone, path: Callable[[str], Path]) -> dict[str, Path]:
    """The tar and the table of a fetch partition without images that go."""
    table = stage.table(record)
    left = gone.without(table)
    if left is None:
        return {}
    rows = left.to_pylist()
    with stage.file(record, "tar") as source, source.open("rb") as f, path("tar").open("wb") as out:
        writer = TarWriter(out)
        for row in sorted((row for row in rows if row["ok"]), key=lambda row: int(row["offset"])):
            f.seek(row["offset"])
            row["offset"] = writer.add(row["fetch_id"], f.read(row["size"]))
        writer.close()
    write_parquet(path("parquet"), pa.Table.from_pylist(rows, schema=table.schema))
    return {"tar": path("tar"), "parquet": path("parquet")}


def _point_to(cache: Cache, stage: StageDir, record: Record, old: str) -> None:
    """Tell STORE/fetched where the images lie that it knew in the old tar; else they would be fetched again."""
    places = {row["fetch_id"]: row["offset"] for row in stage.table(record).to_pylist() if row["ok"]}
    known = cache.get(places)
    if known is None:
        return
    rows = [row for row in known.to_pylist() if row["tar"] == old]
    tar = stage.folder.at(record.files["tar"].name)
    new = [{**row, "tar": tar, "offset": places[row["fetch_id"]]} for row in rows]
    cache.put(pa.Table.from_pylist(new, schema=known.schema))


def _point_crawls(crawled: Folder, stage: StageDir, old: Record, new: Record) -> None:
    """Tell STORE/crawled where the last crawl of a site lies now; else the next one would ask for everything again."""
    moved = {stage.folder.at(ref.name): stage.folder.at(new.files[suffix].name) for suffix, ref in old.files.items()}
    for name in crawled.names():
        if name.endswith(".json") and not name.startswith("."):
            known = crawled.read_json(name)
            now = {what: moved.get(str(place), place) for what, place in known.items()}
            if now != known:
                crawled.write_json(name, now)


def _lead(
    stage: StageDir, record: Record, gone: Gone, borrowed: Borrowed, path: Callable[[str], Path]
) -> dict[str, Path]:
    """What a build hands to STORE, and the texts that its leaders took over."""
    files = {}
    for suffix in record.files:
        if suffix.endswith(".merged"):
            table = stage.table(record, suffix)
            left = table.filter(pc.invert(pc.is_in(table["text"], pa.array(sorted(borrowed.texts), pa.string()))))
            if left.num_rows < table.num_rows:
                write_parquet(path(suffix), left)
                files[suffix] = path(suffix)
    images = stage.table(record, "images.parquet")
    mask = np.array(gone.mask(images).to_pylist(), np.bool_)
    if mask.any():
        parts = ("images.parquet", SIGNATURES, "placeholders.parquet")
        with stage.file(record, SIGNATURES) as source:
            raw = np.memmap(source, np.uint8, "r").reshape(images.num_rows, -1)
            write_without({p: path(p) for p in parts}, images, raw, stage.table(record, parts[2]), mask)
        files |= {part: path(part) for part in parts}
    return files


class Borrowed:
    """Texts that kept samples took over from copies that go: `allowed[candidate_id]` are those that may stay."""

    def __init__(self, allowed: dict[str, set[str]], texts: set[str]) -> None:
        self.allowed, self.texts = allowed, texts

    @staticmethod
    def of(build: Build, gone: Gone) -> Borrowed:
        """Read from dedup's decisions and the pairs that it saw, which must both still be there."""
        if "dedup" not in build.fingerprints or not build.spec.dedup.merge_texts:
            return Borrowed({}, set())
        stage, leader_of = build.stage("dedup"), dict[str, str]()
        for record in stage.records():
            if DECISIONS not in record.files:
                continue
            table = stage.table(record, DECISIONS, ["id", "duplicate_of"], [("duplicate_of", "!=", "")])
            leader_of |= zip(table["id"].to_pylist(), table["duplicate_of"].to_pylist(), strict=True)
        mended = {leader for copy, leader in leader_of.items() if copy in gone.hashes and leader not in gone.hashes}
        allowed: dict[str, set[str]] = {leader: set() for leader in mended}
        texts: set[str] = set()
        if not mended:
            return Borrowed(allowed, texts)
        pairs = build.stage("filter")
        for record in pairs.records():
            table = pairs.table(record, columns=["candidate_id", "texts"])
            for name, own in zip(table["candidate_id"].to_pylist(), table["texts"].to_pylist(), strict=True):
                leader = leader_of.get(name, name)
                if leader in mended:
                    found = texts if name in gone.hashes else allowed[leader]
                    found.update(nfc(text["text"]) for text in own)
        return Borrowed(allowed, texts)

    def returned(self, left: pa.Table | None, table: pa.Table) -> pa.Table | None:
        """`left`, or the whole table if that is None, with borrowed texts given back; None if nothing changes."""
        found = table if left is None else left
        if not self.allowed or not {"candidate_id", "texts", "text_leaders"} <= set(found.column_names):
            return left
        mine = pc.is_in(found["candidate_id"], pa.array(sorted(self.allowed), pa.string()))
        if not pc.any(mine).as_py():
            return left
        rows, changed = found.to_pylist(), left is not None
        for row in rows:
            stay = self.stay(row["candidate_id"], row["texts"])
            if stay is not None:
                row["texts"] = [row["texts"][i] for i in stay]
                row["text_leaders"] = [row["text_leaders"][i] for i in stay]
                changed = True
        return pa.Table.from_pylist(rows, schema=found.schema) if changed else None

    def stay(self, candidate_id: str, texts: list[dict[str, Any]]) -> list[int] | None:
        """Which of a sample's texts stay; None if all do. The primary one is its own, and stays."""
        allowed = self.allowed.get(candidate_id)
        if allowed is None:
            return None
        stay = [i for i, text in enumerate(texts) if i == 0 or nfc(text["text"]) in allowed]
        return None if len(stay) == len(texts) else stay


def _frontiers(build: Build, gone: Gone) -> None:
    """A crawl that was killed and knows a page that goes starts anew."""
    folder = build.folder / "captures/_frontier"
    for name in folder.names() if folder.is_local else ():
        database = Path(folder.at(f"{name}/frontier.sqlite"))
        if database.exists():
            with sqlite3.connect(database) as db:
                known = any(gone.page(url) for (url,) in db.execute("SELECT url FROM page WHERE state != 'todo'"))
            db.close()
            if known:
                folder.delete(name)
