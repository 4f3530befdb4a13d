"""Pass fetch.recheck: asks again for known pages and pictures of the dataset, to find opt-outs that came later.

A crawl asks for pages again, but nothing else asks for a picture that is stored, or for the page of a table's row. Each
build therefore asks for the addresses of some shards of its dataset: a shard is due once in `fetch.recheck_every`
builds that ask, whether they publish anything or not, so that every address is; STORE/rechecked notes which builds
have asked. robots.txt, tdmrep.json, X-Robots-Tag and the meta tags of a page count as they do in a crawl. Of a picture
only the headers are read. Of a host whose robots.txt let the crawl keep nothing of a site, all addresses are due.

What was refused is a row of this pass's table. `fetch` lets no picture in that was opted out so, or is gone where the
source says `vanished: drop`, and `pipeline.takedown.vanished` takes the samples out of the earlier builds, as those of
pages that a crawl finds opted out.

Limits: only an answer counts; what a host does not answer is asked for the next time that its shard is due. Robots
rules that ask for long pauses are not an opt-out.
"""

from __future__ import annotations

import asyncio
import logging
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data_specs.build import BuildSpec
from data_specs.shard import ShardFiles
from pipeline.errors import OURS, StoreError
from pipeline.files.folder import Folder
from pipeline.processes import pulse
from pipeline.rows.decisions import DropReason
from pipeline.rows.records import Capture
from pipeline.sources.site import Site
from pipeline.store.build import Build, Pass, PassFile
from pipeline.store.commits import DECISIONS
from pipeline.web import policy
from pipeline.web.client import Kind, RequestFailed, page_kind
from pipeline.web.images import Accept, Image, ImageFetcher, download
from pipeline.web.readers import Readers

log = logging.getLogger("wenlan")

NAME = "fetch.recheck"

REFUSED_SCHEMA = pa.schema(
    [("url", pa.string()), ("source", pa.string()), ("reason", pa.string()), ("evidence", pa.string())]
)
"""Addresses whose owners opted out, and those that answered with an HTTP error."""

HEADERS_ONLY = Kind("image/*,*/*;q=0.5", "identity", 0, whole=False)


def when(spec: BuildSpec) -> bool:
    """True if a build of the spec asks again for known addresses; with a pace of 0 for those of closed sites alone."""
    return spec.egress.network == "allowed"


def token(build: Build) -> Any:
    """The pace, and the rules. Which shards are due is decided once, when the pass begins."""
    return [build.spec.fetch.recheck_every, build.spec.egress.obey_robots]


def partitions(build: Build) -> list[str]:
    """The shards that are due: `BUILD_ID@SHARD`."""
    return [due.name for due in _due_shards(build)] if build.asks else []


@dataclass(frozen=True, slots=True)
class _DueShard:
    """A shard that is due, and its folder. hosts: those whose addresses alone are; none for all of it."""

    name: str
    shard: ShardFiles
    folder: Folder
    hosts: frozenset[str]


def _due_shards(build: Build) -> Iterator[_DueShard]:
    """The shards of the newest release that are due in this build."""
    releases = build.store.releases(build.spec.name)
    release = releases.newest()
    if release is None:
        return
    earlier = {own.build_id for own in release.builds if own.snapshot < build.snapshot}
    asked, closed, every = _asked_snapshots(build), _closed_hosts(build), build.spec.fetch.recheck_every
    turn = asked.index(build.snapshot) if build.snapshot in asked else len(asked)
    for shard in release.shards:
        name = f"{shard.build}@{shard.tar.path.removesuffix('.tar')}"
        whole = is_due(name, turn, every)
        if shard.build in earlier and (whole or closed):
            folder = Folder(release.folder_of(shard, releases.folder.url))
            yield _DueShard(name, shard, folder, frozenset() if whole else closed)


def _closed_hosts(build: Build) -> frozenset[str]:
    """Hosts of sites of which the build's crawl kept no page, as their robots.txt disallows it."""
    stage, disallowed = build.stage("crawl"), pc.field("reason") == DropReason.ROBOTS_DISALLOWED.value
    urls = list[str]()
    for record in (record for record in build.records("crawl") if not record.counts["kept"]):
        if DECISIONS in record.files:
            rows = stage.table(record, DECISIONS, ["url"], disallowed & (pc.field("evidence") == policy.DISALLOWED))
            urls += rows["url"].to_pylist()
    return frozenset(urlsplit(url).netloc for url in urls)


def is_due(shard: str, turn: int, every: int) -> bool:
    """True if it is a shard's turn: once in `every` turns, never for 0. turn: builds of it that asked before."""
    return every > 0 and (zlib.crc32(shard.encode()) + turn) % every == 0


def _asked_snapshots(build: Build) -> list[str]:
    """Snapshots of the dataset whose builds asked, in the order in which they began to."""
    snapshots: list[str] = build.store.folder.find_json(_recheck_file(build), {"snapshots": []})["snapshots"]
    return snapshots


def _recheck_file(build: Build) -> str:
    return f"rechecked/{build.spec.name}.json"


def begin(build: Build) -> None:
    """Note in STORE that this build asks, so that the next one has the next turn; run again it has the same."""
    if not build.asks or build.store.releases(build.spec.name).newest() is None:
        return
    with build.store.lock():
        if build.snapshot not in (asked := _asked_snapshots(build)):
            build.store.folder.write_json(_recheck_file(build), {"snapshots": [*asked, build.snapshot]})


def run_partition(build: Build, partition: str) -> None:
    """Ask for the addresses of one shard, and commit those that are refused."""
    pages, pictures = _addresses(build, partition)
    asked = len(pages) + len(pictures)
    pulse.expect(asked)
    rows = asyncio.run(_ask_addresses(build, pages, pictures))
    with build.stage(NAME).attempt(partition) as attempt:
        attempt.write_table("parquet", pa.Table.from_pylist(rows, REFUSED_SCHEMA))
        attempt.commit({"asked": asked, "refused": len(rows)})


def _addresses(build: Build, partition: str) -> tuple[dict[str, str], dict[str, str]]:
    """(pages, pictures) of a shard: the source by address. Both empty for a shard that is no longer there."""
    due = next((due for due in _due_shards(build) if due.name == partition), None)
    if due is None:  # rewritten by a takedown since
        return {}, {}
    shard = due.shard
    try:
        with due.folder.local(shard.parquet.path) as path:
            rows = pq.read_table(path, columns=["page_url", "image_url", "source"])
    except (StoreError, OSError, pa.ArrowException) as e:
        log.warning("opt-outs of shard %s were not looked for: it cannot be read (%s)", shard.name, e)
        return {}, {}
    by_kind = []
    for name in ("page_url", "image_url"):
        on_web = rows.filter(pc.match_substring_regex(rows[name], "^https?://"))
        sources = dict(zip(on_web[name].to_pylist(), on_web["source"].to_pylist(), strict=True))
        by_kind.append({u: name for u, name in sources.items() if not due.hosts or urlsplit(u).netloc in due.hosts})
    return by_kind[0], by_kind[1]


async def _ask_addresses(build: Build, pages: dict[str, str], pictures: dict[str, str]) -> list[dict[str, str]]:
    """Asks for addresses; returns REFUSED_SCHEMA rows of the refused ones. pages, pictures: the source by address."""
    spec, rows = build.spec, list[dict[str, str]]()

    def accept_of(sources: dict[str, str]) -> Accept:
        def accept(url: str, outcome: Image | RequestFailed) -> None:
            pulse.advance(failed=int(isinstance(outcome, RequestFailed)))
            if isinstance(outcome, RequestFailed) and _is_answer(outcome):
                why = {"reason": outcome.reason.value, "evidence": outcome.evidence[:300]}
                rows.append({"url": url, "source": sources[url], **why})

        return accept

    takedowns = build.store.takedowns()
    async with ImageFetcher(spec, takedowns=takedowns, kind=HEADERS_ONLY) as fetcher:
        await download(fetcher, pictures, accept_of(pictures), spec.fetch.threads)
    async with _PageFetcher(spec, takedowns=takedowns, kind=page_kind(spec.egress)) as fetcher:
        await download(fetcher, pages, accept_of(pages), spec.fetch.threads)
    return rows


def refused_images(build: Build, wanted: pa.Table) -> dict[str, tuple[DropReason, str]]:
    """(reason, evidence) by fetch_id of images that opted out, or that vanished where their source drops these,
    themselves or on each page that shows them.

    wanted: fetch_id, image_url and page_url of a partition's candidates.
    """
    opted_out = pa.array([DropReason.OPT_OUT.value, DropReason.ROBOTS_DISALLOWED.value])
    drops = pa.array(dropping_sources(build.spec), pa.string())
    addresses = pa.array([*wanted["image_url"].to_pylist(), *wanted["page_url"].to_pylist()], pa.string())
    refusals = dict[str, tuple[DropReason, str]]()
    for record in build.records(NAME):
        rows = build.stage(NAME).table(record)
        vanished = pc.and_(pc.match_substring_regex(rows["evidence"], policy.GONE), pc.is_in(rows["source"], drops))
        counts = pc.or_(pc.is_in(rows["reason"], opted_out), vanished)
        relevant = rows.filter(pc.and_(counts, pc.is_in(rows["url"], addresses)))
        refusals |= {row["url"]: (DropReason(row["reason"]), row["evidence"]) for row in relevant.to_pylist()}
    refused, allowed = dict[str, tuple[DropReason, str]](), set[str]()
    columns = (wanted[name].to_pylist() for name in ("fetch_id", "image_url", "page_url"))
    for fetch_id, image, page in zip(*columns, strict=True) if refusals else ():
        if (why := refusals.get(image) or refusals.get(page)) is not None:
            refused[fetch_id] = why
        else:
            allowed.add(fetch_id)
    return {fetch_id: why for fetch_id, why in refused.items() if fetch_id not in allowed}


def dropping_sources(spec: BuildSpec) -> list[str]:
    """Names of the sources whose samples go with their page or picture (`vanished: drop`)."""
    return sorted(source.name for source in spec.sources if source.vanished == "drop")


def _is_answer(failure: RequestFailed) -> bool:
    """True if a failure says what its owner wants, or that the address is gone."""
    if failure.reason is DropReason.ROBOTS_DISALLOWED:
        return failure.evidence == policy.DISALLOWED
    return failure.reason in (DropReason.OPT_OUT, DropReason.HTTP_STATUS) and not failure.retry.transient


class _PageFetcher(ImageFetcher):
    """Fetches pages; what the meta tags of one say against its use is a failure, as headers are."""

    async def __aenter__(self) -> _PageFetcher:
        self._readers = Readers(Site(name="recheck", source_kind="web", start=["http://localhost/"]))
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._readers.close()
        await super().__aexit__(*error)

    async def fetch(self, url: str) -> Image | RequestFailed:
        """A page without its body, or why it could not be fetched or may not be used."""
        page = await super().fetch(url)
        if isinstance(page, RequestFailed):
            return page
        capture = Capture(url, 200, page.fetched_at, page.content_type, page.body)
        try:
            opt_outs = (await self._readers.page(capture, ())).opt_outs
        except OURS:
            raise
        except Exception:  # what no parser reads says nothing
            opt_outs = ""
        return RequestFailed(DropReason.OPT_OUT, opt_outs) if opt_outs else page.with_body(b"")


PASS = Pass(
    name=NAME,
    over=partitions,
    reads=("crawl",),
    run=run_partition,
    token=token,
    when=when,
    begin=begin,
    files=(PassFile("parquet", REFUSED_SCHEMA),),
    unit="addresses",
    done=("asked",),
)
