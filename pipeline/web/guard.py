"""The address guard that crawl and fetch go through: which addresses may be connected to.

Where the guard sits, and why there: an audit hook on `socket.connect`. It sees the address that is really connected
to, after DNS and after every redirect, whichever library connects (aiohttp today), so
no gap is left between check and use. It acts only inside a scope that the client enters (`enforce`),
by a context variable: Ray, object stores and databases of the same process are untouched.

What passes is an IP literal of a globally routable unicast address. On top of what `ipaddress` calls not global we
refuse what leads back inside: IPv4 in IPv6 (mapped, NAT64, 6to4), site-local and cloud metadata addresses.
The only exceptions are the loopback `host:port` pairs that a spec names in `egress.allow`.
Proxy variables of the environment are never read. What owners allow is `pipeline.web.policy`.

Limits: an audit hook cannot be taken out again, it stays for the life of the process (it does nothing outside a
scope); code that connects without Python's socket module is not seen.
"""

from __future__ import annotations

import contextlib
import functools
import ipaddress
import socket
import sys
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import SplitResult, urlsplit

from data_specs.build import BuildSpec
from pipeline.urls import loopback_pairs

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
    """An address or URL that may not be reached. An OSError, since HTTP libraries take that for a failed connection."""


@dataclass(frozen=True, slots=True)
class Guard:
    """Decides about addresses. `allow` holds loopback (address, port) pairs that may be reached."""

    allow: frozenset[tuple[str, int]] = frozenset()

    def check_url(self, url: str) -> None:
        """Raises EgressRefused for a scheme that is not http or https, a URL without host, or a refused IP literal."""
        try:
            parts = urlsplit(url)
            _check_origin(self, parts.scheme, parts.netloc)
        except ValueError as e:
            raise EgressRefused(f"bad address: {e}") from None

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
def _check_origin(guard: Guard, scheme: str, netloc: str) -> None:
    """The checks of `Guard.check_url`; also raises ValueError. Cached: a host is asked for many URLs."""
    parts = SplitResult(scheme, netloc, "", "", "")
    host, port = parts.hostname, parts.port
    if scheme not in ("http", "https"):
        raise EgressRefused(f"scheme {scheme[:20]!r} is not http or https")
    if not host:
        raise EgressRefused("address without a host")
    if _literal(host) is not None:
        guard.check_address(host, port or (443 if scheme == "https" else 80))


@functools.lru_cache(maxsize=4096)
def _literal(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """The address that a host is, None if it is a name. Cached: so are most hosts that are connected to."""
    try:
        return ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return None


def guard_of(spec: BuildSpec) -> Guard:
    """The guard of a spec. Raises SpecError naming the entry of `egress.allow` that is not a loopback host:port."""
    return Guard(loopback_pairs(spec.egress.allow))


@dataclass(slots=True)
class Scope:
    """One `enforce` block. `refused` keeps the reasons: libraries wrap the exception beyond recognition."""

    guard: Guard
    refused: list[str] = field(default_factory=list)


_scope: ContextVar[Scope | None] = ContextVar("wenlan_egress", default=None)
_installed = False


@contextlib.contextmanager
def enforce(guard: Guard) -> Iterator[Scope]:
    """Inside, this thread (or asyncio task, and tasks it starts) connects only where `guard` lets it."""
    _install()
    scope = Scope(guard)
    token = _scope.set(scope)
    try:
        yield scope
    finally:
        _scope.reset(token)


def _install() -> None:
    """Install the hook, once per process."""
    global _installed
    if not _installed:
        sys.addaudithook(_hook)
        _installed = True


def _hook(event: str, args: tuple[Any, ...]) -> None:
    """Refuse a connection by raising, inside a scope; what was refused is noted there."""
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
