"""A site of which some pages are what ended a crawl before: for a test, and at full size for bench_hostile.

Sound pages are a tree in Chinese, each with a picture of its own. Odd ones are its leaves, so that what becomes of them
decides nothing about the others. `scale` 1.0 is the size of what was found (80,000 attributes on one element); smaller
ones keep the kind and lose the weight.
"""

from __future__ import annotations

import gzip
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

WORDS = "山水云雨风雪花鸟鱼虫春夏秋冬东南西北天地人和金木石火土日月星江河湖海"
PICTURE = "<p>北京今天下了第一场雪<img src=/own/{n}.jpg alt='故宫的雪景{n}'>"

Answer = tuple[int, dict[str, str], bytes]
"""Status, headers and body."""


def name(n: int) -> str:
    """A word of four characters, another one for each number."""
    return "".join(WORDS[(n // len(WORDS) ** k) % len(WORDS)] for k in range(4))


def page(body: str | bytes, status: int = 200, **headers: str) -> Answer:
    sent = (
        body if isinstance(body, bytes) else f'<!doctype html><meta charset="utf-8">{body}'.encode("utf-8", "replace")
    )
    named = {key.replace("_", "-"): value for key, value in headers.items()}
    return status, {"Content-Type": "text/html", **named}, sent


def _times(scale: float, count: int) -> int:
    return max(2, int(scale * count))


def _calendar(n: int, scale: float) -> Answer:
    shown = "".join(f"<img src=/i/{k}.jpg alt=推荐>" for k in range(20))
    return page(f"<h1>第{n}日</h1>{shown}<a href=/cal/{n + 1}.html>明日</a>")


ODD: dict[str, Callable[[int, float], Answer]] = {
    "php": lambda n, s: page(PICTURE.format(n=n) + "<?php echo 1 ?>6<?I>"),
    "surrogate": lambda n, s: page(
        PICTURE.format(n=n)
        + r'<script type="application/ld+json">{"image":"\ud83d.jpg","caption":"\ud83d","headline":"\ud83d"}</script>'
    ),
    "base": lambda n, s: page("<base href='http://[::1'>" + PICTURE.format(n=n) + "<a href=x.html>x</a>"),
    "addresses": lambda n, s: page(
        PICTURE.format(n=n)
        + "<a href='http://[::1'>1</a><a href='http://a:99999999999/'>2</a><img src='http://[::1' alt=图>"
        + f"<img src='{'a' * _times(s, 500_000)}.jpg' alt=图><img src='http://u:p@/x.jpg' alt=图>"
    ),
    "lists": lambda n, s: page(PICTURE.format(n=n) + "<ul><li>" * _times(s, 60_000)),
    "bold": lambda n, s: page(PICTURE.format(n=n) + "<div><b>" * _times(s, 80_000)),
    "divs": lambda n, s: page(PICTURE.format(n=n) + "<div>" * _times(s, 200_000)),
    "attributes": lambda n, s: page(
        PICTURE.format(n=n) + "<img " + " ".join(f"a{k}=1" for k in range(_times(s, 80_000))) + ">"
    ),
    "marks": lambda n, s: page(PICTURE.format(n=n) + "<p>a" + "\u0301\u0323" * _times(s, 200_000)),
    "sources": lambda n, s: page(
        "<p>北京的雪<picture>"
        + "<source srcset=a.jpg>" * _times(s, 80_000)
        + f"<img src=/own/{n}.jpg alt=雪景>" * _times(s, 80_000)
    ),
    "srcset": lambda n, s: page(f"<p>北京的雪<img alt=雪景 srcset='{'a.jpg 1x,' * _times(s, 80_000)}'>"),
    "linked": lambda n, s: page(
        PICTURE.format(n=n) + f'<script type="application/ld+json">{"[" * _times(s, 100_000)}</script>'
    ),
    "korean": lambda n, s: page(
        ("<title>图片说明</title><p>中文网页的图片和说明" * 50 + PICTURE.format(n=n)).encode("gb18030"),
        Content_Type="text/html; charset=euc-kr",
    ),
    "charset": lambda n, s: page(PICTURE.format(n=n).encode(), Content_Type="text/html; charset=hex"),
    "zeros": lambda n, s: page(b"\0" * _times(s, 100_000) + PICTURE.format(n=n).encode()),
    "bomb": lambda n, s: page(gzip.compress(b"\0" * _times(s, 200_000_000)), Content_Encoding="gzip"),
    "redirect": lambda n, s: page("", 302, Location=("http://[::1", "file:///etc/passwd", "//:0/")[n % 3]),
    "opt-out": lambda n, s: page(PICTURE.format(n=n), X_Robots_Tag="\xff, ²: noai," + "x," * _times(s, 10_000)),
    "status": lambda n, s: page(PICTURE.format(n=n), 599),
    "calendar": _calendar,
}
"""Name -> page number n at a scale; `{n}` is in the name of its own picture."""

SITEMAP = "<?xml version='1.0' encoding='{}'?><urlset><url><loc>{}</loc></url></urlset>"


@dataclass
class OddSite:
    """Answers of a site by path; which pages are sound, which are odd."""

    sound: list[str] = field(default_factory=list)
    odd: list[str] = field(default_factory=list)
    pages: dict[str, Answer] = field(default_factory=dict)
    beside: dict[str, Answer] = field(default_factory=dict)
    """Answers of a second host: its robots.txt redirects to where the guard lets nobody go."""


def odd_site(pages: int, odd: int, scale: float, host: str, beside: str) -> OddSite:
    """A site of so many pages, of which so many are odd. host, beside: `host:port` of the two servers."""
    site, size, kinds = OddSite(), pages - odd, list(ODD)
    leaves: dict[int, str] = {}
    for k in range(odd):
        kind, n = kinds[k % len(kinds)], k // len(kinds)
        path = f"/cal/{n * 1000}.html" if kind == "calendar" else f"/odd/{kind}-{n}.html"
        site.odd.append(path)
        site.pages[path] = ODD[kind](n * 1000 if kind == "calendar" else n, scale)
        parent = k * 7 % size
        leaves[parent] = leaves.get(parent, "") + f"<a href={path}>{kind}</a>"
    for n in range(size):
        links = "".join(f"<a href=/p/{k}.html>{name(k)}</a>" for k in range(8 * n + 1, min(8 * n + 9, size)))
        text = "".join(f"<p>{name(n * 31 + k) * 12}。</p>" for k in range(8))
        body = f"<title>{name(n)}</title><h1>{name(n)}</h1><img src=/i/{n}.jpg alt={name(n)}的照片>{text}"
        site.sound.append(f"/p/{n}.html")
        site.pages[f"/p/{n}.html"] = page(body + links + leaves.get(n, ""))
    plain = {"Content-Type": "text/plain"}
    if not odd:
        site.pages["/robots.txt"] = (200, plain, b"User-agent: *\nAllow: /\n")
        return site
    named = "".join(f"Sitemap: http://{host}/{kind}.xml\n" for kind in ("gb2312", "gb18030", "big5", "hex", "deep"))
    rules = "".join(f"Disallow: /{'*a' * 8}{k}zz\n" for k in range(_times(scale, 1000)))
    site.pages["/robots.txt"] = (200, plain, f"User-agent: *\n{rules}{named}".encode())
    for kind in ("gb2312", "gb18030", "big5", "hex"):
        text = SITEMAP.format(kind, f"http://{host}/p/1.html")
        site.pages[f"/{kind}.xml"] = (200, {"Content-Type": "text/xml"}, text.encode())
    deep = gzip.compress(b"<a>" * _times(scale, 15_000_000))
    site.pages["/deep.xml"] = (200, {"Content-Type": "text/xml"}, deep)
    tdm = '[{"location": "/' + "*a" * 8 + 'zz", "tdm-reservation": 1}]'
    site.pages["/.well-known/tdmrep.json"] = (200, {"Content-Type": "application/json"}, tdm.encode())
    far = f"http://{beside}/{'a' * 120}.html"
    status, headers, body = site.pages["/p/0.html"]
    site.pages["/p/0.html"] = (status, headers, body + f"<a href={far}>a</a>".encode())
    site.beside["/robots.txt"] = (302, {"Location": "http://169.254.169.254/robots.txt"}, b"")
    return site


def spec_of(host: str, beside: str, pages: int) -> dict[str, Any]:
    """The fields of a spec that crawls the site."""
    source = {"kind": "site", "name": "odd", "source_kind": "news", "start": [f"http://{host}/p/0.html"]}
    source |= {"hosts": [beside], "max_pages": 2 * pages}  # type: ignore[dict-item]
    egress = {"allow": [host, beside], "delay_s": 0, "timeout_s": 30, "connections_per_host": 4}
    return {"name": "odd", "contact": "https://example.org/odd", "sources": [source], "egress": egress}
