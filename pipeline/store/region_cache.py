"""STORE/regions: one cache of raw boxes per detector. What each holds, and how whole detectors are removed from it."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.errors import StoreError
from pipeline.store.store import Store


def stats(store: Store) -> list[dict[str, Any]]:
    """One entry per detector: detector, images, regions, commits, bytes, and when it was last written (RFC 3339)."""
    return [_entry(store, name) for name in (store.folder / "regions").names()]


def _entry(store: Store, detector_id: str) -> dict[str, Any]:
    cache = store.regions(detector_id)
    commits = cache.commits()
    images = regions = size = 0
    for commit in commits:
        # one column, and not the file: behind a URL that would be a copy of all that is cached
        with cache.folder.opened(commit) as file, pq.ParquetFile(file) as parquet:
            table = parquet.read(columns=["scores"])
            images += table.num_rows
            regions += int(pc.sum(pc.list_value_length(table["scores"])).as_py() or 0)
            size += file.seek(0, 2)
    written = ""
    if commits:  # a commit's name begins with its time in nanoseconds
        last = max(int(commit.partition("-")[0]) for commit in commits)
        written = datetime.datetime.fromtimestamp(last / 1e9, datetime.UTC).isoformat(timespec="seconds")
    return {
        "detector": detector_id,
        "images": images,
        "regions": regions,
        "commits": len(commits),
        "bytes": size,
        "written": written,
    }


def prune(store: Store, detectors: Sequence[str] = (), before: str = "", dry_run: bool = False) -> list[dict[str, Any]]:
    """Remove whole detectors from the cache: those named, and with `before` (RFC 3339) those not written since.

    Returns the stats of what was removed, or with dry_run would be. What builds have beside their shards stays; an
    image is detected again when next asked for. Raises StoreError for a detector that is not there.
    """
    known = {entry["detector"]: entry for entry in stats(store)}
    for name in detectors:
        if name not in known:
            raise StoreError(
                (store.folder / "regions").url, f"no detector {name}; detectors: {', '.join(known) or 'none'}"
            )
    removed = [e for name, e in known.items() if name in detectors or (before and e["written"] < before)]
    for entry in [] if dry_run else removed:
        (store.folder / "regions").delete(entry["detector"])
    return removed
