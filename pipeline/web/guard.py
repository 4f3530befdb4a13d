"""The guard that crawl and fetch go through: which addresses may be reached, and what their owners allow.

Where the guard sits, and why there: an audit hook on `socket.connect`. It sees the address that is really connected
to, after DNS and after every redirect, whichever library connects (aiohttp for pages, http.client for images), so
there is no gap between check and use. It acts only inside a scope that crawler and opener enter (`guarded`), by a
context variable: Ray, object stores and databases of the same process are untouched.

What passes is an IP literal of a globally routable unicast address. On top of what `ipaddress` calls not global we
refuse what leads back inside: IPv4 in IPv6 (mapped, NAT64, 6to4), site-local and cloud metadata addresses.
The only exceptions are the loopback `host:port` pairs that a spec names in `egress.allow`.

Opt-outs: `X-Robots-Tag` and `<meta name=robots>` with noai, noimageai, noindex, noimageindex, noml or none, with or
without an agent's name; `tdm-reservation` in a header, a meta tag or /.well-known/tdmrep.json; robots.txt by RFC 9309.
Proxy variables of the environment are never read.

Limits: an audit hook cannot be taken out again, it stays for the life of the process (it does nothing outside a
scope); code that connects without Python's socket module is not seen.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import ipaddress
import json
import re
import socket
import sys
import zlib
from collections.abc import Iterable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urljoin, urlsplit

from data_specs.build import BuildSpec
from pipeline.urls import loopback_pairs

AGENT = "wenlan"
"""Our name in robots.txt and X-Robots-Tag."""

MAX_ROBOTS_BYTES = 500 * 1024
"""RFC 9309 section 2.5: at least so much of a robots.txt is read; we read no more."""

MAX_ROBOTS_REDIRECTS = 5
"""RFC 9309 section 2.3.1.2."""

MAX_DELAY_S = 120.0
"""A host whose robots.txt asks for longer pauses is taken to want no crawler."""

ROBOTS_TTL_S = 24 * 3600.0
"""RFC 9309 section 2.4: a robots.txt is not used for longer than a day."""

MAX_TDM_RULES = 10_000

OPT_OUTS = frozenset({"noai", "noimageai", "noindex", "noimageindex", "noml", "none"})

_REFUSED_NETWORKS = tuple(
    ipaddress.ip_network(network)
    for network in (
        "::/96",  # IPv4-compatible (and ::, ::1)
        "64:ff9b::/96",  # NAT64
        "64:ff9b:1::/48",  # NAT64 for local use
        "2002::/16",  # 6to4
        "2001::/23",  # IETF protocol assignments, Teredo among them
        "3fff::/20",  # documentation; older Pythons do not know it
        "192.0.0.0/24",  # IETF protocol assignments, Oracle Cloud's metadata among them; as above
        "fec0::/10",  # site-local, deprecated but routed by some
        "192.88.99.0/24",  # 6to4 relays
        "168.63.129.16/32",  # Azure's metadata and DNS, a public number that never leaves the data centre
        "100.100.100.200/32",  # Alibaba Cloud's metadata
        "169.254.0.0/16",  # link-local: metadata of AWS, GCP, Azure and others
        "fd00:ec2::254/128",  # AWS metadata over IPv6
    )
)


class EgressRefused(OSError):
    """An address or URL that may not be reached. An OSError, so that HTTP libraries treat it as a failed connection."""


@dataclass(frozen=True, slots=True)
class Guard:
    """Which addresses may be reached. `allow` holds loopback (address, port) pairs."""

    allow: frozenset[tuple[str, int]] = frozenset()

    def check_url(self, url: str) -> None:
        """Raises EgressRefused for a scheme that is not http or https, a URL without host, or a refused IP literal."""
        try:
            found = urlsplit(url)
            host, port = found.hostname, found.port
        except ValueError as e:
            raise EgressRefused(f"bad address: {e}") from None
        if found.scheme not in ("http", "https"):
            raise EgressRefused(f"scheme {found.scheme[:20]!r} is not http or https")
        if not host:
            raise EgressRefused("address without a host")
        if _literal(host) is not None:
            self.check_address(host, port or (443 if found.scheme == "https" else 80))

    def check_address(self, host: object, port: object) -> None:
        """Raises EgressRefused unless the pair is a global unicast IP literal or named in the spec."""
        address = _literal(str(host))
        if address is None:
            raise EgressRefused(f"{host!s:.100} is not an IP address")
        if (str(address), port) in self.allow:
            return
        if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
            address = address.ipv4_mapped
            if (str(address), port) in self.allow:
                return
        inside = any(address in network for network in _REFUSED_NETWORKS if network.version == address.version)
        if inside or not address.is_global or address.is_multicast or address.is_reserved:
            raise EgressRefused(f"{address} port {port} is not a public address")


@functools.lru_cache(maxsize=4096)
def _literal(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """The address that a host is, if it is a literal; remembered, since every request asks of its host three times."""
    try:
        return ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return None


def guard_of(spec: BuildSpec) -> Guard:
    """The guard of a spec. Raises SpecError that names the entry of `egress.allow` which is no loopback host:port."""
    return Guard(loopback_pairs(spec.egress.allow))


@dataclass(slots=True)
class Scope:
    """What was refused inside one `guarded` block: libraries wrap exceptions beyond recognition."""

    guard: Guard
    refused: list[str] = field(default_factory=list)


_scope: ContextVar[Scope | None] = ContextVar("wenlan_egress", default=None)
_installed = False


@contextlib.contextmanager
def guarded(guard: Guard) -> Iterator[Scope]:
    """Inside, this thread (or asyncio task, and tasks it starts) connects only where `guard` lets it."""
    _install()
    scope = Scope(guard)
    token = _scope.set(scope)
    try:
        yield scope
    finally:
        _scope.reset(token)


def _install() -> None:
    """Install the hook, once a process."""
    global _installed
    if not _installed:
        sys.addaudithook(_hook)
        _installed = True


def _hook(event: str, args: tuple[Any, ...]) -> None:
    if event not in ("socket.connect", "socket.sendto", "socket.sendmsg"):
        return
    scope = _scope.get(None)
    if scope is None:
        return
    sock, address = args
    if event != "socket.connect" and address is None:
        return  # sendmsg on a socket that is connected already
    try:
        if sock.family not in (socket.AF_INET, socket.AF_INET6) or not isinstance(address, tuple):
            raise EgressRefused("not an internet address")
        scope.guard.check_address(address[0], address[1])
    except EgressRefused as e:
        scope.refused.append(str(e))
        raise


def user_agent(spec: BuildSpec) -> str:
    """`wenlan/<version> (+contact)`: who we are and where to complain, on one line of ASCII."""
    contact = "".join(c for c in spec.contact.strip() if " " <= c <= "~" and c not in "()")
    return f"{AGENT}/{importlib.metadata.version('wenlan')} (+{contact})"


class BodyTooLarge(ValueError):
    """A body, or what it unpacks to, is larger than allowed."""


def unpacked(body: bytes, encoding: str, cap: int) -> bytes:
    """A body without its Content-Encoding, never holding more than `cap` bytes of it.

    Raises BodyTooLarge, and ValueError for an encoding that we did not ask for or that is damaged.
    """
    encoding = encoding.strip().lower()
    if encoding in ("", "identity") or not body:
        return body
    if encoding not in ("gzip", "x-gzip", "deflate"):
        raise ValueError(f"Content-Encoding {encoding[:40]!r} was not asked for")
    for window in (zlib.MAX_WBITS | 32, -zlib.MAX_WBITS):  # zlib or gzip by its header; then raw deflate
        machine = zlib.decompressobj(window)
        try:
            found = machine.decompress(body, cap + 1)
        except zlib.error:
            continue
        if len(found) > cap:
            raise BodyTooLarge(f"unpacks to more than {cap} bytes")
        if not machine.eof:
            raise ValueError("compressed body ends too early")
        return found
    raise ValueError("compressed body is damaged")


# What owners allow

_VALUED = frozenset({"max-snippet", "max-image-preview", "max-video-preview", "unavailable_after"})
_NAME = re.compile(r"\*|[a-z][\w.*/+-]*")


def opt_outs(header_values: Iterable[str], meta_values: Iterable[str] = ()) -> list[str]:
    """Directives that forbid us a page or an image, sorted, e.g. ["noai"]; empty if we may take it.

    header_values: each `X-Robots-Tag` header's value, e.g. `noai, max-image-preview:large` or `wenlan: noindex`; a
    directive behind another agent's name is not for us. meta_values: `content` of each `<meta name=robots>` (and of
    `<meta name=wenlan>`). Source: Google's "Robots meta tag, data-nosnippet, and X-Robots-Tag specifications".
    """
    found: set[str] = set()
    for value in (*header_values, *meta_values):
        found.update(_directives(value) & OPT_OUTS)
    return sorted(found)


def follows_links(header_values: Iterable[str], meta_values: Iterable[str] = ()) -> bool:
    """Whether the links of a page may be followed: no nofollow and no none among its directives."""
    return not any(_directives(value) & {"nofollow", "none"} for value in (*header_values, *meta_values))


def _directives(value: str) -> set[str]:
    """Directives of one value that are meant for us, lower case, without values."""
    found: set[str] = set()
    ours = True
    for part in re.split(r"[,;]", value.lower()):
        name, colon, rest = (p.strip() for p in part.partition(":"))
        if colon and name not in _VALUED and _NAME.fullmatch(name):
            ours = name in ("*", AGENT)  # an agent's name rules until the next one
            name = rest
        elif colon:
            continue
        if ours:
            found.update(name.split())
    return found


@dataclass(frozen=True, slots=True)
class Robots:
    """What a host's robots.txt says to us. `unreachable` is why it could not be read, "" if it could."""

    rules: Any = None  # protego.Protego, or None: everything is allowed
    unreachable: str = ""
    delay_s: float = 0.0
    sitemaps: tuple[str, ...] = ()

    def allows(self, url: str) -> bool:
        """Whether a URL may be taken; False for all if robots.txt is unreachable."""
        if self.unreachable or self.delay_s > MAX_DELAY_S:
            return False
        return self.rules is None or bool(self.rules.can_fetch(url, AGENT))

    def refusal(self, url: str) -> str:
        """Why it is not allowed, for people."""
        if self.unreachable:
            return f"robots.txt: {self.unreachable}"
        if self.delay_s > MAX_DELAY_S:
            return f"robots.txt asks for {self.delay_s:.0f} s between two requests"
        return "robots.txt disallows it"


def robots_of(status: int, body: bytes) -> Robots:
    """Robots from an answer for /robots.txt: 2xx is read, 4xx allows everything, all else is unreachable.

    Source: RFC 9309 section 2.3.1.
    """
    if 400 <= status < 500:
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
    return urljoin(url, "/robots.txt")


def tdm_url(url: str) -> str:
    """Address of the file in which the owner of a URL may reserve text and data mining."""
    return urljoin(url, "/.well-known/tdmrep.json")


def reserved(value: str | None) -> bool:
    """Whether a `tdm-reservation` header or meta tag reserves the right to mine."""
    return (value or "").strip() == "1"


@dataclass(frozen=True, slots=True)
class Tdm:
    """A host's tdmrep.json: (pattern of the path, whether it is reserved), the first that fits decides."""

    rules: tuple[tuple[re.Pattern[str], bool], ...] = ()

    def reserves(self, url: str) -> bool:
        """Whether the file reserves a URL."""
        if not self.rules:
            return False
        found = urlsplit(url)
        path = (found.path or "/") + (f"?{found.query}" if found.query else "")
        return next((value for pattern, value in self.rules if pattern.match(path)), False)


def tdm_of(status: int, body: bytes) -> Tdm:
    """Rules of an answer for tdmrep.json; what is no such file reserves nothing.

    Patterns are those of robots.txt: `*` stands for anything, `$` ends the path, and a rule holds for what begins with
    it. Source: TDM Reservation Protocol (W3C Community Group report), section 6.
    """
    try:
        entries = json.loads(body) if status == 200 else []
    except (ValueError, RecursionError):
        return Tdm()
    rules = []
    for entry in entries[:MAX_TDM_RULES] if isinstance(entries, list) else ():
        location = entry.get("location") if isinstance(entry, dict) else None
        if isinstance(location, str) and location:
            pattern = re.sub(r"\*+", "*", location[:2000])  # runs of stars would make matching slow
            parts = [re.escape(part) for part in pattern.removesuffix("$").split("*")[:10]]
            rules.append(
                (
                    re.compile(".*?".join(parts) + ("$" if location.endswith("$") else "")),
                    str(entry.get("tdm-reservation")) == "1",
                )
            )
    return Tdm(tuple(rules))


def retry_after_seconds(value: str | None) -> float | None:
    """Seconds that a Retry-After header asks for (a number or an HTTP date), None if absent or senseless."""
    import datetime
    import email.utils

    if not value:
        return None
    if re.fullmatch(r"\d{1,9}", value.strip()):
        return float(value.strip())
    try:
        when = email.utils.parsedate_to_datetime(value)
    except ValueError:
        return None
    if when.tzinfo is None:
        when = when.replace(tzinfo=datetime.timezone.utc)
    return max(0.0, (when - datetime.datetime.now(datetime.timezone.utc)).total_seconds())
