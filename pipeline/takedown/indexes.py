"""Takedowns in search indexes: which rows and texts are removed.

An index may hold pictures of published builds, of a build that is gone, or of a folder that was never one, so its rows
are judged by what they say themselves: by the hashes of image, URL and page in STORE/forgotten, by the domain, and by
how the picture looks (from STORE's cache, or measured from where it lies). So `forget` without a request does what
earlier takedowns asked for, and an index that was elsewhere at the time is made good by the same command.

Texts that a kept sample had from a copy that is gone leave the shard's Parquet first; here every text goes that the
sample no longer has there.

Limits: looks that STORE does not have are measured again by each takedown. Those of pictures that cannot be read any
more are not compared, and counted as `unseen`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data_specs.search.folder import INDEX, check_sizes, read_index
from data_specs.search.index import read_part, remove
from data_specs.search.pictures import read_picture
from data_specs.search.rows import record
from data_specs.shard import ContractError
from pipeline.errors import StoreError
from pipeline.features import feature_id
from pipeline.files.folder import Folder
from pipeline.pictures.decode import MAX_PIXELS
from pipeline.store.image_features import known_features, measure_images
from pipeline.store.store import Store
from pipeline.store.takedowns import Takedowns, url_hashes

_BATCH = 10_000
"""Rows whose looks are fetched from STORE at once."""


def is_index(place: str) -> bool:
    """True if a folder is a search index, finished or not."""
    return "://" not in place and (Path(place) / INDEX).is_file()


def images_named(indexes: Sequence[Path], named: set[str]) -> set[str]:
    """sha256 of the images of all rows whose URL is among the named hashes."""
    return {
        row["sha256"]
        for table in _tables(indexes)
        for row in table.select(["url", "sha256"]).to_pylist()
        if row["sha256"] and row["url"] and named & url_hashes([row["url"]])
    }


def features_of(indexes: Sequence[Path], images: set[str]) -> dict[str, dict[str, Any]]:
    """Features of images, by sha256, measured from the pictures of the indexes that have them."""
    found: dict[str, dict[str, Any]] = {}
    for table in _tables(indexes):
        missing = images - found.keys()
        rows = ((name, row) for row, name in enumerate(table["sha256"].to_pylist()) if name in missing)
        features, _ = measure_images(_pictures(table, rows), MAX_PIXELS)
        found |= {own["sha256"]: own for own in features.to_pylist()}
    return found


def remove_from_index(folder: Path, store: Store, takedowns: Takedowns, dry_run: bool) -> dict[str, Any]:
    """Remove from an index what is taken down; returns counts. Raises ContractError for what is not an index."""
    unseen: list[str] = []

    def rows_taken_down(table: pa.Table) -> npt.NDArray[np.bool_]:
        judged = _rows_by_hash(table, takedowns)
        if takedowns.looks:
            judged |= _alike(table, ~judged, store, takedowns, unseen)
        return judged

    removed = remove(folder, rows_taken_down, _texts_that_stay, dry_run)
    return {"index": str(folder), **asdict(removed), "unseen": len(unseen)}


def _tables(indexes: Sequence[Path]) -> Iterator[pa.Table]:
    for folder in indexes:
        index = read_index(folder, unfinished=True)
        check_sizes(folder, index.files())
        for part in (*index.parts, *index.waiting):
            yield read_part(folder, part)


def _rows_by_hash(table: pa.Table, takedowns: Takedowns) -> npt.NDArray[np.bool_]:
    """Mask of the rows that a takedown names by hash."""
    rows = table.select(["sha256", "url", "page_url"]).to_pylist()
    return np.array(
        [
            takedowns.holds({"sha256": row["sha256"], "image_url": row["url"], "page_url": row["page_url"]})
            or bool(row["url"] and takedowns.hashes & url_hashes([row["url"]]))
            for row in rows
        ],
        np.bool_,
    )


def _alike(
    table: pa.Table, candidates: npt.NDArray[np.bool_], store: Store, takedowns: Takedowns, unseen: list[str]
) -> npt.NDArray[np.bool_]:
    """Rows whose picture looks like one that is taken down."""
    sha256: list[str] = table["sha256"].to_pylist()
    rows = [row for row in np.flatnonzero(candidates).tolist() if table["has_image"][row].as_py()]
    alike = set[str]()
    for start in range(0, len(rows), _BATCH):
        batch = rows[start : start + _BATCH]
        names = {sha256[row] or f"row {row}": row for row in batch}
        known = known_features(store, (name for name, row in names.items() if sha256[row]))
        missing = names.keys() - set(known["sha256"].to_pylist())
        made, _ = measure_images(_pictures(table, ((name, names[name]) for name in missing)), MAX_PIXELS)
        unseen += missing - set(made["sha256"].to_pylist())
        for features in (known, made):
            alike.update(takedowns.alike(features, feature_id()))
    return np.array([(name or f"row {row}") in alike for row, name in enumerate(sha256)], np.bool_)


def _pictures(table: pa.Table, rows: Iterable[tuple[str, int]]) -> Iterator[tuple[str, bytes]]:
    """Bytes of the pictures of named rows, of each name those of the first row whose picture is still there."""
    done = set[str]()
    for name, row in rows:
        if name not in done:
            with contextlib.suppress(ContractError):
                yield name, read_picture(record(table, row))[0]
                done.add(name)


def _texts_that_stay(table: pa.Table) -> dict[int, list[int]]:
    """Rows that hold a text which their sample has no longer, and which of their texts stay."""
    several = np.flatnonzero(pc.greater(pc.list_value_length(table["texts"]), 1).to_numpy())
    by_tar: dict[str, list[int]] = {}
    for row in several.tolist():
        where = table["where"][row].as_py()
        if where is not None and where["path"].endswith(".tar"):
            by_tar.setdefault(where["path"], []).append(row)
    stay: dict[int, list[int]] = {}
    for tar, rows in by_tar.items():
        now = _texts_now(tar, {table["id"][row].as_py() for row in rows})
        for row in rows:
            texts = [text["text"] for text in table["texts"][row].as_py()]
            allowed = now.get(table["id"][row].as_py())
            if allowed is not None and not allowed.issuperset(texts[1:]):
                stay[row] = [i for i, text in enumerate(texts) if i == 0 or text in allowed]
    return stay


def _texts_now(tar: str, keys: set[str]) -> dict[str, set[str]]:
    """Texts of samples as their shard has them now, by key; empty where the shard no longer exists."""
    folder, _, name = tar.removesuffix(".tar").rpartition("/")
    try:
        with Folder(folder).opened(f"{name}.parquet") as file:
            wanted = pc.field("key").isin(pa.array(sorted(keys), pa.string()))
            rows = pq.read_table(file, columns=["key", "texts"], filters=wanted).to_pylist()
    except (StoreError, pa.ArrowInvalid):
        return {}
    return {row["key"]: {text["text"] for text in row["texts"]} for row in rows}
