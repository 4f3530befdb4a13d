"""Builds for the studio, and a studio that answers over HTTP in this process."""

from __future__ import annotations

import contextlib
import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pipeline.stages import STAGES, report
from pipeline.store import build_json
from pipeline.store.build import Build
from pipeline.store.build_json import Cost, Result
from pipeline.store.store import Store
from tests.stages import run_stage

WAIT_S = 120


def noted(build: Build) -> Build:
    """Note a build that was written through the store in build.json, with all of its stages done."""
    build_json.note(build)
    for name, own in build.passes.items():
        directory = build.stage(name)
        if not directory.finished():
            directory.finish(directory.partitions(), own.version)
        done = len(directory.partitions())
        build_json.note(build, Result(name, False, done, done, 0.0, {}, Cost()))
    return build_json.reopen(build.out, STAGES)


@pytest.fixture(scope="session")
def note_build() -> Callable[[Build], Build]:
    return noted


def _made(synthetic: Any, folder: Path, **options: Any) -> Build:
    build: Build = synthetic.make(folder, **options)[0]
    run_stage(build, "shard")
    build.store.check()
    report.write(build)
    return build


@pytest.fixture(scope="session")
def _once(synthetic: Any, tmp_path_factory: pytest.TempPathFactory) -> Build:
    return _made(synthetic, tmp_path_factory.mktemp("once"))


def _copied(build: Build, folder: Path) -> Build:
    out = Path(build.out)
    shutil.copytree(out.parent, folder, dirs_exist_ok=True)
    return replace(build, out=str(folder / out.name), store=Store(str(folder / "store")))


@pytest.fixture(scope="session")
def built(_once: Build, tmp_path_factory: pytest.TempPathFactory) -> Build:
    """The synthetic build, with shards and a report; tests do not change it."""
    return noted(_copied(_once, tmp_path_factory.mktemp("built")))


@pytest.fixture
def own(_once: Build, synthetic: Any, tmp_path: Path) -> Callable[..., Build]:
    """own(**options): the same with options of the spec, for tests that change it."""

    def make(**options: Any) -> Build:
        return noted(_made(synthetic, tmp_path, **options) if options else _copied(_once, tmp_path))

    return make


@pytest.fixture
def studio_of() -> Iterator[Callable[..., Any]]:
    """studio_of(place, ...): an open Studio whose index is ready."""
    from pipeline.studio.server import Studio

    with contextlib.ExitStack() as opened:

        def open_studio(place: str, **options: Any) -> Studio:
            studio = opened.enter_context(contextlib.closing(Studio(place, STAGES, **options)))
            studio.start()
            studio.opened.preparation.wait()
            assert studio.opened.preparation.fault == ""
            return studio

        yield open_studio


@pytest.fixture
def client_of(studio_of: Callable[..., Any]) -> Callable[..., Any]:
    """client_of(place, ...): an HTTP client of such a studio, with its token; `client.studio` is the studio."""
    from starlette.testclient import TestClient

    from pipeline.studio.server import app

    def connect(place: str, **options: Any) -> Any:
        studio = studio_of(place, **options)
        headers = {"Authorization": "Bearer secret"}
        client = TestClient(app(studio, "secret"), base_url="http://127.0.0.1:8765", headers=headers)
        client.studio = studio  # type: ignore[attr-defined]
        return client

    return connect


class Served:
    """A studio on a thread of this process, ready."""

    def __init__(self, place: str) -> None:
        from pipeline.studio.server import Studio, make_server

        self._studio, self._socket, self.token = Studio(place, STAGES), socket.create_server(("127.0.0.1", 0)), "secret"
        self._studio.start()
        self.base = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        self.link = f"{self.base}/?token={self.token}"
        self._server = make_server(self._studio, self.token)
        self._thread = threading.Thread(target=self._server.run, args=([self._socket],), daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join(WAIT_S)
        assert not self._thread.is_alive(), "it has not ended"
        self._socket.close()
        self._studio.close()


@pytest.fixture
def served() -> Iterator[Callable[..., Served]]:
    """served(place): a studio that answers over HTTP until the test ends."""
    with contextlib.ExitStack() as opened:

        def start(place: str) -> Served:
            one = Served(place)
            opened.callback(one.stop)
            return one

        yield start


@pytest.fixture
def indexed(own: Callable[..., Build]) -> Callable[..., Build]:
    """The same with a search index in BUILD/index: the vector of sample n is at the angle n / 10, so that neighbours
    are known beforehand."""

    def make(**options: Any) -> Build:
        import numpy as np

        from data_specs.search.folder import IndexInfo
        from data_specs.search.index import IndexWriter
        from data_specs.search.rows import ROWS
        from pipeline.store.frames import Frames

        build = own(**options)
        rows = Frames.of(build).frame("samples").sort_values("key").to_dict("records")
        angles = np.arange(len(rows)) / 10
        vectors_ND = np.stack([np.cos(angles), np.sin(angles), np.zeros(len(rows))], axis=1).astype(np.float32)
        table = pa.Table.from_pylist(
            [
                {"id": row["key"], "caption": row["texts"][0]["text"], "url": row["image_url"], "source": row["source"],
                 "page_url": row["page_url"], "split": row["split"], "width": row["width"], "height": row["height"]}
                for row in rows
            ],
            schema=pa.schema([f for f in ROWS if f.name in _GIVEN]),
        )  # fmt: skip
        about = IndexInfo(name="synthetic", width=3, images=True, texts=False)
        with IndexWriter.begin(Path(build.out) / "index", about) as writer:
            writer.add(table, vectors_ND, None)
            writer.finish()
        return build

    return make


_GIVEN = ("id", "caption", "url", "source", "page_url", "split", "width", "height")
