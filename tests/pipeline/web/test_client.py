"""The one client: answers are read as the standard library reads them, and the rules hold for every kind of request."""

from __future__ import annotations

import asyncio
import gzip
import http.client
import random
import socketserver
import threading
import time
from collections import Counter
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest

from data_specs.build import BuildSpec
from pipeline.store.takedowns import NO_TAKEDOWNS, Takedowns, domain_hashes
from pipeline.web import client, policy
from pipeline.web.client import Client, Kind, RequestFailed, Response, image_kind, page_kind
from tests.crawled import noting
from tests.fetching import SITE

OK = b"HTTP/1.1 200 OK\r\n"
ANSWERS = {
    "length": OK + b'Content-Length: 3\r\nETag: "a"\r\n\r\nabc',
    "no word about its end": OK + b"\r\nabc",
    "chunked": OK + b"Transfer-Encoding: chunked\r\n\r\n2\r\nab\r\n1;x=y\r\nc\r\n0\r\n\r\n",
    "continued": b"HTTP/1.1 100 Continue\r\nX-Robots-Tag: none\r\n\r\n" + OK + b"Content-Length: 3\r\n\r\nabc",
    "folded": OK + b"X-Robots-Tag: noindex,\r\n  noai\r\nContent-Length: 3\r\n\r\nabc",
    "twice": OK + b"X-Robots-Tag: noai\r\nX-Robots-Tag: wenlan: noindex\r\nContent-Length: 3\r\n\r\nabc",
    "latin": OK + b"X-Name: caf\xe9\r\nContent-Length: 3\r\n\r\nabc",
    "long header": OK + b"X: " + b"x" * 60_000 + b"\r\nContent-Length: 3\r\n\r\nabc",
    "not found": b"HTTP/1.1 404 Not Found\r\nContent-Length: 3\r\n\r\nabc",
}
BROKEN_OFF = {
    "ends early": OK + b"Content-Length: 9\r\n\r\nabc",
    "chunk that ends early": OK + b"Transfer-Encoding: chunked\r\n\r\n9\r\nabc",
    "hangs up": b"",
}
MALFORMED = {
    "length that is none": OK + b"Content-Length: +3\r\n\r\nabc",
    "chunk without a size": OK + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\nzz\r\n",
    "no HTTP": b"SSH-2.0-OpenSSH_9.2\r\n",
    "a longer line": OK + b"X: " + b"x" * 70_000 + b"\r\n\r\nabc",
    "many headers": OK + b"X: y\r\n" * 1_000 + b"\r\nabc",
    "NUL in a header": OK + b"X: y\0z\r\nContent-Length: 3\r\n\r\nabc",
    "no gzip": OK + b"Content-Encoding: gzip\r\nContent-Length: 3\r\n\r\nabc",
    "cut gzip": OK + b"Content-Encoding: gzip\r\n\r\n" + gzip.compress(b"abc")[:-9],
    "unknown encoding": OK + b"Content-Encoding: snappy\r\nContent-Length: 3\r\n\r\nabc",
}
CANNED = {**ANSWERS, **BROKEN_OFF, **MALFORMED}
ASKED = Counter[str]()


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    """A server that says /N's canned bytes, and hangs up."""

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            number = self.rfile.readline().split()[1].strip(b"/")
            while self.rfile.readline().strip():
                pass
            name = list(CANNED)[int(number)]
            ASKED[name] += 1
            self.wfile.write(CANNED[name])

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1]
        server.shutdown()


def spec_of(*hosts: str, **egress: Any) -> BuildSpec:
    egress = {"allow": hosts, "delay_s": 0, "timeout_s": 120, **egress}
    return BuildSpec.model_validate({"name": "t", "contact": "a@b.cn", "sources": SITE, "egress": egress})


def ask(
    spec: BuildSpec, *urls: str, kind: Kind | None = None, takedowns: Takedowns = NO_TAKEDOWNS
) -> list[Response | RequestFailed]:
    """What one client makes of some URLs, one after the other."""

    async def asked() -> list[Response | RequestFailed]:
        outcomes: list[Response | RequestFailed] = []
        asking = Client(spec, takedowns)
        for url in urls:
            try:
                outcomes.append(await asking.get(url, kind or image_kind(spec.egress)))
            except RequestFailed as e:
                outcomes.append(e)
        await asking.close()
        return outcomes

    return asyncio.run(asked())


def told(outcomes: list[Response | RequestFailed]) -> list[int | str]:
    """Status, or the reason of a failure."""
    return [outcome.status if isinstance(outcome, Response) else outcome.reason.value for outcome in outcomes]


def canned(port: int, name: str) -> Response | RequestFailed:
    url = f"http://127.0.0.1:{port}/{list(CANNED).index(name)}"
    [outcome] = ask(spec_of(f"127.0.0.1:{port}", obey_robots=False), url)
    return outcome


@pytest.mark.parametrize("name", ANSWERS)
def test_an_answer_is_read_as_the_standard_library_reads_it(port: int, name: str) -> None:
    theirs = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    theirs.request("GET", f"/{list(ANSWERS).index(name)}")
    expected = theirs.getresponse()
    body = expected.read()
    theirs.close()
    response = canned(port, name)
    assert isinstance(response, Response)
    assert (response.status, response.body) == (expected.status, body if expected.status == 200 else b"")
    headers = [(n, " ".join(v.split())) for n, v in response.headers]
    assert headers == [(n, " ".join(v.split())) for n, v in expected.headers.items()]


@pytest.mark.parametrize("name", BROKEN_OFF)
def test_a_connection_that_breaks_off_is_a_failure_that_may_pass(port: int, name: str) -> None:
    outcome = canned(port, name)
    assert isinstance(outcome, RequestFailed)
    assert (outcome.reason.value, outcome.retry.transient) == ("connection", True)
    assert (outcome.refusal is None) is (name != "hangs up"), "a host that began to answer does not refuse"
    assert ASKED[name] == 1, "asking again is for the caller, at the pace of the host"


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_response_is_final_for_its_page_alone(port: int, name: str) -> None:
    outcome = canned(port, name)
    assert isinstance(outcome, RequestFailed)
    assert (outcome.reason.value, outcome.retry.transient, outcome.refusal) == ("bad_response", False, None)
    assert not outcome.host_is_down
    assert ASKED[name] == 1


def test_an_address_cannot_smuggle_a_second_request(serve: Any) -> None:
    web = serve()
    spec = spec_of(web.host, obey_robots=False)
    urls = [web.url(path) for path in ("/a b", "/a\r\nX: y", "/a HTTP/1.1\r\n\r\nGET /b", "/é")]
    assert {str(outcome) for outcome in ask(spec, *urls)} == {
        "bad_url: the URL contains characters that HTTP cannot send"
    }
    assert web.asked == []


def slowly(handler: Any, begins: bytes) -> None:
    """A beginning, then one byte a tenth of a second until the client has hung up, at most for a minute."""
    handler.wfile.write(begins)
    for _ in range(600):
        handler.wfile.write(b"x")
        handler.web.dripped[handler.path] += 1
        time.sleep(0.1)


SLOW = {
    "body": OK + b"Content-Length: 100000\r\n\r\n",
    "headers": OK + b"X-Slow: ",
    "no word about its end": OK + b"\r\n",
    "not found": b"HTTP/1.1 404 Not Found\r\nContent-Length: 1000\r\n\r\n",
}


@pytest.mark.slow
@pytest.mark.parametrize("begins", SLOW.values(), ids=SLOW)
@pytest.mark.parametrize("kind", [image_kind, page_kind])
def test_time_is_capped_in_total_and_not_between_two_bytes(serve: Any, begins: bytes, kind: Any) -> None:
    web = serve({"/": lambda handler: slowly(handler, begins)})
    web.dripped = {"/": 0}
    spec = spec_of(web.host, obey_robots=False, timeout_s=1.5)
    while not web.dripped["/"]:  # on a busy machine the time may be over before the first byte
        assert told(ask(spec, web.url(), kind=kind(spec.egress))) == ["timeout"]
    assert web.dripped["/"] < 300, "it hangs up while bytes still come"


def test_a_body_is_read_within_its_cap_packed_or_not(serve: Any) -> None:
    zeros, kind = bytes(300_000), Kind("*/*", "gzip", 200_000)
    web = serve()
    web.pages = {
        "/robots.txt": (404, {}, b""),
        "/plain": (200, {}, zeros),
        "/bomb": (200, {"Content-Encoding": "gzip"}, gzip.compress(zeros)),
        "/fits": (200, {"Content-Encoding": "gzip"}, gzip.compress(zeros[:200_000])),
        "/damaged": (200, {"Content-Encoding": "gzip"}, b"\xff" * 99),
        "/br": (200, {"Content-Encoding": "br"}, pa.Codec("brotli").compress(zeros[:200_000], asbytes=True)),
        "/zstd": (200, {"Content-Encoding": "zstd"}, pa.Codec("zstd").compress(zeros, asbytes=True)),
    }
    urls = [web.url(path) for path in web.pages][1:]
    outcomes = told(ask(spec_of(web.host), *urls, kind=kind))
    assert outcomes == ["too_large", "too_large", 200, "bad_response", 200, "too_large"]
    cut = ask(spec_of(web.host), *urls[:2], kind=Kind("*/*", "gzip", 200_000, whole=False))
    assert [outcome.body for outcome in cut if isinstance(outcome, Response)] == [zeros[:200_000]] * 2


@pytest.mark.drill(5)
def test_few_large_bodies_are_held_at_a_time(serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "LARGE_AT_ONCE", 2)
    monkeypatch.setattr(client, "LARGE", 100_000)
    lock, reading, most = threading.Lock(), [0], [0]

    def large(handler: Any) -> None:
        handler.wfile.write(OK + b"Content-Length: 24000000\r\n\r\n" + bytes(14_000_000))  # more than buffers hold
        with lock:
            reading[0] += 1
            most[0] = max(most[0], reading[0])
        time.sleep(0.05)
        handler.wfile.write(bytes(10_000_000))
        with lock:
            reading[0] -= 1

    web = serve({f"/{n}": large for n in range(6)})
    spec = spec_of(web.host, obey_robots=False, connections_per_host=6, max_image_bytes=50_000_000)

    async def all_at_once() -> list[Response]:
        asking = Client(spec)
        got = await asyncio.gather(*(asking.get(web.url(path), image_kind(spec.egress)) for path in web.pages))
        await asking.close()
        return got

    assert {len(response.body) for response in asyncio.run(all_at_once())} == {24_000_000}
    assert 1 <= most[0] <= 2


def test_connections_are_used_again_and_one_that_the_server_closed_costs_nothing(serve: Any) -> None:
    ports = []

    def page(handler: Any) -> None:
        ports.append(handler.client_address[1])
        handler.send_response(200)
        handler.send_header("Content-Length", "4")
        handler.end_headers()
        handler.wfile.write(b"\x89PNG")
        handler.close_connection = handler.path == "/close"  # without a word about it

    web = serve({f"/{name}": page for name in ("a", "b", "close", "c")})
    urls = [web.url(f"/{name}") for name in ("a", "b", "close", "c", "gone", "b")]
    assert told(ask(spec_of(web.host), *urls)) == [200, 200, 200, 200, 404, 200]
    assert ports[0] == ports[1] == ports[2] != ports[3] == ports[4], "a 404 costs no connection either"
    assert web.asked.count("/c") == 1


def test_a_host_that_sets_cookies_gets_none_back(serve: Any) -> None:
    sent = []

    def sets(handler: Any) -> None:
        sent.append(handler.headers.get("Cookie"))
        handler.wfile.write(OK + b"Set-Cookie: id=1; Path=/\r\nContent-Length: 1\r\n\r\nx")

    web = serve({"/1": sets, "/2": sets})
    place = f"http://localhost:{web.port}"  # a name, since jars keep no cookies of numbers
    assert told(ask(spec_of(f"localhost:{web.port}"), f"{place}/1", f"{place}/2")) == [200, 200]
    assert sent == [None, None]


@pytest.mark.parametrize(("paths", "robots", "delay_s", "seconds"), [
    (["/0", "/1", "/2", "/3"], b"", 0.2, 5 * 0.2),  # robots.txt, tdmrep.json and four images
    (["/0", "/1", "/2"], b"User-agent: *\nCrawl-delay: 0.4\n", 0.0, 2 * 0.4),
])  # fmt: skip
@pytest.mark.slow
def test_a_host_is_not_asked_faster_than_spec_and_robots_txt_say(
    serve: Any, paths: list[str], robots: bytes, delay_s: float, seconds: float
) -> None:
    when: list[float] = []
    page = noting(when)
    web = serve(dict.fromkeys([*paths, "/.well-known/tdmrep.json"], page))
    web.pages["/robots.txt"] = (200, {}, robots) if robots else page
    start = time.monotonic()  # not when the first was asked for, which a busy machine notes late
    ask(spec_of(web.host, delay_s=delay_s), *map(web.url, paths))
    assert len(when) == len(paths) + (1 if robots else 2)
    assert when[-1] - start >= seconds - 0.05


def test_a_host_of_its_own_pace_is_asked_at_it(serve: Any) -> None:
    web = serve({"/0": (200, {}, b""), "/1": (200, {}, b"")})
    start = time.monotonic()
    assert told(
        ask(spec_of(web.host, delay_s=60, hosts={"127.0.0.1": {"delay_s": 0}}), web.url("/0"), web.url("/1"))
    ) == [200, 200]
    assert time.monotonic() - start < 150, "three pauses of 60 s"


def test_a_host_takes_as_many_connections_as_its_pace_names(serve: Any) -> None:
    open_now, most = [0], [0]

    def page(handler: Any) -> None:
        open_now[0] += 1
        most[0] = max(most[0], open_now[0])
        time.sleep(0.1)
        open_now[0] -= 1
        handler.send_response(200)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    web = serve(dict.fromkeys(map("/{}".format, range(6)), page))
    spec = spec_of(web.host, obey_robots=False, hosts={"127.0.0.1": {"connections": 3}})

    async def all_at_once() -> None:
        asking = Client(spec)
        await asyncio.gather(*(asking.get(web.url(f"/{number}"), image_kind(spec.egress)) for number in range(6)))
        await asking.close()

    asyncio.run(all_at_once())
    assert most == [3]


@pytest.mark.parametrize("target", ["http://10.0.0.1/robots.txt", "ftp://a.test/", "http://[::1", "http://a:b/"])
@pytest.mark.parametrize("kind", [image_kind, page_kind])
def test_robots_that_lead_where_nobody_may_go_are_asked_for_once_and_paced(serve: Any, target: str, kind: Any) -> None:
    """85 requests in 9.7 s were seen, at a pause of 1 s: each image asked again, and at once."""
    when: list[float] = []
    web = serve({"/robots.txt": noting(when, 301, Location=target)})
    spec = spec_of(web.host, delay_s=0.2)
    start = time.monotonic()
    outcomes = ask(spec, *(web.url(f"/{n}") for n in range(20)), kind=kind(spec.egress))
    assert set(told(outcomes)) == {"robots_unreachable"}
    assert 1 <= len(when) <= policy.TRIES
    assert all(at - start >= 0.2 * n - 0.02 for n, at in enumerate(when)), "at the host's pace"
    assert set(web.asked) == {"/robots.txt"}


@pytest.mark.parametrize("rest", [b"#" * 1_000_000, random.Random(1).randbytes(1_000_000)], ids=["light", "heavy"])
def test_a_packed_robots_txt_that_is_too_large_forbids_what_its_beginning_does(serve: Any, rest: bytes) -> None:
    """Packed it is far below the limit, or above it."""
    body = gzip.compress(b"User-agent: *\nDisallow: /private/\n#" + rest)
    web = serve({"/2": (200, {}, b"x"), "/robots.txt": (200, {"Content-Encoding": "gzip"}, body)})
    assert told(ask(spec_of(web.host), web.url("/private/1"), web.url("/2"))) == ["robots_disallowed", 200]


def test_a_host_whose_robots_txt_could_not_be_had_is_asked_once_more_a_day_later(
    serve: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    monkeypatch.setattr(client, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    web = serve({"/robots.txt": (503, {}, b""), **{f"/{n}": (200, {}, b"x") for n in range(3)}})

    async def asked() -> None:
        asking, kind = Client(spec_of(web.host)), image_kind(spec_of().egress)
        with pytest.raises(RequestFailed, match="robots_unreachable"):
            await asking.get(web.url("/0"), kind)
        clock[0] = policy.ROBOTS_TTL_S + 1
        web.pages["/robots.txt"] = (404, {}, b"")
        before = web.asked.count("/robots.txt")
        for n in (1, 2):
            assert (await asking.get(web.url(f"/{n}"), kind)).status == 200
        assert web.asked.count("/robots.txt") == before + 1
        await asking.close()

    asyncio.run(asked())


def test_what_was_taken_down_is_not_asked_for_by_whatever_leads_there(serve: Any) -> None:
    removed = serve({"/": b"x"})
    odd = serve({"/robots.txt": (302, {"Location": removed.url("/robots.txt")}, b""), "/3": b"x"})
    takedowns = Takedowns(frozenset(domain_hashes(removed.host)))
    for kind in (image_kind, page_kind):
        spec = spec_of(removed.host, odd.host)
        outcomes = ask(spec, removed.url(), odd.url("/3"), kind=kind(spec.egress), takedowns=takedowns)
        assert told(outcomes) == ["forgotten", "robots_unreachable"]
    assert (removed.asked, removed.asked_tdm) == ([], [])
