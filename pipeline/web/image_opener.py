"""The urllib opener through which img2dataset's downloader fetches: every image request keeps to the rules here.

img2dataset calls `urllib.request.urlopen` in threads; an opener set by `install_opener` is the one place where scheme,
addresses, redirects, user agent, robots.txt, pauses, opt-outs, bytes and total time can be limited. The rules are
`pipeline.web.policy`'s; the requests, with their deadlines and kept connections, are `pipeline.web.http_client`'s,
inside the guard's scope.

There are at most `connections_per_host` connections to a host at a time, and pauses are those of the whole cluster
(`pipeline.web.pace`). Failures become reasons here, where they are known, since img2dataset keeps only their text; each
has a time from which a later build may ask again.

Limits: connections per host are counted in one process.
"""

from __future__ import annotations

import http.client
import io
import threading
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urljoin, urlsplit

from w3lib.url import safe_url_string

from data_specs.build import BuildSpec
from pipeline.records import DropReason, rfc3339
from pipeline.store.takedowns import NO_TAKEDOWNS, Takedowns
from pipeline.unreadable import evidence
from pipeline.urls import basic_authorization, origin_of, split_userinfo
from pipeline.web import guard, policy
from pipeline.web.bodies import BodyTooLarge
from pipeline.web.http_client import Deadlines, HttpClient, Response
from pipeline.web.pace import RateLimiter
from pipeline.web.policy import LASTING_S, HostRules

MAX_RULES = 10_000
"""Hosts whose rules are kept at a time."""


class FetchFailed(OSError):
    """An image that was not fetched.

    again: asking once more in this build may help. retry_after_s: seconds after which a later build may ask again.
    """

    def __init__(
        self, reason: DropReason, evidence: str, *, again: bool = False, retry_after_s: float = LASTING_S
    ) -> None:
        super().__init__(f"{reason.value}: {evidence}")
        self.reason, self.evidence = reason, evidence
        self.again, self.retry_after_s = again, retry_after_s
        self.redirected = False  # whether a redirect led to what failed, of a file about the host

    def bare(self) -> FetchFailed:
        """The same failure without its traceback, whose frames would keep the body that was read alive."""
        return FetchFailed(self.reason, self.evidence, again=self.again, retry_after_s=self.retry_after_s)


@dataclass(frozen=True, slots=True)
class Fetched:
    """What is known of a fetched image beside its bytes."""

    etag: str
    fetched_at: str  # RFC 3339, UTC


class _Body(io.BytesIO):
    """What urlopen returns: a body in memory, and its headers."""

    def __init__(self, response: Response) -> None:
        super().__init__(response.body)
        self.headers, self.status = response.headers, response.status


class GuardedOpener(urllib.request.OpenerDirector):
    """Fetches by the rules of a spec. `fetched` and `failed` hold each URL's outcome. Safe for several threads.

    userinfos: user name and password, `user:password`, that go with some URLs. rules: of hosts that were asked for them
    before, by address of robots.txt; added to, so that the openers of one build ask each host once. takedowns: URLs and
    domains that are not asked for, whatever redirects there.
    """

    def __init__(
        self,
        spec: BuildSpec,
        userinfos: Mapping[str, str] | None = None,
        rules: dict[str, HostRules] | None = None,
        takedowns: Takedowns = NO_TAKEDOWNS,
    ) -> None:
        super().__init__()
        self._takedowns = takedowns
        self._userinfos = userinfos or {}
        self._egress = spec.egress
        self._policy, self._guard = policy.policy_of(spec), guard.guard_of(spec)
        self._headers = {
            "User-Agent": self._policy.user_agent, "Accept": "image/*,*/*;q=0.5", "Accept-Encoding": "identity"
        }  # fmt: skip
        self._rules = {} if rules is None else rules
        self._unreachable: dict[str, HostRules] = {}  # as `_rules`; the next opener asks these hosts again
        self._rules_locks: dict[str, threading.Lock] = {}
        self._refused: dict[str, str] = {}  # by address of robots.txt: why the guard refuses the host itself
        self._limiter = RateLimiter()
        self._connections: dict[str, threading.Semaphore] = {}  # by host: how many more may be open
        self._client = HttpClient()
        self._deadlines = Deadlines(spec.egress.timeout_s)
        self._lock = threading.Lock()
        self.fetched: dict[str, Fetched] = {}
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
        self._client.close()

    def open(self, fullurl: Any, data: Any = None, timeout: float | None = None) -> Any:
        """The body of an image. Raises FetchFailed, also kept in `failed`; a lasting failure is not asked for again."""
        url = fullurl if isinstance(fullurl, str) else fullurl.full_url
        before = self.failed.get(url)
        if before is not None and not before.again:
            raise before.bare()
        try:
            response = self._fetch(url)
        except FetchFailed as e:
            self.failed[url] = e.bare()
            raise
        except Exception as e:  # a header, a redirect or a file about the host, and what it did to a parser
            self.failed[url] = FetchFailed(DropReason.UNREADABLE, evidence(e, url))
            raise self.failed[url].bare() from None
        self.failed.pop(url, None)
        self.fetched[url] = Fetched(response.headers.get("etag")[:200], rfc3339())
        return _Body(response)

    def _fetch(self, url: str) -> Response:
        """Follow redirects to an image, each hop under all rules. Raises FetchFailed.

        Its user name and password are sent until a redirect leaves its origin, and never afterwards.
        """
        redirects, first = 0, url
        authorization = basic_authorization(self._userinfos.get(url, ""))
        while not self._policy.too_many_redirects(redirects):
            response = self._hop(url, authorization)
            location = response.headers.get("location")
            if not policy.is_redirect(response.status, location):
                return self._checked(response, urlsplit(url).netloc)
            url, redirects = _target(url, location), redirects + 1
            authorization = authorization if authorization and origin_of(url) == origin_of(first) else ""
        raise FetchFailed(DropReason.TOO_MANY_REDIRECTS, f"more than {self._egress.max_redirects}, then {url}")

    def _hop(self, url: str, authorization: str) -> Response:
        """One request on the way to an image. Raises FetchFailed where an owner forbids it."""
        self._check_takedowns(url)
        rules = self._rules_of(url)
        if refusal := self._policy.refusal(rules, url):
            raise FetchFailed(refusal.reason, refusal.evidence, retry_after_s=refusal.retry_after_s)
        host = urlsplit(url).netloc
        with self._connection(host):
            if (seconds := self._limiter.next_slot(host, self._policy.delay_s(rules))) > 0:
                time.sleep(seconds)
            response = self._exchange(url, self._egress.max_image_bytes, authorization=authorization)
        if outs := policy.opt_outs(response.headers.items()):
            raise FetchFailed(DropReason.OPT_OUT, f"X-Robots-Tag: {outs}" if outs.directives else str(outs))
        return response

    def _connection(self, host: str) -> threading.Semaphore:
        """One of the connections that may be open to a host at a time."""
        with self._lock:
            connections = self._connections.get(host)
            if connections is None:
                connections = self._connections[host] = threading.Semaphore(self._egress.connections_per_host)
            return connections

    def _checked(self, response: Response, host: str) -> Response:
        """The response if it is a 200. Raises FetchFailed; a host that names a time is left alone by all workers."""
        if response.status == 200:
            return response
        evidence = f"status {response.status}"
        headers = response.headers
        retry = policy.retry_of(policy.is_transient(response.status), headers.get("retry-after"), headers.get("date"))
        if not retry.transient:
            raise FetchFailed(DropReason.HTTP_STATUS, evidence)
        if retry.pause_s:
            self._limiter.pause(host, retry.pause_s)
        # img2dataset repeats a request at once: what is to wait at all waits for a later build
        raise FetchFailed(DropReason.HTTP_STATUS, evidence, again=not retry.wait_s, retry_after_s=retry.wait_s)

    def _rules_of(self, url: str) -> HostRules:
        """The rules of a URL's host, asked for once a day. Raises FetchFailed for a URL that may not be reached."""
        try:
            self._guard.check_url(url)
        except guard.EgressRefused as e:
            raise FetchFailed(DropReason.EGRESS_REFUSED, str(e)) from None
        if not self._egress.obey_robots:
            return HostRules()
        address = policy.robots_url(url)
        with self._lock:
            lock = self._rules_locks.setdefault(address, threading.Lock())
        with lock:
            if address in self._refused:
                raise FetchFailed(DropReason.EGRESS_REFUSED, self._refused[address])
            rules = self._unreachable.get(address) or self._rules.get(address)
            if rules is None or rules.expired(time.monotonic()):
                robots = self._ask_robots(address)
                tdm = policy.Tdm() if robots.unreachable else self._ask_tdm(policy.tdm_url(url))
                rules = HostRules(robots, tdm, time.monotonic())
                if len(self._rules) >= MAX_RULES:
                    self._rules.clear()
                self._unreachable.pop(address, None)  # which may be of yesterday
                (self._unreachable if robots.unreachable else self._rules)[address] = rules
            return rules

    def _ask_robots(self, address: str) -> policy.Robots:
        """Ask for a robots.txt, once more if the failure may pass. Raises FetchFailed if the guard refuses the host.

        One that redirects to where the guard lets nobody go is unreachable, which is kept like any other answer.
        """
        robots = policy.Robots()
        for _ in range(policy.TRIES):
            try:
                status, body = self._read_rules(address)
            except FetchFailed as e:
                if e.reason is DropReason.EGRESS_REFUSED and not e.redirected:
                    self._refused[address] = e.evidence
                    raise
                robots, again = policy.Robots(unreachable=e.evidence), e.again
            else:
                robots, again = policy.robots_of(status, body), policy.is_transient(status)
            if not again:
                break
        return robots

    def _ask_tdm(self, address: str) -> policy.Tdm:
        """Ask for a tdmrep.json. Most hosts have none; one that cannot be read reserves nothing."""
        try:
            return policy.tdm_of(*self._read_rules(address))
        except FetchFailed:
            return policy.Tdm()

    def _read_rules(self, url: str) -> tuple[int, bytes]:
        """(status, body) of a small file about the host, after redirects, at the host's pace. Raises FetchFailed."""
        for redirects in range(policy.MAX_ROBOTS_REDIRECTS + 1):
            self._check_takedowns(url)
            if (seconds := self._limiter.next_slot(urlsplit(url).netloc, self._egress.delay_s)) > 0:
                time.sleep(seconds)
            try:
                response = self._exchange(url, policy.MAX_ROBOTS_BYTES, whole=False)
            except FetchFailed as e:
                e.redirected = redirects > 0
                raise
            location = response.headers.get("location")
            if not policy.is_redirect(response.status, location):
                return response.status, response.body
            url = _target(url, location)
        raise FetchFailed(DropReason.TOO_MANY_REDIRECTS, "too many redirects")

    def _check_takedowns(self, url: str) -> None:
        """Raises FetchFailed for what was taken down."""
        if why := self._takedowns.why(url, ""):
            raise FetchFailed(DropReason.FORGOTTEN, why)

    def _exchange(self, url: str, cap: int, whole: bool = True, authorization: str = "") -> Response:
        """One guarded GET. Raises FetchFailed; with `whole` also if the body is larger than `cap`, else it is cut."""
        with guard.guarded(self._guard) as scope, self._deadlines.deadline() as deadline:
            try:
                self._guard.check_url(url)
                headers = {**self._headers, "Authorization": authorization} if authorization else self._headers
                response = self._client.get(url, headers, cap, whole, deadline)
                if deadline.cut:  # to http.client a cut socket may look like the end of headers or body
                    raise TimeoutError
                return response
            except BodyTooLarge as e:
                raise FetchFailed(DropReason.TOO_LARGE, str(e)) from None
            except Exception as e:
                if scope.refused or isinstance(e, guard.EgressRefused):
                    refusal = scope.refused[0] if scope.refused else str(e)
                    raise FetchFailed(DropReason.EGRESS_REFUSED, refusal) from None
                if deadline.cut or isinstance(e, TimeoutError):
                    evidence = f"not done after {self._egress.timeout_s:g} s"
                    raise FetchFailed(DropReason.TIMEOUT, evidence, again=True, retry_after_s=0.0) from None
                if isinstance(e, OSError | http.client.HTTPException | ValueError):
                    evidence = " ".join(str(e).split()) or type(e).__name__
                    raise FetchFailed(DropReason.CONNECTION, evidence, again=True, retry_after_s=0.0) from None
                raise


def _target(url: str, location: str) -> str:
    """The address that a redirect leads to. Raises FetchFailed."""
    location = policy.address_in(location.strip().encode("latin-1"))
    try:
        return split_userinfo(str(safe_url_string(urljoin(url, location))).partition("#")[0])[0]
    except ValueError as e:
        raise FetchFailed(DropReason.BAD_URL, f"redirect to {location[:100]}: {e}") from None
