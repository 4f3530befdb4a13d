"""Pictures in WARC files: `extract` notes their positions, and `fetch` reads them instead of sending requests.

`Archive` makes a row of ARCHIVED_SCHEMA for each capture of a picture, each redirect and each revisit of a WARC file.
`admit.sort` gathers these rows as it does candidates, so that a partition of `fetch` finds its images by their URLs,
whichever file or source of the build holds them. Of several captures of a URL the one nearest to the time of the page
counts, and of a page without a time the latest. Redirects are followed within the archive, as the client follows them;
a revisit leads to the capture whose body it had. Opt-outs in the headers of the archive, and takedowns, hold for each.

Limits: a picture is read from its own record, so a file that was gzipped as a whole gives none. A robots.txt of the
archive is not asked. A revisit that names no URL refers to its own. URLs are compared as they are: http is not https.
"""

from __future__ import annotations

import datetime
import logging
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.files.wacz import file_of
from pipeline.pictures.formats import format_of
from pipeline.rows.decisions import DropReason
from pipeline.rows.records import (
    ARCHIVED,
    ARCHIVED_SCHEMA,
    NO_PLACE,
    PROVENANCE,
    Capture,
    encodable,
    order_key,
    rfc3339,
    sha256_hex,
    utc,
)
from pipeline.sources import sources_of
from pipeline.sources.warc import Warc
from pipeline.stages import _sort
from pipeline.stages._spool import Outcome, Spool, failure
from pipeline.store.build import Build
from pipeline.store.ranges import KeyRange
from pipeline.urls import canonical_url
from pipeline.web import policy
from pipeline.web.warc import read_records

log = logging.getLogger("wenlan")

MAX_HEADERS = 1 << 20
"""Bytes of a picture's record beside the picture, at most."""


class Archive:
    """Table of what one WARC file of a source holds beside pages, filled while the file is read."""

    def __init__(self, source: Warc, part: int, seed: int) -> None:
        self._source, self._part, self._seed = source, part, seed
        self._rows: list[dict[str, Any]] = []
        self._unreachable = 0
        self.counts = Counter[str]()

    def note(self, capture: Capture) -> bool:
        """Notes a picture, a revisit or a redirect; True for the first two, which are not pages.

        Counts `pictures` and `revisits`, and all rows as `archived`.
        """
        is_revisit = capture.refers_to is not None
        has_picture = not is_revisit and is_picture(capture)
        if has_picture and capture.place == NO_PLACE:
            self._unreachable += 1
            return False
        if not (has_picture or is_revisit or 300 <= capture.status < 400):
            return False
        try:
            url, target = canonical_url(capture.url), _target(capture)
        except ValueError:  # of its own URL, or of the one that it leads to
            url, target, has_picture = "", "", False
        if has_picture or target:
            self._add(capture, url, target)
        self.counts.update(revisits=is_revisit, pictures=has_picture, archived=has_picture or bool(target))
        return has_picture or is_revisit

    def table(self) -> pa.Table | None:
        """Rows of ARCHIVED_SCHEMA; None if there are none."""
        if self._unreachable:
            args = (self._source.warcs()[self._part], self._unreachable)
            log.warning("%s: gzipped as a whole, so its %d pictures cannot be read; decompress it", *args)
        columns = ["order_key", "fetch_id", "captured_at", "stored_at", "target"]
        rows = pa.Table.from_pylist(self._rows, schema=ARCHIVED_SCHEMA)
        return rows.sort_by([(name, "ascending") for name in columns]) if self._rows else None

    def _add(self, capture: Capture, url: str, target: str) -> None:
        fetch_id = sha256_hex(url)
        self._rows.append(
            {
                "order_key": order_key(fetch_id, self._seed),
                "fetch_id": fetch_id,
                "source": self._source.name,
                "captured_at": utc(capture.fetched_at),
                "digest": encodable(capture.digest[:200]),
                "opt_out": str(policy.opt_outs(capture.headers)),
                "stored_at": "" if target else self._source.address_of(self._part, *capture.place),
                "target": sha256_hex(target) if target else "",
                "target_at": utc(capture.refers_to[1]) if capture.refers_to else "",
                "is_revisit": capture.refers_to is not None,
            }
        )


def is_picture(capture: Capture) -> bool:
    """True for a response with a picture, by its Content-Type or its first bytes."""
    if capture.status != 200 or policy.is_html(capture.content_type, capture.body):
        return False
    return policy.media_type(capture.content_type).startswith("image/") or format_of(capture.body) != ""


def _target(capture: Capture) -> str:
    """URL that a revisit or a redirect leads to; "" for other captures. Raises ValueError."""
    if capture.refers_to is not None:
        return canonical_url(capture.refers_to[0])
    location = next((value for name, value in capture.headers if name.lower() == "location"), "")
    return canonical_url(location, capture.url) if location and 300 <= capture.status < 400 else ""


@dataclass(frozen=True, slots=True)
class _CaptureQuery:
    """The capture of a URL nearest to a time, or `exactly` the one that a revisit refers to."""

    fetch_id: str
    time: str
    digest: str = ""
    exactly: bool = False

    def find(self, rows: Iterable[dict[str, Any]]) -> dict[str, Any] | None:
        """Returns the row of the capture, whatever the order of rows; None if missing."""
        if self.exactly:
            rows = [row for row in rows if row["stored_at"] and self._matches(row)]
        wanted_s = _seconds(self.time) if self.time else float("inf")

        def distance(row: dict[str, Any]) -> tuple[Any, ...]:
            row_s = _seconds(row["captured_at"])
            return abs(wanted_s - row_s) if self.time else -row_s, row["source"], row["stored_at"], row["target"]

        return min(rows, key=distance, default=None)

    def _matches(self, row: dict[str, Any]) -> bool:
        if self.digest and row["digest"]:
            return bool(self.digest == row["digest"])
        return bool(self.time == row["captured_at"])


def _seconds(time: str) -> float:
    return datetime.datetime.fromisoformat(time).timestamp() if time else 0.0


def archived_images(build: Build, partition: str, fetch_ids: Collection[str], spool: Spool) -> dict[str, Outcome]:
    """Outcomes by fetch_id of the images of a partition that WARC files of the build hold. Raises SourceError."""
    sources = {query.name: query for query in sources_of(build.spec) if isinstance(query, Warc)}
    if not sources or not fetch_ids:
        return {}
    times = _page_times(build, partition)
    queries = {fetch_id: _CaptureQuery(fetch_id, times.get(fetch_id, "")) for fetch_id in fetch_ids}
    outcomes, stored = dict[str, Outcome](), dict[str, dict[str, Any]]()
    for _ in range(build.spec.egress.max_redirects + 2):  # the last may be a revisit
        next_queries = dict[str, _CaptureQuery]()
        rows = _archive_rows(build, {query.fetch_id for query in queries.values()})
        for fetch_id, query in queries.items():
            row = query.find(rows.get(query.fetch_id, ()))
            if row is None:
                continue
            if row["opt_out"]:
                outcomes[fetch_id] = failure(DropReason.OPT_OUT, f"in the archive: {row['opt_out']}")
            elif row["stored_at"]:
                stored[fetch_id] = row
            else:
                digest = row["digest"] if row["is_revisit"] else ""
                time = row["target_at"] or row["captured_at"]
                next_queries[fetch_id] = _CaptureQuery(row["target"], time, digest, row["is_revisit"])
        queries = next_queries
        if not queries:
            break
    return outcomes | dict(_read_pictures(build, sources, stored, spool))


def _page_times(build: Build, partition: str) -> dict[str, str]:
    """The latest time of the archived pages that show an image, by fetch_id."""
    times = dict[str, str]()
    for rows in _sort.rows_between(
        build, PROVENANCE, *KeyRange.of_partition(partition).bounds, ["fetch_id", "captured_at"]
    ):
        for fetch_id, time in zip(*(column.to_pylist() for column in rows.columns), strict=True):
            times[fetch_id] = max(time, times.get(fetch_id, ""))
    return times


def _archive_rows(build: Build, fetch_ids: set[str]) -> Mapping[str, list[dict[str, Any]]]:
    """Rows of ARCHIVED_SCHEMA of some URLs, by fetch_id."""
    by_id = dict[str, list[dict[str, Any]]]()
    keys = {order_key(fetch_id, build.spec.seed) for fetch_id in fetch_ids}
    for table in _sort.rows_with(build, ARCHIVED, keys):
        for row in table.filter(pc.is_in(table["fetch_id"], pa.array(fetch_ids, pa.string()))).to_pylist():
            by_id.setdefault(row["fetch_id"], []).append(row)
    return by_id


def _read_pictures(
    build: Build, sources: Mapping[str, Warc], rows: Mapping[str, dict[str, Any]], spool: Spool
) -> Iterator[tuple[str, Outcome]]:
    """Yields (fetch_id, outcome) of archived images, in the order of files and offsets. rows: by fetch_id."""
    limit, takedowns = build.spec.egress.max_image_bytes, build.store.takedowns()
    files = {name: sources[name].warcs() for name in {row["source"] for row in rows.values()}}
    positions = dict[str, tuple[str, int, int]]()
    for fetch_id, row in rows.items():
        part, offset, length = sources[row["source"]].record_at(row["stored_at"])
        if part >= len(files[row["source"]]):
            yield fetch_id, _missing_record()
        elif length > limit + MAX_HEADERS:
            yield fetch_id, failure(DropReason.TOO_LARGE, f"{length} bytes in the archive; at most {limit} are allowed")
        else:
            positions[fetch_id] = file_of(files[row["source"]][part]), offset, length
    for fetch_id, capture in read_records(sorted(positions.items(), key=lambda place: place[1]), limit):
        row = rows[fetch_id]
        if capture is None or _fetch_id_of(capture) != row["fetch_id"]:
            yield fetch_id, _missing_record()
        elif reason := takedowns.takedown_reason(capture.url, ""):
            yield fetch_id, failure(DropReason.FORGOTTEN, reason)
        else:
            yield fetch_id, spool.add(capture.body, row["captured_at"] or rfc3339())


def _missing_record() -> Outcome:
    return failure(DropReason.UNREADABLE, "its record is no longer in the archive")


def _fetch_id_of(capture: Capture) -> str:
    """The fetch_id of a capture; "" for an invalid URL."""
    try:
        return sha256_hex(canonical_url(capture.url))
    except ValueError:
        return ""
