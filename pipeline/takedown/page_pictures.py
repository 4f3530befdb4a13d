"""Finds the pages in a build's captures that show a picture, where `extract` has left no candidates to ask.

A capture goes with any picture on it that is taken down. Which pictures a page shows, stage `extract` says; but its
tables are deleted from builds that `gc` expires, and a build that was killed may have crawled and not extracted. So
there is one table of it beside the captures, SHOWN: `gc` writes it from the candidates before they go, and a takedown
that does not find it reads the captures. It has the pictures that a page shows, kept or not, with the sha256 of those
that were fetched, and loses its rows with their page.

The state of a crawl that is not done is deleted whole, if anything in it is taken down: the crawl begins again.

Limits: a takedown that reads captures takes a few milliseconds a page, once for each crawl.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import OURS, SourceError
from pipeline.files.parquet import write_parquet
from pipeline.pages import bounds
from pipeline.pages.page import parse
from pipeline.pages.site_rules import rule_of
from pipeline.processes.confined import Confined, OverLimit
from pipeline.rows.records import SHOWN, SHOWN_SCHEMA, Capture, sha256_hex
from pipeline.store.build import Build
from pipeline.store.commits import DECISIONS, Record
from pipeline.store.partitions import StageDir
from pipeline.store.takedowns import Takedowns
from pipeline.takedown.rewrite import scratch
from pipeline.texts.charset import decode
from pipeline.urls import canonical_url, split_userinfo
from pipeline.web.warc import read_captures

_EXAMPLE = ("http://a.cn/", "text/html", b"<img src=a.jpg>")


def pages_showing(build: Build, takedowns: Takedowns, dry_run: bool) -> set[str]:
    """sha256 of the URLs of captured pages that show something that is taken down, or are taken down themselves.

    Of crawls whose candidates are there, `extract`'s tables say it, and nothing is looked at.
    """
    pages = set[str]()
    if not takedowns.hashes:
        return pages
    extracted = _extracted(build)
    for stage, record in _crawls(build):
        if SHOWN in record.files:
            pages |= _hit(stage.table(record, SHOWN), takedowns)
        elif not extracted.issuperset(_warcs(record)):
            table = _read(build, stage, record)
            if not dry_run:
                _commit(stage, record, table)
            pages |= _hit(table, takedowns)
    return pages


def store_page_pictures(build: Build) -> None:
    """Write SHOWN beside every crawl of a build from its candidates, which are deleted next."""
    for stage, record in _crawls(build):
        if SHOWN in record.files or not _extracted(build).issuperset(_warcs(record)):
            continue
        urls = stage.column(record, "parquet", "url")
        parts = [SHOWN_SCHEMA.empty_table()]
        for rows in _shown_by(build):
            rows = rows.filter(pc.is_in(rows["url"], urls))
            parts.append(_with_bytes(build, rows))
        _commit(stage, record, pa.concat_tables(parts))


def shown_on(url: str, content_type: str, body: bytes) -> list[str]:
    """Canonical URLs of the pictures that a page names; empty for what cannot be read as one."""
    decoded = decode(body, content_type)
    if decoded is None:
        return []
    page, found = parse(decoded[0], rule_of(url)), dict[str, None]()
    base = url
    with contextlib.suppress(ValueError):
        base = canonical_url(split_userinfo(page.base)[0], url) if page.base else url
    for image in page.images:
        with contextlib.suppress(ValueError):
            found[canonical_url(split_userinfo(image.url)[0], base)] = None
    return list(found)


class PageImages:
    """Reads pages with `shown_on`: in a process with limits, where a page may take long. Use as a context."""

    def __enter__(self) -> PageImages:
        self._reader = Confined(shown_on, _EXAMPLE)
        return self

    def __exit__(self, *_: object) -> None:
        self._reader.close()

    def of(self, url: str, content_type: str, body: bytes) -> list[str]:
        """Canonical URLs of a page's pictures; empty for a page on which the parser fails, as `extract` has none."""
        light = len(body) <= bounds.LIGHT_CHARACTERS and bounds.is_light(body.decode("latin-1"))
        try:
            return shown_on(url, content_type, body) if light else self._reader(url, content_type, body)
        except OURS:
            raise
        except (OverLimit, Exception):
            return []


def _crawls(build: Build) -> Iterator[tuple[StageDir, Record]]:
    """Every crawl of a build that has captures, whichever spec made it."""
    for stage in build.history("crawl"):
        yield from ((stage, record) for record in stage.records() if _warcs(record))


def _warcs(record: Record) -> set[str]:
    """Names of the WARC files of a crawl."""
    return {ref.name for suffix, ref in record.files.items() if suffix.endswith("warc.gz")}


def _extracted(build: Build) -> set[str]:
    """Names of the WARC files whose candidates are there.

    Which of several crawls of a source was extracted, no record says: then none of them counts.
    """
    crawled = dict[str, set[str]]()
    for _, record in _crawls(build):
        crawled.setdefault(record.info.get("source", record.partition), set()).update(_warcs(record))
    done = {name.rpartition("-")[0] for stage in build.history("extract") for name in stage.partitions()}
    taken_over = bool(build.made_from)
    return {
        name
        for source, names in crawled.items()
        if source in done and (taken_over or len(names) == 1)
        for name in names
    }


def _read(build: Build, stage: StageDir, record: Record) -> pa.Table:
    """Rows of SHOWN_SCHEMA of a crawl, from its captures."""
    rows = list[dict[str, str]]()
    with PageImages() as images:
        for suffix in sorted(suffix for suffix in record.files if suffix.endswith("warc.gz")):
            with stage.file(record, suffix) as path:
                rows += _rows_of(path, images, build.spec.egress.max_page_bytes)
    return pa.Table.from_pylist(rows, SHOWN_SCHEMA)


def _rows_of(warc: Path, images: PageImages, limit: int) -> Iterator[dict[str, str]]:
    for capture in read_captures(str(warc), limit, must_hold=False):
        if isinstance(capture, Capture):
            shown = images.of(capture.url, capture.content_type, capture.body)
            yield from ({"url": capture.url, "image_url": url, "sha256": ""} for url in shown)


def _shown_by(build: Build) -> Iterator[pa.Table]:
    """url (of the page) and image_url of the pictures that `extract` has met, kept or not."""
    for rows in build.tables("extract", "parquet", ["page_url", "image_url"]):
        yield rows.rename_columns(["url", "image_url"])
    for rows in build.tables("extract", DECISIONS, ["page_url", "url", "subject"]):
        rows = rows.filter(pc.and_(pc.equal(rows["subject"], "candidate"), pc.not_equal(rows["url"], "")))
        yield rows.select(["page_url", "url"]).rename_columns(["url", "image_url"])


def _with_bytes(build: Build, rows: pa.Table) -> pa.Table:
    """Rows of SHOWN_SCHEMA: with the sha256 of the pictures that were fetched."""
    urls, sha256_of = rows["image_url"], dict[str, str]()
    for fetched in build.tables("fetch", "parquet", ["image_url", "sha256", "ok"]):
        fetched = fetched.filter(pc.and_(fetched["ok"], pc.is_in(fetched["image_url"], urls)))
        sha256_of |= zip(fetched["image_url"].to_pylist(), fetched["sha256"].to_pylist(), strict=True)
    column = pa.array([sha256_of.get(url, "") for url in urls.to_pylist()], pa.string())
    return rows.append_column("sha256", column).cast(SHOWN_SCHEMA)


def _commit(stage: StageDir, record: Record, table: pa.Table) -> None:
    with scratch(stage) as path:
        write_parquet(path(SHOWN), table.sort_by([(name, "ascending") for name in SHOWN_SCHEMA.names]))
        stage.amend(record, {SHOWN: path(SHOWN)})


def _hit(table: pa.Table, takedowns: Takedowns) -> set[str]:
    """Hashes of the pages of which a row is taken down."""
    return {
        sha256_hex(row["url"])
        for row in table.to_pylist()
        if row["sha256"] in takedowns.hashes
        or sha256_hex(row["image_url"]) in takedowns.hashes
        or takedowns.takedown_reason(row["image_url"], row["url"])
    }


def pages_in_state(build: Build, takedowns: Takedowns) -> set[str]:
    """The same of the pages in the state of a crawl that is not done; what it has yet to ask for is among them."""
    folder = build.stage_at("crawl", "").folder
    if not takedowns.hashes or not folder.is_local:
        return set()
    hit = set[str]()
    for frontier in sorted(Path(folder.at("_frontier")).glob("*/frontier.sqlite")):
        try:
            with contextlib.closing(sqlite3.connect(f"{frontier.as_uri()}?mode=ro", uri=True)) as db:
                for table in ("page", "earlier", "too_deep"):  # asked for or not
                    urls = (url for (url,) in db.execute(f"SELECT url FROM {table}"))
                    hit |= {sha256_hex(url) for url in urls if takedowns.takedown_reason("", url)}
        except sqlite3.DatabaseError:  # who knows what it holds: the state goes
            hit.add(sha256_hex(str(frontier)))
        with contextlib.suppress(SourceError), PageImages() as images:  # it ends where the crawl was killed
            limit = build.spec.egress.max_page_bytes
            rows = list(_rows_of(frontier.with_name("pages.warc.gz"), images, limit))
            hit |= _hit(pa.Table.from_pylist(rows, SHOWN_SCHEMA), takedowns)
    return hit
