"""The opener that img2dataset's downloader fetches through: every rule of fetching images over HTTP, in one place.

img2dataset calls `urllib.request.urlopen` in threads; an opener set by `install_opener` is the one place where scheme,
addresses, redirects, user agent, robots.txt, pauses, opt-outs, bytes and total time can be held. Requests themselves,
with their deadlines and kept connections, are `pipeline.web.http_client`'s, inside the guard's scope.

There are at most `connections_per_host` connections to a host at a time, and pauses are those of the whole cluster
(`pipeline.web.pace`). Failures become reasons here, where they are known, since img2dataset
keeps only their text; each has a time from which a later build may ask again.

Limits: connections per host are counted in one process.
"""

from __future__ import annotations

import http.client
import io
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urljoin, urlsplit

from w3lib.url import safe_url_string

from data_specs.build import BuildSpec
from pipeline.records import DropReason, rfc3339
from pipeline.web import guard
from pipeline.web.http_client import Reply, Watchdog, Wire
from pipeline.web.pace import Turns

LASTING_S = 30 * 24 * 3600.0
"""A failure that is no accident (404, not an image, an opt-out) may be tried again after so long."""

RULES_S = 7 * 24 * 3600.0
"""As above, of what robots.txt forbids."""


class FetchFailed(OSError):
    """An image that was not fetched. `again`: asking once more in this build may help.

    `retry_after_s`: seconds after which a later build may ask again.
    """

    def __init__(
        self, reason: DropReason, evidence: str, *, again: bool = False, retry_after_s: float = LASTING_S
    ) -> None:
        super().__init__(f"{reason.value}: {evidence}")
        self.reason, self.evidence = reason, evidence
        self.again, self.retry_after_s = again, retry_after_s

    def bare(self) -> FetchFailed:
        """The same failure without a traceback, whose frames would keep the body that was read alive."""
        return FetchFailed(self.reason, self.evidence, again=self.again, retry_after_s=self.retry_after_s)


@dataclass(frozen=True, slots=True)
class Found:
    """What is known of an image that was fetched, beside its bytes."""

    etag: str
    fetched_at: str  # RFC 3339, UTC


class _Body(io.BytesIO):
    """What urlopen gives: a body in memory, and its headers."""

    def __init__(self, reply: Reply) -> None:
        super().__init__(reply.body)
        self.headers, self.status = reply.headers, reply.status


class GuardedOpener(urllib.request.OpenerDirector):
    """Fetches by the rules of a spec. `found` and `failed` hold each URL's outcome."""

    def __init__(self, spec: BuildSpec) -> None:
        super().__init__()
        self._limits = spec.egress
        self._headers = {
            "User-Agent": guard.user_agent(spec), "Accept": "image/*,*/*;q=0.5", "Accept-Encoding": "identity"
        }  # fmt: skip
        self._guard = guard.guard_of(spec)
        self._rules: dict[str, tuple[float, guard.Robots, guard.Tdm]] = {}  # by address of robots.txt, with its age
        self._rules_locks: dict[str, threading.Lock] = {}
        self._turns = Turns()
        self._hosts: dict[str, threading.Semaphore] = {}
        self._wire = Wire()
        self._watchdog = Watchdog(spec.egress.timeout_s)
        self._lock = threading.Lock()
        self.found: dict[str, Found] = {}
        self.failed: dict[str, FetchFailed] = {}

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Be what `urllib.request.urlopen` uses, in all threads of this process."""
        before = vars(urllib.request)["_opener"]
        urllib.request.install_opener(self)
        try:
            yield
        finally:
            urllib.request.install_opener(before)
            self.close()

    def close(self) -> None:
        """Close the connections that are kept."""
        self._wire.close()

    def open(self, fullurl: Any, data: Any = None, timeout: float | None = None) -> Any:
        """The body of an image. Raises FetchFailed, also kept in `failed`; a lasting failure is not asked for again."""
        url = fullurl if isinstance(fullurl, str) else fullurl.full_url
        before = self.failed.get(url)
        if before is not None and not before.again:
            raise before.bare()
        try:
            reply = self._fetch(url)
        except FetchFailed as e:
            self.failed[url] = e.bare()
            raise
        self.failed.pop(url, None)
        self.found[url] = Found(str(reply.headers.get("ETag") or "")[:200], rfc3339())
        return _Body(reply)

    def _fetch(self, url: str) -> Reply:
        """Follow redirects to an image, each hop under all rules."""
        for _ in range(self._limits.max_redirects + 1):
            robots, tdm = self._rules_of(url)
            if not robots.allows(url):
                if robots.unreachable:
                    raise FetchFailed(DropReason.ROBOTS_UNREACHABLE, robots.refusal(url), retry_after_s=0.0)
                raise FetchFailed(DropReason.ROBOTS_DISALLOWED, robots.refusal(url), retry_after_s=RULES_S)
            if tdm.reserves(url):
                raise FetchFailed(DropReason.OPT_OUT, "tdm-reservation in /.well-known/tdmrep.json")
            host = urlsplit(url).netloc
            with self._place(host):
                self._wait(host, robots.delay_s)
                reply = self._exchange(url, self._limits.max_image_bytes)
            if outs := guard.opt_outs(map(str, reply.headers.get_all("X-Robots-Tag", []))):
                raise FetchFailed(DropReason.OPT_OUT, f"X-Robots-Tag: {', '.join(outs)}")
            if guard.reserved(reply.headers.get("TDM-Reservation")):
                raise FetchFailed(DropReason.OPT_OUT, "tdm-reservation: 1")
            if not (300 <= reply.status < 400 and reply.headers.get("Location")):
                return self._wanted(reply, host)
            url = _target(url, reply)
        raise FetchFailed(DropReason.TOO_MANY_REDIRECTS, f"more than {self._limits.max_redirects}, then {url}")

    def _place(self, host: str) -> threading.Semaphore:
        """One of the host's connections at a time."""
        with self._lock:
            place = self._hosts.get(host)
            if place is None:
                place = self._hosts[host] = threading.Semaphore(self._limits.connections_per_host)
            return place

    def _wait(self, host: str, delay_s: float) -> None:
        """Take the host's next turn and sleep until it comes."""
        seconds = self._turns.take(host, max(delay_s, self._limits.delay_s))
        if seconds > 0:
            time.sleep(seconds)

    def _wanted(self, reply: Reply, host: str) -> Reply:
        """The reply if it is a 200. Raises FetchFailed; a host that names a time is left alone by everybody."""
        if reply.status == 200:
            return reply
        evidence = f"status {reply.status}"
        if reply.status < 500 and reply.status not in (408, 425, 429):
            raise FetchFailed(DropReason.HTTP_STATUS, evidence)
        wait = guard.retry_after_seconds(reply.headers.get("Retry-After"))
        if wait and wait <= guard.MAX_DELAY_S:
            self._turns.hold(host, wait)
        raise FetchFailed(DropReason.HTTP_STATUS, evidence, again=not wait, retry_after_s=wait or 0.0)

    def _rules_of(self, url: str) -> tuple[guard.Robots, guard.Tdm]:
        """What rules a URL, asked for once a day. Raises FetchFailed for a URL that may not be reached."""
        try:
            self._guard.check_url(url)
        except guard.EgressRefused as e:
            raise FetchFailed(DropReason.EGRESS_REFUSED, str(e)) from None
        if not self._limits.obey_robots:
            return guard.Robots(), guard.Tdm()
        address = guard.robots_url(url)
        with self._lock:
            lock = self._rules_locks.setdefault(address, threading.Lock())
        with lock:
            known = self._rules.get(address)
            if known is None or time.monotonic() - known[0] > guard.ROBOTS_TTL_S:
                robots = self._ask_robots(address)
                tdm = guard.Tdm() if robots.unreachable else self._ask_tdm(guard.tdm_url(url))
                known = self._rules[address] = (time.monotonic(), robots, tdm)
            return known[1], known[2]

    def _ask_robots(self, address: str) -> guard.Robots:
        """Ask, twice if the failure may pass. Raises FetchFailed if the guard refuses the host."""
        for last in (False, True):
            try:
                status, body = self._read_rules(address)
                if status >= 500:
                    raise FetchFailed(DropReason.HTTP_STATUS, f"status {status}", again=True)
                return guard.robots_of(status, body) if status else guard.Robots(unreachable="too many redirects")
            except FetchFailed as e:
                if e.reason is DropReason.EGRESS_REFUSED:
                    raise
                if last or not e.again:
                    return guard.Robots(unreachable=e.evidence)
        raise AssertionError("the second try returns")

    def _ask_tdm(self, address: str) -> guard.Tdm:
        """Most hosts have no such file; one that cannot be read reserves nothing."""
        try:
            return guard.tdm_of(*self._read_rules(address))
        except FetchFailed:
            return guard.Tdm()

    def _read_rules(self, url: str) -> tuple[int, bytes]:
        """(status, body) after redirects; status 0 if there are too many. Raises FetchFailed."""
        for _ in range(guard.MAX_ROBOTS_REDIRECTS + 1):
            reply = self._exchange(url, guard.MAX_ROBOTS_BYTES, whole=False)
            if not (300 <= reply.status < 400 and reply.headers.get("Location")):
                return reply.status, reply.body
            url = _target(url, reply)
        return 0, b""

    def _exchange(self, url: str, cap: int, whole: bool = True) -> Reply:
        """One guarded GET. Raises FetchFailed; with `whole` also if the body is larger than `cap`, else it is cut."""
        with guard.guarded(self._guard) as scope, self._watchdog.deadline() as deadline:
            try:
                self._guard.check_url(url)
                reply = self._wire.ask(url, self._headers, cap, whole, deadline)
                if deadline.cut:  # to http.client a cut socket may look like the end of headers or body
                    raise TimeoutError
                return reply
            except FetchFailed:
                raise
            except guard.BodyTooLarge as e:
                raise FetchFailed(DropReason.TOO_LARGE, str(e)) from None
            except Exception as e:
                if scope.refused or isinstance(e, guard.EgressRefused):
                    refusal = scope.refused[0] if scope.refused else str(e)
                    raise FetchFailed(DropReason.EGRESS_REFUSED, refusal) from None
                if deadline.cut or isinstance(e, TimeoutError):
                    evidence = f"not done after {self._limits.timeout_s:g} s"
                    raise FetchFailed(DropReason.TIMEOUT, evidence, again=True, retry_after_s=0.0) from None
                if isinstance(e, OSError | http.client.HTTPException | ValueError):
                    evidence = " ".join(str(e).split()) or type(e).__name__
                    raise FetchFailed(DropReason.CONNECTION, evidence, again=True, retry_after_s=0.0) from None
                raise


def _target(url: str, reply: Reply) -> str:
    """Where a redirect leads. Raises FetchFailed."""
    location = str(reply.headers["Location"]).strip()
    try:
        return str(safe_url_string(urljoin(url, location))).partition("#")[0]
    except ValueError as e:
        raise FetchFailed(DropReason.BAD_URL, f"redirect to {location[:100]}: {e}") from None
