"""probe: addresses are tried as a build would, and what is refused comes with the key of the spec."""

from __future__ import annotations

import socket
from typing import Any

import pytest

from data_specs.build import BuildSpec
from pipeline.rows.advice import advice_for
from pipeline.rows.decisions import DropReason
from pipeline.sources.site import Site
from pipeline.web import probe
from pipeline.web.probe import probe_images, probe_pages
from tests.drawn import picture

PAGE = "<html><body><p>正文</p><a href='/b.html'>b</a><img src=/1.jpg><img src=/2.jpg></body></html>".encode()


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine has its time."""
    monkeypatch.setattr(probe, "SECONDS", 240.0)


def spec_of(*hosts: str, **egress: Any) -> BuildSpec:
    source = {"kind": "site", "name": "s", "source_kind": "news", "start": ["http://a.cn/"]}
    egress = {"allow": list(hosts), "delay_s": 0, **egress}
    return BuildSpec.model_validate({"name": "t", "contact": "a@b.c", "sources": [source], "egress": egress})


def site(*start: str, **options: Any) -> Site:
    return Site.model_validate({"name": "s", "source_kind": "news", "start": start, **options})


@pytest.mark.drill(2)
def test_a_start_page_is_read_as_the_crawl_reads_it_after_its_redirects(serve):
    web = serve({"/": (302, {"Location": "/a.html"}, b""), "/a.html": PAGE})
    web.pages["/robots.txt"] = (200, {"Content-Type": "text/plain"}, b"User-agent: *\nCrawl-delay: 3\n")
    [answer] = probe_pages(spec_of(web.host), site(web.url("/a.html")))
    assert (answer.ok, answer.images, answer.delay_s) == (True, 2, 3.0)
    assert answer.said == "a page with 1 links within the site and 2 images"
    web.pages["/robots.txt"] = (404, {}, b"")
    [answer] = probe_pages(spec_of(web.host), site(web.url("/")))
    assert answer.said.startswith(f"redirects to {web.url('/a.html')}; a page with")
    assert {agent.partition("/")[0] for agent in web.agents} == {"wenlan"}


def test_what_the_guard_refuses_names_the_entry_that_would_allow_it_and_nothing_is_asked(serve):
    web = serve({"/": PAGE, "/1.jpg": b"x"})
    [page], [image] = probe_pages(spec_of(), site(web.url())), probe_images(spec_of(), [web.url("/1.jpg")])
    for answer in (page, image):
        assert (answer.ok, answer.refused) == (False, True)
        assert answer.advice == f"to allow it, set egress.allow: ['{web.host}']"
        assert answer.said == f"egress_refused: 127.0.0.1 port {web.port} is not a public address"
    assert web.asked == []
    assert probe_pages(spec_of(web.host), site(web.url()))[0].ok, "the advice holds"


def test_what_robots_txt_disallows_is_said_and_not_asked_for(serve):
    web = serve({"/": PAGE, "/1.jpg": b"x", "/robots.txt": b"User-agent: *\nDisallow: /\n"})
    [page], [image] = (
        probe_pages(spec_of(web.host), site(web.url())),
        probe_images(spec_of(web.host), [web.url("/1.jpg")]),
    )
    assert page.said == image.said == "robots_disallowed: robots.txt disallows it"
    assert "egress.obey_robots" in page.advice
    assert set(web.asked) == {"/robots.txt"}


def test_a_redirect_to_another_host_names_it(serve):
    web = serve({"/": (301, {"Location": "http://www.elsewhere.cn/x"}, b"")})
    [answer] = probe_pages(spec_of(web.host), site(web.url()))
    assert answer.advice == "start from there, or set hosts: [www.elsewhere.cn]"


@pytest.mark.parametrize(("answer", "said"), [
    ((404, {}, b""), "http_status: status 404"), ((200, {"Content-Type": "image/png"}, b"x"), "not_html: image/png"),
    ((200, {"X-Robots-Tag": "noai"}, PAGE), "opt_out: noai"),
])  # fmt: skip
def test_a_page_that_would_not_be_kept_is_no_success(serve, answer, said):
    web = serve({"/": answer})
    [answered] = probe_pages(spec_of(web.host), site(web.url()))
    assert (answered.ok, answered.refused, answered.said) == (False, False, said)


def test_nobody_waits_long_for_a_host_that_says_nothing(serve, monkeypatch):
    monkeypatch.setattr(probe, "SECONDS", 0.6)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        host = f"127.0.0.1:{silent.getsockname()[1]}"
        answers = probe_pages(spec_of(host, obey_robots=False), site(f"http://{host}/", f"http://{host}/2"))
        [image] = probe_images(spec_of(host, obey_robots=False), [f"http://{host}/1.jpg"])
    assert [one.ok for one in (*answers, image)] == [False] * 3
    assert image.said.startswith("timeout")


def test_images_say_what_came(serve):
    data, sorry = picture(1), "<p>请登录</p>".encode()
    jpeg, html = {"Content-Type": "image/jpeg"}, {"Content-Type": "text/html"}
    web = serve({"/1.jpg": (200, jpeg, data), "/3.jpg": (200, html, sorry)})
    answers = probe_images(spec_of(web.host), [web.url(f"/{number}.jpg") for number in (1, 2, 3)])
    assert [(one.ok, one.said.partition(": no")[0]) for one in answers] == [
        (True, f"{len(data):,} bytes, image/jpeg"),
        (False, "http_status: status 404"),
        (False, f"{len(sorry)} bytes, text/html"),
    ]
    assert answers[2].advice == "is it the URL of a picture?"
    assert probe_images(spec_of(), []) == []


def test_a_private_address_cannot_be_allowed():
    assert "loopback" in advice_for(DropReason.EGRESS_REFUSED, "10.0.0.1 port 80 is not a public address")
    assert advice_for(DropReason.EGRESS_REFUSED, "::1 port 80 is not a public address") == (
        "to allow it, set egress.allow: ['[::1]:80']"
    )
