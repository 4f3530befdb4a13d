"""fetch: candidates become image bytes: one tar and one table of outcomes a partition.

An image URL is fetched once for all its candidates, and what STORE/fetched knows is not fetched at all: bytes are
copied from the tar that an earlier build left (and checked against their sha256), and a failure is remembered until its
time: one that may pass is tried again by the next build, a lasting one after a month. The rest goes through
img2dataset's `Downloader` in this process, under the guarded opener of `pipeline.web.image_opener`; original bytes,
never re-encoded. Images that lie in a source itself (a folder, a webdataset) are read from there and not put into
STORE/fetched.

Bytes arrive in any order, so they go to a spool file first; the tar is then written in the order of the candidates
with fixed headers: the same images give the same tar. A type is told by the first bytes, never by name or header, and
the pixel count is read from the picture's own header before anything decodes it.

Limits: an image fetched once is not asked for again by
later builds, however it changed; where a build's tar is deleted, its images are fetched anew.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import importlib.util
import json
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import IO, Any
from urllib.parse import urlsplit

import pyarrow as pa

from data_specs.build import BuildSpec
from data_specs.shard import canonical_json
from pipeline.errors import StageError
from pipeline.files.folder import Folder
from pipeline.files.tars import TarWriter
from pipeline.observe import count
from pipeline.records import FETCH_SCHEMA, DropReason, candidates_of, drop, rfc3339
from pipeline.sources import TableSource, sources_of
from pipeline.store.build import Build
from pipeline.store.partitions import Record
from pipeline.store.rewrite import Rewrite
from pipeline.store.stage import Stage, StageFile
from pipeline.web.image_opener import LASTING_S, GuardedOpener

VERSION = 1
INPUTS: tuple[str, ...] = ("admit",)

CACHE_SCHEMA = pa.schema([*FETCH_SCHEMA, ("tar", pa.string()), ("policy", pa.string())])
"""Rows of STORE/fetched: `tar` is where offset and size point to; `policy` the limits under which a failure holds."""

TOLD_EVERY, TOLD_S = 100, 2.0
"""Images of a host, and seconds, after which the counters are told."""

_MAGIC = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a", b"BM", b"II*\0", b"MM\0*")


def token(build: Build) -> Any:
    """What decides which images are let in."""
    return _policy(build.spec)


def partitions(build: Build) -> list[str]:
    """Those of admit."""
    return build.stage("admit").partitions()


def run_partition(build: Build, partition: str) -> None:
    """Fetch one partition's images and commit them."""
    _return_large_blocks()
    admit, stage = build.stage("admit"), build.stage("fetch")
    candidates = candidates_of(admit.table(admit.record(partition)))
    urls = {c.fetch_id: c.image_url for c in candidates}
    with stage.attempt(partition) as attempt, tempfile.TemporaryFile(dir=stage.folder.scratch()) as spool:
        job = _Job(build, _Spool(spool, build.spec, build.store.takedowns().hashes))
        job.read_sources({c.fetch_id: (c.source, c.image_url) for c in candidates})
        job.reuse(urls)
        stats = job.download({i: url for i, url in urls.items() if i not in job.outcomes})
        if stats:
            attempt.path("stats.json").write_text(json.dumps(stats, indent=1, sort_keys=True), encoding="utf-8")
        rows = _write_tar(attempt.path("tar"), urls, job)
        attempt.write_table("parquet", pa.Table.from_pylist(rows, schema=FETCH_SCHEMA))
        failed = {row["fetch_id"]: row for row in rows if not row["ok"]}
        attempt.decide(
            [
                drop(c, "fetch", DropReason(failed[c.fetch_id]["reason"]), failed[c.fetch_id]["evidence"])
                for c in candidates
                if c.fetch_id in failed
            ]
        )
        dropped = sum(c.fetch_id in failed for c in candidates)
        record = attempt.commit(
            {
                "seen": len(candidates),
                "kept": len(candidates) - dropped,
                "dropped": dropped,
                "images": len(rows) - len(failed),
                "cached": len(job.reused),
                "fetched": len(job.fetched),
                "bytes": sum(row["size"] for row in rows if row["ok"]),
            }
        )
    tar = stage.folder.at(record.files["tar"].name)
    policy = _policy_digest(build.spec)
    new = [
        {**row, "tar": tar if row["ok"] else "", "policy": policy}
        for row in rows
        if row["fetch_id"] in job.fetched and row["reason"] != DropReason.FORGOTTEN.value  # nothing of it is kept
    ]
    build.store.fetched().put(pa.Table.from_pylist(new, schema=CACHE_SCHEMA))


def _return_large_blocks() -> None:
    """Give memory of a large body back to the system when it is freed: glibc, left to itself, keeps 64 MB a thread."""
    with suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).mallopt(-3, 1 << 20)  # M_MMAP_THRESHOLD


def _policy(spec: BuildSpec) -> dict[str, Any]:
    limits = spec.egress.model_dump(mode="json", include={"allow", "max_image_bytes", "max_redirects", "obey_robots"})
    return {**limits, "max_pixels": spec.fetch.max_pixels}


def _policy_digest(spec: BuildSpec) -> str:
    return hashlib.sha256(canonical_json(_policy(spec))).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class _Outcome:
    """What became of one image; `place` is where its bytes lie in the spool."""

    reason: str = ""
    evidence: str = ""
    sha256: str = ""
    place: tuple[int, int] = (-1, 0)
    fetched_at: str = ""
    etag: str = ""
    retry_after: str = ""


class _Spool:
    """Bytes in order of arrival, judged as they come."""

    def __init__(self, file: IO[bytes], spec: BuildSpec, forgotten: frozenset[str] = frozenset()) -> None:
        self._file, self._spec, self._forgotten = file, spec, forgotten

    def add(self, data: bytes, fetched_at: str, etag: str = "") -> _Outcome:
        """Keep the bytes of an image, or say why they are none."""
        refusal = _refusal(data, self._spec.egress.max_image_bytes, self._spec.fetch.max_pixels)
        if refusal is not None:
            later = rfc3339(LASTING_S)
            return _Outcome(refusal[0].value, refusal[1], fetched_at=fetched_at, etag=etag, retry_after=later)
        sha256 = hashlib.sha256(data).hexdigest()
        if sha256 in self._forgotten:
            return _Outcome(DropReason.FORGOTTEN.value, "this picture was taken down", fetched_at=fetched_at)
        offset = self._file.seek(0, os.SEEK_END)
        self._file.write(data)
        return _Outcome("", "", sha256, (offset, len(data)), fetched_at, etag)

    def read(self, place: tuple[int, int]) -> bytes:
        self._file.seek(place[0])
        return self._file.read(place[1])


def _refusal(data: bytes, max_bytes: int, max_pixels: int) -> tuple[DropReason, str] | None:
    """Why bytes are not let in as an image, None if they are. Nothing is decoded."""
    from pipeline.pictures import decode as pictures

    if not data:
        return DropReason.EMPTY_BODY, "0 bytes"
    if len(data) > max_bytes:
        return DropReason.TOO_LARGE, f"{len(data)} bytes, {max_bytes} are allowed"
    try:
        found = pictures.header(data)
    except pictures.PictureError as e:
        if e.too_many_pixels:
            return DropReason.TOO_MANY_PIXELS, e.message
        if not _looks_like_an_image(data):
            start = " ".join(data[:60].decode("utf-8", "replace").split())
            return DropReason.NOT_AN_IMAGE, f"begins with {start!r}"
        return None  # a damaged picture: `measure` says so
    if found.pixels > max_pixels:
        return DropReason.TOO_MANY_PIXELS, f"{found.width} x {found.height} pixels, {max_pixels} are allowed"
    return None


def _looks_like_an_image(data: bytes) -> bool:
    riff = data[:4] == b"RIFF" and data[8:12] == b"WEBP"
    return data.startswith(_MAGIC) or riff or data[4:12] in (b"ftypavif", b"ftypavis")


@dataclass(slots=True)
class _Job:
    """One partition's images on their way into the spool."""

    build: Build
    spool: _Spool
    outcomes: dict[str, _Outcome] = field(default_factory=dict)
    reused: set[str] = field(default_factory=set)  # known from STORE/fetched
    fetched: set[str] = field(default_factory=set)  # asked for over the network, successfully or not

    def read_sources(self, wanted: dict[str, tuple[str, str]]) -> None:
        """Images that lie in their source. `wanted` maps fetch_id to (source name, image URL)."""
        tables = {s.name: s for s in sources_of(self.build.spec) if isinstance(s, TableSource)}
        for fetch_id, (source, url) in wanted.items():
            data = tables[source].read_image(url) if source in tables else None
            if data is not None:
                self.outcomes[fetch_id] = self.spool.add(data, rfc3339())
            elif not url.startswith(("http://", "https://")):
                gone = "its source holds no such picture any more"
                later = rfc3339(LASTING_S)
                self.outcomes[fetch_id] = _Outcome(
                    DropReason.BAD_URL.value, gone, fetched_at=rfc3339(), retry_after=later
                )

    def reuse(self, urls: dict[str, str]) -> None:
        """Outcomes that STORE/fetched knows and that still hold."""
        known = self.build.store.fetched().get(i for i in urls if i not in self.outcomes)
        if known is None:
            return
        policy, now = _policy_digest(self.build.spec), rfc3339()
        by_tar: dict[str, list[dict[str, Any]]] = {}
        for row in known.to_pylist():
            if row["ok"]:
                by_tar.setdefault(row["tar"], []).append(row)
            elif row["policy"] == policy and row["retry_after"] > now:
                more = {name: row[name] for name in ("fetched_at", "etag", "retry_after")}
                self.outcomes[row["fetch_id"]] = _Outcome(row["reason"], row["evidence"], **more)
                self.reused.add(row["fetch_id"])
        for tar, rows in sorted(by_tar.items()):
            for row, data in _bytes_of(tar, rows):
                self.outcomes[row["fetch_id"]] = self.spool.add(data, row["fetched_at"], row["etag"])
                self.reused.add(row["fetch_id"])

    def download(self, urls: dict[str, str]) -> dict[str, Any]:
        """Fetch over the network; gives img2dataset's own statistics, empty if there was nothing to fetch."""
        if not urls:
            return {}
        opener = GuardedOpener(self.build.spec)
        ids = {url: fetch_id for fetch_id, url in urls.items()}
        hosts: dict[str, Counter[str]] = {}  # fates by host, those that were not told yet
        received: Counter[str] = Counter()
        told = time.monotonic()

        def take(url: str, data: bytes | None, error: str) -> None:
            if data is not None:
                found = opener.found[url]
                outcome = self.spool.add(data, found.fetched_at, found.etag)
            elif url in opener.failed:
                failure = opener.failed[url]
                later = rfc3339(min(failure.retry_after_s, LASTING_S))
                outcome = _Outcome(
                    failure.reason.value, failure.evidence[:300], fetched_at=rfc3339(), retry_after=later
                )
            else:  # refused before the opener saw it
                later = rfc3339(LASTING_S)
                outcome = _Outcome(DropReason.BAD_URL.value, error[:300], fetched_at=rfc3339(), retry_after=later)
            self.outcomes[ids[url]] = outcome
            self.fetched.add(ids[url])
            nonlocal told
            host = urlsplit(url).netloc
            seen = hosts.setdefault(host, Counter())
            seen[outcome.reason or "kept"] += 1
            received[host] += outcome.place[1]
            if sum(seen.values()) >= TOLD_EVERY or time.monotonic() - told >= TOLD_S:
                _tell(hosts, received)
                told = time.monotonic()

        with opener.installed():
            stats = _download(self.build.spec, list(ids), take)
        _tell(hosts, received)
        if len(self.fetched) != len(urls):
            raise StageError("fetch", f"img2dataset gave back {len(self.fetched)} of {len(urls)} outcomes")
        return stats


def _tell(hosts: dict[str, Counter[str]], received: Counter[str]) -> None:
    """Hand what was counted to the metrics, and begin anew."""
    for host, fates in hosts.items():
        count("wenlan_received_bytes", received[host], host=host)
        for fate, times in fates.items():
            count("wenlan_requests", times, host=host, fate=fate)
    hosts.clear()
    received.clear()


def _download(spec: BuildSpec, urls: list[str], take: Callable[[str, bytes | None, str], None]) -> dict[str, Any]:
    """Run img2dataset over some URLs in this process; `take` gets (url, bytes or None, error) of each, one by one."""
    writer = _Writer(take)
    with tempfile.TemporaryDirectory(prefix="wenlan-fetch-") as folder:
        shard = f"{folder}/urls.arrow"
        table = pa.table({"url": urls})
        with pa.OSFile(shard, "wb") as sink, pa.ipc.new_file(sink, table.schema) as out:
            out.write_table(table)
        _downloader()(
            sample_writer_class=lambda *_: writer,
            resizer=lambda stream, _: (stream.read(), None, None, None, None, None),  # the bytes as they came
            thread_count=spec.fetch.threads,
            save_caption=False,
            extract_exif=False,
            output_folder=folder,
            column_list=["url"],
            timeout=spec.egress.timeout_s,
            number_sample_per_shard=max(10, len(urls)),
            oom_shard_count=1,
            compute_hash=None,
            verify_hash_type=None,
            encode_format="jpg",
            retries=spec.fetch.retries,
            user_agent_token=None,
            disallowed_header_directives=None,  # it lets `noai, max-image-preview:large` pass; the opener does not
        ).download_shard((0, shard))
        writer.check()
        found: dict[str, Any] = json.loads(Path(f"{folder}/0_stats.json").read_text(encoding="utf-8"))
        return found


@functools.cache
def _downloader() -> Any:
    """img2dataset's `Downloader`, loaded without what its package imports for its command line.

    That is torch, pandas, albumentations (which asks the network for a newer version of itself) and wandb: 3 seconds
    and 250 MB of every worker, none of which the downloader uses. Nothing stays in `sys.modules`, so that whoever
    imports img2dataset afterwards gets it whole.
    """
    spec = importlib.util.find_spec("img2dataset")
    if spec is None or spec.submodule_search_locations is None:
        raise StageError("fetch", "img2dataset is not installed; install wenlan[pipeline]")
    before = dict(sys.modules)
    bare = ModuleType("img2dataset")
    bare.__path__ = list(spec.submodule_search_locations)
    sys.modules |= {"img2dataset": bare, "wandb": before.get("wandb", ModuleType("wandb"))}
    try:
        return importlib.import_module("img2dataset.downloader").Downloader
    finally:
        for name in [n for n in sys.modules if n == "wandb" or n.partition(".")[0] == "img2dataset"]:
            del sys.modules[name]
        sys.modules |= {n: m for n, m in before.items() if n == "wandb" or n.partition(".")[0] == "img2dataset"}


class _Writer:
    """img2dataset's writer: hands each sample on. Its caller swallows exceptions, so the first one is kept."""

    def __init__(self, take: Callable[[str, bytes | None, str], None]) -> None:
        self._take = take
        self._broken: Exception | None = None

    def write(self, data: bytes | None, key: str, caption: str | None, meta: dict[str, Any]) -> None:
        if self._broken is None:
            try:
                self._take(meta["url"], data, meta["error_message"] or "")
            except Exception as e:
                self._broken = e

    def close(self) -> None:
        """Called by img2dataset at the end; there is nothing to close."""

    def check(self) -> None:
        if self._broken is not None:
            raise self._broken


def _bytes_of(tar: str, rows: list[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], bytes]]:
    """Bytes that lie in an earlier build's tar; what is gone or changed is left out, and so fetched anew."""
    folder, _, name = tar.rpartition("/")
    with suppress(OSError), Folder(folder).local(name) as path, path.open("rb") as f:
        for row in sorted(rows, key=lambda r: int(r["offset"])):
            f.seek(row["offset"])
            data = f.read(row["size"])
            if hashlib.sha256(data).hexdigest() == row["sha256"]:
                yield row, data


def _write_tar(path: Path, urls: dict[str, str], job: _Job) -> list[dict[str, Any]]:
    """Write the images in the order of `urls`; gives the rows of FETCH_SCHEMA."""
    rows = []
    with path.open("wb") as file:
        tar = TarWriter(file)
        for fetch_id, url in urls.items():
            outcome = job.outcomes[fetch_id]
            offset, size = -1, 0
            if not outcome.reason:
                data = job.spool.read(outcome.place)
                size = len(data)
                offset = tar.add(fetch_id, data)
            rows.append(
                {
                    "fetch_id": fetch_id,
                    "image_url": url,
                    "ok": not outcome.reason,
                    "reason": outcome.reason,
                    "evidence": outcome.evidence,
                    "sha256": outcome.sha256,
                    "offset": offset,
                    "size": size,
                    "fetched_at": outcome.fetched_at,
                    "etag": outcome.etag,
                    "retry_after": outcome.retry_after,
                }
            )
        tar.close()
    return rows


def _without(rewrite: Rewrite) -> None:
    """The tar and the table without the images that are removed."""
    table = rewrite.stage.table(rewrite.record)
    remaining = rewrite.removal.without(table)
    if remaining is not None:
        rows = remaining.to_pylist()
        with (
            rewrite.stage.file(rewrite.record, "tar") as source,
            source.open("rb") as f,
            rewrite.path("tar").open("wb") as out,
        ):
            writer = TarWriter(out)
            for row in sorted((row for row in rows if row["ok"]), key=lambda row: int(row["offset"])):
                f.seek(row["offset"])
                row["offset"] = writer.add(row["fetch_id"], f.read(row["size"]))
            writer.close()
        rewrite.replace("tar")
        rewrite.write_table("parquet", pa.Table.from_pylist(rows, schema=table.schema))
    rewrite.remove_rows()


def _moved(build: Build, before: Record, after: Record) -> None:
    """Tell STORE/fetched where the images lie that it knew in the old tar; else they would be fetched again."""
    stage, cache = build.stage("fetch").at(after.fingerprint), build.store.fetched()
    old, new = stage.folder.at(before.files["tar"].name), stage.folder.at(after.files["tar"].name)
    if old == new:
        return
    places = {row["fetch_id"]: row["offset"] for row in stage.table(after).to_pylist() if row["ok"]}
    known = cache.get(places)
    if known is not None:
        rows = [
            {**row, "tar": new, "offset": places[row["fetch_id"]]} for row in known.to_pylist() if row["tar"] == old
        ]
        cache.put(pa.Table.from_pylist(rows, schema=known.schema))


STAGE = Stage(
    name="fetch",
    zh="下载",
    folder="images",
    inputs=INPUTS,
    version=VERSION,
    token=token,
    partitions=partitions,
    run=run_partition,
    files=(StageFile("tar"), StageFile("parquet", FETCH_SCHEMA, "fetch_id"), StageFile("stats.json")),
    network=True,
    without=_without,
    moved=_moved,
)
