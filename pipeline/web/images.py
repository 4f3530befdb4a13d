"""Fetches images, each after its redirects, by the one client (`pipeline.web.client`).

Every hop of a redirect is a request of its own under the rules of its host. User name and password of an image's URL
are sent to its own origin only. A failure that may pass is tried again by the stage, at the end of its partition;
images of a host that is down are not asked for while it is paused (`pipeline.web.pauses`).
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from urllib.parse import urlsplit

from data_specs.build import BuildSpec
from pipeline.errors import OURS, evidence
from pipeline.rows.decisions import DropReason
from pipeline.rows.records import rfc3339
from pipeline.store.takedowns import NO_TAKEDOWNS, Takedowns
from pipeline.urls import basic_authorization, origin_of
from pipeline.web import policy
from pipeline.web.client import Client, Kind, RequestFailed, Response, image_kind, redirect_target, status_failure
from pipeline.web.policy import HostRules


@dataclass(frozen=True, slots=True)
class Image:
    body: bytes
    etag: str
    fetched_at: str  # RFC 3339, UTC
    content_type: str = ""

    def with_body(self, body: bytes) -> Image:
        return replace(self, body=body)


Accept = Callable[[str, Image | RequestFailed], None]
"""Takes the outcome for one URL. Called in the event loop, in order of arrival."""


class ImageFetcher:
    """Fetches images by the rules of a spec. Used from one event loop, as a context manager.

    userinfos: user name and password, `user:password`, that go with some URLs. rules, takedowns: as `Client` has them.
    kind: of what is fetched, if not whole images.
    """

    def __init__(
        self,
        spec: BuildSpec,
        userinfos: Mapping[str, str] | None = None,
        rules: dict[str, HostRules] | None = None,
        takedowns: Takedowns = NO_TAKEDOWNS,
        kind: Kind | None = None,
    ) -> None:
        self._client = Client(spec, takedowns, rules, waits=False)
        self._kind, self._policy = kind or image_kind(spec.egress), policy.policy_of(spec)
        self._max_redirects = spec.egress.max_redirects
        self.connections_of = spec.egress.connections_of
        self._userinfos = userinfos or {}

    async def __aenter__(self) -> ImageFetcher:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.close()

    async def fetch(self, url: str) -> Image | RequestFailed:
        """An image, or why it could not be fetched. Never raises for what a host does."""
        try:
            response = await self._follow_redirects(url)
            etag, content_type = response.header("etag")[:200], response.header("content-type")
            return Image(response.body, etag, rfc3339(), content_type)
        except RequestFailed as e:
            return e.with_traceback(None)  # whose frames would keep the body that was read
        except OURS:
            raise
        except Exception as e:  # a header, a redirect or a file about the host, and what it did to a parser
            return RequestFailed(DropReason.UNREADABLE, evidence(e, url))

    async def _follow_redirects(self, url: str) -> Response:
        """Follow redirects to an image. Raises RequestFailed.

        Its user name and password are sent until a redirect leaves its origin, and never afterwards.
        """
        redirects, start_url = 0, url
        authorization = basic_authorization(self._userinfos.get(url, ""))
        while not self._policy.too_many_redirects(redirects):
            headers = {"Authorization": authorization} if authorization else None
            response = await self._client.get(url, self._kind, headers)
            if outs := policy.opt_outs(response.headers):
                raise RequestFailed(DropReason.OPT_OUT, f"X-Robots-Tag: {outs}" if outs.directives else str(outs))
            if not response.location:
                if response.status != 200:
                    raise status_failure(response)
                return response
            url, redirects = redirect_target(url, response.location), redirects + 1
            authorization = authorization if authorization and origin_of(url) == origin_of(start_url) else ""
        raise RequestFailed(DropReason.TOO_MANY_REDIRECTS, f"more than {self._max_redirects}, then {url}")


async def download(
    fetcher: ImageFetcher, urls: Iterable[str], accept: Accept, at_once: int, until: float = math.inf
) -> None:
    """Fetch URLs, so many at a time, the hosts in turn: one that is slow never takes the places of all others.

    until: on the monotonic clock, after which no request begins. Raises what `accept` raises.
    """
    waiting: dict[str, deque[str]] = {}
    for url in urls:
        waiting.setdefault(urlsplit(url).netloc, deque()).append(url)
    turns = deque(host for host, queue in waiting.items() for _ in range(min(len(queue), fetcher.connections_of(host))))

    async def fetch_next() -> None:
        while turns and time.monotonic() < until:
            host = turns.popleft()
            if waiting[host]:
                url = waiting[host].popleft()
                accept(url, await fetcher.fetch(url))
                turns.append(host)

    tasks = [asyncio.create_task(fetch_next()) for _ in range(at_once)]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
