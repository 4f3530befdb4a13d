"""A server of a tiny checkpoint with one index, and a browser that visits its page."""

from __future__ import annotations

import importlib.util
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from data_specs.search.index import IndexWriter
from tests import browser
from tests.training.conftest import moved_checkpoint
from tests.training.serve.conftest import Server, running
from tests.training.serve.page.pictured import FEW, ROWS, drawn, row, text_of
from tests.training.serve.page.visitor import Visitor
from training.outputs.atomic_files import add_tensors
from training.outputs.background import BACKGROUND_FILE, Background
from training.outputs.checkpoint import open_checkpoint
from training.use.encode import open_encoder
from training.use.indexing import index_info


@dataclass(frozen=True)
class Made:
    """What a server needs."""

    checkpoint: Path
    index: Path
    few: Path

    @property
    def indexes(self) -> dict[str, Path]:
        """The index by the name that tests know it by."""
        return {"pictures": self.index}


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A tiny checkpoint with a background of scores, an index of ROWS pictures with texts, and one of FEW of them."""
    if browser.CHROMIUM is None or importlib.util.find_spec("axe_core_python") is None:
        pytest.skip("needs Chromium and axe-core-python")
    folder = tmp_path_factory.mktemp("page")
    checkpoint = moved_checkpoint(folder / "checkpoint")
    encoder, opened = open_encoder(checkpoint, "cpu"), open_checkpoint(checkpoint)
    rows = [row(number, folder) for number in range(ROWS)]
    images = encoder.encode_image([drawn(number) for number in range(ROWS)])
    texts = encoder.encode_text([text_of(number) for number in range(ROWS)])
    apart = (images @ texts.T)[~np.eye(ROWS, dtype=np.bool_)]
    add_tensors(opened.folder, BACKGROUND_FILE, Background.of(apart, ROWS, ROWS).tensors())
    copies = encoder.encode_image([Path(r["where"]["path"]).read_bytes() for r in rows])

    def index(name: str, count: int) -> Path:
        with IndexWriter.begin(folder / name, index_info(open_checkpoint(checkpoint), "pictures")) as writer:
            writer.add(pa.Table.from_pylist(rows[:count]), copies[:count], texts[:count])
            writer.finish()
        return folder / name

    return Made(checkpoint, index("index", ROWS), index("few", FEW))


@pytest.fixture(scope="module")
def served(made: Made) -> Iterator[Server]:
    """The server that the tests of a file share: no thread of it is left where others fork."""
    with running(made.checkpoint, indexes=made.indexes) as server:
        yield server


@pytest.fixture
def visit(served: Server) -> Callable[[Callable[[Visitor], Awaitable[None]]], None]:
    """visit(work): work(Visitor) on the shared server; the page then has no fault, and asked for nothing elsewhere."""

    def visit(work: Callable[[Visitor], Awaitable[None]]) -> None:
        async def whole(page: Any) -> None:
            visitor = Visitor(page, served.url)
            await visitor.desk()
            await work(visitor)
            assert page.faults(served.url) == []
            assert await page.run("window.broken") is None

        browser.visit(whole)

    return visit
