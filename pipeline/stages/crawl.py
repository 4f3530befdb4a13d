"""Stage crawl: downloads web sites into WARC files, politely. One partition per `site` source.

For each host: a pause between two requests on the whole cluster (the spec's, or more if robots.txt asks for it), one
connection at a time unless the spec allows more, robots.txt before the first page, Retry-After obeyed, a user agent
that says who we are. Pages are visited breadth first and written to the WARC as they come; `pipeline.web.frontier`
keeps the state on disk, so that a killed crawl goes on where it was. Redirects are followed as links are: the target is
a page of its own, with its own robots.txt and pause, and only if it belongs to the site.

A page or a domain that was taken down (STORE/forgotten) is never asked for, nor is its robots.txt; it is counted. A
page whose owner opted out (noai and its like, in a header or a meta tag) is not kept; its links are followed unless
they are nofollow. Only HTML is kept. Every page that was asked for and not kept is a Decision.

A build that begins a generation crawls nothing: it takes over the captures of the builds that it is made from (hard
links on one disk), one partition per site and crawl, oldest first, with the pages whose owner had opted out by then.

STORE/crawled remembers where the last crawl of a site lies: the next one asks only for what has changed and writes the
rest of the new WARC from the old one, so that every WARC is whole.

Limits: cookies, scripts and forms are not used; a site's WARC is one file; on an object store the frontier lies in
the worker's temporary folder, so that a crawl goes on only on the same machine. What a crawl gets depends on the state
of the site: what is reproducible starts from its WARC.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import importlib.metadata
import itertools
import logging
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from data_specs.build import BuildSpec
from data_specs.shard import canonical_json
from data_specs.storage.whole_files import link
from pipeline.errors import SourceError, StoreError
from pipeline.files.folder import Folder
from pipeline.rows.decisions import DropReason, drop_capture
from pipeline.rows.records import OPT_OUT_SCHEMA, OPT_OUTS, SHOWN, SHOWN_SCHEMA, sha256_hex
from pipeline.sources import IMAGE_CAPS, sources_of
from pipeline.sources.site import Site
from pipeline.store import build_json
from pipeline.store.build import Build, Pass, PassFile, Stage
from pipeline.store.commits import DECISIONS, Record
from pipeline.store.partitions import StageDir
from pipeline.web.policy import DISALLOWED, user_agent

if TYPE_CHECKING:
    from pipeline.web.frontier import Frontier

log = logging.getLogger("wenlan")

KNOWN_PER_PAGE = 10
"""Pages that may be known per page that may be kept."""

PAGES_AT_ONCE = 10_000
"""Pages that are held as objects of Python, when they are written into a table."""

FRONTIER = "_frontier"
"""Folder, within the stage's, of the state of crawls that are not done."""

T = TypeVar("T")

CRAWL_SCHEMA = pa.schema(
    [
        ("url", pa.string()),
        ("status", pa.int32()),
        ("fetched_at", pa.string()),
        ("content_type", pa.string()),
        ("bytes", pa.int64()),  # uncompressed
        ("sha256", pa.string()),
        ("etag", pa.string()),
        ("last_modified", pa.string()),
        ("depth", pa.int32()),
        ("warc_offset", pa.int64()),
        ("warc_length", pa.int64()),
    ]
)
"""One row per page in the WARC, in its order."""


def token(build: Build) -> Any:
    """The sites, what decides which pages are kept, and the snapshot: each snapshot is a crawl of its own."""
    sites = {"snapshot": build.snapshot, "sites": [_identity(build.spec, site) for site in _sites(build.spec)]}
    return {**sites, "made_from": [earlier.build_id for earlier in build.made_from]} if build.made_from else sites


def partitions(build: Build) -> list[str]:
    """Names of the `site` sources, in the spec's order; of a build that begins a generation `SITE@NUMBER` per crawl."""
    if build.made_from:
        stored = ((site.name, stored_captures(build, site.name)) for site in _sites(build.spec))
        return [f"{name}@{number:05d}" for name, crawls in stored for number in range(len(crawls))]
    return [site.name for site in _sites(build.spec)]


def resources(spec: BuildSpec) -> dict[str, float]:
    """Half a CPU per site: a crawl waits most of the time."""
    return {"num_cpus": 0.5}


def run_partition(build: Build, partition: str) -> None:
    """Crawl one site, or go on with it, and commit its WARC.

    Raises SourceError if no page of it can be kept, unless the site was crawled before and its robots.txt disallows it.
    """
    if build.made_from:
        _take_over(build, partition)
        return
    if is_stored(build, partition):
        return
    from pipeline.web.crawler import Crawler
    from pipeline.web.frontier import Frontier

    stage, site, digest = build.stage("crawl"), _site(build, partition), _digest(build, partition)
    folder = _frontier_folder(stage, f"{partition}-{digest}")
    warcinfo = {
        "software": f"wenlan/{importlib.metadata.version('wenlan')}",
        "format": "WARC File Format 1.0",
        "isPartOf": build.build_id,
        "description": f"crawl of the source {site.name}",
        "robots": "obey" if build.spec.egress.obey_robots else "ignore",
        "http-header-user-agent": user_agent(build.spec),
    }
    with Frontier(folder, KNOWN_PER_PAGE * site.max_pages + 1000, warcinfo) as frontier:
        frontier.add(site.start_urls(), depth=0)
        _load_last_crawl(build, site, frontier)
        asyncio.run(Crawler(build.spec, site, frontier, build.store.takedowns()).run())
        failure = _site_error(build, site, frontier)
        if failure is None:
            record = _commit(stage, site, frontier, digest)
            _note_last_crawl(build, site, record)
    shutil.rmtree(folder, ignore_errors=True)
    if failure is not None:
        raise failure


def stored_captures(build: Build, site: str) -> list[tuple[StageDir, Record, str]]:
    """The crawls of a site that the builds which a generation is made from hold, oldest first.

    (stage, record, snapshot) of each. Raises StoreError for a build that is no longer there.
    """
    crawls = []
    for earlier in build.made_from:
        stage = build_json.reopen(earlier.out, build.stages).stage("crawl")
        for record in stage.records():  # of a build that began a generation itself: the crawls that it took over
            if site in (record.partition, record.info.get("source")):
                crawls.append((stage, record, str(record.info.get("snapshot", earlier.snapshot))))
    return crawls


def _take_over(build: Build, partition: str) -> None:
    """Commit a stored crawl as a partition of this build. `info["crawl"]` is its number among those of its site."""
    name, _, number = partition.partition("@")
    stage, record, snapshot = stored_captures(build, name)[int(number)]
    with build.stage("crawl").attempt(partition) as attempt:
        for suffix, ref in record.files.items():
            if suffix == "parquet" or suffix.endswith("warc.gz") or suffix == OPT_OUTS:
                with stage.file(record, suffix) as source:
                    link(source, attempt.path(suffix))
                attempt.hashed(suffix, ref.sha256)
        pages = len(stage.column(record, "parquet", "url"))
        if DECISIONS in record.files:
            rows = stage.table(record, DECISIONS, ["url"], [("reason", "==", DropReason.OPT_OUT.value)])
            attempt.write_table(OPT_OUTS, rows.cast(OPT_OUT_SCHEMA))
        info = {"source": name, "snapshot": snapshot, "crawl": int(number)}
        attempt.commit({"seen": pages, "kept": pages, "dropped": 0}, info)


def is_stored(build: Build, partition: str) -> bool:
    """True if a site was crawled for this snapshot under another fingerprint; its captures are then adopted."""
    return build.stage("crawl").adopt(partition, input=_digest(build, partition)) is not None


def _digest(build: Build, partition: str) -> str:
    """Digest of what decides the captures of a site: the snapshot, its options and the limits of the crawl."""
    value = [build.snapshot, _identity(build.spec, _site(build, partition))]
    return hashlib.sha256(canonical_json(value)).hexdigest()[:16]


def _site(build: Build, partition: str) -> Site:
    [site] = [site for site in _sites(build.spec) if site.name == partition]
    return site


def _sites(spec: BuildSpec) -> list[Site]:
    return [source for source in sources_of(spec) if isinstance(source, Site)]


def _identity(spec: BuildSpec, site: Site) -> Any:
    """The options that decide the captures of a site; the snapshot does, too."""
    limits = spec.egress.model_dump(mode="json", include={"max_page_bytes", "max_redirects", "obey_robots"})
    identity = site.identity()
    identity["options"] = {name: value for name, value in identity["options"].items() if name not in IMAGE_CAPS}
    return [identity, limits]


def _frontier_folder(stage: StageDir, name: str) -> Path:
    """Folder of a frontier: beside the captures, or the temporary folder where those are on an object store."""
    if stage.folder.is_local:
        return Path(stage.folder.at(f"{FRONTIER}/{name}"))
    return Path(tempfile.gettempdir()) / f"wenlan-{sha256_hex(stage.folder.url)[:16]}-{name}"


def _site_error(build: Build, site: Site, frontier: Frontier) -> SourceError | None:
    """The error of a site of which no page was kept, named by its first start page.

    None if that was taken down, or is disallowed now and the site was crawled before: `_recheck` honours that.
    """
    if frontier.totals().kept:
        return None
    url = site.start_urls()[0]
    end = frontier.end_of(url)
    _, reason, evidence = frontier.fate(end)
    closed = (reason, evidence) == (DropReason.ROBOTS_DISALLOWED.value, DISALLOWED)
    if closed and build.store.folder.exists(_last_crawl(site)):
        log.warning("source %s: its robots.txt disallows %s now; no page was crawled", site.name, end)
        return None
    if reason == DropReason.FORGOTTEN.value:
        return None
    if end != url:
        evidence = f"{evidence} (redirected to {end})"
    why = f"{reason}: {evidence}" if reason else "beyond the limits of the source"
    return SourceError(url, f"source {site.name}: no page can be crawled ({why})")


def _last_crawl(site: Site) -> str:
    """The file in STORE about the last crawl of a site: by its name and hosts, whatever its limits are."""
    return f"crawled/{site.name}-{sha256_hex('', *site.all_hosts())[:16]}.json"


def _load_last_crawl(build: Build, site: Site, frontier: Frontier) -> None:
    """Loads the pages that the last crawl of the site kept into the frontier, as far as they are still there."""
    store, name = build.store.folder, _last_crawl(site)
    if not store.exists(name):
        return
    last = store.read_json(name)
    folder, _, table = build.store.resolve_place(last["table"]).rpartition("/")
    with contextlib.suppress(OSError, StoreError, pa.ArrowException), Folder(folder).local(table) as path:
        rows = (row for batch in pq.ParquetFile(path).iter_batches(10_000) for row in batch.to_pylist())
        frontier.know_earlier(build.store.resolve_place(last["warc"]), rows)


def pages_of_last_crawl(build: Build, site: Site) -> int | None:
    """Pages that the last crawl of a site kept; None for a site that STORE does not know, or whose table is gone."""
    store, name = build.store.folder, _last_crawl(site)
    if not store.exists(name):
        return None
    folder, _, table = build.store.resolve_place(store.read_json(name)["table"]).rpartition("/")
    with contextlib.suppress(OSError, StoreError, pa.ArrowException), Folder(folder).local(table) as path:
        return int(pq.read_metadata(path).num_rows)
    return None


def _note_last_crawl(build: Build, site: Site, record: Record) -> None:
    """Note in STORE where the crawl lies, for the next one."""
    store, at = build.store, build.stage("crawl").folder.at
    files = {
        what: store.relative_place(at(record.files[of].name))
        for what, of in (("warc", "warc.gz"), ("table", "parquet"))
    }
    store.folder.write_json(_last_crawl(site), {"snapshot": build.snapshot, **files})


def _commit(stage: StageDir, site: Site, frontier: Frontier, digest: str) -> Record:
    """Commit the WARC, the table of its pages and the decisions about all others."""
    totals = frontier.totals()
    if totals.too_deep:
        skipped = f"skipped {totals.too_deep:,} linked pages beyond max_depth {site.max_depth}"
        log.warning("source %s: %s", site.name, skipped)
    with stage.attempt(site.name) as attempt:
        target = attempt.path("warc.gz")
        link(Path(frontier.warc), target)  # not moved: until the record is there the frontier must be able to go on
        rows = (pa.Table.from_pylist(batch, schema=CRAWL_SCHEMA) for batch in _batches(frontier.kept_rows()))
        attempt.write_table("parquet", pa.concat_tables([CRAWL_SCHEMA.empty_table(), *rows]))
        for batch in _batches(frontier.not_kept()):  # ten times as many as may be kept: too many to hold as objects
            attempt.decide([drop_capture(url, site.name, "crawl", DropReason(why), note) for url, why, note in batch])
        dropped = totals.dropped + totals.waiting
        return attempt.commit(
            {
                "seen": totals.kept + dropped,
                "kept": totals.kept,
                "dropped": dropped,
                "failed": totals.dropped,  # the others were over the limits of the source
                "unchanged": totals.unchanged,
                "in_sitemaps": frontier.counted("in_sitemaps"),
                "traps": frontier.counted("traps"),
                "redirects": totals.moved,
                "beyond": totals.beyond,
                "too_deep": totals.too_deep,
                "bytes": totals.bytes,
                "images": frontier.images,
            },
            {"input": digest},
        )


def _batches(rows: Iterator[T]) -> Iterator[list[T]]:
    """Rows AT_ONCE at a time."""
    while batch := list(itertools.islice(rows, PAGES_AT_ONCE)):
        yield batch


STAGE = Stage(
    name="crawl",
    zh="爬取",
    folder="captures",
    passes=(
        Pass(
            name="crawl",
            over=partitions,
            reads=(),
            run=run_partition,
            token=token,
            resources=resources,
            files=(
                PassFile("warc.gz", kind="captures"),
                PassFile("parquet", CRAWL_SCHEMA),
                PassFile(OPT_OUTS, OPT_OUT_SCHEMA),
                PassFile(SHOWN, SHOWN_SCHEMA),
                PassFile(FRONTIER, kind="state"),
            ),
            unit="pages",
            done=("kept",),
            stored=is_stored,
        ),
    ),
    subject="capture",
    network=True,
    expires=False,
)
