"""nginx on loopback, for the benchmarks of acquisition.

It serves every photo under as many addresses as a list needs: `/photo/K/N.jpg` is file K whatever N is. It is as fast
as a client can be, so that clients are what is measured. Where the machine has none, Debian's package is unpacked into
the peers' folder, without root.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tests.benchmarks.harness import PEERS, SITE, photos
from tests.processes import free_ports

_CONF = """
worker_processes 1; daemon off; pid {folder}/pid; error_log {folder}/error.log crit;
events {{ worker_connections 4096; }}
http {{
  access_log off; types {{ image/jpeg jpg; text/html html; text/plain txt; application/xml xml; }}
  client_body_temp_path {folder}/t1; proxy_temp_path {folder}/t2; fastcgi_temp_path {folder}/t3;
  uwsgi_temp_path {folder}/t4; scgi_temp_path {folder}/t5;
  keepalive_requests 1000000; sendfile on; tcp_nopush on; tcp_nodelay on; open_file_cache max=2000;
  server {{
    listen 127.0.0.1:{port} backlog=4096; root {root};
    location ~ ^/photo/(?<k>\\d+)/ {{ alias {folder}/photos/$k.jpg; default_type image/jpeg; }}
  }}
}}
"""


def _program() -> str:
    """nginx. Ends the program in one line where there is none and none can be unpacked."""
    from tests.demo.packages import DemoError, unpack_package

    own = PEERS / "nginx"
    found = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin:{own}/usr/sbin")
    if found is None:
        try:
            unpack_package("nginx", own)
        except DemoError as e:
            raise SystemExit(f"needs nginx: {e}") from None
        found = str(own / "usr/sbin/nginx")
    return found


@contextlib.contextmanager
def nginx(root: Path = SITE) -> Iterator[int]:
    """nginx over a folder; gives its port."""
    program, [port] = _program(), free_ports(1)
    with tempfile.TemporaryDirectory(prefix="wenlan-nginx-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        (folder / "photos").mkdir()
        for k, photo in enumerate(photos()):
            shutil.copy(photo, folder / "photos" / f"{k}.jpg")
        conf = folder / "nginx.conf"
        conf.write_text(_CONF.format(folder=folder, port=port, root=root))
        as_root = ["-g", "user root;"] if os.geteuid() == 0 else []  # only root may name a user
        server = subprocess.Popen([program, "-e", str(folder / "error.log"), "-p", name, "-c", str(conf), *as_root])
        try:
            _await(port)
            yield port
        finally:
            server.terminate()
            server.wait(10)


def photo_urls(port: int, count: int, start: int = 0) -> list[str]:
    """So many different addresses of the photos."""
    k = len(photos())
    return [f"http://127.0.0.1:{port}/photo/{n % k}/{n}.jpg" for n in range(start, start + count)]


def _await(port: int) -> None:
    until = time.monotonic() + 10
    while time.monotonic() < until:
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        time.sleep(0.05)
    raise TimeoutError(f"nothing listens on port {port}")
