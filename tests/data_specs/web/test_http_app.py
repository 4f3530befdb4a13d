"""Checks before every request of wenlan's servers, asked of a real one on loopback."""

import asyncio
import http.client
import json
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from data_specs.web import http_app
from data_specs.web.http_app import Limits, error_body, is_loopback, new_token, with_checks
from tests.processes import wait_until

pytest.importorskip("fastapi")
TOKEN = new_token()
PATIENCE_S = 120
"""That a client has on a busy machine: no limit of a server is meant."""
_NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
"""Without it httpx reads all certificates of the machine anew for each request."""


def application() -> Any:
    from fastapi import FastAPI, Request

    app = FastAPI()

    @app.get("/page")
    def page(word: str = "") -> dict[str, str]:
        return {"word": word}

    @app.get("/health")
    def health() -> dict[str, bool]:
        return {"ok": True}

    @app.post("/bytes")
    async def count(request: Request) -> dict[str, int]:
        return {"bytes": len(await request.body())}

    @app.post("/json")
    async def parsed(body: dict[str, str]) -> dict[str, str]:
        return body

    return app


@contextmanager
def running(**options: Any) -> Iterator[str]:
    """URL of a server of `application` behind the checks."""
    import uvicorn

    app = with_checks(application(), **options)
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="off"))
    bound = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[bound])))
    thread.start()
    try:
        wait_until(lambda: server.started, "the server has started")
        yield f"http://127.0.0.1:{bound.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
        bound.close()


@pytest.fixture(scope="module")
def closed() -> Iterator[str]:
    """A server that wants the token."""
    with running(token=TOKEN, open_paths=("/open",), probes=("/health",)) as url:
        yield url


@pytest.fixture(scope="module")
def narrow() -> Iterator[str]:
    """A server without a token that takes small bodies."""
    with running(token=None, limits=Limits(body_bytes=1000, body_seconds=300)) as url:
        yield url


def get(url: str, **options: Any) -> httpx.Response:
    return httpx.get(url, timeout=PATIENCE_S, verify=_NO_TLS, **options)


def post(url: str, **options: Any) -> httpx.Response:
    return httpx.post(url, timeout=PATIENCE_S, verify=_NO_TLS, **options)


def code(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]


BEARER = {"authorization": f"Bearer {TOKEN}"}


def test_without_the_token_only_open_paths_answer(closed):
    assert code(get(f"{closed}/page")) == (401, "token")
    assert code(get(f"{closed}/page", headers={"authorization": "Bearer guess"})) == (401, "token")
    assert code(get(f"{closed}/page?token=guess")) == (401, "token")
    assert get(f"{closed}/page", headers=BEARER).json() == {"word": ""}
    assert get(f"{closed}/health").json() == {"ok": True}
    assert get(f"{closed}/open").status_code == 404, "the application answers"


def test_the_link_with_the_token_gives_a_cookie_and_leads_to_itself_without(closed):
    with httpx.Client(timeout=PATIENCE_S, verify=_NO_TLS) as browser:
        first = browser.get(f"{closed}/page?word=a%26b&token={TOKEN}")
        assert (first.status_code, first.headers["location"]) == (303, "/page?word=a%26b")
        assert {"HttpOnly", "SameSite=Strict"} <= set(first.headers["set-cookie"].split("; "))
        assert TOKEN not in first.headers["set-cookie"]
        assert browser.get(f"{closed}{first.headers['location']}").json() == {"word": "a&b"}
    elsewhere = get(f"{closed}//evil.example/?token={TOKEN}")
    assert elsewhere.headers["location"] == "/evil.example/"


def test_a_link_that_a_browser_is_started_with_works_once():
    once = new_token()
    with running(token=TOKEN, once=[once]) as url:
        assert code(get(f"{url}/page", headers={"authorization": f"Bearer {once}"})) == (401, "token")
        with httpx.Client(timeout=PATIENCE_S, verify=_NO_TLS) as browser:
            assert browser.get(f"{url}/page?token={once}").status_code == 303
            assert browser.get(f"{url}/page").json() == {"word": ""}
            assert browser.get(f"{url}/page?token={once}").json() == {"word": ""}, "its cookie is good"
        assert code(get(f"{url}/page?token={once}")) == (401, "token")
        assert get(f"{url}/page?token={TOKEN}").status_code == 303


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "", "127.0.0.1.evil.example"])
def test_a_name_that_is_not_served_is_refused_whatever_it_brings(closed, host):
    for path in ("/page", "/open"):
        assert code(get(f"{closed}{path}", headers={**BEARER, "host": host})) == (421, "wrong_host")
    assert get(f"{closed}/health", headers={"host": host}).json() == {"ok": True}, "a probe knows no name"


@pytest.mark.parametrize(
    "headers", [{"origin": "https://evil.example"}, {"origin": "null"}, {"sec-fetch-site": "cross-site"}]
)
def test_another_sites_page_can_change_nothing(closed, headers):
    assert code(post(f"{closed}/bytes", headers={**BEARER, **headers}, content=b"x")) == (403, "foreign_origin")
    own = {"origin": closed, "sec-fetch-site": "same-origin"}
    assert post(f"{closed}/bytes", headers={**BEARER, **own}, content=b"x").json() == {"bytes": 1}
    assert "access-control-allow-origin" not in get(f"{closed}/page", headers={**BEARER, **headers}).headers


def test_a_body_that_is_too_large_is_refused_with_and_without_its_length(narrow):
    assert post(f"{narrow}/bytes", content=b"x" * 1000).json() == {"bytes": 1000}
    assert code(post(f"{narrow}/bytes", content=b"x" * 1001)) == (413, "body_too_large")
    chunks = (b"x" * 600 for _ in range(2))
    assert code(post(f"{narrow}/bytes", content=chunks)) == (413, "body_too_large")
    chunks = (b'{"a": "%s"}' % (b"x" * 1200) for _ in range(1))
    content = {"content-type": "application/json"}
    assert code(post(f"{narrow}/json", content=chunks, headers=content)) == (413, "body_too_large")


@pytest.mark.parametrize("headers", [{}, {"host": "evil.example"}])
def test_a_refusal_is_read_by_clients_that_send_all_of_a_body_first(narrow, headers):
    """http.client, and with it urllib and requests: it got a reset."""
    place = urlsplit(narrow)
    for body in (b"x" * 20_000_000, iter([b"x" * 1_000_000] * 20)):
        client = http.client.HTTPConnection(place.hostname, place.port, timeout=PATIENCE_S)
        client.request("POST", "/bytes", body, headers, encode_chunked=not isinstance(body, bytes))
        answer = client.getresponse()
        expected = (421, "wrong_host") if headers else (413, "body_too_large")
        assert (answer.status, json.load(answer)["error"]["code"]) == expected
        client.close()


@pytest.mark.slow
def test_a_refused_body_is_not_read_without_end(narrow, monkeypatch):
    monkeypatch.setattr(http_app, "DRAINED", 1_000_000)
    place = urlsplit(narrow)
    with socket.create_connection((place.hostname, place.port), timeout=PATIENCE_S) as client:
        client.sendall(b"POST /bytes HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 999999999\r\n\r\n")
        with pytest.raises(ConnectionError):
            client.sendall(b"x" * 200_000_000)


def test_a_client_that_asks_before_it_sends_is_refused_at_once(narrow):
    place = urlsplit(narrow)
    with socket.create_connection((place.hostname, place.port), timeout=PATIENCE_S) as client:
        head = b"POST /bytes HTTP/1.1\r\nHost: 127.0.0.1\r\nExpect: 100-continue\r\nContent-Length: 999999\r\n\r\n"
        client.sendall(head)
        assert client.makefile("rb").readline().startswith(b"HTTP/1.1 413 ")


@pytest.mark.slow
def test_a_body_that_comes_slowly_is_refused_in_time():
    with running(token=None, limits=Limits(body_bytes=1000, body_seconds=0.5)) as hasty:
        host, _, port = hasty.removeprefix("http://").partition(":")
        for path in ("/bytes", "/json"):
            with socket.create_connection((host, int(port)), timeout=PATIENCE_S) as slow:
                head = ["Host: 127.0.0.1", "Content-Type: application/json", "Content-Length: 9"]
                slow.sendall("\r\n".join([f"POST {path} HTTP/1.1", *head, "", "{"]).encode())
                answer = slow.makefile("rb").read()
            assert answer.startswith(b"HTTP/1.1 408 ")
            assert b"slow_body" in answer


@pytest.mark.usefixtures("one_minute")
def test_a_client_that_asks_too_often_is_told_when_to_come_back():
    with running(token=None, limits=Limits(per_minute=3), probes=("/health",)) as url:
        answers = [get(f"{url}/page") for _ in range(4)]
        assert [answer.status_code for answer in answers] == [200, 200, 200, 429]
        assert 1 <= int(answers[-1].headers["retry-after"]) <= 60
        assert answers[-1].json() == error_body(429, "more than 3 requests per minute", code="rate_limit")
        assert get(f"{url}/health").status_code == 200


def test_every_answer_forbids_what_a_page_does_not_need(closed, narrow):
    for answer in (get(f"{closed}/page"), get(f"{narrow}/page"), get(f"{narrow}/nothing")):
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert answer.headers["cache-control"] == "no-store"


def test_loopback_is_what_only_this_machine_reaches():
    assert all(map(is_loopback, ("127.0.0.1", "localhost", "::1", "127.8.8.8")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "192.168.0.1", "127.0.0.1.evil.example", "")))
