"""Pictures of candidates that were dropped before any stage read them: the report reads them from their source.

As careful as the stages: what was taken down, or looks like it, is not returned, and nothing where the spec has a
filter that looks at pixels, since that has not looked at these.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import SourceError
from pipeline.features import feature_id
from pipeline.filters import pixel_filters
from pipeline.records import PROVENANCE
from pipeline.sources import TableSource, sources_of
from pipeline.store.build import Build
from pipeline.store.images import FetchedImage
from pipeline.store.measured import measured
from pipeline.store.stage import in_funnel
from pipeline.store.takedowns import Takedowns
from pipeline.unreadable import OURS, evidence

log = logging.getLogger("wenlan")


def in_sources(build: Build, rows: Iterable[dict[str, Any]], takedowns: Takedowns) -> Iterator[FetchedImage]:
    """Pictures of rows that were dropped before `fetch` read them, where they lie in the row's source."""
    before = set(in_funnel(build, "extract", "admit"))
    sources = {source.name: source for source in sources_of(build.spec) if isinstance(source, TableSource)}
    waiting = {row["id"]: row for row in rows if row["stage"] in before and row["source"] in sources}
    if not waiting or pixel_filters(build.spec):
        return
    places = {name: row["url"] for name, row in waiting.items()}
    wanted = pc.field("candidate_id").isin(pa.array(sorted(waiting), pa.string()))
    stage = build.stage("extract")
    for record in stage.records():
        if PROVENANCE in record.files:
            stored = stage.table(
                record, PROVENANCE, ["candidate_id", "stored_at"], wanted & (pc.field("stored_at") != "")
            )
            places |= dict(zip(*(stored[name].to_pylist() for name in stored.column_names), strict=True))
    for name, row in waiting.items():
        try:
            data = sources[row["source"]].read_image(places[name])
        except SourceError:  # it was moved or is not mounted: the report says what it can without it
            return
        except OURS:
            raise
        except Exception as e:
            log.warning("the report shows no thumbnail: %s", evidence(e, places[name]))
            continue
        if data is not None and not _looks_forgotten(build, data, takedowns):
            yield FetchedImage(row["fetch_id"], hashlib.sha256(data).hexdigest(), data)


def _looks_forgotten(build: Build, data: bytes, takedowns: Takedowns) -> bool:
    """True if a picture that `measure` has not seen looks like one that was taken down; also if that cannot be told."""
    if not takedowns.looks:
        return False
    rows, faults = measured([("", data)], build.spec.fetch.max_pixels)
    return bool(faults) or bool(takedowns.alike(rows, feature_id()))
