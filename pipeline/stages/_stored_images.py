"""Images of a `fetch` partition that need no request: a source, an earlier build or STORE already has them.

A trial takes all from the build that it is on. Otherwise images are read from their source where they lie in one, then
from WARC files (`_archived_images`), then from STORE/fetched, and in a build that begins a generation from the shards
of the last one.

Limits: bytes that are missing or changed where STORE says they lie are fetched again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data_specs.build import BuildSpec
from data_specs.shard import canonical_json
from pipeline.errors import OURS, evidence
from pipeline.files.folder import Folder
from pipeline.rows.decisions import DropReason
from pipeline.rows.records import PROVENANCE, USERINFO, rfc3339
from pipeline.sources import TableSource, sources_of
from pipeline.stages import _sort
from pipeline.stages._archived_images import archived_images
from pipeline.stages._spool import Outcome, Spool, failure
from pipeline.store.build import Build
from pipeline.store.dataset import Dataset
from pipeline.store.images import records_between
from pipeline.store.ranges import KeyRange

IN_BASE_BUILD = -2
"""In place of an offset in the spool: the bytes lie in the build that a trial is on."""


def limits_of(spec: BuildSpec) -> dict[str, Any]:
    """The options that decide which images are let in."""
    limits = spec.egress.model_dump(mode="json", include={"allow", "max_image_bytes", "max_redirects", "obey_robots"})
    return {**limits, "max_pixels": spec.fetch.max_pixels}


def limits_digest(spec: BuildSpec) -> str:
    return hashlib.sha256(canonical_json(limits_of(spec))).hexdigest()[:16]


def stored_images(
    build: Build, partition: str, wanted: pa.Table, spool: Spool, userinfos: Mapping[str, str]
) -> tuple[dict[str, Outcome], int]:
    """Returns (outcomes by fetch_id of images that need no request, number of those from STORE).

    wanted: fetch_id, image_url and source of the partition's candidates. userinfos: as `userinfos_of` returns them. A
    build that sends no requests gets an outcome for every image.
    """
    fetch_ids, addresses, sources = (wanted[name].to_pylist() for name in ("fetch_id", "image_url", "source"))
    urls = dict(zip(fetch_ids, addresses, strict=True))
    outcomes = _from_trial(build, partition, urls) if build.on is not None else {}
    rest = [pair for pair in zip(fetch_ids, sources, strict=True) if pair[0] not in outcomes]
    outcomes |= _from_sources(build.spec, urls, dict(rest), _places(build, partition, rest), spool)
    outcomes |= archived_images(build, partition, [fetch_id for fetch_id in urls if fetch_id not in outcomes], spool)
    reused = _from_store(build, [fetch_id for fetch_id in urls if fetch_id not in outcomes], spool, userinfos)
    outcomes |= reused
    if build.made_from:
        there = {fetch_id for fetch_id, outcome in outcomes.items() if not outcome.reason}
        outcomes |= _from_shards(build, {i: url for i, url in urls.items() if i not in there}, spool)
    if not build.asks:
        message = "not in an archive or STORE, and this build sends no requests"
        missing = failure(DropReason.NOT_STORED, message)
        outcomes = {**dict.fromkeys(urls, missing), **outcomes}
    return outcomes, len(reused)


def _places(build: Build, partition: str, candidates: Iterable[tuple[str, str]]) -> dict[str, tuple[str, str]]:
    """(source, address in it) by fetch_id of images that lie in a source under another address than their URL.

    candidates: (fetch_id, source).
    """
    tables = {source.name for source in sources_of(build.spec) if isinstance(source, TableSource)}
    admitted = {(fetch_id, source) for fetch_id, source in candidates if source in tables}
    places = dict[str, tuple[str, str]]()
    if not admitted:  # pages only: nothing lies in a source, and their parts may be many
        return places
    columns = ["fetch_id", "source", "stored_at"]
    for rows in _sort.rows_between(build, PROVENANCE, *KeyRange.of_partition(partition).bounds, columns):
        for row in rows.filter(pc.field("stored_at") != "").to_pylist():
            if (row["fetch_id"], row["source"]) in admitted:
                places.setdefault(row["fetch_id"], (row["source"], row["stored_at"]))
    return places


def _from_sources(
    spec: BuildSpec,
    urls: Mapping[str, str],
    sources: Mapping[str, str],
    places: Mapping[str, tuple[str, str]],
    spool: Spool,
) -> dict[str, Outcome]:
    """Outcomes by fetch_id of the images that lie in their source: those it can read, and those with no web address.

    urls, sources: by fetch_id. places: as `_places` returns them; such an image is never asked for on the web.
    """
    tables = {source.name: source for source in sources_of(spec) if isinstance(source, TableSource)}
    outcomes: dict[str, Outcome] = {}
    for fetch_id, name in sources.items():
        url = urls[fetch_id]
        source, place = places.get(fetch_id, (name, url))
        try:
            data = tables[source].read_image(place) if source in tables else None
        except OURS:
            raise
        except Exception as e:
            outcomes[fetch_id] = failure(DropReason.UNREADABLE, evidence(e, url))
            continue
        if data is not None:
            outcomes[fetch_id] = spool.add(data, rfc3339())
        elif not place.startswith(("http://", "https://")):
            outcomes[fetch_id] = failure(DropReason.BAD_URL, "its source no longer contains this picture")
    return outcomes


def _from_trial(build: Build, partition: str, fetch_ids: Collection[str]) -> dict[str, Outcome]:
    """Outcomes by fetch_id of the images that the build which a trial is on has fetched; their bytes stay there."""
    assert build.on is not None
    stage, outcomes = build.on.stage("fetch"), dict[str, Outcome]()
    low, high = KeyRange.of_partition(partition).bounds
    for record in records_between(stage, low, high):
        for row in stage.table(record).to_pylist():
            if row["fetch_id"] in fetch_ids:
                times = {name: row[name] for name in ("fetched_at", "etag", "retry_after")}
                span = (IN_BASE_BUILD, row["size"])
                outcomes[row["fetch_id"]] = Outcome(row["reason"], row["evidence"], row["sha256"], span, **times)
    return outcomes


def userinfos_of(build: Build, fetch_ids: Mapping[str, str]) -> dict[str, str]:
    """User name and password that came with an image's URL, by fetch_id; of several the first in order."""
    rows: dict[str, str] = {}
    if "extract" not in build.fingerprints:
        return rows
    wanted = pc.field("fetch_id").isin(pa.array(fetch_ids, pa.string()))
    for record in _sort.userinfo_records(build):
        table = build.stage("extract").table(record, USERINFO, filters=wanted)
        for fetch_id, userinfo in zip(table["fetch_id"].to_pylist(), table["userinfo"].to_pylist(), strict=True):
            rows[fetch_id] = min(rows.get(fetch_id, userinfo), userinfo)
    return rows


def _from_store(build: Build, fetch_ids: list[str], spool: Spool, userinfos: Mapping[str, str]) -> dict[str, Outcome]:
    """Outcomes by fetch_id that STORE/fetched knows and that still hold.

    A failure of an image with a password may be one without it, or with another: it is asked for again. So is one that
    happened in the future: the clock was ahead then, and with it the time until which the failure would hold.
    """
    known = build.store.fetched().get(fetch_ids)
    if known is None:
        return {}
    limits, now = limits_digest(build.spec), rfc3339()
    outcomes: dict[str, Outcome] = {}
    by_tar: dict[str, list[dict[str, Any]]] = {}
    for row in known.to_pylist():
        if row["ok"]:
            by_tar.setdefault(row["tar"], []).append(row)
        elif not build.asks or (
            row["policy"] == limits
            and row["fetched_at"] <= now < row["retry_after"]
            and row["fetch_id"] not in userinfos
        ):
            times = {name: row[name] for name in ("fetched_at", "etag", "retry_after")}
            outcomes[row["fetch_id"]] = Outcome(row["reason"], row["evidence"], **times)
    for tar, rows in sorted(by_tar.items()):
        for row, data in _bytes_of(build.store.resolve_place(tar), rows):
            outcomes[row["fetch_id"]] = spool.add(data, row["fetched_at"], row["etag"])
    return outcomes


def _from_shards(build: Build, urls: dict[str, str], spool: Spool) -> dict[str, Outcome]:
    """Outcomes by fetch_id of images that shards of the last generation hold as they were fetched.

    For those whose tars `gc` has expired. Reads one column of all shards.
    """
    outcomes: dict[str, Outcome] = {}
    fetch_id_of = {url: fetch_id for fetch_id, url in urls.items()}
    columns = ["image_url", "sha256", "fetched_at", "image_offset", "image_size"]
    for dataset in [Dataset.open(earlier.out) for earlier in build.made_from] if urls else []:
        for shard in dataset.manifest.shards:
            with dataset.local(shard, shard.parquet) as path:
                here = pc.field("image_url").isin(pa.array(fetch_id_of, pa.string()))
                rows = pq.read_table(path, columns=columns, filters=here).sort_by("image_offset").to_pylist()
            if not rows:
                continue
            with dataset.local(shard, shard.tar) as path, path.open("rb") as f:
                for row in rows:
                    f.seek(row["image_offset"])
                    data = f.read(row["image_size"])
                    if hashlib.sha256(data).hexdigest() == row["sha256"]:  # else it was re-encoded
                        outcomes[fetch_id_of[row["image_url"]]] = spool.add(data, row["fetched_at"])
    return outcomes


def _bytes_of(tar: str, rows: list[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], bytes]]:
    """Bytes that lie in an earlier build's tar; what is missing or changed is left out, and so fetched again."""
    folder, _, name = tar.rpartition("/")
    with suppress(OSError), Folder(folder).local(name) as path, path.open("rb") as f:
        for row in sorted(rows, key=lambda r: int(r["offset"])):
            f.seek(row["offset"])
            data = f.read(row["size"])
            if hashlib.sha256(data).hexdigest() == row["sha256"]:
                yield row, data
