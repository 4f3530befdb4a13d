"""The crawl as a site grows: time a page of 1,000 and of 10,000 pages, in a process of its own, beyond its start.

The site is a tree of Chinese pages with pictures, eight links each, served by nginx from files. Politeness is there
(robots.txt, turns, guard), the pause is zero, since loopback is one host.

Then a site of 900 pages is crawled at its pace, alone and with 60 broken ones in a row among its links: what is broken
of a page costs that page alone, and pauses no host.
"""

from __future__ import annotations

import contextlib
import gzip
import socket
import socketserver
import statistics
import struct
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from harness import at_most, quick, report
from loopback import missing, nginx

WORDS = "山水云雨风雪花鸟鱼虫春夏秋冬东南西北天地人和金木石火土日月星江河湖海"


def main() -> int:
    sizes, rounds = ((200, 1_000), 1) if quick(__doc__ or "") else ((1_000, 10_000), 3)
    if missing():
        return 1
    times: dict[int, list[float]] = {size: [] for size in sizes}
    with tempfile.TemporaryDirectory(prefix="wenlan-bench-") as name:
        Path(name).chmod(0o755)
        for size in sizes:
            tree(Path(name) / str(size), size)
        with nginx(Path(name)) as port:
            crawl_once(port, sizes[0])  # imports
            for _ in range(rounds):
                for size in sizes:
                    times[size].append(crawl_once(port, size) / size)
    each = {size: statistics.median(seconds) for size, seconds in times.items()}
    print("ms a page:", {size: round(1000 * seconds, 3) for size, seconds in each.items()}, file=sys.stderr)
    sound = 90 if sizes[0] == 200 else 900
    alone, beside = (crawl_broken(sound, broken) for broken in (0, sound // 15))
    print(f"{sound} pages: {alone:.1f} s; with {sound // 15} broken ones: {beside:.1f} s", file=sys.stderr)
    return report(
        {
            "growth_largest_to_smallest": at_most(each[sizes[-1]] / each[sizes[0]], 1.2),
            "time_with_broken_pages": at_most(beside / alone, 1.3),
        }
    )


def tree(folder: Path, size: int) -> None:
    """Pages 0 to size - 1; page n links 8n + 1 to 8n + 8."""
    folder.mkdir(mode=0o755)
    for n in range(size):
        links = "".join(f'<li><a href="{k}.html">{name(k)}</a>' for k in range(8 * n + 1, min(8 * n + 9, size)))
        text = "".join(f"<p>{name(n * 31 + k) * 12}。</p>" for k in range(8))
        body = f'<h1>{name(n)}</h1><img src="/images/{n}.jpg" alt="{name(n)}的照片">{text}<ul>{links}</ul>'
        page = f'<!doctype html><meta charset="utf-8"><title>{name(n)}</title>{body}'
        (folder / f"{n}.html").write_text(page, encoding="utf-8")


def name(n: int) -> str:
    """A word of four characters, another one for each number."""
    return "".join(WORDS[(n // len(WORDS) ** k) % len(WORDS)] for k in range(4))


OK, HTML = b"HTTP/1.1 200 OK\r\n", b"Content-Type: text/html\r\n"
PAGE = "<!doctype html><meta charset=utf-8><p>北京的雪".encode()


def status(line: str, *headers: str) -> bytes:
    """A response without a body."""
    return "\r\n".join([f"HTTP/1.1 {line}", *headers, "Content-Length: 0", "", ""]).encode()


def packed(encoding: str, body: bytes) -> bytes:
    """A page that is said to be packed."""
    head = f"Content-Encoding: {encoding}\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    return OK + HTML + head + body


def broken_pages() -> list[bytes]:
    """What a server says for a page before it hangs up, sixty kinds of it; b"" for a reset connection."""
    import pyarrow as pa

    gz = gzip.compress(PAGE * 100)
    br, zstd = (pa.Codec(name).compress(PAGE * 100, asbytes=True) for name in ("brotli", "zstd"))
    chunked = OK + HTML + b"Transfer-Encoding: chunked\r\n\r\n"
    kinds = [packed("gzip", gz[:end]) for end in (1, 5, 20, -9, -1)] + [packed("gzip", b"\xff" * 99)]
    kinds += [packed("br", part) for part in (br, br[:9], b"\xff" * 99, gz)]
    kinds += [packed("zstd", part) for part in (zstd, zstd[:9], b"\xff" * 99, gz)]
    kinds += [packed(name, gz) for name in ("deflate", "compress", "snappy", "gzip, gzip", "gzip, br", "x" * 999)]
    for size in (20_000, 70_000, 1_000_000):
        kinds.append(OK + HTML + b"X: " + b"x" * size + b"\r\nContent-Length: 3\r\n\r\nabc")
    kinds += [OK + HTML + b"X: y\r\n" * 1_000 + b"\r\n", OK + HTML + b"X: y\0z\r\n\r\nabc", OK + b"X\0: y\r\n\r\nabc"]
    for length in (b"9", b"+3", b"-1", b"3, 4", b"x"):
        kinds.append(OK + HTML + b"Content-Length: " + length + b"\r\n\r\nabc")
    kinds += [chunked + body for body in (b"9\r\nabc", b"zz\r\nabc\r\n0\r\n\r\n", b"3\r\nabc\r\n", b"3\r\nabcdef\r\n")]
    kinds += [b"SSH-2.0-OpenSSH_9.2\r\n", PAGE, b"\0" * 99, b"HTTP/9.9 200 OK\r\n\r\n", OK, b""]
    for code in (400, 403, 404, 408, 410, 418, 425, 451, 500, 501, 502, 503, 504, 520, 599, 2000):
        kinds.append(status(f"{code} X"))
    kinds += [status("302 Found", f"Location: {to}") for to in ("", "http://[::1", "file:///etc/passwd")]
    return kinds[:60]


@contextlib.contextmanager
def broken_site(sound: int, broken: int) -> Iterator[int]:
    """A server on loopback; its first page links the broken ones, in a row, and the sound ones. Yields its port."""
    kinds = broken_pages()
    links = "".join(f"<a href=/{kind}{n}>a</a>" for kind, of in (("b", broken), ("p", sound)) for n in range(of))

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            path = (self.rfile.readline().split() or [b"", b""])[1].decode()
            while self.rfile.readline().strip():
                pass
            if path.startswith("/b") and not (said := kinds[int(path[2:]) % len(kinds)]):
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            elif path.startswith("/b"):
                self.wfile.write(said)
            elif path == "/" or path.startswith("/p"):
                body = PAGE + (links if path == "/" else name(int(path[2:])) * 30).encode()
                self.wfile.write(OK + HTML + f"Content-Length: {len(body)}\r\n\r\n".encode() + body)
            else:
                self.wfile.write(status("404 Not Found"))

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True
        request_queue_size = 128

        def handle_error(self, *_: object) -> None:
            """The client hung up."""

    with Server(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1]
        server.shutdown()


def crawl_broken(sound: int, broken: int) -> float:
    """Seconds of a crawl at 50 requests a second."""
    with broken_site(sound, broken) as port:
        return crawl(port, "/", sound + 1, 0.02, {"max_pages": 2 * sound})


def crawl_once(port: int, size: int) -> float:
    """Seconds of the crawl stage's partition."""
    return crawl(port, f"/{size}/0.html", size, 0, {"max_pages": size + 1})


def crawl(port: int, path: str, least: int, delay_s: float, limits: dict[str, int]) -> float:
    """Seconds of a crawl that keeps at least so many pages."""
    from data_specs.build import BuildSpec
    from pipeline.stages import STAGES
    from pipeline.stages import crawl as stage
    from pipeline.store.build import Build
    from pipeline.store.store import Store

    with tempfile.TemporaryDirectory(prefix="wenlan-bench-") as out:
        start = f"http://127.0.0.1:{port}{path}"
        source = {"kind": "site", "name": "site", "source_kind": "news", "start": [start], **limits}
        egress = {"allow": [f"127.0.0.1:{port}"], "delay_s": delay_s}
        fields = {"name": "bench", "contact": "https://example.org/bench", "sources": [source], "egress": egress}
        spec = BuildSpec.model_validate(fields)
        build = Build(spec, out, Store(f"{out}/store"), "bench", "2026-01-01", {"crawl": "c" * 64}, stages=STAGES)
        began = time.perf_counter()
        stage.run_partition(build, "site")
        seconds = time.perf_counter() - began
        assert build.stage("crawl").record("site").counts["kept"] >= least
        return seconds


if __name__ == "__main__":
    sys.exit(main())
