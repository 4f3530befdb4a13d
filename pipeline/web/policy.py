"""Rules of a polite client for requests of pages and images, as pure functions without I/O.

The client (`pipeline.web.client`) and its users hold themselves to one `Policy`: who we say we are, how long to wait,
which redirects and retries are allowed, what robots.txt and tdmrep.json forbid. Rules that do not depend on a spec are
functions of this module, for `extract` too, which reads captures that others have made: opt-outs, nofollow, media types
of pages. Which addresses may be connected to is `guard`'s.

Sources: robots.txt is RFC 9309; X-Robots-Tag and `<meta name=robots>` are Google's "Robots meta tag, data-nosnippet,
and X-Robots-Tag specifications", with noai and its like beside them; tdm-reservation is the TDM Reservation Protocol
(W3C Community Group report).
"""

from __future__ import annotations

import datetime
import email.utils
import importlib.metadata
import json
import re
import string
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlsplit

from data_specs.build import BuildSpec, Egress
from pipeline.errors import evidence
from pipeline.rows.decisions import DropReason

AGENT = "wenlan"
"""Our name in robots.txt and X-Robots-Tag."""

MAX_ROBOTS_BYTES = 500 * 1024
"""RFC 9309 section 2.5: at least so much of a robots.txt is read; we read no more."""

MAX_ROBOTS_REDIRECTS = 5
"""RFC 9309 section 2.3.1.2."""

MAX_DELAY_S = 120.0
"""A host whose robots.txt asks for longer pauses is taken to want no crawler; no longer Retry-After is waited for."""

ROBOTS_TTL_S = 24 * 3600.0
"""RFC 9309 section 2.4: a robots.txt is not used for longer than a day."""

TRIES = 2
"""Requests for a page, or for a host's robots.txt, whose failure may pass. Images: `fetch.max_wait_s` of the spec."""

BACKOFF_S, MAX_BACKOFF_S = 0.5, 60.0
"""Pause of a host after a failure that may pass, doubled with each further one in a row."""

LASTING_S = 30 * 24 * 3600.0
"""Seconds after which a later build may ask again for what failed for good (404, not an image, an opt-out)."""

DISALLOWED_S = 7 * 24 * 3600.0
"""Seconds after which a later build may ask again for what robots.txt disallows."""

MAX_TDM_RULES, MAX_TDM_PATTERN = 1_000, 2_000
"""Rules read of one tdmrep.json, and characters of a pattern: paths are no longer (`urls.MAX_URL`)."""

GONE = r"\bstatus (404|410)\b"
"""Matches the evidence of a URL that is no longer there."""

DISALLOWED = "robots.txt disallows it"
"""Evidence of a URL that a rule of robots.txt disallows."""

HTML_TYPES = ("text/html", "application/xhtml+xml")

OPT_OUTS = frozenset({"noai", "noimageai", "noindex", "noimageindex", "noml", "none"})
"""Robots directives that forbid us a page or an image."""

_TRANSIENT = frozenset({408, 425, 429})  # and every 5xx
_OUTAGE = frozenset({429, 502, 503, 504})
_SNIFFED = 1024
_HTML_STARTS = (b"<!doctype html", b"<html", b"<head", b"<?xml")


# A client's policy


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a URL may not be requested. retry_after_s: seconds after which a later build may try again."""

    reason: DropReason
    evidence: str
    retry_after_s: float


@dataclass(frozen=True, slots=True)
class Retry:
    """Rule for repeating a failed request. `wait_s` is what its host asked for by Retry-After, 0 for nothing."""

    transient: bool
    wait_s: float = 0.0

    @property
    def in_this_build(self) -> bool:
        """True if repeating it may help within this build."""
        return self.transient and self.wait_s <= MAX_DELAY_S

    @property
    def pause_s(self) -> float:
        """Seconds for which all workers leave the host alone: as it asked, 0 if it named no time or too long a one."""
        return self.wait_s if self.wait_s <= MAX_DELAY_S else 0.0


@dataclass(frozen=True, slots=True)
class Policy:
    """Rules for a client of one spec."""

    egress: Egress
    user_agent: str

    def refusal(self, rules: HostRules, url: str) -> Refusal | None:
        """Returns why the rules of a URL's host forbid it, None if it may be asked for."""
        robots = rules.robots
        if robots.unreachable:
            return Refusal(robots.reason, robots.refusal(url), 0.0)
        if unreadable := robots.unreadable or rules.tdm.unreadable:
            return Refusal(DropReason.UNREADABLE, unreadable, 0.0)
        if not robots.allows(url):
            return Refusal(DropReason.ROBOTS_DISALLOWED, robots.refusal(url), DISALLOWED_S)
        if rules.tdm.reserves(url):
            return Refusal(DropReason.OPT_OUT, "tdm-reservation in /.well-known/tdmrep.json", LASTING_S)
        return None

    def delay_s(self, rules: HostRules, host: str) -> float:
        """Seconds between two requests to a host: the spec's, or more if its robots.txt asks for it."""
        return max(rules.robots.delay_s, self.egress.delay_of(host))

    def too_many_redirects(self, redirects: int) -> bool:
        """True if so many redirects in a row are more than are followed."""
        return redirects > self.egress.max_redirects


def policy_of(spec: BuildSpec) -> Policy:
    return Policy(spec.egress, user_agent(spec))


def user_agent(spec: BuildSpec) -> str:
    """`wenlan/<version> (+contact)`: who we are and where to complain, on one line of ASCII."""
    contact = "".join(c for c in spec.contact.strip() if " " <= c <= "~" and c not in "()")
    return f"{AGENT}/{importlib.metadata.version('wenlan')} (+{contact})"


# Responses


def is_redirect(status: int, location: str | None) -> bool:
    """True if a response leads elsewhere; a 304 or a 3xx without a Location does not."""
    return 300 <= status < 400 and status != 304 and bool(location)


def address_in(location: bytes) -> str:
    """The address that a Location header names. Beyond ASCII it is UTF-8 or, where it is not, the bytes themselves,
    escaped: an old server sends a path in GBK as it lies on its disk."""
    try:
        return location.decode()
    except UnicodeDecodeError:
        return quote(location, safe=string.punctuation)


def is_transient(status: int) -> bool:
    """True if a status may be another one on the next try: 408, 425, 429 and every 5xx."""
    return status >= 500 or status in _TRANSIENT


def is_refusal(status: int) -> bool:
    """True if a status says that the host does not answer now: 429 and every 5xx."""
    return status == 429 or status >= 500


def is_outage(status: int) -> bool:
    """True if a status means that the whole host is unavailable, rather than a single page."""
    return status in _OUTAGE


def retry_of(transient: bool, retry_after: str | None) -> Retry:
    """Decides if and when a failed request may be repeated, by the header Retry-After of the response."""
    return Retry(transient, retry_after_seconds(retry_after) or 0.0)


def backoff_s(failures: int) -> float:
    """Pause of a host after so many failures in a row (at least 1) that may pass."""
    return float(min(MAX_BACKOFF_S, BACKOFF_S * 2.0 ** min(failures - 1, 20)))


def retry_after_seconds(value: str | None) -> float | None:
    """Seconds that a Retry-After header asks for (a number or an HTTP date), None if absent or senseless."""
    if not value:
        return None
    if re.fullmatch(r"\d{1,9}", value.strip()):
        return float(value.strip())
    try:
        when = email.utils.parsedate_to_datetime(value)
    except (ValueError, OverflowError):
        return None
    when = when if when.tzinfo is not None else when.replace(tzinfo=datetime.UTC)
    return max(0.0, (when - datetime.datetime.now(datetime.UTC)).total_seconds())


def media_type(content_type: str) -> str:
    """A Content-Type without its parameters, in lower case."""
    return content_type.partition(";")[0].strip().lower()


def is_html(content_type: str, body: bytes = b"") -> bool:
    """True if a response is a page: by its Content-Type; without one by how its body begins (RFC 9110, 8.3)."""
    declared = media_type(content_type)
    if declared:
        return declared in HTML_TYPES
    return body[:_SNIFFED].lstrip(b"\xef\xbb\xbf \t\r\n").lower().startswith(_HTML_STARTS)


# Opt-outs: headers and meta tags

_VALUED = frozenset({"max-snippet", "max-image-preview", "max-video-preview", "unavailable_after"})
_NAME = re.compile(r"\*|[a-z][\w.*/+-]*")

Headers = Iterable[tuple[str, str]]
"""Names (in any case) and values of a response's headers."""


@dataclass(frozen=True, slots=True)
class OptOuts:
    """Opt-outs of the owner of a page or an image; false if it may be taken.

    directives: those of OPT_OUTS that were found, sorted. reserved: text and data mining is reserved.
    """

    directives: tuple[str, ...] = ()
    reserved: bool = False

    def __bool__(self) -> bool:
        return bool(self.directives) or self.reserved

    def __str__(self) -> str:
        return ", ".join((*self.directives, *(["tdm-reservation: 1"] if self.reserved else [])))


def opt_outs(headers: Headers, metas: Iterable[str] = (), reserved_by_meta: bool = False) -> OptOuts:
    """The opt-outs of a response.

    Of the headers `X-Robots-Tag` counts, e.g. `noai, max-image-preview:large` or `wenlan: noindex` (a directive behind
    another agent's name is not for us), and `tdm-reservation`. metas: `content` of each `<meta name=robots>` and
    `<meta name=wenlan>`. reserved_by_meta: whether a `<meta name=tdm-reservation>` reserves.
    """
    robots, reserved = list(metas), reserved_by_meta
    for name, value in headers:
        name = name.lower()
        if name == "x-robots-tag":
            robots.append(value)
        elif name == "tdm-reservation":
            reserved = reserved or reserves(value)
    directives = {directive for value in robots for directive in _directives(value)}
    return OptOuts(tuple(sorted(directives & OPT_OUTS)), reserved)


def follows_links(headers: Headers, metas: Iterable[str] = ()) -> bool:
    """True if the links of a page may be followed: no nofollow and no none among its directives."""
    values = (*_values(headers, "x-robots-tag"), *metas)
    return not any(_directives(value) & {"nofollow", "none"} for value in values)


def reserves(value: str | None) -> bool:
    """True if the value of a `tdm-reservation` header or meta tag reserves text and data mining."""
    return (value or "").strip() == "1"


def _values(headers: Headers, name: str) -> list[str]:
    """The values of one header, which may stand several times."""
    return [str(value) for key, value in headers if key.lower() == name]


def _directives(value: str) -> set[str]:
    """Directives of one X-Robots-Tag or robots meta tag that are meant for us, lower case, without values."""
    directives: set[str] = set()
    ours = True
    for part in re.split(r"[,;]", value.lower()):
        name, colon, rest = (p.strip() for p in part.partition(":"))
        if colon and name not in _VALUED and _NAME.fullmatch(name):
            ours = name in ("*", AGENT)  # an agent's name rules until the next one
            name = rest
        elif colon:
            continue
        if ours:
            directives.update(name.split())
    return directives


# Rules of a host: robots.txt and tdmrep.json


@dataclass(frozen=True, slots=True)
class Robots:
    """A host's robots.txt, as it applies to us.

    unreachable: why it could not be fetched, "" if it could; `reason` is its class. unreadable: what the parser raised
    on it: the host has rules, and we do not know them, so that nothing of it is asked for.
    """

    rules: Any = None  # protego.Protego, or None: everything is allowed
    unreachable: str = ""
    reason: DropReason = DropReason.ROBOTS_UNREACHABLE
    unreadable: str = ""
    delay_s: float = 0.0
    sitemaps: tuple[str, ...] = ()

    def allows(self, url: str) -> bool:
        """True if a URL may be taken; False for all if robots.txt is unreachable or unreadable."""
        if self.unreachable or self.unreadable or self.delay_s > MAX_DELAY_S:
            return False
        return self.rules is None or bool(self.rules.can_fetch(url, AGENT))

    def refusal(self, url: str) -> str:
        """The words for why a URL is not allowed."""
        if self.unreachable:
            return f"robots.txt: {self.unreachable}"
        if self.unreadable:
            return self.unreadable
        if self.delay_s > MAX_DELAY_S:
            return f"robots.txt asks for {self.delay_s:.0f} s between two requests"
        return DISALLOWED


def robots_of(status: int, body: bytes) -> Robots:
    """Robots from a response for /robots.txt: 2xx is read, 4xx allows everything, all else is unreachable.

    A 4xx that only says "not now" (408, 425, 429) is unreachable too: the host has rules, and we do not know them.
    Never raises: see `Robots.unreadable`. Source: RFC 9309 section 2.3.1.
    """
    try:
        return _robots_of(status, body)
    except Exception as e:
        return Robots(unreadable=f"robots.txt: {evidence(e, 'a robots.txt')}")


def _robots_of(status: int, body: bytes) -> Robots:
    """Like `robots_of`, but raises whatever the parser raises."""
    if 400 <= status < 500 and not is_transient(status):
        return Robots()
    if not 200 <= status < 300:
        return Robots(unreachable=f"status {status}")
    from protego import Protego

    rules = Protego.parse(body[:MAX_ROBOTS_BYTES].decode("utf-8-sig", "replace"))
    rate = rules.request_rate(AGENT)
    delays = [rules.crawl_delay(AGENT) or 0.0, rate.seconds / rate.requests if rate and rate.requests else 0.0]
    return Robots(rules=rules, delay_s=max(delays), sitemaps=tuple(rules.sitemaps))


def robots_url(url: str) -> str:
    """Address of the robots.txt that rules a URL."""
    return _host_url(url, "/robots.txt")


def tdm_url(url: str) -> str:
    """Address of the file in which the owner of a URL may reserve text and data mining."""
    return _host_url(url, "/.well-known/tdmrep.json")


def _host_url(url: str, path: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}{path}"


@dataclass(frozen=True, slots=True)
class Tdm:
    """A host's tdmrep.json: (protego.Protego that disallows a pattern, whether that is reserved); the first that fits
    decides.

    unreadable: what the parser raised on it; the host may reserve anything, so that nothing of it is asked for.
    """

    rules: tuple[tuple[Any, bool], ...] = ()
    unreadable: str = ""

    def reserves(self, url: str) -> bool:
        return next((value for pattern, value in self.rules if not pattern.can_fetch(url, AGENT)), False)


def tdm_of(status: int, body: bytes) -> Tdm:
    """Rules from a response for tdmrep.json; anything else reserves nothing.

    Patterns are those of robots.txt, matched as such. Never raises: see `Tdm.unreadable`. Source: TDM Reservation
    Protocol (W3C Community Group report), section 6.
    """
    try:
        return _tdm_of(status, body)
    except Exception as e:
        return Tdm(unreadable=f"tdmrep.json: {evidence(e, 'a tdmrep.json')}")


def _tdm_of(status: int, body: bytes) -> Tdm:
    """Like `tdm_of`, but raises whatever the parser raises."""
    try:
        entries = json.loads(body) if status == 200 else []
    except (ValueError, RecursionError):
        return Tdm()
    from protego import Protego

    rules = []
    for entry in entries[:MAX_TDM_RULES] if isinstance(entries, list) else ():
        location = entry.get("location") if isinstance(entry, dict) else None
        if isinstance(location, str) and location:
            pattern = Protego.parse(f"User-agent: *\nDisallow: {location[:MAX_TDM_PATTERN]}")
            rules.append((pattern, str(entry.get("tdm-reservation")) == "1"))
    return Tdm(tuple(rules))


@dataclass(frozen=True, slots=True)
class HostRules:
    """The rules of one host as they were at `asked_at` (seconds of a monotonic clock)."""

    robots: Robots = Robots()
    tdm: Tdm = Tdm()
    asked_at: float = 0.0

    def expired(self, now: float) -> bool:
        """True if they must be asked for again."""
        return now - self.asked_at > ROBOTS_TTL_S
