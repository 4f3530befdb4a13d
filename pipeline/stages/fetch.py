"""Stage fetch: downloads the images of candidates. Writes one tar and one table of outcomes per partition.

An image URL is fetched once for all its candidates, and what STORE/fetched knows is not fetched (`_stored_images`):
bytes are copied from the tar that an earlier build left (and checked against their sha256), and a failure is remembered
until its time: one that may pass is tried again by the next build, a lasting one after a month. The rest is downloaded
by the engine that the spec names, `pipeline.web.images` or img2dataset behind it (`pipeline.web.gateway`), with the
same rules and outcomes. Bytes are kept as they came, never re-encoded. Images that lie in a source itself (a folder, a
webdataset, an archive) are read from there and not put into STORE/fetched. User name and password of an image's URL are
sent to its own origin only, and written nowhere.

A trial, a build that begins a generation, or one with `egress: {network: never}`, sends no requests: what failed has
failed, and what neither a source, STORE/fetched nor the shards of the last generation hold is `not_stored`.

An image whose failure may pass is put aside and asked for again when all others of its partition are there, until its
host has answered or `fetch.max_wait_s` are over. A host that did not answer within them is not waited for again by this
worker in this build.

Bytes arrive in any order, so they go to a spool file first (`pipeline.stages._spool`); the tar is then written in the
order of the candidates with fixed headers: the same images make the same tar. What was taken down, by its bytes or by
its looks, is not written to it.

Limits: a host that fails for the last of its images in a partition is waited for, though it may be the image alone. An
image fetched once is asked for again only for its owner's opt-out (`_recheck`), however it changed; where a build's tar
is deleted, its images are fetched again.
"""

from __future__ import annotations

import asyncio
import ctypes
import functools
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.compute as pc

from data_specs.build import BuildSpec
from pipeline.features import feature_id
from pipeline.files.tars import TarWriter
from pipeline.processes import pulse
from pipeline.processes.observe import count
from pipeline.rows.decisions import DropReason, drop
from pipeline.rows.records import FETCH_SCHEMA, candidates_of
from pipeline.stages import _recheck, _sort
from pipeline.stages._spool import Outcome, Spool, failure
from pipeline.stages._stored_images import IN_BASE_BUILD, limits_digest, limits_of, stored_images, userinfos_of
from pipeline.store.build import Build, Pass, PassFile, Stage
from pipeline.store.image_features import features_of, without_images
from pipeline.store.takedowns import Takedowns
from pipeline.web import gateway, images
from pipeline.web.client import RequestFailed
from pipeline.web.images import Image, ImageFetcher
from pipeline.web.policy import LASTING_S, HostRules

CACHE_SCHEMA = pa.schema([*FETCH_SCHEMA, ("tar", pa.string()), ("policy", pa.string())])
"""Rows of STORE/fetched: `tar` is where offset and size point to; `policy` the limits under which a failure holds."""

FLUSH_IMAGES, FLUSH_S = 100, 2.0
"""Images of a host, and seconds, after which the counters of hosts go to the metrics."""


def token(build: Build) -> Any:
    """The options that decide which images are let in, and whether they may be asked for."""
    return {
        **limits_of(build.spec),
        "network": build.spec.egress.network,
        "vanished": _recheck.dropping_sources(build.spec),
    }


def partitions(build: Build) -> list[str]:
    return build.stage("admit").partitions()


def run_partition(build: Build, partition: str) -> None:
    """Fetch one partition's images and commit them."""
    _return_large_blocks()
    admit, stage = build.stage("admit"), build.stage("fetch")
    admitted = admit.record(partition)
    wanted = admit.table(admitted, columns=["fetch_id", "image_url", "page_url", "source"])
    urls = dict(zip(wanted["fetch_id"].to_pylist(), wanted["image_url"].to_pylist(), strict=True))
    with stage.attempt(partition) as attempt, tempfile.TemporaryFile(dir=stage.folder.scratch()) as file:
        takedowns = build.store.takedowns()
        spool = Spool(file, build.spec, takedowns)
        userinfos = userinfos_of(build, urls)
        pulse.expect(len(urls))
        refused = {i: failure(*why) for i, why in _recheck.refused_images(build, wanted).items()}
        remaining = wanted.filter(pc.invert(pc.is_in(wanted["fetch_id"], pa.array(refused, pa.string()))))
        outcomes, reused = stored_images(build, partition, remaining, spool, userinfos)
        outcomes |= refused
        rules = _host_rules(build.out, stage.fingerprint)
        missing = {i: url for i, url in urls.items() if i not in outcomes}
        failed_before = sum(bool(outcome.reason) for outcome in outcomes.values())
        pulse.expect(len(urls), done=len(outcomes))
        pulse.tell(kept=len(outcomes) - failed_before, failed=failed_before, bytes=0)
        sent = {urls[fetch_id]: userinfo for fetch_id, userinfo in userinfos.items() if fetch_id in urls}
        network = _Network(build.spec, missing, spool, _silent_hosts(build.out, stage.fingerprint))
        for host, images in Counter(map(_host, missing.values())).items():
            pulse.of_host(host, "asked", images)
        if missing:
            network.run(lambda: ImageFetcher(build.spec, sent, rules, takedowns))
        outcomes = _refuse_lookalikes(build, outcomes | network.outcomes, spool, takedowns)
        rows = _write_tar(attempt.path("tar"), urls, outcomes, spool)
        attempt.write_table("parquet", rows)
        failed = {fetch_id: outcome for fetch_id, outcome in outcomes.items() if outcome.reason}
        is_failed = pc.field("fetch_id").isin(pa.array(failed, pa.string()))
        decisions = [
            drop(c, "fetch", DropReason(failed[c.fetch_id].reason), failed[c.fetch_id].evidence)
            for c in candidates_of(admit.table(admitted, filters=is_failed))
        ]
        attempt.decide(decisions)
        record = attempt.commit(
            {
                "seen": len(wanted),
                "kept": len(wanted) - len(decisions),
                "dropped": len(decisions),
                "images": len(urls) - len(failed),
                "failed": len(failed),
                "cached": reused,
                "fetched": len(network.outcomes),
                "bytes": pc.sum(rows["size"]).as_py() or 0,
            }
        )
    requested = rows.filter(pc.is_in(rows["fetch_id"], pa.array(network.outcomes, pa.string())))
    _store_outcomes(build, requested, record.files["tar"].name)


def _refuse_lookalikes(
    build: Build, outcomes: dict[str, Outcome], spool: Spool, takedowns: Takedowns
) -> dict[str, Outcome]:
    """Returns the outcomes; pictures that look like one that was taken down are refused.

    They are measured here, before their bytes are kept, if STORE knows any looks; `measure` finds the features there.
    """
    if not takedowns.looks:
        return outcomes
    spans = {o.sha256: o.span for o in outcomes.values() if not o.reason and o.span[0] != IN_BASE_BUILD}
    ordered, limit = sorted(spans, key=spans.__getitem__), build.spec.fetch.max_pixels
    known, new = features_of(build.store, ordered, lambda sha256: spool.read(spans[sha256]), limit)
    lookalikes = set(takedowns.alike(pa.concat_tables([known, new]), feature_id()))
    build.store.features(feature_id()).put(without_images(new, lookalikes))
    refused = failure(DropReason.FORGOTTEN, "this image was taken down")
    return {fetch_id: refused if outcome.sha256 in lookalikes else outcome for fetch_id, outcome in outcomes.items()}


@functools.lru_cache(maxsize=1)
def _host_rules(out: str, fingerprint: str) -> dict[str, HostRules]:
    """The rules of hosts that this worker process has asked for, for all partitions of one build that it does.

    A host has images in nearly every partition: else it would be asked for its robots.txt once in each.
    """
    return {}


@functools.lru_cache(maxsize=1)
def _silent_hosts(out: str, fingerprint: str) -> set[str]:
    """Hosts for which this worker process has waited in vain, in one build."""
    return set()


def _return_large_blocks() -> None:
    """Return the memory of a large body to the system once it is freed: glibc by default keeps 64 MB per thread."""
    with suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).mallopt(-3, 1 << 20)  # M_MMAP_THRESHOLD


class _Network:
    """Images on their way from the network into the spool.

    urls: by fetch_id. silent: hosts that are not waited for; added to. outcomes: by fetch_id, as they become final.
    """

    def __init__(self, spec: BuildSpec, urls: dict[str, str], spool: Spool, silent: set[str]) -> None:
        self._spec, self._spool, self._silent = spec, spool, silent
        self._fetch_ids = {url: fetch_id for fetch_id, url in urls.items()}
        self._counters = _HostCounters()
        self._deferred: dict[str, tuple[RequestFailed, float]] = {}  # by URL: what may pass, and when it was noted
        self._answered: dict[str, float] = {}  # by host: when it answered last
        self.outcomes: dict[str, Outcome] = {}

    def run(self, fetcher: Callable[[], ImageFetcher]) -> None:
        """Fetch every image. fetcher: makes the client of a round, which asks unreachable hosts for their rules."""
        asyncio.run(self._download(fetcher()))
        wait = self._spec.fetch.max_wait_s
        pause, until = wait / 16, time.monotonic() + wait
        while self._deferred and time.monotonic() < until:
            time.sleep(min(pause, max(0.0, until - time.monotonic())))
            pause *= 2
            asyncio.run(self._retry(fetcher(), until))
        for url, (last, _) in self._deferred.items():
            self._set_outcome(url, last)
        self._silent |= {_host(url) for url in self._deferred}
        self._counters.flush()

    async def _download(self, fetcher: ImageFetcher) -> None:
        urls, fetch = list(self._fetch_ids), self._spec.fetch
        async with fetcher:
            if fetch.engine == "img2dataset":
                await gateway.download(fetcher, urls, self._accept, fetch)
            else:
                await images.download(fetcher, urls, self._accept, fetch.threads)

    async def _retry(self, fetcher: ImageFetcher, until: float) -> None:
        """Asks once more for the deferred images, as far as time allows."""
        async with fetcher:
            await images.download(fetcher, list(self._deferred), self._accept, self._spec.fetch.threads, until)

    def _accept(self, url: str, image: Image | RequestFailed) -> None:
        """Sets the outcome for a URL, or defers the URL."""
        host, now = _host(url), time.monotonic()
        retry = isinstance(image, RequestFailed) and self._should_retry(url, image)
        if isinstance(image, Image) or (image.status and not image.host_is_down):
            self._answered[host] = now
            self._silent.discard(host)
        if retry and isinstance(image, RequestFailed):
            self._deferred[url] = image, now
        else:
            self._deferred.pop(url, None)
            self._set_outcome(url, image)

    def _should_retry(self, url: str, failed: RequestFailed) -> bool:
        """True for a failure after which the URL is asked for again: not if its host has answered since the last one,
        is silent, or names a later time."""
        host, wait = _host(url), self._spec.fetch.max_wait_s
        passes = failed.retry.transient or failed.reason is DropReason.ROBOTS_UNREACHABLE
        if not passes or host in self._silent or failed.retry.wait_s > wait or not wait:
            return False
        return url not in self._deferred or self._answered.get(host, 0.0) < self._deferred[url][1]

    def _set_outcome(self, url: str, image: Image | RequestFailed) -> None:
        if isinstance(image, Image):
            outcome = self._spool.add(image.body, image.fetched_at, image.etag)
        else:
            pulse.advance(failed=1)
            outcome = failure(image.reason, image.evidence, min(image.retry_after_s, LASTING_S))
        self.outcomes[self._fetch_ids[url]] = outcome
        self._counters.add(_host(url), outcome.reason or "kept", outcome.span[1])


def _host(url: str) -> str:
    return urlsplit(url).netloc


class _HostCounters:
    """Requests and bytes by host, which go to the metrics in batches: one call per image would cost too much."""

    def __init__(self) -> None:
        self._fates: dict[str, Counter[str]] = {}  # by host: kept, or a reason
        self._received: Counter[str] = Counter()  # bytes by host
        self._flushed = time.monotonic()

    def add(self, host: str, fate: str, size: int) -> None:
        fates = self._fates.setdefault(host, Counter())
        fates[fate] += 1
        self._received[host] += size
        if fates.total() >= FLUSH_IMAGES or time.monotonic() - self._flushed >= FLUSH_S:
            self.flush()

    def flush(self) -> None:
        """Hand what was counted to the metrics, and start from zero."""
        for host, fates in self._fates.items():
            count("wenlan_received_bytes", self._received[host], host=host)
            for fate, times in fates.items():
                count("wenlan_requests", times, host=host, fate=fate)
        self._fates.clear()
        self._received.clear()
        self._flushed = time.monotonic()


def _write_tar(path: Path, urls: dict[str, str], outcomes: dict[str, Outcome], spool: Spool) -> pa.Table:
    """Write the images in the order of `urls`; returns the table of FETCH_SCHEMA."""
    ordered = [outcomes[fetch_id] for fetch_id in urls]
    offsets = [-1] * len(ordered)
    with path.open("wb") as file:
        tar = TarWriter(file)
        for number, (fetch_id, outcome) in enumerate(zip(urls, ordered, strict=True)):
            if not outcome.reason and outcome.span[0] != IN_BASE_BUILD:
                offsets[number] = tar.add(fetch_id, spool.read(outcome.span))
        tar.close()
    columns = {
        "fetch_id": list(urls),
        "image_url": list(urls.values()),
        "ok": [not outcome.reason for outcome in ordered],
        "offset": offsets,
        "size": [0 if outcome.reason else outcome.span[1] for outcome in ordered],
    }
    fields = ("reason", "evidence", "sha256", "fetched_at", "etag", "retry_after")
    columns |= {name: [getattr(outcome, name) for outcome in ordered] for name in fields}
    return pa.table(columns, schema=FETCH_SCHEMA)


def _store_outcomes(build: Build, rows: pa.Table, tar: str) -> None:
    """Put what was asked for over the network into STORE/fetched, for later builds."""
    url, limits = build.store.relative_place(build.stage("fetch").folder.at(tar)), limits_digest(build.spec)
    rows = rows.filter(pc.not_equal(rows["reason"], DropReason.FORGOTTEN.value))  # what was taken down is not kept
    added = (pc.if_else(rows["ok"], url, ""), pa.repeat(limits, len(rows)))
    build.store.fetched().put(pa.table([*rows.columns, *added], schema=CACHE_SCHEMA))


STAGE = Stage(
    name="fetch",
    zh="下载",
    folder="images",
    passes=(
        _recheck.PASS,
        Pass(
            name="fetch",
            over=partitions,
            reads=("extract", _sort.NAME, "admit", _recheck.NAME),
            run=run_partition,
            token=token,
            files=(PassFile("tar", kind="images"), PassFile("parquet", FETCH_SCHEMA, "fetch_id")),
            unit="images",
            done=("images", "failed"),
        ),
    ),
    network=True,
)
