"""Tries a few URLs as a build would: start pages like the crawl, images like fetch.

`wenlan-data plan` shows the outcome, so that what robots.txt, the address guard or a server refuses is known before a
build, together with the key of the spec that changes it. Nothing here has rules of its own: the requests are those of
`page_visitor` and `images`, at the pace of the spec.

Limits: what is not answered within SECONDS is left; a page or image is received whole, as by a build.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from data_specs.build import BuildSpec
from pipeline.pictures.decode import PictureError, header
from pipeline.rows.advice import advice_for
from pipeline.rows.decisions import DropReason
from pipeline.sources.site import Site
from pipeline.store.takedowns import NO_TAKEDOWNS, Takedowns
from pipeline.web.client import RequestFailed
from pipeline.web.images import ImageFetcher
from pipeline.web.page_visitor import Page, Visitor

SECONDS = 15.0
"""Time for all start pages of a site together, and for each image."""

MAX_PROBES = 3
"""Start pages of a site, and images of a source, that are tried."""


@dataclass(frozen=True, slots=True)
class Probe:
    """The outcome for one address.

    said: what was answered, or why nothing was asked. advice: what to change, "" where nothing helps. refused: the
    address guard lets no build go there. delay_s: between two requests to its host.
    """

    url: str
    ok: bool
    said: str
    advice: str = ""
    refused: bool = False
    delay_s: float = 0.0
    images: int = 0


def probe_pages(spec: BuildSpec, site: Site, takedowns: Takedowns = NO_TAKEDOWNS) -> list[Probe]:
    """The first start pages of a site, each after its redirects."""
    return asyncio.run(_pages(_with_short_timeout(spec), site, takedowns))


async def _pages(spec: BuildSpec, site: Site, takedowns: Takedowns) -> list[Probe]:
    visitor = Visitor(spec, site, takedowns)
    probes: list[Probe] = []
    end = asyncio.get_running_loop().time() + SECONDS
    try:
        for url in site.start_urls()[:MAX_PROBES]:
            seconds = max(0.1, end - asyncio.get_running_loop().time())
            try:
                probes.append(await asyncio.wait_for(_page(spec, visitor, url), seconds))
            except TimeoutError:
                probes.append(Probe(url, False, f"no answer within {SECONDS:g} s"))
    finally:
        await visitor.close()
    return probes


async def _page(spec: BuildSpec, visitor: Visitor, url: str) -> Probe:
    target, hops = url, 0
    while True:
        visit = await visitor.visit(Page(0, target, urlsplit(target).netloc, 0, hops, tries=1))
        if visit.outcome != "moved" or hops >= spec.egress.max_redirects:
            break
        target, hops = visit.target, hops + 1
    delay_s = (
        await visitor.delay_of(target) if visit.outcome == "kept" else spec.egress.delay_of(urlsplit(target).netloc)
    )
    prefix = "" if target == url else f"redirects to {target}; "
    if visit.outcome == "kept":
        answer = f"{prefix}a page with {len(visit.links):,} links within the site and {visit.images:,} images"
        return Probe(url, True, answer, delay_s=delay_s, images=visit.images)
    if visit.outcome == "moved":
        return Probe(url, False, f"{prefix}more than {hops} redirects", "egress.max_redirects", delay_s=delay_s)
    reason = visit.reason or DropReason.ROBOTS_UNREACHABLE
    advice, refused = advice_for(reason, visit.evidence), reason is DropReason.EGRESS_REFUSED
    return Probe(url, False, f"{prefix}{reason.value}: {visit.evidence}", advice, refused, delay_s)


def probe_images(spec: BuildSpec, urls: Sequence[str]) -> list[Probe]:
    return asyncio.run(_images(_with_short_timeout(spec), urls[:MAX_PROBES])) if urls else []


async def _images(spec: BuildSpec, urls: Sequence[str]) -> list[Probe]:
    async with ImageFetcher(spec) as fetcher:
        return list(await asyncio.gather(*(_image(fetcher, url) for url in urls)))


async def _image(fetcher: ImageFetcher, url: str) -> Probe:
    image = await fetcher.fetch(url)
    if isinstance(image, RequestFailed):
        advice = advice_for(image.reason, image.evidence)
        return Probe(url, False, str(image), advice, image.reason is DropReason.EGRESS_REFUSED)
    answer = f"{len(image.body):,} bytes, {image.content_type[:60] or 'no content type'}"
    try:
        header(image.body)
    except PictureError as e:
        return Probe(url, False, f"{answer}: {e}", "is it the URL of a picture?")
    return Probe(url, True, answer)


def _with_short_timeout(spec: BuildSpec) -> BuildSpec:
    """The spec with a short time limit per request."""
    egress = spec.egress.model_copy(update={"timeout_s": min(spec.egress.timeout_s, SECONDS / 2)})
    return spec.model_copy(update={"egress": egress})
