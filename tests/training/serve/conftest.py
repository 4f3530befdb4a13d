"""Real servers for tests: in this process on a thread, or as the command in a process of its own."""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import io
import os
import signal
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

pytest.importorskip("fastapi")

from data_specs.search.index import IndexWriter
from data_specs.search.search import SearchIndex
from data_specs.web.http_app import LOOPBACK
from tests.places import ROOT
from training.outputs.checkpoint import open_checkpoint
from training.serve.app import application, with_request_limits
from training.serve.galleries import Galleries
from training.serve.options import Options
from training.serve.server import listen, make_server
from training.serve.service import Service
from training.serve.towers import Features, TorchTowers, Towers
from training.use.indexing import index_info
from training.weights.load import load

COLOURS = {"红": (200, 30, 30), "绿": (30, 170, 40), "蓝": (30, 60, 210), "黄": (230, 210, 40), "紫": (130, 40, 160)}


def picture(number: int, width: int = 48, height: int = 36) -> bytes:
    """A JPEG of one of COLOURS with noise that tells its number."""
    rng = np.random.default_rng(number)
    colour = list(COLOURS.values())[number % len(COLOURS)]
    pixels = np.clip(np.array(colour) + rng.normal(0, 30, (4, 6, 3)), 0, 255).astype(np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).resize((width, height)).save(out, "JPEG", quality=92)
    return out.getvalue()


_NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
"""Without it httpx reads all certificates of the machine anew for each request."""


PATIENCE_S = 240
"""The longest that a client of a test waits for an answer."""


def patient(**limits: Any) -> Options:
    """Limits of a server in which a busy machine stays, but for those that a test is about."""
    return Options(**{"request_s": PATIENCE_S, "health_s": 60, "body_s": PATIENCE_S, "header_s": PATIENCE_S} | limits)


@dataclass
class Server:
    """A running server. towers: None where it is another process."""

    url: str
    service: Service | None = None
    process: subprocess.Popen[str] | None = None

    def get(self, path: str, **options: Any) -> httpx.Response:
        return httpx.get(f"{self.url}{path}", timeout=PATIENCE_S, verify=_NO_TLS, **options)

    def post(self, path: str, **options: Any) -> httpx.Response:
        return httpx.post(f"{self.url}{path}", timeout=PATIENCE_S, verify=_NO_TLS, **options)

    def embeddings(self, **body: Any) -> httpx.Response:
        return self.post("/v1/embeddings", json=body)


@contextlib.contextmanager
def running(
    checkpoint: Path,
    options: Options | None = None,
    *,
    towers: Callable[[Towers], Towers] = lambda towers: towers,
    indexes: dict[str, Path] | None = None,
    token: str | None = None,
    port: int = 0,
) -> Iterator[Server]:
    """A server on a thread of this process; `towers` may stand between it and the real ones."""
    loaded = load(checkpoint, "cpu")
    service = Service("tiny", loaded.checkpoint, towers(TorchTowers(loaded)), options or patient())
    opened = {name: SearchIndex.open(folder) for name, folder in (indexes or {}).items()}
    app = with_request_limits(application(service, Galleries(service, opened)), service, token, LOOPBACK)
    bound = listen("127.0.0.1", port)
    server = make_server(app, service.options)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[bound])), daemon=True)
    thread.start()
    try:
        until = time.monotonic() + 120
        while not server.started:
            assert time.monotonic() < until, "the server did not start"
            time.sleep(0.01)
        yield Server(f"http://127.0.0.1:{bound.getsockname()[1]}", service)
    finally:
        server.should_exit = True
        thread.join(10)
        if thread.is_alive():  # says what it waits for, and does not hold up the tests for it
            faulthandler.dump_traceback(sys.__stderr__)
            server.force_exit = True
            thread.join(10)
        bound.close()


@contextlib.contextmanager
def command(
    checkpoint: Path, *words: str, environment: dict[str, str] | None = None, engine: str = "torch"
) -> Iterator[Server]:
    """`wenlan-train serve` in a process of its own, which is killed at the end if it still runs."""
    limits = ["--request-s", str(PATIENCE_S), "--health-s", "60"]  # of two that are given, the later holds
    start = [sys.executable, "-m", "training", "serve", str(checkpoint), "--port", "0", "--engine", engine]
    every = [*start, *limits, *words]
    process = subprocess.Popen(
        every, cwd=ROOT, env=os.environ | (environment or {}), stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stderr is not None
        url, lines = "", []
        for line in process.stderr:
            lines.append(line)
            if " on http://" in line:
                url = line.split(" on ")[1].split()[0]
            if "the towers answer" in line:
                break
        assert url, "".join(lines)
        yield Server(url, process=process)
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()


def write_index(folder: Path, checkpoint: Path, pictures: Sequence[bytes], texts: Sequence[str]) -> Path:
    """An index of pictures with their texts, as `embed --index` writes it, by the towers of a checkpoint."""
    import hashlib

    from training.use.encode import open_encoder

    encoder = open_encoder(checkpoint, "cpu")
    place = folder / "pictures"
    place.mkdir(parents=True)
    rows = []
    for number, (content, text) in enumerate(zip(pictures, texts, strict=True)):
        file, digest = place / f"{number}.jpg", hashlib.sha256(content).hexdigest()
        file.write_bytes(content)
        rows.append(
            {
                "id": f"{number:032x}",
                "caption": text,
                "texts": [{"kind": "alt", "text": text}],
                "url": f"http://127.0.0.1/{number}.jpg",
                "page_url": f"http://127.0.0.1/{number}.html",
                "sha256": digest,
                "width": 48,
                "height": 36,
                "source": "news" if number % 2 else "library",
                "license": "CC0-1.0" if number % 3 else "",
                "split": "train",
                "image_leader": digest,
                "text_leader": hashlib.sha256(text.encode()).hexdigest(),
                "boxes": [0.0, 0.0, 24.0, 18.0, 10.0, 6.0, 48.0, 36.0],
                "where": {"path": str(file), "offset": 0, "size": len(content), "sha256": digest},
            }
        )
    about = index_info(open_checkpoint(checkpoint), "pictures")
    with IndexWriter.begin(folder / "index", about) as writer:
        writer.add(pa.Table.from_pylist(rows), encoder.encode_image(list(pictures)), encoder.encode_text(list(texts)))
        writer.finish()
    return folder / "index"


PICTURES = [picture(number) for number in range(12)]
TEXTS = [f"{list(COLOURS)[number % 5]}色的图片第{number}张" for number in range(12)]


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A calibrated checkpoint of recipe `tiny`."""
    from tests.training.conftest import moved_checkpoint

    return moved_checkpoint(tmp_path_factory.mktemp("served"))


@pytest.fixture(scope="session")
def index(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index of PICTURES with TEXTS."""
    return write_index(tmp_path_factory.mktemp("indexed"), tiny, PICTURES, TEXTS)


@pytest.fixture(scope="module")
def server(tiny: Path, index: Path) -> Iterator[Server]:
    """A server of the tiny checkpoint with one index, for each file: no thread of it is left where others fork."""
    with running(tiny, indexes={"pictures": index}) as served:
        yield served


@pytest.fixture(scope="session")
def features(tiny: Path) -> Callable[[str | bytes], Features]:
    """What `wenlan-train embed` makes of a text or a picture: [D]."""
    from training.use.encode import open_encoder

    encoder = open_encoder(tiny, "cpu")

    def of(one: str | bytes) -> Features:
        return (encoder.encode_text(one) if isinstance(one, str) else encoder.encode_image([one]))[0]

    return of
