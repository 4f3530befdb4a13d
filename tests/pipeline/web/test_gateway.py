"""gateway: an img2dataset that fails, or a fault of ours, ends the fetch. Real downloads by it: test_images.py."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from data_specs.build import Fetch
from pipeline.errors import StageError
from pipeline.web import gateway
from tests.pipeline.web.test_images import Fetcher


@pytest.mark.parametrize(("program", "says"), [
    ("raise SystemExit('the disk of a.cn is full')", "img2dataset exited with code 1: the disk of a.cn is full"),
    ("print('Done')", r"img2dataset returned no outcome for 3 of 3 images \(Done\)"),
])  # fmt: skip
def test_an_img2dataset_that_fails_is_one_line(monkeypatch: pytest.MonkeyPatch, program: str, says: str) -> None:
    monkeypatch.setattr(gateway, "_PROGRAM", program)
    urls = [f"http://a.cn/{n}" for n in range(3)]
    with pytest.raises(StageError, match=says):
        asyncio.run(gateway.download(Fetcher(16), urls, lambda *_: None, Fetch()))


ASKS = """
import json, sys, time, urllib.request, pyarrow.parquet as pq
[first, *_] = pq.read_table(json.loads(sys.argv[1])["url_list"])["url"].to_pylist()
try:
    urllib.request.urlopen(first.replace("/0", "/7"))
except OSError:
    pass
time.sleep(600)
"""


@pytest.mark.slow
def test_a_fault_of_ours_ends_img2dataset_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(gateway, "_PROGRAM", ASKS)
    started, start = [], asyncio.create_subprocess_exec

    async def noted(*arguments: Any, **options: Any) -> Any:
        started.append(await start(*arguments, **options))
        return started[0]

    monkeypatch.setattr(asyncio, "create_subprocess_exec", noted)
    with pytest.raises(OSError, match="No space left"):
        asyncio.run(gateway.download(Fetcher(16), [f"http://a.cn/{n}" for n in range(8)], full, Fetch()))
    assert started[0].returncode == -9
