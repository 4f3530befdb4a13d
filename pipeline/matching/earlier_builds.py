"""What earlier builds kept, from STORE's identities into the holders of a leader pass.

Read in the order of ranks, column by column, and entered LOADED images at a time, so that indexes are built and not
grown. Signatures, nine tenths of all bytes, are mapped and not read. Of the text leaders only those are entered that
share a band with some text of this build (`text_rows.BandFilter`).

Limits: images of another feature id are matched by bytes only, and texts sketched otherwise feed no cap; both are said.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.features import feature_id
from pipeline.files.digests import digests_of, rows_of
from pipeline.matching import text_rows
from pipeline.matching.holders import EARLIER, PLACEHOLDER, Holders, Known, hashes_of
from pipeline.store.build import Build
from pipeline.store.identities import IMAGE_SCHEMA, Identities, Published

log = logging.getLogger("wenlan")

LOADED = 200_000


def learn(build: Build, held: Holders) -> int:
    """Hand over what the builds that this one reads have kept; gives the number of images. Raises StoreError."""
    identities = Identities(build.store)
    known = [identities.read(name) for name in build.identities]
    _learn_texts(build, identities, known, held)
    features, images = feature_id(), 0
    columns = ["candidate_id", "sha256", "text_leader", "domain", "phash"]
    for comparable in (True, False):
        builds = [one for one in known if (one.features == features) == comparable]
        for table, signatures in _gathered(identities, builds, columns):
            candidate, flags = digests_of(table["candidate_id"]), table["flags"].to_numpy()
            own = Known(candidate, np.full(len(candidate), -1, np.int64), flags)
            looks = (hashes_of(table), signatures) if comparable and table.num_rows else None
            held.learn_images(rows_of(digests_of(table["sha256"])), own, looks)
            domains = Counter(table["domain"].to_pylist()) if build.spec.dedup.max_pairs_per_domain else Counter()
            held.count(Counter(rows_of(digests_of(table["text_leader"]))), domains)
            images += table.num_rows
            if not comparable:
                message = "dedup: %d images of earlier builds were measured otherwise: matched by bytes only"
                log.warning(message, table.num_rows)
    return images


def _learn_texts(build: Build, identities: Identities, known: list[Published], held: Holders) -> None:
    sketches, asked = text_rows.sketch_id(build.spec.dedup.text_similarity), _asked(build)
    for other in (k for k in known if k.sketch != sketches):
        log.warning("dedup: texts of %s were compared otherwise: they feed no cap of this build", other.build)

    found: list[pa.Table] = [pa.schema([("text", text_rows.FIELDS)]).empty_table()]
    for table in (t for k in known if k.sketch == sketches for t in identities.batches(k, "texts.parquet")):
        found.append(table.take(pa.array(asked.rows(text_rows.read(table["text"]).sketches.keys))))
        if sum(t.num_rows for t in found) >= LOADED:
            held.learn_texts(text_rows.read(pa.concat_tables(found)["text"]))
            found = found[:1]
    held.learn_texts(text_rows.read(pa.concat_tables(found)["text"]))


def _asked(build: Build) -> text_rows.BandFilter:
    """The band keys of all texts of the build."""
    asked, stage = text_rows.BandFilter(), build.stage("rank")
    for record in stage.records():
        with stage.file(record, "parquet") as path, pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=50_000, columns=["sketches.list.element.keys"]):
                asked.add(text_rows.keys_of(batch.column(0).flatten().field("keys")))
    return asked


def _gathered(
    identities: Identities, known: list[Published], columns: list[str]
) -> Iterator[tuple[pa.Table, list[npt.NDArray[np.uint8]]]]:
    """Images by rank with their `flags`, and their signatures build by build: whole builds, LOADED rows and more."""
    tables: list[pa.Table] = []
    signatures: list[npt.NDArray[np.uint8]] = []
    for number, one in enumerate(known, 1):
        own = _images(identities, one, columns)
        tables.append(own)
        signatures.append(identities.signatures(one, own.num_rows))
        if number == len(known) or sum(t.num_rows for t in tables) >= LOADED:
            yield pa.concat_tables(tables), signatures
            tables, signatures = [], []


def _images(identities: Identities, known: Published, columns: list[str]) -> pa.Table:
    flagged = [digests_of(t["candidate_id"]) for t in identities.batches(known, "placeholders.parquet")]
    placeholders = {name for names in flagged for name in rows_of(names)}
    schema = pa.schema([IMAGE_SCHEMA.field(name) for name in columns])
    table = pa.concat_tables([schema.empty_table(), *identities.batches(known, "images.parquet", columns)])
    flags = np.full(table.num_rows, EARLIER, np.uint8)
    if placeholders:
        flags[[name in placeholders for name in rows_of(digests_of(table["candidate_id"]))]] |= PLACEHOLDER
    return table.select(columns).append_column("flags", pa.array(flags))
