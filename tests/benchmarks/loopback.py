"""Servers on loopback that the benchmarks of acquisition ask: nginx with real photos, and a server that means ill.

nginx (Debian's `nginx-light`) serves every photo under as many addresses as a list needs: `/photo/K/N.jpg` is file K
whatever N is. It is as fast as a client can be, so that clients are what is measured.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
SITE = ROOT.parent / "shared" / "corpus" / "howtocook-site"
PHOTOS = SITE / "images"
PEER = ROOT / ".bench" / "bin"

_CONF = """
worker_processes 1; daemon off; pid {folder}/pid; error_log {folder}/error.log crit;
events {{ worker_connections 4096; }}
http {{
  access_log {log}; types {{ image/jpeg jpg; text/html html; text/plain txt; application/xml xml; }}
  client_body_temp_path {folder}/t1; proxy_temp_path {folder}/t2; fastcgi_temp_path {folder}/t3;
  uwsgi_temp_path {folder}/t4; scgi_temp_path {folder}/t5;
  keepalive_requests 1000000; sendfile on; tcp_nopush on; tcp_nodelay on; open_file_cache max=2000;
  server {{
    listen 127.0.0.1:{port} backlog=4096; root {root};
    location ~ ^/photo/(?<k>\\d+)/ {{ alias {folder}/photos/$k.jpg; default_type image/jpeg; }}
  }}
}}
"""


def missing(*wanted: Path) -> bool:
    """Say on stderr what a benchmark needs and has not; nginx and the corpus always."""
    lacks = [str(path) for path in (PHOTOS, *wanted) if not path.exists()]
    lacks += [] if nginx_program() else ["nginx (Debian: nginx-light)"]
    for name in lacks:
        print(f"needs {name}; `make bench-venv` makes the peers' environment", file=sys.stderr)
    return bool(lacks)


def nginx_program() -> str:
    return shutil.which("nginx") or next((p for p in ("/usr/sbin/nginx",) if os.access(p, os.X_OK)), "")


@contextlib.contextmanager
def nginx(root: Path = SITE, log: str = "off") -> Iterator[int]:
    """nginx over a folder; gives its port."""
    with tempfile.TemporaryDirectory(prefix="wenlan-nginx-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        (folder / "photos").mkdir()
        for k, photo in enumerate(sorted(PHOTOS.glob("*.jpg"))):
            shutil.copy(photo, folder / "photos" / f"{k}.jpg")
        port = free_port()
        conf = folder / "nginx.conf"
        conf.write_text(_CONF.format(folder=folder, port=port, root=root, log=log))
        server = subprocess.Popen([nginx_program(), "-p", name, "-c", str(conf), "-g", "user root;"[: _as_root()]])
        try:
            _await(port)
            yield port
        finally:
            server.terminate()
            server.wait(10)


def photo_urls(port: int, count: int, start: int = 0) -> list[str]:
    """So many different addresses of the photos."""
    k = len(list(PHOTOS.glob("*.jpg")))
    return [f"http://127.0.0.1:{port}/photo/{n % k}/{n}.jpg" for n in range(start, start + count)]


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def _as_root() -> int:
    """The length of nginx's `user` line that applies: it is refused to anybody but root."""
    return 99 if os.geteuid() == 0 else 0


def _await(port: int) -> None:
    until = time.monotonic() + 10
    while time.monotonic() < until:
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        time.sleep(0.05)
    raise TimeoutError(f"nothing listens on port {port}")
