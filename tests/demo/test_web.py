"""web: the corpus as web sites on loopback."""

from __future__ import annotations

import http.client
import socket
from pathlib import Path

import pytest

from tests.demo.packages import DemoError
from tests.demo.web import HOST, Site, serve
from tests.processes import free_ports


def _get(port: int, path: str, headers: dict[str, str] | None = None) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection(HOST, port, timeout=120)
    try:
        connection.request("GET", path, headers=headers or {})
        answer = connection.getresponse()
        return answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read()
    finally:
        connection.close()


def test_site_answers_as_a_web_site_does(tmp_path: Path) -> None:
    site = Site("stamps", *free_ports(1))
    (tmp_path / "stamps" / "images").mkdir(parents=True)
    (tmp_path / "stamps" / "index.html").write_text("<p>中文", encoding="utf-8")
    (tmp_path / "stamps" / "images" / "红.png").write_bytes(b"png")
    (tmp_path / "stamps.csv").write_text("not part of the site")
    with serve(tmp_path, (site,)):
        for path in ("/", "/index.html"):
            status, headers, body = _get(site.port, path)
            assert (status, body) == (200, "<p>中文".encode())
            assert headers["content-type"] == "text/html; charset=utf-8"
            assert headers["last-modified"]
            assert headers["etag"].startswith('"')
        status, headers, body = _get(site.port, "/images//%E7%BA%A2.png")
        assert (status, headers["content-type"], body) == (200, "image/png", b"png")
        again = _get(site.port, "/images/%E7%BA%A2.png", {"If-None-Match": headers["etag"]})
        assert (again[0], again[2]) == (304, b"")
        assert _get(site.port, "/images/%E7%BA%A2.png", {"If-None-Match": '"other"'})[0] == 200
        assert _get(site.port, "/images/")[0] == 403
        assert _get(site.port, "/nothing.png")[0] == 404
        assert _get(site.port, "/../stamps.csv")[0] == 404
    with pytest.raises(OSError, match="refused"):
        _get(site.port, "/")


def test_taken_port_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "handbook").mkdir()
    with socket.socket() as other:
        other.bind((HOST, 0))
        other.listen()
        site = Site("handbook", other.getsockname()[1])
        taken = f"port {site.port} of 127.0.0.1 is taken by another program"
        with pytest.raises(DemoError, match=taken), serve(tmp_path, (site,)):
            pytest.fail("served on a port of another program")


def test_missing_corpus_is_one_sentence(tmp_path: Path) -> None:
    site = Site("handbook", *free_ports(1))
    with pytest.raises(DemoError, match="handbook: is missing; make the corpus first"), serve(tmp_path, (site,)):
        pytest.fail("served a folder that is not there")
