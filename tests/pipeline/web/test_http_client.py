"""Reading HTTP answers, beside the standard library's own reader on the same bytes."""

from __future__ import annotations

import http.client
import socketserver
import threading
import time
from collections.abc import Iterator

import pytest

from pipeline.web.http_client import MAX_HEADERS, Deadlines, HttpClient, Response

OK = b"HTTP/1.1 200 OK\r\n"
ANSWERS = {
    "length": OK + b'Content-Length: 3\r\nETag: "a"\r\n\r\nabc',
    "empty": OK + b"Content-Length: 0\r\n\r\n",
    "to the end": OK + b"Connection: close\r\n\r\nabc",
    "no word about its end": OK + b"\r\nabc",
    "chunked": OK + b"Transfer-Encoding: chunked\r\n\r\n2\r\nab\r\n1;x=y\r\nc\r\n0\r\n\r\n",
    "chunked in capitals": OK + b"transfer-encoding: CHUNKED\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
    "continued": b"HTTP/1.1 100 Continue\r\nX-Robots-Tag: none\r\n\r\n" + OK + b"Content-Length: 3\r\n\r\nabc",
    "bare line feeds": b"HTTP/1.1 200 OK\nContent-Length: 3\nX-Robots-Tag: noai\n\nabc",
    "empty lines in the body": b"HTTP/1.1 200 OK\nContent-Length: 9\n\na\r\n\r\nb\n\nc",
    "mixed line ends": b"HTTP/1.1 200 OK\r\nContent-Length: 3\nETag: x\r\n\nabc",
    "no headers": b"HTTP/1.1 200 OK\r\n\r\n\r\n",
    "folded": OK + b"X-Robots-Tag: noindex,\r\n  noai\r\nContent-Length: 3\r\n\r\nabc",
    "twice": OK + b"X-Robots-Tag: noai\r\nX-Robots-Tag: wenlan: noindex\r\nContent-Length: 3\r\n\r\nabc",
    "old": b"HTTP/1.0 200 OK\r\n\r\nabc",
    "latin": OK + b"X-Name: caf\xe9\r\nContent-Length: 3\r\n\r\nabc",
    "length that is none": OK + b"Content-Length: +3\r\n\r\nabc",
    "not found": b"HTTP/1.1 404 Not Found\r\nContent-Length: 3\r\n\r\nabc",
}
FAULTS = {
    "ends early": OK + b"Content-Length: 9\r\n\r\nabc",
    "chunk that ends early": OK + b"Transfer-Encoding: chunked\r\n\r\n9\r\nabc",
    "no HTTP": b"SSH-2.0-OpenSSH_9.2\r\n",
    "nothing": b"",
    "a long line": OK + b"X: " + b"x" * 70_000 + b"\r\n\r\nabc",
    "many headers": OK + b"X: y\r\n" * (MAX_HEADERS + 1) + b"\r\nabc",
}


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    """A server that says /N's canned bytes, and hangs up; /N?bytes has them come one by one."""
    canned = {**ANSWERS, **FAULTS}

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            number, _, in_bytes = self.rfile.readline().split()[1].strip(b"/").partition(b"?")
            while self.rfile.readline().strip():
                pass
            canned_answer = list(canned.values())[int(number)]
            for at in range(len(canned_answer)) if in_bytes else ():
                self.wfile.write(canned_answer[at : at + 1])
                time.sleep(0.001)
            if not in_bytes:
                self.wfile.write(canned_answer)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1]
        server.shutdown()


def ask(port: int, name: str, query: str = "") -> Response:
    client = HttpClient()
    url = f"http://127.0.0.1:{port}/{list({**ANSWERS, **FAULTS}).index(name)}{query}"
    try:
        with Deadlines(120).deadline() as deadline:
            return client.get(url, {}, 1000, True, deadline)
    finally:
        client.close()


@pytest.mark.parametrize("name", ANSWERS)
def test_an_answer_is_read_as_the_standard_library_reads_it(port: int, name: str) -> None:
    theirs = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    theirs.request("GET", f"/{list(ANSWERS).index(name)}")
    expected = theirs.getresponse()
    body = expected.read()
    theirs.close()
    response = ask(port, name)
    assert response.status == expected.status
    assert response.body == (body if response.status == 200 else b"")
    seen = [(n, " ".join(v.split())) for n, v in expected.headers.items()]
    assert response.headers.items() == seen


@pytest.mark.parametrize("name", ANSWERS)
def test_an_answer_that_comes_byte_by_byte_is_the_same(port: int, name: str) -> None:
    at_once, slowly = ask(port, name), ask(port, name, "?bytes")
    assert (slowly.status, slowly.body) == (at_once.status, at_once.body)
    assert slowly.headers.items() == at_once.headers.items()


@pytest.mark.parametrize("name", FAULTS)
def test_what_is_no_answer_is_an_error(port: int, name: str) -> None:
    with pytest.raises((OSError, http.client.HTTPException)):
        ask(port, name)


def test_an_address_cannot_smuggle_a_second_request() -> None:
    with Deadlines(120).deadline() as deadline, pytest.raises(ValueError, match="cannot send"):
        HttpClient().get("http://127.0.0.1:9/a b", {}, 1000, True, deadline)
