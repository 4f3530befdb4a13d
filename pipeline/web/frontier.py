"""The state of a crawl on disk: the known pages, the outcome for each, and the WARC written so far.

One SQLite file and one growing WARC in a folder. A page is done when its row says so; the row is written after its
WARC record and names where the record ends. A crawl that was killed at any moment therefore goes on: what the WARC
holds beyond the last row is cut off, and a row that points beyond the end of the WARC is opened again. No page is in
the WARC twice, and only the requests that were in flight are repeated.

Limits: one process per folder, ensured by a file lock: a worker may live on for moments after its build was killed, and
a task may be started again while a lost one still runs. The number of known pages is capped, since a calendar or a
session id in URLs makes sites endless; pages beyond the cap are counted, not listed.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import sqlite3
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

from data_specs.storage.whole_files import exclusive
from pipeline.errors import StoreError
from pipeline.rows.decisions import DropReason
from pipeline.rows.records import Capture
from pipeline.web.page_visitor import EarlierRecord, Page

_TABLES = """
CREATE TABLE IF NOT EXISTS page (
    id INTEGER PRIMARY KEY, url TEXT UNIQUE NOT NULL, host TEXT NOT NULL, depth INTEGER NOT NULL, hops INTEGER NOT NULL,
    tries INTEGER NOT NULL DEFAULT 0, state TEXT NOT NULL DEFAULT 'todo', reason TEXT NOT NULL DEFAULT '',
    evidence TEXT NOT NULL DEFAULT '', fetched_at TEXT NOT NULL DEFAULT '', content_type TEXT NOT NULL DEFAULT '',
    etag TEXT NOT NULL DEFAULT '', last_modified TEXT NOT NULL DEFAULT '', sha256 TEXT NOT NULL DEFAULT '',
    bytes INTEGER NOT NULL DEFAULT 0, same INTEGER NOT NULL DEFAULT 0, warc_offset INTEGER, warc_end INTEGER);
CREATE INDEX IF NOT EXISTS todo ON page (host, tries, depth, id) WHERE state = 'todo';
CREATE TABLE IF NOT EXISTS alike (host TEXT, digest TEXT, pages INTEGER NOT NULL, PRIMARY KEY (host, digest))
    WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS earlier (
    url TEXT PRIMARY KEY, warc TEXT NOT NULL, warc_offset INTEGER NOT NULL, warc_length INTEGER NOT NULL,
    etag TEXT NOT NULL, last_modified TEXT NOT NULL, sha256 TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS too_deep (url TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS note (name TEXT PRIMARY KEY, value REAL NOT NULL);
"""

LOCK_WAIT_S = 60.0
"""Seconds to wait for another process to release the folder."""

_RENAMED_HEADERS = ("content-encoding", "transfer-encoding")
"""Headers that are no longer true of the body as it is written: unpacked."""


@dataclass(frozen=True, slots=True)
class Totals:
    """Numbers of pages by state. `bytes`: of kept pages, uncompressed; `beyond`: pages above the cap; `unchanged`: of
    the kept ones those that an earlier crawl kept as they are; `too_deep`: links of pages at the site's `max_depth` to
    pages that are not known."""

    waiting: int
    kept: int
    dropped: int
    moved: int
    bytes: int
    beyond: int
    unchanged: int
    too_deep: int


@dataclass(slots=True)
class HostTotals:
    """Pages kept of one host, and their bytes, uncompressed."""

    pages: int = 0
    bytes: int = 0


class Frontier:
    """The pages known to one crawl. Use as a context manager.

    cap: how many pages may be known. warcinfo: its WARC's first record. waiting, dropped, images:
    pages by state, and images of the kept ones, as `totals` counts them, without asking the file. Raises StoreError
    when another process does not release the folder.
    """

    def __init__(self, folder: Path, cap: int, warcinfo: dict[str, str]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = contextlib.ExitStack()
        try:
            self._lock.enter_context(exclusive(folder / "lock", LOCK_WAIT_S))
        except BlockingIOError:
            raise StoreError(str(folder), "another process is running this crawl; try again later") from None
        self.warc = folder / "pages.warc.gz"
        self._cap = cap
        self._db = sqlite3.connect(folder / "frontier.sqlite")
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = NORMAL")
        self._db.executescript(_TABLES)
        self._out = self.warc.open("ab")
        self._recover(warcinfo)
        self._known = self._value("SELECT COUNT(*) FROM page")
        self._count_states()
        self.images = self.counted("images")
        kept = self._db.execute("SELECT host, COUNT(*), SUM(bytes) FROM page WHERE state = 'kept' GROUP BY host")
        self._kept = {host: HostTotals(pages, size) for host, pages, size in kept}  # asked for before each request
        self.kept_pages = sum(kept.pages for kept in self._kept.values())
        self.kept_bytes = sum(kept.bytes for kept in self._kept.values())
        self._began = self._read_note("began") or time.time()
        with self._db:
            self._write_note("began", self._began)

    def __enter__(self) -> Frontier:
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        self._out.close()
        self._db.close()
        self._lock.close()

    def _recover(self, warcinfo: dict[str, str]) -> None:
        """Bring rows and WARC into agreement after whatever stopped the last run."""
        size = self.warc.stat().st_size
        with self._db:
            self._db.execute(
                "UPDATE page SET state = 'todo', warc_offset = NULL, warc_end = NULL WHERE warc_end > ?", (size,)
            )
        end = self._value("SELECT COALESCE(MAX(warc_end), 0) FROM page")
        self._out.truncate(end)
        if not end:
            from warcio.warcwriter import WARCWriter

            WARCWriter(self._out, gzip=True).write_record(
                WARCWriter(io.BytesIO(), gzip=True).create_warcinfo_record("", warcinfo)
            )
            self._out.flush()

    def add(self, urls: Iterable[str], depth: int, hops: int = 0) -> None:
        """Add pages; those already known stay as they are."""
        with self._db:
            self._add(urls, depth, hops)

    def _add(self, urls: Iterable[str], depth: int, hops: int) -> None:
        """Add pages within the transaction of the caller."""
        beyond = 0
        for url in urls:
            if self._known >= self._cap:
                beyond += not self._value("SELECT COUNT(*) FROM page WHERE url = ?", url)
                continue
            new = self._db.execute(
                "INSERT OR IGNORE INTO page (url, host, depth, hops) VALUES (?, ?, ?, ?)",
                (url, urlsplit(url).netloc, depth, hops),
            ).rowcount
            self._known += new
            self.waiting += new
        if beyond:
            self._write_note("beyond", self._read_note("beyond") + beyond)

    def note_too_deep(self, urls: Iterable[str]) -> None:
        """Note links of a page that lies at the largest depth: counted once each, as many as may be known."""
        with self._db:
            count = self._value("SELECT COUNT(*) FROM too_deep")
            self._db.executemany(
                "INSERT OR IGNORE INTO too_deep (url) VALUES (?)",
                [(url,) for _, url in zip(range(self._cap - count), urls, strict=False)],
            )

    def kept_of(self, host: str) -> HostTotals:
        """Pages and bytes kept of a host so far."""
        return self._kept.setdefault(host, HostTotals())

    def next_page(self, host: str, in_flight: Collection[int] = ()) -> Page | None:
        """The host's next page: untried before tried, near before far, then in the order in which they were added.

        in_flight: ids of pages that are being asked for, which are passed over.
        """
        marks = ", ".join("?" * len(in_flight))
        row = self._db.execute(
            "SELECT id, url, host, depth, hops, tries FROM page WHERE state = 'todo' AND host = ? "
            f"AND id NOT IN ({marks}) ORDER BY tries, depth, id LIMIT 1",
            (host, *in_flight),
        ).fetchone()
        return Page(*row) if row else None

    def know_earlier(self, warc: str, rows: Iterable[dict[str, Any]]) -> None:
        """Note what an earlier crawl kept, by rows of CRAWL_SCHEMA; once per crawl."""
        if self.counted("earlier_known"):
            return
        names = ("url", "warc_offset", "warc_length", "etag", "last_modified", "sha256")
        with self._db:
            self._db.executemany(
                "INSERT OR REPLACE INTO earlier (warc, url, warc_offset, warc_length, etag, last_modified, sha256) "
                "VALUES (?, ?, ?, ?, ?, ?, ?)",
                ((warc, *(row[n] for n in names)) for row in rows if row["etag"] or row["last_modified"]),
            )
        self.count(earlier_known=1)

    def earlier(self, url: str) -> EarlierRecord | None:
        """The record that an earlier crawl kept of a page, if a conditional request can ask whether it has changed."""
        row = self._db.execute(
            "SELECT warc, warc_offset, warc_length, etag, last_modified, sha256 FROM earlier WHERE url = ?", (url,)
        ).fetchone()
        return EarlierRecord(*row) if row else None

    def kept_alike(self, host: str, digest: str) -> int:
        """Number of kept pages of a host that have this likeness."""
        row = self._db.execute("SELECT pages FROM alike WHERE host = ? AND digest = ?", (host, digest)).fetchone()
        return int(row[0]) if row else 0

    def count(self, **more: int) -> None:
        """Add to named numbers that are stored with the frontier, all or none of them."""
        with self._db:
            for name, number in more.items():
                self._write_note(name, self._read_note(name) + number)

    def counted(self, name: str) -> int:
        """The value of a named number; 0 if it was never counted."""
        return int(self._read_note(name))

    def keep(
        self,
        page: Page,
        capture: Capture,
        links: Sequence[str],
        member: bytes = b"",
        likeness: str = "",
        images: int = 0,
    ) -> None:
        """Write a page into the WARC and add its links.

        member: the record of an earlier crawl, written as it is, where the page has not changed since. images: how
        many it shows.
        """
        offset, end = self._append(member or record_of(capture))
        headers = {name.lower(): value for name, value in capture.headers}
        head = (capture.fetched_at, capture.content_type, headers.get("etag", ""), headers.get("last-modified", ""))
        size = len(capture.body)
        with self._db:
            self._db.execute(
                "UPDATE page SET state = 'kept', fetched_at = ?, content_type = ?, etag = ?, last_modified = ?, "
                "sha256 = ?, bytes = ?, same = ?, warc_offset = ?, warc_end = ? WHERE id = ?",
                (*head, hashlib.sha256(capture.body).hexdigest(), size, bool(member), offset, end, page.id),
            )
            self._db.execute(
                "INSERT INTO alike VALUES (?, ?, 1) ON CONFLICT (host, digest) DO UPDATE SET pages = pages + 1",
                (page.host, likeness),
            )
            self._add(links, page.depth + 1, 0)
            if images:
                self._write_note("images", self.images + images)
        self.images += images
        self.waiting -= 1
        kept = self.kept_of(page.host)
        kept.pages, kept.bytes = kept.pages + 1, kept.bytes + size
        self.kept_pages += 1
        self.kept_bytes += size

    def drop(self, page: Page, reason: DropReason, evidence: str, links: Sequence[str] = ()) -> None:
        """Note that a page is not kept; its links may be followed all the same."""
        with self._db:
            self._db.execute(
                "UPDATE page SET state = 'dropped', reason = ?, evidence = ? WHERE id = ?",
                (reason.value, evidence[:300], page.id),
            )
            self._add(links, page.depth + 1, 0)
        self.waiting -= 1
        self.dropped += 1

    def refuse(self, url: str, reason: DropReason, evidence: str) -> None:
        """Note that a page, known or not, or a sitemap is not kept."""
        with self._db:
            self._add([url], 0, 0)
            waited = self.fate(url)[0] == "todo"
            self._db.execute(
                "UPDATE page SET state = 'dropped', reason = ?, evidence = ? WHERE url = ?",
                (reason.value, evidence[:300], url),
            )
        self.waiting -= waited
        self.dropped += waited

    def move(self, page: Page, target: str, status: int) -> None:
        """Note that a page redirects to another one of the site, which is added."""
        with self._db:
            self._db.execute(
                "UPDATE page SET state = 'moved', evidence = ? WHERE id = ?", (f"{status} to {target}", page.id)
            )
            self._add([target], page.depth, page.hops + 1)
        self.waiting -= 1

    def retry_later(self, page: Page) -> None:
        """Note a failed try; the page is tried once more after all untried ones."""
        with self._db:
            self._db.execute("UPDATE page SET tries = tries + 1 WHERE id = ?", (page.id,))

    def reopen(self, pages: Iterable[Page]) -> None:
        """Take failures back: pages that were put back or dropped count as never tried."""
        with self._db:
            self._db.executemany(
                "UPDATE page SET state = 'todo', tries = 0, reason = '', evidence = '' "
                "WHERE id = ? AND state IN ('todo', 'dropped')",
                [(page.id,) for page in pages],
            )
        self._count_states()

    def _count_states(self) -> None:
        states = ("todo", "dropped")
        self.waiting, self.dropped = (self._value("SELECT COUNT(*) FROM page WHERE state = ?", s) for s in states)

    def totals(self) -> Totals:
        states = dict(self._db.execute("SELECT state, COUNT(*) FROM page GROUP BY state"))
        waiting, kept, dropped, moved = (states.get(state, 0) for state in ("todo", "kept", "dropped", "moved"))
        unchanged = self._value("SELECT COUNT(*) FROM page WHERE same")
        too_deep = self._value("SELECT COUNT(*) FROM too_deep WHERE url NOT IN (SELECT url FROM page)")
        return Totals(waiting, kept, dropped, moved, self.kept_bytes, self.counted("beyond"), unchanged, too_deep)

    def hours(self) -> float:
        """Hours since the crawl began, pauses between runs included."""
        return (time.time() - self._began) / 3600

    def fate(self, url: str) -> tuple[str, str, str]:
        """(state, reason, evidence) of a page; all empty for one that is not known."""
        row = self._db.execute("SELECT state, reason, evidence FROM page WHERE url = ?", (url,)).fetchone()
        return tuple(row) if row else ("", "", "")

    def end_of(self, url: str) -> str:
        """The page that a page's known redirects lead to; the page itself if it does not redirect.

        This ends, since redirects never form a circle here: `move` is not called for the one that would close it.
        """
        state, _, evidence = self.fate(url)
        while state == "moved":
            url = evidence.partition(" to ")[2]
            state, _, evidence = self.fate(url)
        return url

    def kept_rows(self) -> Iterator[dict[str, Any]]:
        """Rows of kept pages in the order of the WARC."""
        measured = ("url", "depth", "fetched_at", "content_type", "etag", "last_modified", "sha256", "bytes")
        names = (*measured, "warc_offset", "warc_end")
        for row in self._db.execute(f"SELECT {', '.join(names)} FROM page WHERE state = 'kept' ORDER BY warc_offset"):
            page = dict(zip(names, row, strict=True))
            length = page.pop("warc_end") - page["warc_offset"]
            yield {**page, "status": 200, "warc_length": length}

    def not_kept(self) -> Iterator[tuple[str, str, str]]:
        """(URL, reason, evidence) of every page that is not in the WARC and does not redirect, in the order in which
        they were added. Pages that were never asked for are over the limits of the source."""
        rows = self._db.execute(
            "SELECT url, state, reason, evidence FROM page WHERE state IN ('dropped', 'todo') ORDER BY id"
        )
        for url, state, reason, evidence in rows:
            yield (url, reason, evidence) if state == "dropped" else (url, DropReason.OVER_BUDGET.value, "")

    def _append(self, member: bytes) -> tuple[int, int]:
        """Append one record to the WARC; returns where it begins and ends."""
        self._out.seek(0, io.SEEK_END)
        offset = self._out.tell()
        self._out.write(member)
        self._out.flush()
        return offset, offset + len(member)

    def _value(self, query: str, *values: Any) -> int:
        return int(self._db.execute(query, values).fetchone()[0])

    def _read_note(self, name: str) -> float:
        row = self._db.execute("SELECT value FROM note WHERE name = ?", (name,)).fetchone()
        return float(row[0]) if row else 0.0

    def _write_note(self, name: str, value: float) -> None:
        self._db.execute("INSERT OR REPLACE INTO note VALUES (?, ?)", (name, value))


def record_of(capture: Capture) -> bytes:
    """A WARC response record, a gzip member of its own."""
    from warcio.statusandheaders import StatusAndHeaders
    from warcio.warcwriter import WARCWriter

    headers = [
        (f"X-Crawl-{name}" if name.lower() in _RENAMED_HEADERS else name, value)  # as Common Crawl does
        for name, value in capture.headers
        if name.lower() != "content-length"
    ]
    headers.append(("Content-Length", str(len(capture.body))))
    member = io.BytesIO()
    writer = WARCWriter(member, gzip=True)
    writer.write_record(
        writer.create_warc_record(
            capture.url,
            "response",
            payload=io.BytesIO(capture.body),
            length=len(capture.body),
            http_headers=StatusAndHeaders(f"{capture.status} OK", headers, protocol="HTTP/1.1"),
            warc_headers_dict={"WARC-Date": capture.fetched_at},
        )
    )
    return member.getvalue()
