"""Fetches images with img2dataset (https://github.com/rom1504/img2dataset), behind our rules: `fetch.engine`.

    this process                                  child process
    list of addresses of a gateway on loopback -> img2dataset.download(...), with its processes and threads
    the gateway: one request, by ImageFetcher  <- GET http://127.0.0.1:PORT/TOKEN/NUMBER
    bytes, or why they are missing             <- its tars and tables, in a temporary folder

img2dataset runs as its users run it: its public `download`, in a process of its own for each partition. What it asks
for are addresses of a gateway on loopback, one for each image, and the gateway asks for the image by
`pipeline.web.images`. So the address guard, robots.txt, the pace of hosts, redirects, opt-outs, byte caps and retries
are the same with either engine, for https too, and no module of img2dataset or urllib is patched.

img2dataset keeps the original bytes (`disable_all_reencoding`): an image is known by the sha256 of its bytes, and a
resized copy would take the place of the original in STORE for all builds.

Limits: importing img2dataset takes 1.4 to 3.5 s and 250 to 410 MB in each of its processes; bytes pass through loopback
once more.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import os
import secrets
import signal
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from data_specs.build import Fetch
from pipeline.errors import StageError
from pipeline.web.images import Accept, Image, ImageFetcher

PATIENCE_S = 24 * 3600
"""Seconds for which img2dataset waits for the gateway, which has time limits of its own, and the pace of hosts."""

_PROGRAM = "import json, sys; from img2dataset import download; download(**json.loads(sys.argv[1]))"


async def download(fetcher: ImageFetcher, urls: list[str], accept: Accept, fetch: Fetch) -> None:
    """Fetch URLs by img2dataset. Raises what `accept` raises, and StageError where img2dataset fails."""
    with tempfile.TemporaryDirectory(prefix="wenlan-img2dataset-") as name:
        folder = Path(name)
        async with _Gateway(fetcher, urls, accept) as gateway:
            addresses = [f"{gateway.address}/{number}" for number in range(len(urls))]
            pq.write_table(pa.table({"url": addresses}), folder / "urls.parquet")
            options = _options(folder, len(urls), fetch)
            log = await gateway.while_answering(_run(folder, options))
        for number, body in _read_output(folder / "out"):
            accept(urls[number], gateway.images.pop(number).with_body(body))
        if gateway.images or gateway.unasked:
            missing = len(gateway.images) + gateway.unasked
            raise StageError("fetch", f"img2dataset returned no outcome for {missing} of {len(urls)} images ({log})")


def _options(folder: Path, images: int, fetch: Fetch) -> dict[str, Any]:
    """Arguments of `img2dataset.download`."""
    processes = fetch.img2dataset.processes_count
    return {
        "url_list": str(folder / "urls.parquet"),
        "input_format": "parquet",
        "output_folder": str(folder / "out"),
        "output_format": "webdataset",
        "processes_count": processes,
        "thread_count": fetch.threads,
        "number_sample_per_shard": max(2, math.ceil(images / processes)),
        "disable_all_reencoding": True,
        "extract_exif": False,
        "compute_hash": None,
        "timeout": PATIENCE_S,
        "retries": 0,  # of the stage, which knows what may pass
        "max_shard_retry": 0,
        "disallowed_header_directives": [],  # the gateway has judged the headers
    }


async def _run(folder: Path, options: dict[str, Any]) -> str:
    """Run img2dataset; returns its last words. Raises StageError where it fails."""
    environment = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    with (folder / "log").open("wb") as log:
        child = await asyncio.create_subprocess_exec(
            sys.executable, "-c", _PROGRAM, json.dumps(options),
            cwd=folder, env=environment | {"NO_ALBUMENTATIONS_UPDATE": "1"}, stdout=log, stderr=log,
            start_new_session=True,  # it starts processes, which end with it
        )  # fmt: skip
        try:
            code = await child.wait()
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            await child.wait()
    lines = (folder / "log").read_text("utf-8", "replace").split("\n")
    last = next((line.strip() for line in reversed(lines) if line.strip()), "no output")[-300:]
    if code:
        raise StageError("fetch", f"img2dataset exited with code {code}: {last}")
    return last


def _read_output(folder: Path) -> Iterator[tuple[int, bytes]]:
    """(number of the image in the list, its bytes) of all that img2dataset has written."""
    for table in sorted(folder.glob("*.parquet")):
        rows = pq.read_table(table, columns=["key", "url"])
        numbers = {row["key"]: int(row["url"].rpartition("/")[2]) for row in rows.to_pylist()}
        with tarfile.open(table.with_suffix(".tar")) as tar:
            for member in tar:
                key, _, suffix = member.name.rpartition(".")
                if suffix == "jpg":  # its name for any picture that it does not encode
                    file = tar.extractfile(member)
                    assert file is not None
                    yield numbers[key], file.read()


class _Gateway:
    """An HTTP server on loopback that answers /TOKEN/NUMBER with the image of that number. Use as a context manager.

    Failures go to `accept` at once. images: those that were handed to img2dataset, without their bytes, by number.
    unasked: how many were not asked for yet.
    """

    def __init__(self, fetcher: ImageFetcher, urls: list[str], accept: Accept) -> None:
        self._fetcher, self._urls, self._accept = fetcher, urls, accept
        self._token = secrets.token_urlsafe(16)  # of loopback: any other user's process could ask, too
        self._fault: asyncio.Future[None] | None = None
        self._runner: Any = None
        self.images: dict[int, Image] = {}
        self.unasked = len(urls)

    async def __aenter__(self) -> _Gateway:
        from aiohttp import web

        self._fault = asyncio.get_running_loop().create_future()
        app = web.Application()
        app.router.add_get(f"/{self._token}/{{number:[0-9]+}}", self._answer)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()

    @property
    def address(self) -> str:
        """The address of the images, without their numbers."""
        host, port = self._runner.addresses[0][:2]
        return f"http://{host}:{port}/{self._token}"

    async def while_answering(self, work: Any) -> Any:
        """The result of `work`. Raises what `accept` raises meanwhile."""
        assert self._fault is not None
        task = asyncio.ensure_future(work)
        await asyncio.wait({task, self._fault}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            self._fault.result()
        return task.result()

    async def _answer(self, request: Any) -> Any:
        from aiohttp import web

        number = int(request.match_info["number"])
        try:
            outcome = await self._fetcher.fetch(self._urls[number])
            self.unasked -= 1
            if isinstance(outcome, Image):
                self.images[number] = outcome.with_body(b"")
                return web.Response(body=outcome.body, content_type="application/octet-stream")
            self._accept(self._urls[number], outcome)
            return web.Response(status=502, text=str(outcome))
        except Exception as e:
            assert self._fault is not None
            if not self._fault.done():
                self._fault.set_exception(e)
            raise
