"""Rewrites committed partitions without what a takedown removes.

What is removed is known beforehand, as hashes (`Removal`). A row is removed by its candidate_id, or by the next of
ID_COLUMNS where it has none. Decisions stay, without URL, page and text, so that the funnel still adds up: a sample
that is removed is one that `shard` dropped as `forgotten`. Texts that a kept sample took over from a removed copy are
removed too, unless another page had the same (`BorrowedTexts`).

Limits: a partition in memory.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data_specs.shard import KEY_LENGTH, nfc
from pipeline.files.digests import DIGEST
from pipeline.files.parquet import write_parquet
from pipeline.rows.decisions import DropReason
from pipeline.rows.records import sha256_hex
from pipeline.store.build import ID_COLUMNS
from pipeline.store.commits import REMOVED_LATER, ROWS_DIGEST, Record, rows_digest
from pipeline.store.partitions import StageDir
from pipeline.store.store import Store
from pipeline.store.takedowns import Takedowns


class Removal:
    """Removals of a takedown: candidates, images (sha256), image URLs (fetch_id), pages (sha256 of the URL)."""

    def __init__(self, hashes: set[str], takedowns: Takedowns) -> None:
        self.hashes, self._takedowns = hashes, takedowns
        self._text = pa.array(sorted(hashes), pa.string())
        self._raw = pa.array([bytes.fromhex(name) for name in sorted(hashes)], DIGEST)
        self._keys = pa.array(sorted({name[:KEY_LENGTH] for name in hashes}), pa.string())

    def mask(self, table: pa.Table) -> pa.Array:
        """Mask of the rows that are removed; all False for a table without a column to recognise them by."""
        name = next((name for name in ID_COLUMNS if name in table.column_names), "")
        if not name:
            return pa.array(np.zeros(table.num_rows, np.bool_))
        if name in ("url", "host"):
            urls = table[name].to_pylist()
            return pa.array([self.page(f"http://{url}/" if name == "host" else url) for url in urls], pa.bool_())
        hashes = self._keys if name == "key" else self._raw if table.schema.field(name).type == DIGEST else self._text
        mask = pc.is_in(table[name], hashes)
        return mask.combine_chunks() if isinstance(mask, pa.ChunkedArray) else mask

    def page(self, url: str) -> bool:
        """True if a page is removed, by its URL or its domain."""
        return sha256_hex(url) in self.hashes or self._takedowns.host(url)

    def remaining_rows(self, table: pa.Table) -> pa.Table | None:
        """The table without the removed rows; None if it lacks them."""
        mask = self.mask(table)
        return table.filter(pc.invert(mask)) if pc.any(mask).as_py() else None

    def blanked(self, decisions: pa.Table) -> pa.Table | None:
        """Decisions with the removed ones made nameless; None if there is nothing to do."""
        mask = self.mask(decisions)
        if not pc.any(mask).as_py():
            return None
        blank = pa.scalar("", pa.string())
        columns = {name: decisions[name] for name in decisions.column_names}
        for name in ("url", "page_url", "text", "evidence"):
            columns[name] = pc.if_else(mask, blank, decisions[name])
        kept = pc.and_(mask, decisions["kept"])
        reason = pa.scalar(DropReason.FORGOTTEN.value, pa.string())
        columns["reason"] = pc.if_else(kept, reason, decisions["reason"])
        columns["kept"] = pc.and_(decisions["kept"], pc.invert(mask))
        reasons = pa.array([[DropReason.FORGOTTEN.value]], decisions.schema.field("reasons").type)[0]
        columns["reasons"] = pc.if_else(kept, reasons, decisions["reasons"])
        blanked = pa.table(columns).cast(decisions.schema)
        return None if blanked.equals(decisions) else blanked


class BorrowedTexts:
    """Texts that kept samples took over from copies that are removed.

    allowed: by candidate_id of such a sample, the texts that may stay.
    """

    def __init__(self, allowed: dict[str, set[str]]) -> None:
        self.allowed = allowed

    def remaining_rows(self, remaining: pa.Table | None, table: pa.Table) -> pa.Table | None:
        """`remaining`, or the whole table if that is None, without borrowed texts; None if nothing changes."""
        rows = table if remaining is None else remaining
        if not self.allowed or not {"candidate_id", "texts", "text_leaders"} <= set(rows.column_names):
            return remaining
        mine = pc.is_in(rows["candidate_id"], pa.array(sorted(self.allowed), pa.string()))
        if not pc.any(mine).as_py():
            return remaining
        values, changed = rows.to_pylist(), remaining is not None
        for row in values:
            stay = self.remaining_texts(row["candidate_id"], row["texts"])
            if stay is not None:
                row["texts"] = [row["texts"][i] for i in stay]
                row["text_leaders"] = [row["text_leaders"][i] for i in stay]
                changed = True
        return pa.Table.from_pylist(values, schema=rows.schema) if changed else None

    def remaining_texts(self, candidate_id: str, texts: list[dict[str, Any]]) -> list[int] | None:
        """Returns the indices of a sample's texts that stay; None if all do. The primary one is its own, and stays."""
        allowed = self.allowed.get(candidate_id)
        if allowed is None:
            return None
        stay = [i for i, text in enumerate(texts) if i == 0 or nfc(text["text"]) in allowed]
        return None if len(stay) == len(texts) else stay


class Rewrite:
    """One committed partition being rewritten: what replaces its files, by suffix, until it is committed again."""

    def __init__(self, stage: StageDir, record: Record, removal: Removal, path: Callable[[str], Path]) -> None:
        self.stage, self.record, self.removal, self.path = stage, record, removal, path
        self.files: dict[str, Path] = {}
        """Files that replace those of the record."""
        self.deleted: set[str] = set()
        """Suffixes of files that the record no longer names."""
        self._counts, self._info = dict(record.counts), dict(record.info)

    def replace(self, suffix: str) -> None:
        """Notes that `path(suffix)` was written and replaces the record's file."""
        self.files[suffix] = self.path(suffix)

    def write_table(self, suffix: str, table: pa.Table) -> None:
        """Replaces one Parquet file; row groups keep the size that they had."""
        with self.stage.file(self.record, suffix) as before:
            write_parquet(self.path(suffix), table, row_group_size=_row_group(before))
            removed = pq.read_metadata(before).num_rows - table.num_rows
        self.replace(suffix)
        if suffix == "parquet" and "candidate_id" in table.column_names:
            if ROWS_DIGEST in self._info:
                self._info[ROWS_DIGEST] = rows_digest(table["candidate_id"].to_pylist())
            if removed:
                self._counts[REMOVED_LATER] = self._counts.get(REMOVED_LATER, 0) + removed

    def write_columns(self, suffix: str, stays: pa.Array, digest: str) -> None:
        """Replaces a column file by the rows that stay. digest: of the ids of these."""
        self.write_table(suffix, self.stage.table(self.record, suffix).filter(stays))
        self._info[ROWS_DIGEST] = digest

    def commit(self) -> Record | None:
        """Commits the partition again; returns None, and does nothing, if it holds nothing of what is removed."""
        if not self.files and not self.deleted:
            return None
        named = {suffix: ref for suffix, ref in self.record.files.items() if suffix not in self.deleted}
        record = self.record.model_copy(update={"files": named})
        return self.stage.amend(record, self.files, self._counts, self._info)


@contextmanager
def scratch(stage: StageDir) -> Iterator[Callable[[str], Path]]:
    """Local paths by suffix, on the disk of the stage's folder; deleted afterwards."""
    with tempfile.TemporaryDirectory(dir=stage.folder.scratch(), prefix=".tmp-") as folder:
        yield lambda suffix: Path(folder) / suffix.replace("/", "_")


def repoint_images(store: Store, stage: StageDir, record: Record, is_stale: Callable[[str], bool]) -> None:
    """Rows of STORE/fetched whose tar is stale name that of a partition of `fetch`, where it has the same images.

    Otherwise they would be fetched again.
    """
    rows = stage.table(record, columns=["fetch_id", "sha256", "offset"], filters=[("ok", "==", True)])
    images, tar = {row["fetch_id"]: row for row in rows.to_pylist()}, stage.folder.at(record.files["tar"].name)
    cache = store.fetched()
    known = cache.get(images)
    if known is not None:
        now = [
            {**row, "tar": store.relative_place(tar), "offset": image["offset"]}
            for row in known.to_pylist()
            if row["sha256"] == (image := images[row["fetch_id"]])["sha256"] and is_stale(row["tar"])
        ]
        cache.put(pa.Table.from_pylist(now, schema=known.schema))


def _row_group(path: Path) -> int:
    """Rows of a Parquet file's first row group."""
    with pq.ParquetFile(path) as file:
        return max(1_000, file.metadata.row_group(0).num_rows if file.num_row_groups else 0)
