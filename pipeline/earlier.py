"""What earlier builds kept, from STORE's identities into the holders of a leader pass.

Read in the order of ranks, column by column and LOADED rows at a time, so that indexes are built once and not grown.
Of the text leaders only those are entered that share a band with some text of this build (`text_rows.Asked`). Costs
about 5 microseconds an image that earlier builds kept, where a pair of this build costs some hundred.

Limits: images of another feature id are matched by bytes only, and texts sketched otherwise feed no cap; both are said.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Iterator

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import text_rows
from pipeline.digests import digests_of, rows_of
from pipeline.features import feature_id
from pipeline.holders import EARLIER, PLACEHOLDER, Holders, Known, images_of
from pipeline.identities import Identities, Published
from pipeline.store import Build

log = logging.getLogger("wenlan")

LOADED = 200_000


def learn(build: Build, held: Holders) -> int:
    """Hand over what the builds that this one reads have kept; gives the number of images. Raises StoreError."""
    identities = Identities(build.store)
    known = [identities.read(name) for name in build.identities]
    _learn_texts(build, identities, known, held)
    features, images, strange = feature_id(), 0, 0
    for comparable in (True, False):
        builds = [k for k in known if (k.features == features) == comparable]
        looks = ["phash", "signature"] if comparable else []
        for table in _gathered(
            _images(identities, builds, ["candidate_id", "sha256", "text_leader", "domain", *looks])
        ):
            candidate, flags = digests_of(table["candidate_id"]), table["flags"].to_numpy()
            own = Known(candidate, np.full(len(candidate), -1, np.int64), flags)
            held.learn_images(rows_of(digests_of(table["sha256"])), own, images_of(table) if looks else None)
            domains = Counter(table["domain"].to_pylist()) if build.spec.dedup.max_pairs_per_domain else Counter()
            held.count(Counter(rows_of(digests_of(table["text_leader"]))), domains)
            images += table.num_rows
            strange += 0 if comparable else table.num_rows
    if strange:
        log.warning("dedup: %d images of earlier builds were measured otherwise: matched by bytes only", strange)
    return images


def _learn_texts(build: Build, identities: Identities, known: list[Published], held: Holders) -> None:
    sketches, asked = text_rows.sketch_id(build.spec.dedup.text_similarity), _asked(build)
    for other in (k for k in known if k.sketch != sketches):
        log.warning("dedup: texts of %s were compared otherwise: they feed no cap of this build", other.build)

    def tables() -> Iterator[pa.Table]:
        for one in (k for k in known if k.sketch == sketches):
            for table in identities.batches(one, "texts.parquet"):
                yield table.take(pa.array(asked.rows(text_rows.read(table["text"]).sketches.keys)))

    for table in _gathered(tables()):
        held.learn_texts(text_rows.read(table["text"]))


def _asked(build: Build) -> text_rows.Asked:
    """The band keys of all texts of the build."""
    asked, stage = text_rows.Asked(), build.stage("rank")
    for record in stage.records():
        with stage.file(record, "parquet") as path, pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=50_000, columns=["sketches.list.element.keys"]):
                asked.add(text_rows.keys_of(batch.column(0).flatten().field("keys")))
    return asked


def _images(identities: Identities, known: list[Published], columns: list[str]) -> Iterator[pa.Table]:
    """Images by rank with their `flags`."""
    for one in known:
        placeholders = {
            row
            for t in identities.batches(one, "placeholders.parquet")
            for row in rows_of(digests_of(t["candidate_id"]))
        }
        for table in identities.batches(one, "images.parquet", columns):
            flags = np.full(table.num_rows, EARLIER, np.uint8)
            if placeholders:
                names = rows_of(digests_of(table["candidate_id"]))
                flags[[name in placeholders for name in names]] |= PLACEHOLDER
            yield table.append_column("flags", pa.array(flags))


def _gathered(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """The same rows in few tables of LOADED rows and more."""
    waiting: list[pa.Table] = []
    for table in tables:
        waiting.append(table)
        if sum(t.num_rows for t in waiting) >= LOADED:
            yield pa.concat_tables(waiting)
            waiting = []
    if waiting:
        yield pa.concat_tables(waiting)
