"""Stage extract: turns pages and table rows into candidates, which are image URLs with texts.

A partition is one part of a source: a WARC file of pages, records of several, or a range of a table's rows.
`_page_candidates` reads one page: each image becomes a candidate or a Decision that says why it is none; a page that
asks not to be used, that is not Chinese or cannot be read is a Decision about the capture. Pictures in a WARC file are
noted for `fetch` (`_archived_images`) and counted, as are revisits.

Texts that stand on many pages of one host in the same partition (slogans, notices under every article) are not texts
of an image and are taken off; an image that stands on very many is a logo. Pages of an endless calendar or counter
count for neither (`_furniture`).
A page beyond the bounds on markup (`pipeline.pages.bounds`), or over the limits on time and memory per page
(`pipeline.processes.confined`), is a Decision of the reason `unreadable`.

In a build that begins a generation a site has one partition, over all its stored crawls (`_stored_crawls`).

A damaged part of a file or a bad line is a Decision, and so is a file of several of which nothing can be read. The
partition's record counts what they swallowed beside the size of the input (LOSSES, INPUT), by which
`publish.max_unreadable` weighs them; `info["file"]` is the file, and the report and `status` show it.

Limits: what stands on many pages is judged within one WARC file. Bodies above the spec's page size are not read.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from pipeline.errors import OURS, BrokenFile, SourceError, StageError, evidence
from pipeline.files.inputs import emptiness, version, writable
from pipeline.processes import pulse
from pipeline.rows.account import ACCOUNT, Account, Named, Units
from pipeline.rows.decisions import LOSSES, Decision, DropReason, Lost, drop, drop_capture
from pipeline.rows.records import (
    ARCHIVED,
    ARCHIVED_SCHEMA,
    FIRST_SNAPSHOT,
    PROVENANCE,
    PROVENANCE_SCHEMA,
    SOURCE_BOX_SCHEMA,
    SOURCE_BOXES,
    USERINFO,
    USERINFO_SCHEMA,
    WITH_REMOVED_SCHEMA,
    Candidate,
    Capture,
    Provenance,
    candidate_rows,
    order_key,
    provenance_rows,
    sha256_hex,
    utc,
)
from pipeline.sources import FileSource, PageSource, RangeSource, Source, TableSource, sources_of
from pipeline.sources.site import Site
from pipeline.sources.warc import Warc
from pipeline.stages._archived_images import Archive
from pipeline.stages._furniture import cap_per_host, without_furniture, without_list_covers, without_traps
from pipeline.stages._stored_crawls import StoredCrawls
from pipeline.store.build import Build, Pass, PassFile, Stage
from pipeline.store.commits import FileRef, Record
from pipeline.store.partitions import StageDir
from pipeline.urls import without_userinfo
from pipeline.web.warc import read_captures, read_ranges

if TYPE_CHECKING:
    from pipeline.processes.confined import Confined
    from pipeline.stages._page_candidates import Entries, Reading


def token(build: Build) -> Any:
    """The sources with what they read, and the largest page."""
    sources = [[source.identity(), source.token()] for source in sources_of(build.spec)]
    return {"sources": sources, "seed": build.spec.seed, "max_page_bytes": build.spec.egress.max_page_bytes}


LISTINGS = "_listings.json"
"""In the stage's folder: of each source how many files its parts are numbered by, and a digest of their names."""

Listing = tuple[int, str]


def partitions(build: Build) -> list[str]:
    """`<source>-<part>` for every WARC file and every part of a table. Raises SourceError where one of these files is
    gone, or others came between them, since the stage began."""
    sources, listings = sources_of(build.spec), _listings(build.stage("extract"))
    for source in sources:
        _check_listing(source, listings)
    return [f"{source.name}-{part:05d}" for source in sources for part in range(_count_parts(build, source))]


def begin(build: Build) -> None:
    """Notes what parts are numbered by, for the tasks and for a later run that goes on."""
    stage = build.stage("extract")
    if not _listings(stage):
        listings = {source.name: _listing(source.listing()) for source in sources_of(build.spec)}
        stage.folder.write_json(LISTINGS, {"fingerprint": stage.fingerprint, "listings": listings})


def _listings(stage: StageDir) -> dict[str, Listing]:
    """Listings of the sources as noted when the stage began; empty before that."""
    noted = stage.folder.find_json(LISTINGS, {})
    listings = noted["listings"] if noted.get("fingerprint") == stage.fingerprint else {}
    return {name: (count, digest) for name, (count, digest) in listings.items()}


def _listing(names: Sequence[str]) -> Listing:
    return len(names), sha256_hex("", *names)


def _check_listing(source: Source, listings: Mapping[str, Listing]) -> None:
    """Raises SourceError where part 7 may be what part 8 was, and would be read twice or never.

    Files behind all others, as those of a new day are, change no number: a folder that grows while it is read is fine.
    """
    noted = listings.get(source.name)
    if noted is not None and _listing(source.listing()[: noted[0]]) != noted:
        message = "files were added or removed while they were read; run the same command again when all are present"
        raise SourceError(f"source {source.name}", message)


def reduce(build: Build) -> Any:
    """The accounts of the sources by name, as JSON: the sums over their parts."""
    accounts: dict[str, Account] = {}
    for record in build.stage("extract").records():
        account = accounts.setdefault(record.partition.rpartition("-")[0], Account())
        account.add(Account.of_json(record.info[ACCOUNT]))
    return {name: account.as_json() for name, account in accounts.items()}


def run_partition(build: Build, partition: str) -> None:
    """Extract one part and commit its candidates. Raises SourceError."""
    name, _, number = partition.rpartition("-")
    source = next(s for s in sources_of(build.spec) if s.name == name)
    tally = Counter(seen=0, kept=0, dropped=0, pages=0, pages_dropped=0)
    info: dict[str, Any] = {}
    first_snapshot: dict[str, str] = {}
    archive = Archive(source, int(number), build.spec.seed) if isinstance(source, Warc) else None
    listings = _listings(build.stage("extract"))
    _check_listing(source, listings)  # and once more behind it: the source lists its files itself, in between
    account = Account()
    with build.stage("extract").attempt(partition) as attempt:
        if build.made_from and isinstance(source, Site):
            stored = _read_crawls(build, source, tally, info, account)
            candidates, decisions, first_snapshot = stored.candidates(), stored.decisions(), stored.first_snapshot
        else:
            wordings: dict[str, str] = {}
            entries = _read_part(build, source, int(number), tally, info, wordings, account, archive)
            candidates, decisions = _filter_entries(entries, source, wordings, tally)
        _check_listing(source, listings)
        about_candidates = sum(1 for d in decisions if d.subject == "candidate")
        tally.update(kept=len(candidates), dropped=about_candidates, seen=len(candidates) + about_candidates)
        tally.update({name: info.pop(of, 0) for name, of in zip(INPUT_COUNTS, ("files", "bytes"), strict=True)})
        tally.update(archive.counts if archive is not None else {})
        tally["unaccounted"] = account.unaccounted
        tally.update(_count_losses(decisions))
        if any(tally[name] for name in LOSSES):
            info["file"] = _file_name(build, source, int(number))
            info["lost"] = next(own.evidence for own in decisions if own.lost is not None)
        rows = candidate_rows(candidates, build.spec.seed)
        if first_snapshot:
            snapshots = [first_snapshot[name] for name in rows["candidate_id"].to_pylist()]
            rows = rows.append_column(FIRST_SNAPSHOT, pa.array(snapshots, pa.string()))
        attempt.write_table("parquet", rows)
        if any(candidate.boxes for candidate in candidates):
            attempt.write_table(SOURCE_BOXES, _box_rows(candidates, build.spec.seed), row_group_size=1_000)
        if any(candidate.provenance for candidate in candidates):
            attempt.write_table(PROVENANCE, provenance_rows(candidates, build.spec.seed), row_group_size=1_000)
        if archive is not None and (archived := archive.table()) is not None:
            attempt.write_table(ARCHIVED, archived)
        if any(candidate.userinfo for candidate in candidates):
            attempt.write_table(USERINFO, _userinfo_rows(candidates))
        attempt.decide(decisions)
        attempt.commit(dict(tally), {**info, ACCOUNT: account.as_json()})


def _filter_entries(
    entries: Iterable[Candidate | Decision], source: Source, wordings: dict[str, str], tally: Counter[str]
) -> tuple[list[Candidate], list[Decision]]:
    """Candidates and decisions of one part; those of pages without traps, furniture, list covers and excess images.

    wordings: filled while the entries are read.
    """
    candidates, decisions = list[Candidate](), list[Decision]()
    for entry in entries:
        if isinstance(entry, Candidate):
            candidates.append(entry)
        else:
            decisions.append(entry)
    if isinstance(source, PageSource):
        candidates, traps = without_traps(candidates, wordings)
        candidates, furniture = without_furniture(candidates)
        candidates, covers = without_list_covers(candidates)
        candidates, beyond = cap_per_host(candidates, source.max_images_per_host)
        if source.page_texts == "keep":
            candidates = [replace(candidate, shown="alone") for candidate in candidates]
        decisions += traps + furniture + covers + beyond
        tally["pages_dropped"] += len(traps)
    return candidates, decisions


def _box_rows(candidates: list[Candidate], seed: int) -> pa.Table:
    """Rows of SOURCE_BOX_SCHEMA, of the candidates that came with boxes."""
    with_boxes = [c for c in candidates if c.boxes]
    rows = pa.table(
        {
            "order_key": [order_key(c.fetch_id, seed) for c in with_boxes],
            "fetch_id": [c.fetch_id for c in with_boxes],
            "row": [c.row for c in with_boxes],
            "boxes": [c.boxes for c in with_boxes],
        },
        schema=SOURCE_BOX_SCHEMA,
    )
    return rows.sort_by([(name, "ascending") for name in ("order_key", "fetch_id", "row")])


INPUT_COUNTS = ("input_files", "input_bytes")
"""Counts of a record: the files that begin with its partition, and their bytes, by which LOSSES are weighed."""


def _count_losses(decisions: Iterable[Decision]) -> dict[str, int]:
    """LOSSES of a partition; empty for sound input."""
    lost = [own.lost for own in decisions if own.lost is not None]
    weights = (sum(getattr(own, name) for own in lost) for name in ("bytes", "rows", "files"))
    counts = (sum(not own.files and not own.lines for own in lost), *weights)
    return {name: count for name, count in zip(LOSSES, counts, strict=True) if count}


BROKEN_FILES = "broken files"
"""Unit of an account: files whose further content is unknown."""


def _userinfo_rows(candidates: list[Candidate]) -> pa.Table:
    """Rows of USERINFO_SCHEMA, of the candidates whose URL has a user name or a password."""
    rows = sorted({(c.fetch_id, c.userinfo) for c in candidates if c.userinfo})
    return pa.table([pa.array(column, pa.string()) for column in zip(*rows, strict=True)], schema=USERINFO_SCHEMA)


def _read_part(
    build: Build,
    source: Source,
    part: int,
    tally: Counter[str],
    info: dict[str, Any],
    wordings: dict[str, str],
    account: Account,
    archive: Archive | None = None,
) -> Iterator[Candidate | Decision]:
    """Candidates and decisions of one part; counts pages, and notes their `wording_of`, on the way.

    account: gets what the part met. archive: notes the pictures of a WARC file. A broken file of several is a Decision.
    info: gets files and bytes of the input.
    """
    try:
        if isinstance(source, TableSource):
            yield from _table_entries(source, part, info, account)
        else:
            assert isinstance(source, PageSource)
            yield from _page_entries(build, source, part, tally, info, wordings, account, archive)
    except BrokenFile as e:
        if _is_only_file(source):
            raise
        if isinstance(source, PageSource):
            tally.update(pages=1, pages_dropped=1)
        broken = _broken_file(source, e, info.get("bytes", 0))
        account[BROKEN_FILES].met += 1
        account[BROKEN_FILES].take([broken])
        yield broken


def _table_entries(
    source: TableSource, part: int, info: dict[str, Any], account: Account
) -> Iterator[Candidate | Decision]:
    file, entries = source.opened(part, account)
    _note_input(source, file, info)
    unnamed = Units()
    for entry in entries:
        pulse.advance()
        unnamed.met += 1
        unnamed.take([entry])
        yield entry
    if not dict(account):
        account["entries"].add(unnamed)


def _note_input(source: Source, file: str, info: dict[str, Any]) -> None:
    """Notes the size of the file that begins with a part, if any. Raises BrokenFile for an empty one of several."""
    if file:
        info.update(files=1, bytes=version(file)[1] or 0)
        if not info["bytes"] and not _is_only_file(source) and (why := emptiness(file)):
            raise BrokenFile(file, why)


def _page_entries(
    build: Build,
    source: PageSource,
    part: int,
    tally: Counter[str],
    info: dict[str, Any],
    wordings: dict[str, str],
    account: Account,
    archive: Archive | None,
) -> Iterator[Candidate | Decision]:
    limit = build.spec.egress.max_page_bytes
    records = account["records"]
    if isinstance(source, RangeSource):
        file, ranges = source.opened(part, account)
        _note_input(source, file, info)
        yield from _read_pages(read_ranges(ranges, limit), source, tally, wordings, account)
        return
    info["files"] = 1
    if warcs := source.warcs():
        captures = read_captures(warcs[part], limit, info, records)
        yield from _read_pages(captures, source, tally, wordings, account, archive)
        return
    crawled = build.stage("crawl").record(source.name)
    record, suffix, _ = _warc_files(crawled)[part]
    pulse.expect(crawled.counts["kept"])
    with build.stage("crawl").file(record, suffix) as path:
        captures = read_captures(str(path), limit, info, records, must_hold=False)
        yield from _read_pages(captures, source, tally, wordings, account)


def _is_only_file(source: Source) -> bool:
    """True if a source has only this file, which then is at fault as a whole."""
    if isinstance(source, (FileSource, RangeSource)):
        return len(source.files()) == 1
    return not isinstance(source, PageSource) or len(source.warcs()) <= 1


def _broken_file(source: Source, error: BrokenFile, size: int) -> Decision:
    """The Decision about a file of several that cannot be read, from its beginning or from some place on."""
    name = writable(without_userinfo(error.subject).rpartition("/")[2])
    evidence = f"{name}: {error.message.removeprefix(f'source {source.name}: ')}"
    if isinstance(source, PageSource):
        decision = replace(
            drop_capture(name, source.name, "extract", DropReason.BROKEN_FILE, evidence), url="", page_url=""
        )
    else:
        candidate = Candidate(source.name, source.source_kind, name, "", "", (), -1)
        decision = drop(candidate, "extract", DropReason.BROKEN_FILE, evidence)
    return replace(decision, lost=Lost(max(0, size - error.read), files=1))


def _file_name(build: Build, source: Source, part: int) -> str:
    """The file of a part, as people may see it."""
    if isinstance(source, (TableSource, RangeSource)):
        return writable(without_userinfo(source.opened(part, Account())[0]) or source.name)
    assert isinstance(source, PageSource)
    warcs = source.warcs()
    if build.made_from and not warcs:
        return f"the stored crawls of {source.name}"
    if warcs:
        return writable(without_userinfo(warcs[part]))
    return _warc_files(build.stage("crawl").record(source.name))[part][2].name


def _read_crawls(build: Build, site: Site, tally: Counter[str], info: dict[str, Any], account: Account) -> StoredCrawls:
    """Reads a site from all the crawls that a new generation takes over."""
    limit, stage = build.spec.egress.max_page_bytes, build.stage("crawl")

    def read(record: Record, tally: Counter[str]) -> tuple[list[Candidate], list[Decision]]:
        entries, wordings = list[Candidate | Decision](), dict[str, str]()
        for _, suffix, _ in _warc_files(record):
            with stage.file(record, suffix) as path:
                captures = read_captures(str(path), limit, info, account["records"], must_hold=False)
                entries += _read_pages(captures, site, tally, wordings, account)
        return _filter_entries(entries, site, wordings, tally)

    return StoredCrawls(build, site, _crawl_records(build, site), read, tally)


def _read_pages(
    captures: Iterable[Capture | Decision],
    source: PageSource,
    tally: Counter[str],
    wordings: dict[str, str],
    account: Account,
    archive: Archive | None = None,
) -> Iterator[Candidate | Decision]:
    """Candidates and decisions of captures. account: gets what became of each of them, and of the images of pages."""
    from pipeline.stages._page_candidates import page_reader

    records, images = account["records"], account["images"]
    with page_reader() as reader:
        for capture in captures:
            pulse.advance()
            if isinstance(capture, Decision):
                entries: Entries | None = [capture]
            else:
                entries = _read_page(capture, source, reader, wordings, images, archive)
            tally["pages"] += entries is not None
            if entries:
                records.take(entries)
            else:
                records.named[_record_name(capture, entries)] += 1
            for entry in entries or ():
                if isinstance(entry, Decision):
                    if entry.subject == "capture":
                        tally["pages_dropped"] += 1
                    if entry.source != source.name:  # most have it
                        entry = replace(entry, source=source.name)
                yield entry


def _record_name(capture: Capture | Decision, entries: Entries | None) -> Named:
    """Name of a record without entries: a page, or what `Archive.note` has noted."""
    if entries is not None:
        return Named.WITHOUT_PICTURE
    return Named.REVISIT if isinstance(capture, Capture) and capture.refers_to is not None else Named.PICTURE


def _read_page(
    capture: Capture,
    source: PageSource,
    reader: Confined[Reading],
    wordings: dict[str, str],
    images: Units,
    archive: Archive | None,
) -> Entries | None:
    """Entries of a page; one Decision about the capture if a parser fails on it, whatever it holds up to there.

    None for a picture or a revisit, which `archive` has noted. Candidates of an archive have the time of their page.
    images: accounts for those of the page.
    """
    from pipeline.stages._page_candidates import read_within_limits

    try:
        if archive is not None and archive.note(capture):
            return None
        entries, wording, page_images = read_within_limits(capture, source, reader)
    except OURS:
        raise
    except Exception as e:
        return [drop_capture(capture.url, source.name, "extract", DropReason.UNREADABLE, evidence(e, capture.url))]
    if wording is not None:
        wordings[capture.url] = wording
    if page_images is not None:
        images.add(page_images)
    if archive is None:
        return entries
    provenance = Provenance(captured_at=utc(capture.fetched_at))
    return [replace(entry, provenance=provenance) if isinstance(entry, Candidate) else entry for entry in entries]


def _count_parts(build: Build, source: Source) -> int:
    if isinstance(source, (TableSource, RangeSource)):
        return source.parts()
    assert isinstance(source, PageSource)
    if build.made_from and isinstance(source, Site):
        return min(1, len(_crawl_records(build, source)))
    return len(source.warcs()) or len(_warc_files(build.stage("crawl").record(source.name)))


def _crawl_records(build: Build, site: Site) -> list[Record]:
    """The crawls of a site that a new generation takes over, oldest first."""
    records = [record for record in build.stage("crawl").records() if record.info["source"] == site.name]
    return sorted(records, key=lambda record: int(record.info["crawl"]))


def _warc_files(record: Record) -> list[tuple[Record, str, FileRef]]:
    """The WARC files that crawl committed for a source."""
    warcs = [(record, suffix, ref) for suffix, ref in sorted(record.files.items()) if suffix.endswith("warc.gz")]
    if not warcs:
        raise StageError(f"crawl/{record.partition}", "its record lists no WARC file; delete the captures folder")
    return warcs


STAGE = Stage(
    name="extract",
    zh="抽取",
    folder="candidates",
    passes=(
        Pass(
            name="extract",
            over=partitions,
            reads=("crawl",),
            run=run_partition,
            token=token,
            version=19,
            reduce=reduce,
            begin=begin,
            files=(
                PassFile("parquet", WITH_REMOVED_SCHEMA, "candidate_id"),
                PassFile(SOURCE_BOXES, SOURCE_BOX_SCHEMA),
                PassFile(PROVENANCE, PROVENANCE_SCHEMA),
                PassFile(ARCHIVED, ARCHIVED_SCHEMA),
                PassFile(USERINFO, USERINFO_SCHEMA),
            ),
        ),
    ),
)
