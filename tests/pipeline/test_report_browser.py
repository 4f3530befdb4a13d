"""The report in a real Chromium: no error, no request; filters, regions, search, languages; axe's accessibility rules.

Skipped where there is no Chromium (`apt-get install chromium`). It is driven by its own DevTools protocol.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from pipeline import drift, report, report_index
from pipeline.store import Build

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
AXE = importlib.util.find_spec("axe_core_python")
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking")
WAIT_S = 60

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine"),
    pytest.mark.skipif(AXE is None, reason="axe-core-python is not installed"),
]


class Page:
    """One page: `say` sends a command of the DevTools protocol, `run` evaluates JavaScript; events are kept."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket, self._number = socket, 0
        self.events: list[dict[str, Any]] = []

    async def say(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        await self._socket.send_json({"id": self._number, "method": method, "params": parameters})
        while True:
            found = await self._socket.receive_json(timeout=WAIT_S)
            if found.get("id") == self._number:
                assert "error" not in found, found
                return dict(found["result"])
            self.events.append(found)

    async def until(self, event: str) -> None:
        while not any(known["method"] == event for known in self.events):
            self.events.append(await self._socket.receive_json(timeout=WAIT_S))

    async def run(self, script: str) -> Any:
        found = await self.say("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    async def open(self, path: Path) -> float:
        """Open a file; gives the seconds until it is loaded and answers."""
        for domain in ("Page", "Runtime", "Log", "Network"):
            await self.say(f"{domain}.enable")
        start = time.perf_counter()
        await self.say("Page.navigate", url=path.as_uri())
        await self.until("Page.loadEventFired")
        await self.run("document.readyState")
        return time.perf_counter() - start

    def faults(self, path: Path) -> list[str]:
        """Console errors, exceptions, and requests to anything but the page itself."""
        found = []
        for event in self.events:
            said = event["params"]
            if event["method"] == "Log.entryAdded" and said["entry"]["level"] == "error":
                found.append(said["entry"]["text"])
            elif event["method"] == "Runtime.exceptionThrown":
                found.append(str(said["exceptionDetails"]))
            elif event["method"] == "Network.requestWillBeSent":
                url = said["request"]["url"]
                if url != path.as_uri() and not url.startswith("data:"):
                    found.append(f"asked for {url}")
        return found


@contextlib.contextmanager
def chromium(folder: Path) -> Iterator[str]:
    """A Chromium of its own; gives the address of its DevTools."""
    assert CHROMIUM is not None
    command = [CHROMIUM, *FLAGS, f"--user-data-dir={folder}", "--remote-debugging-port=0", "about:blank"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as process:
        assert process.stderr is not None
        try:
            for line in process.stderr:
                if found := re.search(r"ws://(127\.0\.0\.1:\d+)/", line):
                    yield found[1]
                    break
            else:
                pytest.fail("Chromium has not started")
        finally:
            process.kill()


def browse(path: Path, folder: Path, visit: Callable[[Page], Coroutine[Any, Any, None]]) -> None:
    async def work(address: str) -> None:
        async with aiohttp.ClientSession(trust_env=False) as session:
            async with session.get(f"http://{address}/json/list") as answer:
                targets = await answer.json(content_type=None)
            target = next(t for t in targets if t["type"] == "page")
            async with session.ws_connect(target["webSocketDebuggerUrl"], max_msg_size=0) as socket:
                page = Page(socket)
                await page.open(path)
                await visit(page)
                assert page.faults(path) == []

    with chromium(folder) as address:
        asyncio.run(work(address))


@pytest.fixture(scope="module")
def built(synthetic: Any, tmp_path_factory: pytest.TempPathFactory) -> Build:
    """The synthetic build with a report that is compared with another one."""
    from pipeline import shards

    build: Build = synthetic.make(tmp_path_factory.mktemp("built"))[0]
    for name in shards.partitions(build):
        shards.run_partition(build, name)
    report.write(build)
    before = drift.read(build.out)
    assert before is not None
    before["histograms"][0]["bins"][0]["count"] += 20
    report.write(build, before)
    return build


async def serious(page: Page) -> list[str]:
    """What axe finds serious or critical."""
    assert AXE is not None
    assert AXE.origin is not None
    await page.run((Path(AXE.origin).parent / "axe.min.js").read_text("utf-8"))
    found = json.loads(await page.run("axe.run().then(r => JSON.stringify(r.violations))"))
    return [f"{v['id']}: {v['nodes'][0]['html'][:200]}" for v in found if v["impact"] in ("serious", "critical")]


def test_the_report_works_and_asks_for_nothing(built: Build, tmp_path: Path) -> None:
    async def visit(page: Page) -> None:
        shown = "[...document.querySelectorAll('#sheet > li')].filter(n => n.offsetParent !== null).length"
        everything = await page.run(shown)
        assert everything > 40

        async def choose(name: str, value: str) -> int:
            change = f"n.value = '{value}'; n.dispatchEvent(new Event('input', {{bubbles: true}}));"
            await page.run(f"(() => {{ const n = document.getElementById('{name}'); {change} }})()")
            return int(await page.run(shown))

        assert await choose("by-reason", "kept") == 30
        assert await choose("by-source", "table") == 10
        assert await choose("by-source", "") == 30
        assert await choose("by-text", "第12幅") == 1
        await choose("by-text", "")
        assert await choose("by-reason", "") == everything
        boxes = "[...document.querySelectorAll('svg.boxes')].filter(n => n.getClientRects().length).length"
        assert await page.run(boxes) == 0
        await page.run("document.getElementById('show-boxes').click()")
        assert await page.run(boxes) > 30
        await page.run("document.getElementById('language').click()")
        assert await page.run("document.documentElement.lang") == "zh"
        assert "每个候选的去向" in await page.run("document.body.innerText")
        assert "文本过短" in await page.run("document.querySelector('.funnel').innerText")
        wide = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
        await page.say("Emulation.setDeviceMetricsOverride", width=390, height=844, deviceScaleFactor=2, mobile=True)
        assert await page.run(wide) <= 0, "nothing sticks out on a phone"

    browse(Path(built.out) / "report/index.html", tmp_path, visit)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_finds_nothing_serious(built: Build, tmp_path: Path, theme: str) -> None:
    async def visit(page: Page) -> None:
        await page.run(
            f"document.documentElement.dataset.theme = '{theme}'; document.getElementById('show-boxes').click()"
        )
        assert await serious(page) == []

    browse(Path(built.out) / "report/index.html", tmp_path, visit)


def test_the_index_over_builds_works_too(built: Build, tmp_path: Path) -> None:
    folder = tmp_path / "all"
    shutil.copytree(Path(built.out) / "report", folder / "a/report")
    path, _ = report_index.write(str(folder))

    async def visit(page: Page) -> None:
        assert await serious(page) == []
        await page.run("document.getElementById('language').click()")
        assert "构建" in await page.run("document.querySelector('h1').innerText")

    browse(Path(path), tmp_path / "profile", visit)
