"""Stage `extract`: pages and table rows become candidates: image URLs with their texts.

A partition is one part of a source: a WARC file of pages, or a range of a table's rows. Pages are decoded
(`pipeline.texts.charset`), read in one walk (`pipeline.pages.page`), and each image becomes a candidate or a Decision
that says why it is none. A page that asks not to be used, that is not Chinese or cannot be read is a Decision about the
capture.

One image shown twice on a page is one candidate with the texts of both places. Texts that stand on many pages of one
host in the same partition (slogans, notices under every article) are no texts of an image and are taken off; an image
that stands on very many is a logo. Pages of an endless calendar or counter count for neither (`without_traps`).

Limits: what stands on many pages is judged within one WARC file. A WARC that breaks off keeps what came before and
says so in its record (`info["truncated"]`), one with damaged places counts them there (`info["damaged"]`), and one
file of several that is no WARC at all is named there (`info["no_warc"]`); `info["file"]` is the file, and the report
and `status` show it. Bodies above the spec's page size are not
read.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlsplit

import pyarrow as pa

from data_specs.shard import SourceKind, Text
from pipeline.errors import SourceError, StageError
from pipeline.pages.page import Page, PageImage, parse
from pipeline.pages.site_rules import rule_of
from pipeline.records import (
    CANDIDATE_SCHEMA,
    PROVENANCE,
    PROVENANCE_SCHEMA,
    SOURCE_BOX_SCHEMA,
    SOURCE_BOXES,
    USERINFO,
    USERINFO_SCHEMA,
    Candidate,
    Capture,
    Decision,
    DropReason,
    candidate_rows,
    drop,
    order_key,
    provenance_rows,
    sha256_hex,
)
from pipeline.sources import PageSource, Source, TableSource, sources_of
from pipeline.store.build import Build
from pipeline.store.partitions import FileRef, Record
from pipeline.store.stage import Stage, StageFile
from pipeline.texts.charset import decode
from pipeline.unreadable import OURS, evidence
from pipeline.urls import canonical_url, split_userinfo, without_userinfo
from pipeline.web import policy
from pipeline.web.warc import read_captures

log = logging.getLogger("wenlan")

REPEATED_ON_PAGES = 5
"""A surrounding text, abstract or title on so many pages of one host in a partition is furniture of the site."""

SHOWN_ON_PAGES = 20
"""An image on so many pages of a partition is a logo or a button, whatever it is called."""

MIN_SIDE = 48
"""An image whose own element says that it is smaller, in CSS pixels, is an icon or a spacer."""

_FURNITURE_KINDS = ("surrounding", "abstract", "title", "tag")
_SPACER_NAME = re.compile(
    r"(?:^|[-_./])(?:spacer|blank|pixel|1x1|loading|placeholder|lazy(?:load)?|grey|gray|transparent|icons?|ico|logo|"
    r"sprites?|avatar|favicon|emoji|emoticon|qrcode|arrow|bullet|btn|button|callouts?|dot|rss)(?:[-_.0-9/]|$)",
    re.I,
)
_SPACER_CLASS = re.compile(
    r"(?:^|[-_\s])(?:icons?|logo|avatar|emoji|emoticon|spacer|pixel|callout|qrcode|badge)(?:$|[-_\s])", re.I
)
_TRACKER = re.compile(
    r"(?:^|\.)(?:cnzz|51\.la|google-analytics|googletagmanager|doubleclick|scorecardresearch|umeng|miaozhen|admaster)"
    r"(?:\.|$)|^(?:hm|eclick)\.baidu\.com$|/(?:pixel|track|beacon|stat|count(?:er)?)\.(?:gif|php|png)",
    re.I,
)
_HAN, _KANA, _HANGUL = (
    re.compile(p) for p in ("[\u3400-\u9fff\U00020000-\U0003ffff]+", "[\u3041-\u30fa]+", "[\uac00-\ud7a3]+")
)
_NUMBERS = re.compile(r"[\d\s零〇一二三四五六七八九十]+")
_LETTERS = re.compile(r"[^\W\d_]+")
MIN_HAN = 0.1
"""Share of Han characters among a page's letters, menus and code included, from which on it counts as Chinese."""


def token(build: Build) -> Any:
    """The sources with what they read, and the largest page."""
    sources = [[source.identity(), source.token()] for source in sources_of(build.spec)]
    return {"sources": sources, "seed": build.spec.seed, "max_page_bytes": build.spec.egress.max_page_bytes}


def partitions(build: Build) -> list[str]:
    """`<source>-<part>` for every WARC file and every part of a table."""
    names = []
    for source in sources_of(build.spec):
        names += [f"{source.name}-{part:05d}" for part in range(_parts(build, source))]
    return names


def run_partition(build: Build, partition: str) -> None:
    """Extract one part and commit its candidates. Raises SourceError."""
    name, _, number = partition.rpartition("-")
    source = next(s for s in sources_of(build.spec) if s.name == name)
    tally = Counter(seen=0, kept=0, dropped=0, pages=0, pages_dropped=0)
    info: dict[str, Any] = {}
    candidates: list[Candidate] = []
    decisions: list[Decision] = []
    with build.stage("extract").attempt(partition) as attempt:
        wordings: dict[str, str] = {}
        for entry in _read(build, source, int(number), tally, info, wordings):
            if isinstance(entry, Candidate):
                candidates.append(entry)
            else:
                decisions.append(entry)
        if isinstance(source, PageSource):
            candidates, traps = without_traps(candidates, wordings)
            candidates, bare = without_furniture(candidates)
            candidates, beyond = _capped(candidates, source.max_images_per_host)
            decisions += traps + bare + beyond
            tally["pages_dropped"] += len(traps)
        about_candidates = sum(1 for d in decisions if d.subject == "candidate")
        tally.update(kept=len(candidates), dropped=about_candidates, seen=len(candidates) + about_candidates)
        tally.update(_lost(info))
        if info:
            info["file"] = _file_name(build, source, int(number))
        attempt.write_table("parquet", candidate_rows(candidates, build.spec.seed))
        if any(candidate.boxes for candidate in candidates):
            attempt.write_table(SOURCE_BOXES, _boxes(candidates, build.spec.seed), row_group_size=1_000)
        if any(candidate.provenance for candidate in candidates):
            attempt.write_table(PROVENANCE, provenance_rows(candidates, build.spec.seed), row_group_size=1_000)
        if any(candidate.userinfo for candidate in candidates):
            attempt.write_table(USERINFO, _userinfos(candidates))
        attempt.decide(decisions)
        attempt.commit(dict(tally), info)


def _boxes(candidates: list[Candidate], seed: int) -> pa.Table:
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


def _lost(info: dict[str, Any]) -> dict[str, int]:
    """What damage cost a WARC file, as counts; empty for a sound one.

    lost_records: damaged ones, each of which may hide more. lost_bytes: what was passed over, as it lies in the file.
    truncated, no_warc: 1 for a file that breaks off, or that is none.
    """
    damaged = info.get("damaged", {"places": 0, "bytes": 0})
    counts = {"lost_records": damaged["places"], "lost_bytes": damaged["bytes"]}
    counts |= {name: int(name in info) for name in ("truncated", "no_warc")}
    return {name: count for name, count in counts.items() if count}


def _userinfos(candidates: list[Candidate]) -> pa.Table:
    """Rows of USERINFO_SCHEMA, of the candidates whose URL has a user name or a password."""
    rows = sorted({(c.fetch_id, c.userinfo) for c in candidates if c.userinfo})
    return pa.table([pa.array(column, pa.string()) for column in zip(*rows, strict=True)], schema=USERINFO_SCHEMA)


def _read(
    build: Build, source: Source, part: int, tally: Counter[str], info: dict[str, Any], wordings: dict[str, str]
) -> Iterator[Candidate | Decision]:
    """Candidates and decisions of one part; counts pages, and notes their `wording_of`, on the way."""
    if isinstance(source, TableSource):
        yield from source.read(part)
        return
    assert isinstance(source, PageSource)
    limit = build.spec.egress.max_page_bytes
    given = source.warcs()
    if given:
        captures = read_captures(given[part], limit, info)
        try:
            yield from _extract(captures, source, tally, wordings)
        except SourceError as e:
            if len(given) == 1 or e.subject != given[part] or not e.message.startswith("is not a WARC file"):
                raise
            info["no_warc"] = e.message  # one file of many that is empty, or something else, does not end the build
            log.warning("%s; going on with the other files of source %s", e, source.name)
        return
    record, suffix, _ = _crawled(build, source)[part]
    crawl = build.stage("crawl")
    with crawl.file(record, suffix) as path:
        yield from _extract(read_captures(str(path), limit, info, must_hold=False), source, tally, wordings)


def _file_name(build: Build, source: Source, part: int) -> str:
    """The WARC file of a part, as people may see it."""
    assert isinstance(source, PageSource)
    given = source.warcs()
    return without_userinfo(given[part]) if given else _crawled(build, source)[part][2].name


def _extract(
    captures: Iterable[Capture | Decision], source: PageSource, tally: Counter[str], wordings: dict[str, str]
) -> Iterator[Candidate | Decision]:
    for capture in captures:
        tally["pages"] += 1
        for entry in [capture] if isinstance(capture, Decision) else _entries(capture, source, wordings):
            if isinstance(entry, Decision):
                if entry.subject == "capture":
                    tally["pages_dropped"] += 1
                entry = replace(entry, source=source.name)
            yield entry


def _entries(capture: Capture, source: PageSource, wordings: dict[str, str]) -> list[Candidate | Decision]:
    """What a page holds; one Decision about the capture if a parser fails on it, whatever it holds up to there."""
    try:
        most = source.max_images_per_page
        return list(extract_page(capture, source.name, source.source_kind, most, wordings))
    except OURS:
        raise
    except Exception as e:
        return [drop_capture(capture, source.name, DropReason.UNREADABLE, evidence(e, capture.url))]


def _parts(build: Build, source: Source) -> int:
    if isinstance(source, TableSource):
        return source.parts()
    assert isinstance(source, PageSource)
    return len(source.warcs()) or len(_crawled(build, source))


def _crawled(build: Build, source: Source) -> list[tuple[Record, str, FileRef]]:
    """The WARC files that crawl committed for a source."""
    record = build.stage("crawl").record(source.name)
    warcs = [(record, suffix, ref) for suffix, ref in sorted(record.files.items()) if suffix.endswith("warc.gz")]
    if not warcs:
        raise StageError(f"crawl/{source.name}", "its record names no WARC file; delete the captures folder")
    return warcs


def extract_page(
    capture: Capture,
    source: str,
    source_kind: SourceKind,
    max_images: int = 2_000,
    wordings: dict[str, str] | None = None,
) -> Iterator[Candidate | Decision]:
    """The candidates of one captured page, a Decision per image that is none, or one Decision about the capture.

    max_images: candidates of the page at most. wordings: gets its `wording_of` by its URL, if it has candidates.

    Meant never to raise: whatever is wrong with a page is a Decision. Where it raises all the same, see `_entries`.
    """
    if not 200 <= capture.status < 300:
        yield drop_capture(capture, source, DropReason.HTTP_STATUS, str(capture.status))
        return
    if not policy.is_html(capture.content_type, capture.body):
        yield drop_capture(capture, source, DropReason.NOT_HTML, capture.content_type[:80])
        return
    decoded = decode(capture.body, capture.content_type)
    if decoded is None:
        yield drop_capture(capture, source, DropReason.BAD_CHARSET, "neither UTF-8, gb18030, Big5 nor what it declares")
        return
    page = parse(decoded[0], rule_of(capture.url))
    if outs := policy.opt_outs(capture.headers, page.robots, page.reserved):
        yield drop_capture(capture, source, DropReason.OPT_OUT, str(outs))
        return
    if not page.images:
        return
    if script := not_chinese(page):
        yield drop_capture(capture, source, DropReason.NOT_CHINESE, script)
        return
    if wordings is not None:
        wordings[capture.url] = wording_of(page.text)
    yield from _images(capture, page, source, source_kind, max_images)


def not_chinese(page: Page) -> str:
    """Evidence that a page is not Chinese, "" if there is none. By script, since short texts mislead models.

    A page with little Chinese stays if one of its images has a Chinese alt or caption.
    """
    own = [t.text for image in page.images for t in image.texts if t.kind in ("alt", "caption")]
    text = " ".join((page.text[:100_000], *own))[:200_000]
    han, kana, hangul = (sum(map(len, runs.findall(text))) for runs in (_HAN, _KANA, _HANGUL))
    if han < MIN_HAN * len(text) and not any(_HAN.search(t) for t in own):
        letters = sum(map(len, _LETTERS.findall(text)))
        if han < MIN_HAN * letters:
            return f"{han} Han characters of {letters} letters"
    if kana > 0.2 * (han + kana):
        return f"{kana} kana beside {han} Han characters"
    if hangul > han:
        return f"{hangul} hangul beside {han} Han characters"
    return ""


@dataclass(slots=True)
class _Place:
    """A candidate while its page is read: images of the same address add their texts."""

    candidate: Candidate
    texts: dict[str, Text]


def _images(
    capture: Capture, page: Page, source: str, source_kind: SourceKind, most: int
) -> Iterator[Candidate | Decision]:
    """Candidates of a page in the order of its images, decisions first."""
    base = _base(capture.url, page.base)
    places: dict[str, _Place] = {}  # by canonical URL
    for image in page.images:
        bare, userinfo = split_userinfo(image.url)
        image = replace(image, url=bare) if userinfo else image
        row = image.row if image.row >= 0 else len(page.images)
        fault = _fault(image, base)
        if isinstance(fault, str) and fault not in places and len(places) == most:
            fault = DropReason.CAP_PER_PAGE, f"the page has more than {most} images"
        if isinstance(fault, str) and fault not in places:
            candidate = Candidate(source, source_kind, capture.url, capture.url, fault, (), row, userinfo=userinfo)
            places[fault] = _Place(candidate, {t.text: t for t in image.texts})
            continue
        # An image that is no candidate is identified by its place on the page: others may have the same address.
        origin = f"{capture.url}#image-{row}"
        own = Candidate(source, source_kind, origin, capture.url, image.url[:2000], image.texts, row)
        if isinstance(fault, tuple):
            yield drop(own, "extract", *fault)
            continue
        place = places[fault]
        place.texts.update({t.text: t for t in image.texts if t.text not in place.texts})
        if not image.fallback and image.row >= 0:
            again = replace(own, image_url=fault)
            leader = place.candidate.candidate_id
            yield drop(again, "extract", DropReason.REPEATED_ON_PAGE, "its texts went over", duplicate_of=leader)
    for place in places.values():
        candidate = replace(place.candidate, texts=tuple(place.texts.values()))
        yield candidate if candidate.texts else drop(candidate, "extract", DropReason.NO_TEXT)


def _base(url: str, base: str) -> str:
    try:
        return canonical_url(split_userinfo(base)[0], url) if base else url
    except ValueError:
        return url


def _fault(image: PageImage, base: str) -> str | tuple[DropReason, str]:
    """Canonical URL of an image, or the reason and evidence for dropping it."""
    if not image.url:
        return DropReason.BAD_URL, "no address"
    if image.url[:5].lower() == "data:":
        return DropReason.DATA_URI, image.url[:40]
    try:
        url = canonical_url(image.url, base)
    except ValueError as e:
        return DropReason.BAD_URL, str(e)
    why = _spacer(image, url)
    return (DropReason.SPACER, why) if why else url


def _spacer(image: PageImage, url: str) -> str:
    """Why an image is an icon, a spacer or a tracker; "" if it is none."""
    attributes = image.attributes
    for name in ("width", "height"):
        number = re.match(r"\s*(\d+)\s*(?:px)?\s*$", attributes.get(name, ""))
        if number and int(number.group(1)) < MIN_SIDE:
            return f"{name} {number.group(1)}"
    parts = urlsplit(url)
    if _TRACKER.search(parts.hostname or "") or _TRACKER.search(parts.path):
        return "tracker"
    if image.row < 0:
        return ""
    style = f"{attributes.get('class', '')} {attributes.get('id', '')}"
    if match := _SPACER_CLASS.search(style.replace("lazy", "")):
        return f"class {match.group(0).strip()}"
    if match := _SPACER_NAME.search(parts.path.rpartition("/")[2]):
        return f"name {match.group(0)}"
    if image.furniture:
        return "in navigation, footer or sidebar"
    return ""


def wording_of(text: str) -> str:
    """Digest of a page's text but for its numbers: equal for the pages of a calendar or a counter."""
    return hashlib.blake2b(_NUMBERS.sub("", text[:100_000]).encode("utf-8", "replace"), digest_size=8).hexdigest()


def without_traps(candidates: list[Candidate], wordings: Mapping[str, str]) -> tuple[list[Candidate], list[Decision]]:
    """Drop trap pages (TRAP): pages of a host, SHOWN_ON_PAGES or more, that differ in their numbers only, and that have
    no image of their own.

    A calendar without end that shows a site's real pictures would else turn them into furniture, or into as many
    candidates. The pages of a gallery are alike too, but each has its own picture. wordings: `wording_of` by page.
    """
    alike: dict[tuple[str, str], set[str]] = {}
    for page in {candidate.page_url for candidate in candidates}:
        alike.setdefault((urlsplit(page).netloc, wordings.get(page, page)), set()).add(page)
    crowded = set[str]().union(*(pages for pages in alike.values() if len(pages) >= SHOWN_ON_PAGES))
    if not crowded:
        return candidates, []
    shown: dict[str, set[str]] = {}
    for candidate in candidates:
        shown.setdefault(candidate.image_url, set()).add(candidate.page_url)
    traps = crowded - {page for pages in shown.values() if len(pages) == 1 for page in pages}
    remaining = [candidate for candidate in candidates if candidate.page_url not in traps]
    source = candidates[0].source
    evidence = f"differs in its numbers only from {SHOWN_ON_PAGES} pages or more, and has no image of its own"
    return remaining, [_dropped(page, source, DropReason.TRAP, evidence) for page in sorted(traps)]


def _capped(candidates: list[Candidate], most: int) -> tuple[list[Candidate], list[Decision]]:
    """The first `most` candidates on the pages of each host, in the order of the pages; Decisions about the others."""
    if len(candidates) <= most:
        return candidates, []
    counts: Counter[str] = Counter()
    kept, dropped = [], []
    for candidate in candidates:
        host = urlsplit(candidate.page_url).netloc
        counts[host] += 1
        if counts[host] <= most:
            kept.append(candidate)
        else:
            dropped.append(drop(candidate, "extract", DropReason.CAP_PER_HOST, f"{host} has more than {most} images"))
    return kept, dropped


def without_furniture(candidates: list[Candidate]) -> tuple[list[Candidate], list[Decision]]:
    """Drop images that stand on very many pages (SPACER), and take off surrounding texts, abstracts and titles that
    stand on many pages of one host; a candidate without any other text goes too (NO_TEXT).
    """
    pages: dict[tuple[str, str], set[str]] = {}
    shown: dict[str, set[str]] = {}
    for candidate in candidates:
        host = urlsplit(candidate.page_url).netloc
        shown.setdefault(candidate.image_url, set()).add(candidate.page_url)
        for text in candidate.texts:
            if text.kind in _FURNITURE_KINDS:
                pages.setdefault((host, text.text), set()).add(candidate.page_url)
    furniture = {key for key, urls in pages.items() if len(urls) >= REPEATED_ON_PAGES}
    kept, dropped = [], []
    for candidate in candidates:
        count = len(shown[candidate.image_url])
        if count >= SHOWN_ON_PAGES:
            dropped.append(drop(candidate, "extract", DropReason.SPACER, f"stands on {count} pages"))
            continue
        host = urlsplit(candidate.page_url).netloc
        texts = tuple(t for t in candidate.texts if t.kind not in _FURNITURE_KINDS or (host, t.text) not in furniture)
        if texts:
            kept.append(replace(candidate, texts=texts))
        else:
            dropped.append(drop(candidate, "extract", DropReason.NO_TEXT, "only texts that stand on many pages"))
    return kept, dropped


def drop_capture(capture: Capture, source: str, reason: DropReason, evidence: str = "") -> Decision:
    """The Decision about a capture without candidates."""
    return _dropped(capture.url, source, reason, evidence)


def _dropped(url: str, source: str, reason: DropReason, evidence: str) -> Decision:
    """The Decision about the capture of a URL."""
    return Decision(
        subject="capture",
        id=sha256_hex(url),
        fetch_id="",
        source=source,
        page_url=url,
        url=url,
        stage="extract",
        kept=False,
        reason=reason.value,
        reasons=(reason.value,),
        evidence=evidence[:300],
    )


STAGE = Stage(
    name="extract",
    zh="抽取",
    folder="candidates",
    inputs=("crawl",),
    version=2,
    token=token,
    partitions=partitions,
    run=run_partition,
    files=(
        StageFile("parquet", CANDIDATE_SCHEMA, "candidate_id"),
        StageFile(SOURCE_BOXES, SOURCE_BOX_SCHEMA),
        StageFile(PROVENANCE, PROVENANCE_SCHEMA),
        StageFile(USERINFO, USERINFO_SCHEMA),
    ),
)
