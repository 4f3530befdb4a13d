"""What the pipeline's tests share: real web servers on loopback, and builds that talk to them; damage to a
published dataset whose digests hold."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_specs.build import BuildSpec
from data_specs.command.loopback import start_ray
from data_specs.shard import Manifest, content_digest
from pipeline.stages import STAGES
from pipeline.store.build import Build
from pipeline.store.store import Store

Change = Callable[[list[dict[str, Any]]], None]


@dataclass
class Web:
    """A server. `pages` maps a path to bytes of HTML, to (status, headers, body), or to a function of the handler.

    holds(path): whether an answer waits.
    """

    port: int
    pages: dict[str, Any] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    asked_tdm: list[str] = field(default_factory=list)
    agents: set[str] = field(default_factory=set)
    holds: Callable[[str], bool] = lambda _: False

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.port}"

    def url(self, path: str = "/") -> str:
        return f"http://{self.host}{path}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 20
    disable_nagle_algorithm = True  # else each answer waits 40 ms for an acknowledgement
    web: Web

    def do_GET(self) -> None:
        # every host is asked for this file; a test that is not about it need not say so
        (self.web.asked if self.path != "/.well-known/tdmrep.json" else self.web.asked_tdm).append(self.path)
        self.web.agents.add(self.headers.get("User-Agent", ""))
        while self.web.holds(self.path):
            time.sleep(0.02)
        page = self.web.pages.get(self.path, (404, {}, b"not here"))
        if callable(page):
            page(self)
            return
        status, headers, body = page if isinstance(page, tuple) else (200, {}, page)
        self.send_response(status)
        for name, value in {"Content-Type": "text/html; charset=utf-8", **headers}.items():
            self.send_header(name, value)
        if "Content-Length" not in headers:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up is what many tests are about."""


def _servers() -> Iterator[Callable[..., Web]]:
    """Start servers: `serve({"/": b"<html>..."})`."""
    servers = []

    def start(pages: dict[str, Any] | None = None) -> Web:
        handler = type("Handler", (_Handler,), {})
        server = _Server(("127.0.0.1", 0), handler)
        servers.append(server)
        handler.web = Web(server.server_port, pages or {})  # type: ignore[attr-defined]
        threading.Thread(target=lambda: server.serve_forever(poll_interval=0.02), daemon=True).start()
        return handler.web  # type: ignore[attr-defined, no-any-return]

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


serve = pytest.fixture(_servers)
serve_for_module = pytest.fixture(_servers, scope="module")
serve_for_session = pytest.fixture(_servers, scope="session")
"""`serve`, of servers that stay for all tests of a file, or of a process."""


@pytest.fixture(scope="module")
def ray() -> ModuleType:
    """A Ray of two CPUs in this process, shared by the files ON_RAY (tests/conftest.py).

    It counts one GPU, which no machine needs to have: no test computes on it.
    """
    import ray

    if not ray.is_initialized():
        start_ray(ray, num_cpus=2, num_gpus=1, include_dashboard=False, logging_level="ERROR")
    return ray


@pytest.fixture
def make_build(tmp_path: Path) -> Callable[..., Build]:
    """A build in a temporary folder that may reach the given servers; keyword arguments go into the spec."""

    def make(*webs: Web, out: str = "build", sources: list[dict[str, Any]], **spec: Any) -> Build:
        egress = {"allow": [web.host for web in webs], "delay_s": 0, "timeout_s": 60, **spec.pop("egress", {})}
        spec["fetch"] = {"max_wait_s": 0, "recheck_every": 0, **spec.get("fetch", {})}
        return Build(
            stages=STAGES,
            spec=BuildSpec.model_validate(
                {"name": "t", "contact": "mailto:x@example.org", "sources": sources, "egress": egress, **spec}
            ),
            out=str(tmp_path / out),
            store=Store(str(tmp_path / "store")),
            build_id="t",
            snapshot="2026-01-01",
            fingerprints={
                **dict.fromkeys(("admit.sort", "fetch.recheck"), "5" * 64),
                **{name: name[:1] * 64 for name in ("crawl", "extract", "admit", "fetch")},
            },
        )

    return make


@pytest.fixture
def reseal() -> Callable[[Path], None]:
    """reseal(folder): make the manifest match the files again, so that only their content can be at fault."""
    return _reseal


@pytest.fixture
def edit() -> Callable[[Path, Change], None]:
    """edit(path, change): write a Parquet file again, after `change` was applied to its rows."""
    return _edit


def _reseal(folder: Path) -> None:
    raw = json.loads((folder / "manifest.json").read_bytes())
    for shard in raw["shards"]:
        for file in (shard["tar"], shard["parquet"], *shard["regions"].values()):
            data = (folder / file["path"]).read_bytes()
            file |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    raw["content_digest"] = content_digest(Manifest.model_validate(raw).shards)
    (folder / "manifest.json").write_text(json.dumps(raw), encoding="utf-8")


def _edit(path: Path, change: Change) -> None:
    table = pq.read_table(path)
    rows = table.to_pylist()
    change(rows)
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), path)
