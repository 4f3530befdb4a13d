"""Loads what earlier builds kept from STORE into the leader pass, before the first pair of a new build is decided.

Images and texts are read in the order of their ranks, column by column, and entered LOADED at a time, so that indexes
are built and not grown. Signatures, nine tenths of all bytes, are mapped and not read. Text leaders are entered only if
they share a band with some text of the new build (`text_rows.BandFilter`): no other can be the same as one of them.

Limits: images that were measured under another feature id, which `features.EARLIER_IDS` does not name, are matched by
bytes only, and texts that were sketched
otherwise feed no cap; both are logged.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from data_specs.build import Dedup
from data_specs.shard import SPLITS
from pipeline.features import comparable
from pipeline.files.digests import digests_of, rows_of
from pipeline.matching import text_rows
from pipeline.matching.holders import EARLIER, ELSEWHERE, HELD, PLACEHOLDER, Holders, Known, hashes_of
from pipeline.matching.looks import Details
from pipeline.store.identities import IMAGE_SCHEMA, PLACED_TEXT_SCHEMA, Identities, Published

log = logging.getLogger("wenlan")

LOADED = 200_000
"""Images, or texts, entered together."""

COLUMNS = ("candidate_id", "sha256", "text_leader", "domain", "phash", "split")
"""Columns of IMAGE_SCHEMA that the pass needs."""


def learn(
    holders: Holders,
    identities: Identities,
    names: Sequence[str],
    dataset: str,
    rules: Dedup,
    features: str,
    band_keys: Iterable[npt.NDArray[np.uint32]],
    *,
    splits: bool = False,
) -> int:
    """Enter the published builds `names` into the holders; returns the number of images. Raises StoreError.

    dataset: that of the new build, which holds what its own earlier builds kept. features: the feature id of the new
    build; band_keys: those of all its texts, in any shape and order. splits: enter those of the dataset's texts, too.
    """
    earlier = [identities.read(name) for name in names]
    bands = text_rows.BandFilter()
    for keys in band_keys:
        bands.add(keys)
    _learn_texts(holders, identities, earlier, rules, bands, dataset if splits else None)
    images = 0
    where = _held_by(dataset)
    for table in _learn_images(holders, identities, earlier, features, where):
        domains = Counter(table["domain"].to_pylist()) if rules.max_pairs_per_domain else Counter()
        holders.count(Counter(rows_of(digests_of(table["text_leader"]))), domains)
        images += table.num_rows
    return images


def learn_splits(holders: Holders, identities: Identities, names: Sequence[str], features: str) -> None:
    """Enter what the builds `names` kept into holders of its own, where the place of a leader is its split's number.

    features: as in `learn`. Raises StoreError.
    """
    earlier = [identities.read(name) for name in names]
    for _ in _learn_images(holders, identities, earlier, features, _split_numbers):
        pass


Place = Callable[[Published, pa.Table], npt.NDArray[np.int64]]
"""The places of a build's leaders [N], given its rows of COLUMNS."""


def _held_by(dataset: str) -> Place:
    return lambda one, rows: np.full(rows.num_rows, HELD if one.dataset == dataset else ELSEWHERE, np.int64)


def _split_numbers(one: Published, rows: pa.Table) -> npt.NDArray[np.int64]:
    numbers: npt.NDArray[np.int64] = pc.index_in(rows["split"], pa.array(SPLITS)).to_numpy().astype(np.int64)
    return numbers


def _learn_images(
    holders: Holders, identities: Identities, earlier: Sequence[Published], features: str, place: Place
) -> Iterator[pa.Table]:
    """Enter the images of builds into the holders; yields their rows of COLUMNS, some builds at a time."""
    # Leaders are numbered as they are entered: builds that can be compared come first, those of an older wenlan before
    # others, and each version apart, as their hashes and grids are fewer.
    versions = sorted({one.features for one in earlier if comparable(features, one.features)} - {features})
    older = [[one for one in earlier if one.features == version] for version in versions]
    own = [one for one in earlier if one.features == features]
    others = [one for one in earlier if not comparable(features, one.features)]
    for builds in (*older, own, others):
        for table, signatures, details in _gathered(identities, builds, place):
            candidate, flags = digests_of(table["candidate_id"]), table["flags"].to_numpy()
            known = Known(candidate, table["place"].to_numpy(), flags)
            looks = (hashes_of(table), signatures, details) if builds is not others and table.num_rows else None
            holders.learn_images(rows_of(digests_of(table["sha256"])), known, looks)
            if builds is others:
                message = "dedup: %d images of earlier builds were measured otherwise: matched by bytes only"
                log.warning(message, table.num_rows)
            yield table


def _learn_texts(
    holders: Holders,
    identities: Identities,
    earlier: list[Published],
    rules: Dedup,
    bands: text_rows.BandFilter,
    placed: str | None,
) -> None:
    """Enter the text leaders of earlier builds that share a band with the new one; those of dataset `placed` with their
    splits.
    """
    sketches = text_rows.sketch_id(rules.text_similarity)
    for other in (one for one in earlier if one.sketch != sketches):
        log.warning("dedup: texts of %s were compared otherwise: they feed no cap of this build", other.build)

    empty = PLACED_TEXT_SCHEMA.empty_table()
    waiting: list[pa.Table] = [empty]
    for one in (one for one in earlier if one.sketch == sketches):
        for table in identities.batches(one, "texts.parquet"):
            wanted = table.take(pa.array(bands.rows(text_rows.read(table["text"]).sketches.keys)))
            waiting.append(_with_splits(identities, one, wanted, one.dataset == placed))
            if sum(t.num_rows for t in waiting) >= LOADED:
                _enter_texts(holders, pa.concat_tables(waiting))
                waiting = [empty]
    _enter_texts(holders, pa.concat_tables(waiting))


def _enter_texts(holders: Holders, table: pa.Table) -> None:
    texts = text_rows.read(table["text"])
    holders.learn_texts(texts)
    named = zip(rows_of(texts.ids), table["split"].to_pylist(), strict=True)
    holders.place_texts({leader: split for leader, split in named if split})


def _with_splits(identities: Identities, one: Published, texts: pa.Table, placed: bool) -> pa.Table:
    """PLACED_TEXT_SCHEMA rows of a build's text leaders; no splits unless `placed`.

    A build from before `shards.apart` noted none: a cluster is in the split of the first pair that has its primary text
    of it, else in train.
    """
    if not placed:
        splits = pa.nulls(texts.num_rows, pa.string())
    elif "split" in texts.column_names:
        return texts
    else:
        ids = rows_of(text_rows.read(texts["text"]).ids)
        first = dict.fromkeys(ids, "")
        for images in identities.batches(one, "images.parquet", ["text_leader", "split"]) if ids else ():
            for leader, split in zip(
                rows_of(digests_of(images["text_leader"])), images["split"].to_pylist(), strict=True
            ):
                if first.get(leader) == "":
                    first[leader] = split
        splits = pa.array([first[leader] or "train" for leader in ids], pa.string())
    return texts.select(["text"]).append_column("split", splits)


def _gathered(
    identities: Identities, earlier: list[Published], place: Place
) -> Iterator[tuple[pa.Table, list[npt.NDArray[np.uint8]], list[Details]]]:
    """(images by rank with `flags` and `place`, their signatures and details by build), whole builds of LOADED rows or
    more."""
    tables: list[pa.Table] = []
    signatures: list[npt.NDArray[np.uint8]] = []
    details: list[Details] = []
    for number, one in enumerate(earlier, 1):
        images = _images(identities, one, place)
        tables.append(images)
        signatures.append(identities.signatures(one, images.num_rows))
        details.append(identities.details(one))
        if number == len(earlier) or sum(t.num_rows for t in tables) >= LOADED:
            yield pa.concat_tables(tables), signatures, details
            tables, signatures, details = [], [], []


def _images(identities: Identities, one: Published, place: Place) -> pa.Table:
    """COLUMNS of a build's images by rank, with the `flags` and the `place` of a leader (`holders.Known`)."""
    flagged = [digests_of(t["candidate_id"]) for t in identities.batches(one, "placeholders.parquet")]
    placeholders = {name for names in flagged for name in rows_of(names)}
    schema = pa.schema([IMAGE_SCHEMA.field(name) for name in COLUMNS])
    table = pa.concat_tables([schema.empty_table(), *identities.batches(one, "images.parquet", list(COLUMNS))])
    flags = np.full(table.num_rows, EARLIER, np.uint8)
    if placeholders:
        flags[[name in placeholders for name in rows_of(digests_of(table["candidate_id"]))]] |= PLACEHOLDER
    table = table.select(list(COLUMNS)).append_column("flags", pa.array(flags))
    return table.append_column("place", pa.array(place(one, table)))
