"""Loads what earlier builds kept from STORE into the leader pass, before the first pair of a new build is decided.

In one of two ways, by which the pass decides the same:

- `learn_met`, where stage `meet` has found what of it the new build can match at all: that is loaded and nothing else,
  from pieces of STORE (`pipeline.dedup.dealt_earlier`). Counts under the caps are looked up, over all that was kept.
- `learn`, otherwise: all is loaded. Images and texts are read in the order of their ranks, column by column, and
  entered LOADED at a time, so that indexes are built and not grown. Signatures, nine tenths of all bytes, are mapped
  and not read. Text leaders are entered only if they share a band with some text of the new build
  (`text_rows.BandFilter`): no other can be the same as one of them.

Limits: images that were measured under another feature id are matched by bytes only, and texts that were sketched
otherwise feed no cap; both are logged. `learn` holds all images of a build at once, without their signatures.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from data_specs.build import Dedup
from data_specs.shard import SPLITS
from pipeline.dedup import handed_on
from pipeline.dedup.dealt_earlier import IMAGES, TEXTS, Piece, looks_in, opened, text_rows_in
from pipeline.files.digests import Digests, digests_of, rows_of
from pipeline.matching import text_rows
from pipeline.matching.earlier_meetings import looked_up
from pipeline.matching.holders import EARLIER, ELSEWHERE, HELD, PLACEHOLDER, Holders, Known, hashes_of
from pipeline.matching.looks import Details
from pipeline.matching.meetings import Key
from pipeline.store.build import Build
from pipeline.store.identities import IMAGE_SCHEMA, PLACED_TEXT_SCHEMA, Identities, Published

T = TypeVar("T")

Ints = npt.NDArray[np.int64]

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


def learn_met(
    holders: Holders,
    build: Build,
    met: Sequence[tuple[Piece, Ints]],
    features: str,
    domains: Iterable[pa.Array],
    *,
    splits: bool = False,
) -> dict[str, int]:
    """Enter what the new build may match: numbers, ascending, within each piece, commit by commit.

    domains: of all pairs of the build, where there is a cap on them. Returns counts: "earlier" of all images that were
    kept, "met" and "met_texts" of those that were entered. Raises StoreError.
    """
    identities, keys = Identities(build.store), handed_on.keys_of(build)
    earlier = {commit: identities.read(commit) for commit in build.identities}
    _warn_of_sketches(earlier.values(), text_rows.sketch_id(build.spec.dedup.text_similarity))
    held = {commit for commit, one in earlier.items() if one.dataset == build.spec.name}
    leaders = [np.zeros((0, 32), np.uint8)]
    for piece, rows in met:
        if piece.kind == TEXTS and len(rows):
            with opened(build, piece, keys) as arrays:
                texts = text_rows_in(arrays, rows)
            placed = splits and piece.commit in held
            own = _splits_at(identities, earlier[piece.commit], piece, rows, texts) if placed else None
            _enter_texts(holders, texts, own)
            leaders.append(texts.ids)
    images = [(piece, rows) for piece, rows in met if piece.kind == IMAGES]
    by_features = _by_features(images, features, lambda one: earlier[one[0].commit].features)
    for pieces in by_features:
        for piece, rows in pieces:
            place = HELD if piece.commit in held else ELSEWHERE
            _enter_met(holders, build, piece, rows, keys, place, looks=pieces is not by_features[-1])
    _warn_of_features(sum(len(piece) for piece, _ in by_features[-1]))
    _count_met(holders, build, [piece for piece, _ in images], keys, np.concatenate(leaders), domains)
    sizes = {"met": sum(len(rows) for _, rows in images), "met_texts": sum(map(len, leaders))}
    return {"earlier": sum(len(piece) for piece, _ in images), **sizes}


def _enter_met(
    holders: Holders, build: Build, piece: Piece, rows: Ints, keys: Sequence[Key], place: int, *, looks: bool
) -> None:
    """Enter some images of a piece."""
    if not len(rows):
        return
    with opened(build, piece, keys) as arrays:
        known = Known(arrays["candidate"][rows], np.full(len(rows), place, np.int64), arrays["flags"][rows])
        seen = looks_in(arrays, build, piece, rows) if looks else None
        holders.learn_images(rows_of(arrays["sha256"][rows]), known, seen)


def _count_met(
    holders: Holders,
    build: Build,
    pieces: Sequence[Piece],
    keys: Sequence[Key],
    leaders: Digests,
    domains: Iterable[pa.Array],
) -> None:
    """Enter how many images of all pieces have each of some text leaders, and each domain of the build."""
    names = np.unique(np.concatenate([np.zeros(0, np.uint64), *(np.unique(part.to_numpy()) for part in domains)]))
    ids = np.unique(leaders, axis=0)  # two datasets may have one leader
    pairs, of_domain = np.zeros(len(ids), np.int64), np.zeros(len(names), np.int64)
    for piece in pieces if len(ids) or len(names) else ():
        with opened(build, piece, keys) as arrays:
            pairs += looked_up(ids, arrays["leaders.words"], arrays["leaders.ids"], arrays["leaders.pairs"])
            low, high = (np.searchsorted(arrays["domains"], names, side) for side in ("left", "right"))
            present = np.flatnonzero(high > low)
            of_domain[present] += arrays["domains.pairs"][low[present]]
    by_leader = Counter(dict(zip(rows_of(ids), pairs.tolist(), strict=True)))
    holders.count(by_leader, Counter(dict(zip(names.tolist(), of_domain.tolist(), strict=True))))


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
    by_features = _by_features(earlier, features, lambda one: one.features)
    for builds in by_features:
        for table, signatures, details in _gathered(identities, builds, place):
            candidate, flags = digests_of(table["candidate_id"]), table["flags"].to_numpy()
            known = Known(candidate, table["place"].to_numpy(), flags)
            comparable_ = builds is not by_features[-1] and table.num_rows
            looks = (hashes_of(table), signatures, details) if comparable_ else None
            holders.learn_images(rows_of(digests_of(table["sha256"])), known, looks)
            if builds is by_features[-1]:
                _warn_of_features(table.num_rows)
            yield table


def _by_features(earlier: Sequence[T], features: str, features_of: Callable[[T], str]) -> list[list[T]]:
    """Those of the same features, which can be compared, and then others: so leaders are numbered."""
    return [[one for one in earlier if (features_of(one) == features) == same] for same in (True, False)]


def _warn_of_features(images: int) -> None:
    if images:
        log.warning("dedup: %d images of earlier builds were measured otherwise: matched by bytes only", images)


def _warn_of_sketches(earlier: Iterable[Published], sketch: str) -> None:
    for one in earlier:
        if one.sketch != sketch:
            log.warning("dedup: texts of %s were compared otherwise: they feed no cap of this build", one.build)


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
    _warn_of_sketches(earlier, sketches)
    empty = PLACED_TEXT_SCHEMA.empty_table()
    waiting: list[pa.Table] = [empty]
    for one in (one for one in earlier if one.sketch == sketches):
        for table in identities.batches(one, "texts.parquet"):
            wanted = table.take(pa.array(bands.rows(text_rows.read(table["text"]).sketches.keys)))
            waiting.append(_with_splits(identities, one, wanted, one.dataset == placed))
            if sum(t.num_rows for t in waiting) >= LOADED:
                _enter_rows(holders, pa.concat_tables(waiting))
                waiting = [empty]
    _enter_rows(holders, pa.concat_tables(waiting))


def _enter_rows(holders: Holders, table: pa.Table) -> None:
    """Enter PLACED_TEXT_SCHEMA rows."""
    _enter_texts(holders, text_rows.read(table["text"]), table["split"].to_pylist())


def _enter_texts(holders: Holders, texts: text_rows.TextRows, splits: Sequence[str | None] | None) -> None:
    """Enter text leaders; splits: those of their clusters, None where nothing is known."""
    holders.learn_texts(texts)
    if splits is not None:
        named = zip(rows_of(texts.ids), splits, strict=True)
        holders.place_texts({leader: split for leader, split in named if split})


def _with_splits(identities: Identities, one: Published, texts: pa.Table, placed: bool) -> pa.Table:
    """PLACED_TEXT_SCHEMA rows of a build's text leaders; no splits unless `placed`."""
    if "split" in texts.column_names and placed:
        return texts
    splits = _first_splits(identities, one, text_rows.read(texts["text"])) if placed else [None] * texts.num_rows
    return texts.select(["text"]).append_column("split", pa.array(splits, pa.string()))


def _splits_at(
    identities: Identities, one: Published, piece: Piece, rows: Ints, texts: text_rows.TextRows
) -> list[str | None]:
    """The splits of some text leaders of a piece of a build, by their rows."""
    table = identities.rows(one, "texts.parquet", piece.first, piece.last, ["split"])
    if "split" not in table.column_names:
        return list(_first_splits(identities, one, texts))
    splits: list[str | None] = table["split"].take(pa.array(rows)).to_pylist()
    return splits


def _first_splits(identities: Identities, one: Published, texts: text_rows.TextRows) -> list[str]:
    """The splits of text leaders of a build from before `shards.apart`, which noted none.

    A cluster is in the split of the first pair that has its primary text of it, else in train.
    """
    ids = rows_of(texts.ids)
    first = dict.fromkeys(ids, "")
    for images in identities.batches(one, "images.parquet", ["text_leader", "split"]) if ids else ():
        for leader, split in zip(rows_of(digests_of(images["text_leader"])), images["split"].to_pylist(), strict=True):
            if first.get(leader) == "":
                first[leader] = split
    return [first[leader] or "train" for leader in ids]


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
